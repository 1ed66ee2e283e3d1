"""Train all the weights of the demo world from scratch: its CLIP, its GPT-2 and its literal captioner.

    python -m demo.build

This takes ten to fifteen minutes on two cores. The seed is fixed, but the last digits of the weights depend on the
processor. Parts can also be trained by name; each part builds on those before it:

    python -m demo.build gpt2 literal
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from clipcap.cli.status import run
from clipcap.clip.encoder import ClipEncoder
from clipcap.errors import UserError
from clipcap.model.batches import encode_captions
from clipcap.model.clipcap import ClipCap
from clipcap.model.config import ClipCapConfig
from clipcap.model.language_model import end_of_text, load_language_model, load_tokenizer
from clipcap.model.networks import plain_settings
from clipcap.training.arguments import LoopArguments
from clipcap.training.loader import CaptionDataset
from clipcap.training.trainer import Trainer
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint
from clipcap.world.judge import shares
from clipcap.world.scenes import Scene, combinations, scenes
from clipcap.world.shipped import CLIP, GPT2, LITERAL, WEIGHTS
from demo.build_clip import draw_pixels, train_clip
from demo.build_gpt2 import train_gpt2

PARTS = ("clip", "gpt2", "literal")
LAPS = 10  # pictures of each training combination
PREFIX_LENGTH = 4
LOOP: dict[str, Any] = {"epochs": 2, "batch_size": 64, "learning_rate": 3e-4, "evals_per_epoch": 1}


def main(argv: Sequence[str] | None = None) -> None:
    """Train the parts that are named, or all of them. Raises UserError for an unknown name."""
    parts = list(argv or PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"unknown part {unknown[0]!r} to build; choose from {', '.join(PARTS)}")
    start = time.perf_counter()
    pictured = list(scenes("train", LAPS * len(combinations("train"))))
    pixels = draw_pixels(pictured) if {"clip", "literal"} & set(parts) else torch.empty(0)  # (N, 64, 64, 3)
    if "clip" in parts:
        train_clip(pictured, pixels, CLIP)
    if "gpt2" in parts:
        train_gpt2(GPT2)
    if "literal" in parts:
        train_literal(pictured, pixels)
        print(report())
    print(f"{', '.join(parts)} in {(time.perf_counter() - start) / 60:.1f} minutes: {WEIGHTS}")


def train_literal(pictured: list[Scene], pixels: Tensor) -> None:
    """Train a ClipCap with an MLP mapping network on literal captions, with the project's own loop; write LITERAL.

    `pixels` are those of the scenes: uint8 (N, 64, 64, 3).
    """
    torch.manual_seed(0)
    encoder = ClipEncoder.load("demo")
    tokenizer = load_tokenizer("demo")
    gpt = load_language_model("demo")
    config = ClipCapConfig(
        clip_model="demo",
        clip_pretrained=encoder.pretrained,
        clip_dim=encoder.dim,
        prefix_length=PREFIX_LENGTH,
        language_model="demo",
        gpt2=plain_settings(gpt.config),
        stop_token=end_of_text(tokenizer),
        tokenizer=tokenizer.to_str(),
    )
    model = ClipCap(config)
    model.gpt.load_state_dict(gpt.state_dict())
    held_out = list(scenes("validation"))
    train, validation = (
        CaptionDataset(
            torch.cat([encoder.encode_pixels(part) for part in shown.split(256)]).numpy(),
            encode_captions(tokenizer, [scene.literal for scene in named], max_tokens=67),
        )
        for named, shown in ((pictured, pixels), (held_out, draw_pixels(held_out)))
    )
    with TemporaryDirectory() as folder:
        args = LoopArguments(output_dir=folder, device="cpu", precision="fp32", **LOOP)
        record = {"data": {"name": "demo world, literal captions", "rows": len(pictured)}, "arguments": LOOP}
        best = load_checkpoint(Trainer(model, train, validation, args, "literal", "literal_weights.pt", record).run())
    save_checkpoint(best.half(), LITERAL)


def report() -> str:
    """How many captions of the literal captioner are right on held-out pictures, and the size of all weights."""
    from clipcap.captioning.captioner import Captioner

    pictured = list(scenes("test"))
    captions = Captioner.load("demo")([scene.draw() for scene in pictured])
    size = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    return f"literal captioner on {len(pictured)} held-out pictures: {shares(captions, pictured)}\n{size / 1e6:.1f} MB"


if __name__ == "__main__":
    run(main)
