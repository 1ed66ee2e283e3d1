"""`fast=False` means that nothing of clipcap/fast computes: the tests of equality then compare plain PyTorch."""

import copy
import pickle
import sys

import numpy as np
import pytest
import torch
from test_decoding import METHODS, embeddings
from test_language_models import tiny_network
from test_model import batch_of
from tiny import save_tiny_clip, tiny_model
from torch import nn
from transformers.activations import ACT2FN

from clipcap.clip.encoder import ClipEncoder
from clipcap.decoding.cached_gpt2 import CachedGPT2
from clipcap.errors import first_line, is_out_of_memory
from clipcap.fast import attention, cuda_graph, exchange, linear, nucleus
from clipcap.fast.scripted import scripted
from clipcap.model.settings import ACTIVATIONS
from clipcap.weights.lora import ALL_LINEAR, inject


@pytest.fixture
def no_fast(monkeypatch):
    """Every way of clipcap/fast raises."""

    def refuse(*args, **kwargs):
        raise AssertionError("clipcap.fast was used")

    for module, names in {
        linear: ["Packed", "in_one_kernel"],
        nucleus: ["_by_rejection", "_by_histogram"],
        cuda_graph: ["captures", "capture"],
        exchange: ["_faster"],
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(attention.torch, "baddbmm", refuse)
    monkeypatch.setattr("clipcap.clip.encoder.FastViT", refuse)
    monkeypatch.setattr("clipcap.decoding.cached_gpt2.scripted", refuse)


scripts = pytest.mark.skipif(sys.version_info >= (3, 14), reason="PyTorch's TorchScript ends with Python 3.13")


@pytest.mark.parametrize("fast", [True, False])
def test_a_callers_autocast_changes_nothing(fast, tmp_path):
    """Guards against keys of one type and a cache of another, and embeddings that a caller's pipeline rounds."""
    model, clip = tiny_model(), ClipEncoder.load(save_tiny_clip(tmp_path), fast=fast)
    model.use_fast(fast)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *clip.preprocessing.size, 3), "uint8")
    expected, encoded = model.generate(embeddings()), clip.encode_pixels(pixels)
    with torch.autocast("cpu"):
        model.use_fast(fast)
        assert model.generate(embeddings()) == expected
        assert torch.equal(clip.encode_pixels(pixels), encoded)


def test_adapters_count_as_they_do_in_peft():
    """Guards against an adapter that is added twice once it is merged, and one that captions although it is off."""
    model = tiny_model()
    inject(model, 4, 64.0, 0.0, [ALL_LINEAR])
    layers = [module for module in model.modules() if hasattr(module, "lora_B")]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    adapted = model.generate(embeddings())
    for layer in layers:
        layer.enable_adapters(False)
    plain = tiny_model().generate(embeddings())
    assert model.generate(embeddings()) == plain != adapted
    for layer in layers:
        layer.enable_adapters(True)
    assert model.generate(embeddings()) == adapted
    for layer in layers:
        layer.set_scale("default", 0.0)
    assert model.generate(embeddings()) == plain
    for layer in layers:
        layer.set_scale("default", 1.0)
        layer.merge()
    assert model.generate(embeddings()) == adapted
    for layer in layers:
        layer.enable_adapters(False)
    assert model.generate(embeddings()) == plain


def with_adapters(kind: str):
    model = tiny_model() if kind == "gpt2" else tiny_network(kind)
    inject(model, 4, 8.0, 0.5, [ALL_LINEAR])
    model.train_only(lambda name: ".lora_" in name)
    for layer in (module for module in model.modules() if hasattr(module, "lora_B")):
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        layer.lora_dropout["default"] = nn.Threshold(-0.3, 0.0)  # drops the same numbers each time
    return model


