"""Tiny models with random weights, saved as users' files are: enough for everything but good captions."""

import json
from pathlib import Path

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_tiny_clip(folder: Path, seed: int = 0, **config) -> Path:
    """An open_clip folder, as open_clip itself saves one: 32 x 32 pixels -> 16 numbers."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**TINY_CLIP, **config)
    saved = {"model_cfg": {**TINY_CLIP, **config}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(saved))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
