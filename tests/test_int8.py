"""`--precision int8`: the rounding, what it must not change, and where it is refused."""

import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_language_models import tiny_network
from test_model import batch_of
from test_predict import run
from tiny import save_tiny_clip, save_tiny_weights, tiny_captioner_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import lora_finetuning
from clipcap import Captioner, ClipEncoder, save_checkpoint
from clipcap.captioning import command
from clipcap.clip import encoder
from clipcap.devices import pick_dtype
from clipcap.errors import UserError
from clipcap.fast import exchange, int8
from clipcap.fast.exchange import speed_up
from clipcap.fast.int8 import Int8Linear
from clipcap.training.arguments import LoopArguments
from clipcap.weights.lora import ALL_LINEAR, inject

WORST = [[1.0], [-1.0], [1.0, 0.0], [1.0, -1.0], [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0], [1.0, 1.0, -1.0, -1.0]]
needs_operators = pytest.mark.skipif(not int8.operators_work(), reason="this PyTorch has no int8 operators here")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    return folder


@needs_operators
@pytest.mark.parametrize("width", [64, 67])
def test_the_operators_compute_what_the_public_ones_do(width):
    """Guards against sums of 16 bits that saturate: rows of the largest weights meet rows of the largest inputs."""
    rows = [torch.tensor(row).repeat(width)[:width] for row in WORST]
    integers = int8.quantize(torch.stack([*rows, *random(50, width)]))
    x = torch.stack([*rows, *(random(50, width) / 5).clamp(-1, 1)])
    assert torch.allclose(int8.PackedInt8(*integers)(x), int8.Emulated(*integers)(x), atol=1e-4)


def test_no_two_neighbours_saturate_and_no_bit_is_wasted():
    """Guards against scales that are too fine for CPUs without VNNI, and against seven bits where nearly eight fit."""
    weight = random(64, 767)
    integers, scales = int8.quantize(weight, vnni=False)
    pairs = nn.functional.pad(integers.int(), (0, 1)).unflatten(1, (-1, 2))
    assert pairs.clamp(min=0).sum(-1).max() <= 128 and pairs.clamp(max=0).sum(-1).min() >= -128
    assert (integers * scales[:, None] - weight).abs().max() <= scales.max() / 2 + 1e-6
    assert (scales < weight.abs().amax(1) / 63).all()
    assert torch.allclose(int8.quantize(weight, vnni=True)[1], weight.abs().amax(1) / 127)


@pytest.mark.filterwarnings("ignore:.*int8")
@pytest.mark.parametrize("operators", [pytest.param(True, marks=needs_operators), False])
def test_a_row_does_not_depend_on_its_batch_nor_on_what_is_not_finite_in_it(monkeypatch, operators):
    """Guards against one scale for a whole batch, which makes a caption depend on the other pictures."""
    monkeypatch.setattr(int8, "operators_work", lambda: operators)
    layer = nn.Linear(96, 40)
    with torch.inference_mode():
        short = Int8Linear(layer.weight, layer.bias)
        x = random(7, 96) * torch.tensor([[1e-3], [1], [1e4], [1], [1], [0], [1e-30]])
        alone = torch.cat([short(row[None]) for row in x])
        x[3, 5], x[4, 6] = float("nan"), float("inf")
        together = short(x)
        wanted = layer(x)
    kept = [0, 1, 2, 5, 6]
    assert not together[3:5].isfinite().any()
    assert torch.equal(together[kept], alone[kept]) or not operators
    assert torch.allclose(together[kept], alone[kept], rtol=1e-4, atol=1e-2)
    assert (together - wanted)[kept].norm(dim=1).div(wanted[kept].norm(dim=1)).max() < 0.02
    assert short(x.bfloat16()).dtype == torch.bfloat16


def test_every_kind_of_linear_layer_is_replaced_and_adapters_are_merged():
    """Guards against GPT-2's transposed weights, lost adapters, and fp32 weights that stay in memory."""
    model = tiny_captioner_model(seed=1)
    inject(model, 4, 8.0, 0.0, [ALL_LINEAR])
    tokens, prefix = torch.tensor([[5, 6, 7]]), random(1, 16)
    with torch.no_grad():
        without = model.eval()(prefix, tokens)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(random(*parameter.shape) / 2)
        wanted = model(prefix, tokens)
        model.literal_captioner = tiny_captioner_model()
        speed_up(model, int8=True)
        found = model(prefix, tokens)
    assert (found - wanted).norm() < 0.2 * wanted.norm() < 0.5 * (without - wanted).norm()
    for gpt in (model.gpt, model.literal_captioner.gpt):
        assert not any(isinstance(module, nn.Linear | Conv1D) for module in gpt.modules())
    assert all(isinstance(layer, nn.Linear) for layer in model.clip_project.model if not isinstance(layer, nn.Tanh))


def test_a_model_in_int8_neither_trains_nor_is_saved(weights, tmp_path):
    """Guards against a file without the linear layers, and against a training that leaves them as they are."""
    model = Captioner.load(weights, precision="int8").model
    with pytest.raises(UserError, match="can only caption"):
        save_checkpoint(model, tmp_path / "saved.pt")
    with pytest.raises(UserError, match="can only caption"):
        model.train()
    with pytest.raises(UserError, match="no gradients"):
        model.requires_grad_(True).loss(batch_of([[5, 9, 3], [4, 8]]))
    assert not model.training
    assert not (tmp_path / "saved.pt").exists()