def gradients_of(model, **autocast) -> tuple[torch.Tensor, dict]:
    with torch.autocast("cpu", **autocast):
        loss = model.loss(batch_of([[5, 9, 3], [4, 8]]))
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_adapters_train_as_they_do_in_peft(kind):
    """Guards against an adapter that is scaled otherwise, loses its dropout or its gradient, or counts although off."""
    plain = with_adapters(kind)
    model = copy.deepcopy(plain)
    exchange.speed_up(model, large=1 << 40)
    copied = copy.deepcopy(model)
    loss, exact = gradients_of(plain, enabled=False)
    for other in (model, copied):
        found_loss, found = gradients_of(other, enabled=False)
        assert found_loss == pytest.approx(loss.item(), rel=1e-5) and found.keys() == exact.keys() and found
        assert all(torch.allclose(found[name], exact[name], rtol=1e-3, atol=1e-5) for name in exact)
    rounded, theirs = (gradients_of(m, dtype=torch.bfloat16)[1] for m in (model, plain))
    for name, true in exact.items():
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - true).norm() <= 2 * (theirs[name] - true).norm() + 1e-3 * true.norm(), name
    for layer in (module for module in model.modules() if hasattr(module, "lora_B")):
        layer.enable_adapters(False)
    off = {name for name, module in model.named_modules() if hasattr(module, "lora_B")}
    with torch.no_grad():
        without = model.loss(batch_of([[5, 9, 3], [4, 8]]))
        for name in off:
            model.get_submodule(name).lora_B["default"].weight.zero_()
        for name in off:
            model.get_submodule(name).enable_adapters(True)
        assert model.loss(batch_of([[5, 9, 3], [4, 8]])) == pytest.approx(without.item(), rel=1e-6) != loss.item()


def test_weights_of_inference_mode_are_prepared_anew_when_they_are_replaced():
    with torch.inference_mode():
        model = tiny_model()
        model.generate(embeddings())
        other = tiny_model(seed=1)
        for mine, parameter in zip(model.gpt.parameters(), other.gpt.parameters(), strict=True):
            mine.data = parameter.data
        model.clip_project = other.clip_project
        assert model.generate(embeddings()) == other.generate(embeddings())


@scripts
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_scripted_blocks_compute_what_python_does(precision, activation, monkeypatch):
    """Guards against a block that TorchScript refuses, which would only be slower, and against other captions."""
    model = tiny_model()
    model.gpt.transformer.h[0].mlp.act = model.gpt.transformer.h[1].mlp.act = ACT2FN[activation]
    if precision == torch.int8:
        exchange.speed_up(model, int8=True)
    else:
        model.to(precision)
    prefix = model.prefix(embeddings())
    sessions = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr("clipcap.decoding.cached_gpt2.scripted", lambda module, device: module)
        with torch.inference_mode():
            gpt = CachedGPT2(model.gpt)
            assert {isinstance(block, torch.jit.ScriptModule) for block in gpt.blocks} == {fast}
            session = gpt.begin(prefix, [[1], [2, 3], [], [4], [5], []], 2, 8)
            steps = [session.step(torch.full((6, 2), token)).clone() for token in range(3)]
            session.keep(torch.tensor([4]))
            sessions.append([session.logits, *steps, session.step(torch.tensor([[7, 8]]))])
    assert all(map(torch.equal, *sessions))


def test_what_cannot_be_scripted_stays_as_it_is(monkeypatch):
    """Guards against a release of PyTorch, a Python or an activation without TorchScript."""
    layer = nn.Sequential(nn.Linear(2, 2), type("Odd", (nn.Module,), {"forward": lambda self, x: x})())
    assert scripted(layer, torch.device("cpu")) is layer
    assert scripted(layer[0], torch.device("cuda")) is layer[0]
    layer[0].register_forward_hook(lambda *args: None)  # which TorchScript refuses by an error of its own
    assert scripted(layer[0], torch.device("cpu")) is layer[0]
    monkeypatch.setattr("sys.version_info", (3, 14))
    plain = nn.Linear(2, 2)
    assert scripted(plain, torch.device("cpu")) is plain


class Large(nn.Module):
    """Asks for 64 TB."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(1 << 44, 1).contiguous()


@scripts
def test_memory_that_runs_out_inside_a_scripted_module_is_told_of_in_its_own_words():
    told = []
    for module in (Large(), scripted(Large(), torch.device("cpu"))):
        with pytest.raises(RuntimeError) as error:
            module(torch.ones(1, 1))
        told.append(first_line(error.value))
        assert is_out_of_memory(error.value)
    assert isinstance(module, torch.jit.ScriptModule) and told[1] == f"RuntimeError: {told[0]}"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_that_has_captioned_can_be_copied(copied):
    """Guards against weights packed for oneDNN and scripted blocks, which cannot be."""
    model = tiny_model()
    wanted = model.generate(embeddings(), METHODS[0])
    assert copied(model).generate(embeddings(), METHODS[0]) == wanted
    layer = linear.prepare_linear(nn.Linear(8, 8))
    assert torch.equal(copied(layer)(torch.ones(1, 8)), layer(torch.ones(1, 8)))


@pytest.mark.parametrize("decoding", METHODS, ids=[decoding.method for decoding in METHODS])
def test_decoding_without_it(no_fast, decoding):
    model = tiny_model()
    with pytest.raises(AssertionError, match="was used"):
        model.generate(embeddings(), decoding)
    model.use_fast(False)
    assert len(model.generate(embeddings(), decoding)) == 6


def test_encoding_without_it(no_fast, tmp_path):
    folder = save_tiny_clip(tmp_path)
    with pytest.raises(AssertionError, match="was used"):
        ClipEncoder.load(folder)
    encoder = ClipEncoder.load(folder, fast=False)
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    assert encoder.vit is None and encoder.encode_pixels(pixels).shape == (2, 16)


def test_training_without_it(no_fast, tmp_path):
    """A whole run, with its validation and the captions that it samples."""
    from test_training import trainer

    with pytest.raises(AssertionError, match="was used"):
        trainer(tmp_path, epochs=1)
    run = trainer(tmp_path, no_fast=True, epochs=1)
    run.run()
    assert run.progress.samples and run.objective.head_loss is None and run.frozen.matrices == []
    types = {type(module) for module in run.model.modules()}
    assert nn.Dropout in types and not any(kind.__module__.startswith("clipcap.fast") for kind in types)


def test_the_scripts_without_it(no_fast, tmp_path):
    """Literal captions, training, evaluation and captioning, each with --no-fast in front of a file's name."""
    import evaluate
    import load_data
    import predict
    import prompt_finetuning

    data, run = str(tmp_path / "data"), tmp_path / "run"
    shown = ["--source", "demo", "--limit", "8", "--output", data, "--clip", "demo", "--workers", "0"]
    load_data.main([*shown, "--no-fast"])
    short = ["--epochs", "1", "--evals-per-epoch", "1", "--device", "cpu", "--limit-train", "8"]
    prompt_finetuning.main(["--no-fast", "--data", data, "--init", "demo", "--output-dir", str(run), *short])
    weights = str(run / "prompted_weights.pt")
    assert evaluate.main(["--no-fast", weights, "--data", data, "--output", str(tmp_path / "report")]) == 0
    from clipcap.world.scenes import scenes

    next(scenes("test")).draw().save(tmp_path / "a.png")
    assert predict.main(["--weights", weights, "--no-fast", str(tmp_path / "a.png")]) == 0


def test_both_ways_lead_to_the_same_losses(tmp_path):
    """Without dropout, whose random numbers differ, a whole run is the same up to rounding."""
    from test_training import trainer

    losses = []
    for fast in (True, False):
        run = trainer(tmp_path / str(fast), no_fast=not fast, epochs=1)
        for module in run.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        run.run()
        losses.append([row["val_loss"] for row in run.progress.rows if "val_loss" in row])
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-4)
