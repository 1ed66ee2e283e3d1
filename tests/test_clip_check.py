"""What makes CLIP fast must not move its embeddings, and a command tells how far it does."""

import sys
from io import BytesIO
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save_tiny_clip

from clipcap.clip import check
from clipcap.clip.encoder import ClipEncoder
from clipcap.clip.images import open_image
from clipcap.errors import UserError

RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A ResNet whose batch normalisations shift and scale, as trained ones do."""
    from safetensors.torch import load_file, save_file

    folder = save_tiny_clip(tmp_path_factory.mktemp("resnet"), vision_cfg=RESNET, quick_gelu=True)
    file = folder / "open_clip_model.safetensors"
    noise = torch.Generator().manual_seed(3)
    state = load_file(file)
    for name, tensor in state.items():
        if "bn" in name or "downsample.1" in name:
            low, high = {"var": (0.05, 4), "ean": (-1, 1), "ght": (0.5, 2), "ias": (-1, 1)}.get(name[-3:], (0, 0))
            if low != high:
                tensor.uniform_(low, high, generator=noise)
    save_file(state, file)
    return folder


@pytest.fixture(scope="module")
def photo():
    """A JPEG of 640 x 480 pixels with fine detail, which decoding at a part of its size loses."""
    noise = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_a_resnet_sees_the_whole_photo(resnet, photo, tmp_path):
    """Guards against JPEGs decoded at a part of their size, which moved an RN50x4 to a cosine of 0.62."""
    encoder = ClipEncoder.load(resnet)
    whole = encoder.encode_pixels(encoder.preprocessing.pixels(open_image(photo))[None])
    assert torch.equal(encoder.encode_images([photo]), whole)
    vit = ClipEncoder.load(save_tiny_clip(tmp_path))
    assert encoder.preprocessing.min_side is None and vit.preprocessing.min_side == 32


def test_batch_norms_are_folded_before_the_weights_are_rounded(resnet):
    """Guards against folding in bf16, and against a fold that computes something else."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    exact = ClipEncoder.load(resnet, fast=False)
    wanted = exact.encode_pixels(pixels)
    folded = ClipEncoder.load(resnet)
    assert not [m for m in folded.model.visual.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in exact.model.visual.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    torch.testing.assert_close(folded.encode_pixels(pixels), wanted, atol=1e-5, rtol=1e-4)
    half = ClipEncoder.load(resnet, dtype=torch.bfloat16)
    kernel = half.model.visual.conv1.weight
    assert torch.equal(kernel, folded.model.visual.conv1.weight.bfloat16())


def test_the_check_prints_a_cosine_for_each_photo_and_way(resnet, photo, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(photo)
    (tmp_path / "broken.jpg").write_bytes(photo[:900])
    assert check.main([str(resnet), str(tmp_path), "--device", "cpu", "--threshold", "0.9"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == [str(tmp_path / "photo.jpg"), "smallest", "mean"]
    assert "broken.jpg is left out" in printed.err and "package `clip` is not installed" in printed.err
    assert check.main([str(resnet), "--device", "cpu", "--limit", "1", "--threshold", "1"]) == 1
    assert "below 1.0: " in capsys.readouterr().out


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_the_check_wants_at_least_one_photo(tmp_path, limit):
    """Guards against a traceback for -1, and against photos that could not be read, it said, for 0."""
    with pytest.raises(UserError, match="--limit must be at least 1"):
        check.main(["demo", str(tmp_path), "--limit", limit])


def test_the_check_has_openais_own_beside_it(tmp_path, monkeypatch, capsys):
    """Guards against a comparison that never runs, since hardly anybody has the package: a stand-in with its names."""
    folder = save_tiny_clip(tmp_path / "clip", quick_gelu=True)
    theirs = ClipEncoder.load(folder, fast=False)
    theirs.model.visual.input_resolution = 32
    model, clip, package = ModuleType("clip.model"), ModuleType("clip.clip"), ModuleType("clip")
    model.build_model = lambda state: theirs.model
    clip._transform = lambda size: lambda image: torch.zeros(3, size, size) + np.asarray(image).mean() / 255
    package.clip, package.model = clip, model
    for module in (package, clip, model):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    status = check.main([str(folder), "--device", "cpu", "--limit", "2"])
    printed = capsys.readouterr().out
    assert "OpenAI*" in printed and (status == 1) == ("below" in printed.splitlines()[-1])
    save_tiny_clip(tmp_path / "plain")
    check.main([str(tmp_path / "plain"), "--device", "cpu", "--limit", "1"])
    assert "it has no model of this kind" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "2"], "--threshold is a cosine"),
        (["EMPTY"], "no picture that can be read in"),
        (["no"], "not exist"),
    ],
)
def test_bad_input(tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "empty") if word == "EMPTY" else word for word in words]
    with pytest.raises(UserError, match=message):
        check.main([str(save_tiny_clip(tmp_path / "clip")), *words])