def test_other_language_models_are_refused():
    """Guards against captions of SmolLM2 and its like that are far from those in fp32."""
    model = tiny_network("llama")
    with pytest.raises(UserError, match="int8 is for GPT-2, and would change too many captions of llama"):
        speed_up(model, int8=True)


@pytest.mark.parametrize("options", [{}, {"method": "beam"}, {"method": "nucleus", "num_captions": 3, "rank": "clip"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captions_alone_and_together(weights, photos, monkeypatch, options, dtype):
    """Guards against captions that depend on their batch, and against parts in a dtype of their own."""
    monkeypatch.setattr("clipcap.captioning.captioner.pick_dtype", lambda *_: dtype)
    captioner, pictures = Captioner.load(weights, precision="int8"), sorted(photos.iterdir())
    assert captioner.model.gpt.dtype == dtype and isinstance(captioner.encoder.vit.blocks[0].down, Int8Linear)
    together = captioner(pictures, max_tokens=8, **options)
    alone = [captioner([picture], max_tokens=8, **options)[0] for picture in pictures]
    assert together == alone or dtype != torch.float32


def test_the_emulation_captions_and_says_that_it_is_slow(weights, photos, monkeypatch):
    """Guards against a release of PyTorch without these operators, and against its silence."""
    pictures = sorted(photos.iterdir())
    wanted = Captioner.load(weights, precision="int8")(pictures, max_tokens=8)
    monkeypatch.setattr(int8, "operators_work", lambda: False)
    with pytest.warns(UserWarning, match="emulated"):
        captioner = Captioner.load(weights, precision="int8")
    assert captioner(pictures, max_tokens=8) == wanted


@pytest.mark.parametrize("answer", [AttributeError, torch.zeros(2, 32)])
def test_operators_that_fail_or_saturate_are_not_used(monkeypatch, answer):
    def stand_in(integers, scales):
        if isinstance(answer, torch.Tensor):
            return lambda x: answer
        raise answer

    monkeypatch.setattr(int8, "PackedInt8", stand_in)
    assert not int8.operators_work.__wrapped__()
    assert not int8.is_faster(torch.device("cuda"))


def test_clip_in_int8_lets_its_own_weights_go(tmp_path):
    """Guards against the memory of both; a CLIP that is no plain transformer stays as it is."""
    folder = save_tiny_clip(tmp_path / "vit")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    wanted, short = ClipEncoder.load(folder), ClipEncoder.load(folder, int8=True)
    found = short.encode_pixels(pixels)
    assert 0.999 < torch.cosine_similarity(found, wanted.encode_pixels(pixels)).min() < 1
    assert not hasattr(short.model, "visual")
    assert torch.equal(short.encode_texts(["a dog"]), wanted.encode_texts(["a dog"]))
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "pool_type": "avg"}
    other = save_tiny_clip(tmp_path / "other", vision_cfg=vision)
    assert torch.equal(
        ClipEncoder.load(other, int8=True).encode_pixels(pixels), ClipEncoder.load(other).encode_pixels(pixels)
    )


def test_where_it_is_refused(weights, photos):
    """Guards against an option that is ignored in silence."""
    with pytest.raises(UserError, match="int8 is for CPUs, and the device is cuda"):
        pick_dtype("int8", torch.device("cuda"))
    with pytest.raises(UserError, match="leave out --no-fast"):
        run(weights, photos, "--precision", "int8", "--no-fast")
    with pytest.raises(SystemExit) as ended:
        lora_finetuning.main(["--data", "data", "--precision", "int8"])
    assert ended.value.code == 2
    with pytest.raises(UserError, match="--precision must be one of auto, fp32, bf16, fp16, not 'int8'"):
        LoopArguments(output_dir="runs", precision="int8").check()


@pytest.mark.parametrize(
    ("seconds", "faster", "more", "told"),
    [
        (61, True, [], True),
        (59, True, [], False),
        (61, False, [], False),
        (61, True, ["--precision", "fp32"], False),
        (61, True, ["--no-fast"], False),
    ],
)
def test_a_long_run_says_that_int8_is_faster(weights, photos, monkeypatch, capsys, seconds, faster, more, told):
    """Guards against a note where the user has chosen, where the run was short, and where int8 gains nothing."""
    clock = iter([0, seconds])
    monkeypatch.setattr(command, "time", type("Clock", (), {"monotonic": lambda: next(clock)}))
    monkeypatch.setattr(int8, "is_faster", lambda device: faster)
    assert run(weights, photos / "0.png", "--workers", "0", *more) == 0
    assert ("--precision int8 takes less time" in capsys.readouterr().err) == told


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory, and gives it back")
def test_memory_that_quantising_freed_goes_back_to_the_system(monkeypatch, tmp_path):
    """Guards against int8 that takes more memory than bf16, since glibc keeps what the weights had in fp32."""
    kept = [torch.ones(25_000) for _ in range(2000)][::2]  # 0.1 MB each, so that those between them leave holes
    before = resident()
    int8.give_back()
    assert before - resident() > 50 << 20 and len(kept) == 1000
    called = []
    monkeypatch.setattr(exchange, "give_back", lambda: called.append("model"))
    monkeypatch.setattr(encoder, "give_back", lambda: called.append("clip"))
    speed_up(tiny_captioner_model().requires_grad_(False), int8=True)
    ClipEncoder.load(save_tiny_clip(tmp_path / "clip"), int8=True)
    assert called == ["model", "clip"]


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
