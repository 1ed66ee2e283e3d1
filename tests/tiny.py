"""Tiny models with random weights and small data sets, saved as users' files are, and the golden files as models.

Enough for everything but good captions.
"""

import json
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from clipcap.model.clipcap import ClipCap
from clipcap.model.config import ClipCapConfig

VOCABULARY = 211
STOP = 106  # a token that the tiny models like
# Tests whose tensors have no numbers and are on a GPU: `FakeTensorMode` of PyTorch 2.8 asks the driver for one.
needs_pretended_gpu = pytest.mark.skipif(
    not hasattr(torch._C, "_ensureCUDADeviceGuardSet") and not torch.cuda.is_available(),
    reason="this PyTorch cannot pretend that there is a GPU",
)


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


def move_logits(model: ClipCap, by: float) -> None:
    """Let the logits of all tokens be larger by one number, through the first of their features."""
    model.untie_head()
    with torch.no_grad():
        model.gpt.transformer.ln_f.weight[0], model.gpt.transformer.ln_f.bias[0] = 0, 10
        model.head.weight[:, 0] = by / 10


@contextmanager
def soon(seconds: int) -> Iterator[None]:
    """Fail where the body takes longer: a hang would otherwise stop all the tests."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def compress(path: Path, ending: str) -> None:
    """Write a file of `torch.save` anew, with the members that end so compressed, as PyTorch reads but never writes."""
    with zipfile.ZipFile(path) as file:
        members = {member.filename: file.read(member) for member in file.infolist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content, zipfile.ZIP_DEFLATED if name.endswith(ending) else zipfile.ZIP_STORED)


def golden(shared: Path, name: str, tmp_path: Path) -> tuple[dict, ClipCap]:
    """The figures of the published code, and its weights loaded as a published file."""
    from clipcap.weights.checkpoint import load_checkpoint

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


class Zeros:
    """Unpickled, it is a million zeros."""

    def __reduce__(self):
        return (bytearray, (1_000_000,))


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
        model = open_clip.CLIP(**(TINY_CLIP | config))
    saved = {"model_cfg": TINY_CLIP | config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(saved))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def tiny_tokenizer():
    """A byte-level BPE like GPT-2's, trained on a few captions: 300-odd tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    captions = ["a dog on the beach 🐶 #dog", "two cats in the sun ☀️ @cat", "golden hour at the lake ✨ #sunset"]
    tokenizer.train_from_iterator(captions * 4, trainer)
    return tokenizer


def tiny_captioner_model(seed: int = 0, **changes):
    """A ClipCap with random weights for the tiny CLIP and tokenizer; its logits are spread, so that captions differ."""
    import torch

    from clipcap.model.clipcap import ClipCap
    from clipcap.model.config import ClipCapConfig

    tokenizer = tiny_tokenizer()
    size = tokenizer.get_vocab_size()
    gpt2 = {"vocab_size": size, "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = {"clip_dim": 16, "prefix_length": 4, "gpt2": gpt2, "tokenizer": tokenizer.to_str()}
    config |= {"stop_token": tokenizer.token_to_id("<|endoftext|>")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ClipCap(ClipCapConfig(**(config | changes))).eval()
        with torch.no_grad():
            for parameter in model.gpt.parameters():
                parameter.mul_(6 if parameter.ndim > 1 else 1)
            for parameter in model.clip_project.parameters():
                parameter.mul_(20)
    return model


def save_tiny_weights(folder: Path, seed: int = 0, literal: bool = False, **changes) -> Path:
    """A tiny CLIP and a tiny ClipCap for it -> the file of weights."""
    from clipcap.weights.checkpoint import save_checkpoint

    clip = save_tiny_clip(folder / "clip")
    model = tiny_captioner_model(seed, clip_model=str(clip), clip_pretrained=None, **changes)
    if literal:
        model.literal_captioner = tiny_captioner_model(seed + 1)
    save_checkpoint(model, folder / "weights.pt")
    return folder / "weights.pt"


def save_hub_folder(folder: Path, splits: dict[str, list[str]], image: bytes) -> Path:
    """The layout of the Instagram data set on the hub. Image "11" is broken, "12" has no caption."""
    from datasets import Dataset, Features, Image, Value

    text = Value("string")
    features = Features(image=Image(), item_id=text, image_path=text, caption=text)
    (folder / "data").mkdir(parents=True)
    for split, ids in splits.items():
        rows = {
            "image": [{"bytes": image if i != "11" else b"broken", "path": f"{i}.png"} for i in ids],
            "item_id": ids,
            "image_path": [f"images/{i}.png" for i in ids],
            "caption": [f"caption {i}" if i != "12" else None for i in ids],
        }
        Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder
