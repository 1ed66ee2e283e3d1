"""Train everything that the demo world ships, from nothing: its CLIP, its GPT-2 and the literal captioner.

    python -m demo.build

Ten to fifteen minutes on two cores. The seed is fixed; the last digits of the weights depend on the processor. Single
parts, each of which builds on those before it, are trained anew by name:

    python -m demo.build gpt2 literal
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from clipcap.cli import run
from clipcap.clip.encoder import ClipEncoder
from clipcap.errors import UserError
from clipcap.model.batches import encode_captions
from clipcap.model.clipcap import ClipCap
from clipcap.model.config import ClipCapConfig
from clipcap.model.gpt2 import end_of_text, load_language_model, load_tokenizer, plain_gpt2_config
from clipcap.training.loader import CaptionDataset
from clipcap.training.trainer import LoopArguments, Trainer
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint
from clipcap.world.judge import shares
from clipcap.world.scenes import Scene, combinations, scenes
from clipcap.world.shipped import CLIP, GPT2, LITERAL, WEIGHTS
from demo.build_clip import draw_pixels, train_clip
from demo.build_gpt2 import train_gpt2

PARTS = ("clip", "gpt2", "literal")
LAPS = 10  # pictures of every training combination
PREFIX_LENGTH = 4
LOOP = {"epochs": 2, "batch_size": 64, "learning_rate": 3e-4, "evals_per_epoch": 1}


def main(argv: Sequence[str] | None = None) -> None:
    parts = list(argv or PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"unknown part {unknown[0]!r} to build; choose from {', '.join(PARTS)}")
    start = time.perf_counter()
    pictured = list(scenes("train", LAPS * len(combinations("train"))))
    pixels = draw_pixels(pictured) if {"clip", "literal"} & set(parts) else None  # (N, 64, 64, 3)
    if "clip" in parts:
        train_clip(pictured, pixels, CLIP)
    if "gpt2" in parts:
        train_gpt2(GPT2)
    if "literal" in parts:
        train_literal(pictured, pixels)
        print(report())
    print(f"{', '.join(parts)} in {(time.perf_counter() - start) / 60:.1f} minutes: {WEIGHTS}")


def train_literal(pictured: list[Scene], pixels: Tensor) -> None:
    """A ClipCap with an MLP mapping network on literal captions, through the project's own loop, to LITERAL."""
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
        gpt2=plain_gpt2_config(gpt.config),
        stop_token=end_of_text(tokenizer),
        tokenizer=tokenizer.to_str(),
    )
    model = ClipCap(config)
    model.gpt.load_state_dict(gpt.state_dict())
    held_out = list(scenes("validation"))
    data = [
        CaptionDataset(
            torch.cat([encoder.encode_pixels(part) for part in shown.split(256)]).numpy(),
            encode_captions(tokenizer, [scene.literal for scene in named], max_tokens=67),
        )
        for named, shown in ((pictured, pixels), (held_out, draw_pixels(held_out)))
    ]
    with TemporaryDirectory() as folder:
        args = LoopArguments(output_dir=folder, device="cpu", precision="fp32", **LOOP)
        record = {"data": {"name": "demo world, literal captions", "rows": len(pictured)}, "arguments": LOOP}
        best = load_checkpoint(Trainer(model, *data, args, "literal", "literal_weights.pt", record).run())
    save_checkpoint(best.half(), LITERAL)


def report() -> str:
    """What the literal captioner says about the held-out pictures, judged, and the size of what ships."""
    from clipcap.captioning.captioner import Captioner

    pictured = list(scenes("test"))
    captions = Captioner.load("demo")([scene.draw() for scene in pictured])
    size = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    return f"literal captioner on {len(pictured)} held-out pictures: {shares(captions, pictured)}\n{size / 1e6:.1f} MB"


if __name__ == "__main__":
    run(main)
