"""Tiny ClipCap models with random weights, and the golden files of the published code as models."""

from pathlib import Path

import torch

from clipcap.model import ClipCap, ClipCapConfig

VOCABULARY = 211
STOP = 106  # a token that the tiny models like


def tiny_config(mapping: str = "mlp", **changes) -> ClipCapConfig:
    gpt2 = {"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
    values = {"clip_dim": 16, "mapping": mapping, "prefix_length": 4, "clip_length": 3, "mapping_layers": 2}
    values |= {"mapping_heads": 4, "gpt2": gpt2, "stop_token": STOP}
    return ClipCapConfig(**(values | changes))


def tiny_model(mapping: str = "mlp", seed: int = 2, **changes) -> ClipCap:
    """A model whose logits are spread enough for captions to differ."""
    torch.manual_seed(seed)
    model = ClipCap(tiny_config(mapping, **changes)).eval()
    with torch.no_grad():
        for parameter in model.gpt.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return model


def golden(shared: Path, name: str, tmp_path: Path) -> tuple[dict, ClipCap]:
    """The figures of the published code, and its weights loaded as a published file."""
    from clipcap.checkpoint import load_checkpoint

    figures = torch.load(shared / "golden" / f"{name}.pt", weights_only=True)
    torch.save(figures["state_dict"], tmp_path / f"{name}.pt")
    config = figures["config"]
    return figures, load_checkpoint(tmp_path / f"{name}.pt", heads=config["heads"], stop_token=config["stop"])


def byte_tokenizer():
    """GPT-2's byte-level tokenizer without merges: one token per byte, so that an emoji takes four."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer
