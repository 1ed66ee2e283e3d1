"""Train the tiny CLIP on pictures of the demo world and their captions.

Shapes: N pictures, B batch, C CLIP width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from clipcap.cli.progress import ProgressBar
from clipcap.clip.preprocessing import Preprocessing
from clipcap.world.scenes import Scene, combinations

END, PAD = "<|endoftext|>", "<|pad|>"
PREPROCESSING = Preprocessing(size=(64, 64))
CONTEXT = 48  # tokens
EPOCHS, BATCH, LEARNING_RATE, DECAY = 12, 256, 2e-3, 0.1


def train_bpe(texts: list[str], vocabulary: int, specials: list[str]) -> Tokenizer:
    """A byte-level BPE like GPT-2's. `specials` get the highest ids, in their order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(specials),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(specials)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, **special: str) -> None:
    """Save in the form that transformers reads; `**special` names further special tokens."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def train_clip(pictured: list[Scene], pixels: Tensor, folder: Path, seed: int = 0) -> None:
    """Train on scenes and write config, weights and tokenizer to `folder`, as open_clip saves them.

    Args:
        pictured: the scenes; lap by lap, each lap with every training combination once.
        pixels: what `draw_pixels` gives for these scenes, uint8 (N, 64, 64, 3).
        folder: created where it does not exist.
        seed: of the weights and the order of batches.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_bpe([text for scene in pictured for text in (scene.literal, scene.post())], 1024, [PAD, END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    save_tokenizer(tokenizer, folder, pad_token=PAD)
    config = _config(tokenizer.get_vocab_size())
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model = open_clip.CLIP(**config["model_cfg"])
    _fit(model, pixels, pictured, open_clip.get_tokenizer(f"local-dir:{folder}"), Random(f"clip {seed}"))
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")


def _config(vocabulary: int) -> dict[str, Any]:
    return {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary,
                "hf_tokenizer_name": ".",  # the tokenizer is in this folder
                "width": 96,
                "heads": 3,
                "layers": 2,
            },
        },
        "preprocess_cfg": {"mean": list(PREPROCESSING.mean), "std": list(PREPROCESSING.std)},
    }


def draw_pixels(pictured: list[Scene]) -> Tensor:
    """The scenes as CLIP sees them, drawn in two processes: uint8 (N, 64, 64, 3)."""
    with ProcessPoolExecutor(2) as pool:
        drawn = pool.map(_pixels, pictured, chunksize=64)
        return torch.from_numpy(np.stack(list(ProgressBar(drawn, "drawing", len(pictured), unit=" pictures"))))


def _pixels(scene: Scene) -> np.ndarray:
    return PREPROCESSING.pixels(scene.draw())


def adamw(model: nn.Module, learning_rate: float, decay: float, steps: int) -> tuple[AdamW, OneCycleLR]:
    """The optimizer and its schedule: weight decay on matrices only, and 10% of the steps to warm up."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    return optimizer, OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)


def take_step(model: nn.Module, loss: Tensor, optimizer: AdamW, schedule: OneCycleLR) -> None:
    """One step of training, with gradients clipped to norm 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _fit(
    model: open_clip.CLIP,
    pixels: Tensor,
    pictured: list[Scene],
    tokenize: Callable[[list[str]], Tensor],
    chance: Random,
) -> None:
    """Contrastive training (Radford et al. 2021): in each batch, a picture belongs to its own text and to no other."""
    mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)
    mean_pixel = (mean * 255).to(torch.uint8)
    lap = len(combinations("train"))
    steps = EPOCHS * (len(pictured) // lap) * -(-lap // BATCH)
    optimizer, schedule = adamw(model, LEARNING_RATE, DECAY, steps)
    model.train()
    with ProgressBar(total=steps, desc="CLIP", unit=" steps") as progress:
        for epoch in range(EPOCHS):
            for batch in _batches(len(pictured), lap, chance):
                texts = [pictured[i].literal if chance.random() < 0.5 else pictured[i].post(epoch) for i in batch]
                images = _shifted(pixels[batch], mean_pixel, chance)
                images = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()  # (B, 3, 64, 64)
                image_features = normalize(model.encode_image(images), dim=-1)  # (B, C)
                text_features = normalize(model.encode_text(tokenize(texts)), dim=-1)
                logits = model.logit_scale.exp().clamp(max=100) * image_features @ text_features.T  # (B, B)
                target = torch.arange(len(batch))
                loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
                take_step(model, loss, optimizer, schedule)
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def _batches(count: int, lap: int, chance: Random) -> list[list[int]]:
    """Batches in which no two pictures show the same combination, since each lap shows every combination once.

    Two pictures of one combination would share a text, and the loss would count it as wrong for one of them.
    """
    laps = [list(range(start, start + lap)) for start in range(0, count, lap)]
    for order in laps:
        chance.shuffle(order)
    batches = [order[start : start + BATCH] for order in laps for start in range(0, lap, BATCH)]
    chance.shuffle(batches)
    return batches


def _shifted(pixels: Tensor, fill: Tensor, chance: Random, most: int = 4) -> Tensor:
    """The batch (B, H, W, 3) moved by up to `most` pixels, and mirrored half of the time."""
    moved = fill.expand_as(pixels).clone()
    dx, dy = chance.randint(-most, most), chance.randint(-most, most)
    size = pixels.shape[1]
    to_y, to_x = (slice(max(0, d), size + min(0, d)) for d in (dy, dx))
    from_y, from_x = (slice(max(0, -d), size + min(0, -d)) for d in (dy, dx))
    moved[:, to_y, to_x] = pixels[:, from_y, from_x]
    return moved.flip(2) if chance.random() < 0.5 else moved
