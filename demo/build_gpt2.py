"""Train the tiny GPT-2 and its byte-level BPE on the text of `corpus`, as a plain language model.

Shapes: B batch, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from clipcap.cli.progress import ProgressBar
from demo.build_clip import END, adamw, save_tokenizer, take_step, train_bpe
from demo.corpus import SIGNS, WORDS, documents

VOCABULARY, POSITIONS, WIDTH, LAYERS, HEADS = 1100, 128, 192, 3, 3
DOCUMENTS, BATCH = 90_000, 16  # documents, each of which is read once; rows of POSITIONS tokens per step
LEARNING_RATE, DECAY = 3e-3, 0.1


def train_gpt2(folder: Path, seed: int = 0) -> None:
    """Train, and write config, weights and tokenizer to `folder`, in the form that transformers reads."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(ProgressBar(documents(DOCUMENTS, seed), "writing", DOCUMENTS, unit=" documents"))
    tokenizer = train_bpe(_in_pieces(texts[: DOCUMENTS // 4]), VOCABULARY, [END])
    save_tokenizer(tokenizer, folder, bos_token=END, unk_token=END)
    end = tokenizer.token_to_id(END)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokenizer.get_vocab_size(),
            n_positions=POSITIONS,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
        )
    )
    fit(model, rows(tokenizer, texts))
    model.half().save_pretrained(folder)


def _in_pieces(texts: list[str]) -> list[str]:
    """What BPE learns from: hashtags and emoji one by one, or "#redcat" and whole rows of emoji would become tokens."""
    words = [re.sub(r"#\w+|[^\x00-\x7f]", "", text) for text in texts]
    pieces = [f" {sign}" for sign in SIGNS] + list(SIGNS) + [f" #{word}" for word in WORDS]
    return words + pieces * (len(texts) // 100)


def rows(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """The documents one after the other, each followed by end-of-text, cut into rows of T = POSITIONS tokens."""
    end = tokenizer.token_to_id(END)
    ids = [token for encoding in tokenizer.encode_batch(texts) for token in (*encoding.ids, end)]
    return torch.tensor(ids[: len(ids) // POSITIONS * POSITIONS]).view(-1, POSITIONS)


def fit(model: GPT2LMHeadModel, tokens: Tensor) -> None:
    """Train in one pass over the rows (rows, T)."""
    batches = tokens[torch.randperm(len(tokens))].split(BATCH)
    optimizer, schedule = adamw(model, LEARNING_RATE, DECAY, len(batches))
    model.train()
    progress = ProgressBar(batches, "GPT-2", unit=" steps")
    for batch in progress:  # (B, T)
        logits = model(batch[:, :-1], use_cache=False).logits  # (B, T - 1, V)
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        take_step(model, loss, optimizer, schedule)
        progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
