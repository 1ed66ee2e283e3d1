"""Losses and gradients of the large weights against those of autograd, which serves where several processes train."""

import copy

import pytest
import torch
from test_model import batch_of
from tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from clipcap.fast import large_weights
from clipcap.fast.exchange import speed_up
from clipcap.fast.large_weights import LargeEmbedding, LargeLinear
from clipcap.training.losses import Objective

BATCHES = [batch_of([[5, 9, 3], [4, 8]]), batch_of([[5, 5, 5, 7, 1], [4, 8, 5, 5], [200, 3]])]

KINDS = {  # what trains, and how the names of these parameters begin
    "everything": "",
    "head alone": "gpt.lm_head.",
    "head and norm": ("gpt.lm_head.", "gpt.transformer.ln_f."),
    "embedding and head": "gpt.transformer.wte.",
    "embedding, head and norm": ("gpt.transformer.wte.", "gpt.transformer.ln_f."),
    "mapping network": "clip_project.",
}


def gradients(model, precision: torch.dtype = torch.float32, fast: bool = True) -> tuple[list, dict]:
    """Two batches' losses, and the gradients of their sum, computed as the training loop accumulates them."""
    losses, objective = [], Objective(model, fast)
    if fast:
        speed_up(model, large=0)
        assert isinstance(model.clip_project.model[2], LargeLinear)
        assert isinstance(model.gpt.transformer.wte, LargeEmbedding)
    model.zero_grad(set_to_none=True)
    for batch in BATCHES:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = objective(batch)
        loss.backward()
        losses.append(loss.item())
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_autograd(model, precision: torch.dtype = torch.float32) -> tuple[list, dict]:
    """The same by the plain model, which nothing was exchanged in."""
    return gradients(copy.deepcopy(model), precision, fast=False)


def trains(kind: str, model) -> None:
    if kind.startswith("head"):
        model.untie_head()
    model.train_only(lambda name: name.startswith(KINDS[kind]))


@pytest.mark.parametrize("rows", [2, large_weights.ROWS], ids=["some rows at a time", "all rows at once"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_autograd(kind, rows, monkeypatch):
    monkeypatch.setattr(large_weights, "ROWS", rows)
    monkeypatch.setattr(large_weights, "TOKENS", 40 * rows)  # 211 are no multiple
    model = tiny_model()
    torch.nn.init.normal_(model.gpt.transformer.ln_f.weight)
    torch.nn.init.normal_(model.gpt.transformer.ln_f.bias)
    trains(kind, model)
    expected_losses, expected = by_autograd(model)
    for _ in range(2):  # again, in the memory that was kept
        losses, found = gradients(model)
        assert losses == pytest.approx(expected_losses, rel=1e-6)
        assert found.keys() == expected.keys() and found
        for name in expected:
            assert torch.allclose(found[name], expected[name], atol=1e-6 * expected[name].abs().max()), name


@pytest.mark.parametrize("kind", ["everything", "head alone", "head and norm", "mapping network"])
def test_in_bf16_they_differ_by_rounding_only(kind):
    model = tiny_model()
    trains(kind, model)
    _, expected = by_autograd(model, torch.bfloat16)
    _, exact = gradients(model)
    _, found = gradients(model, torch.bfloat16)
    for name, true in exact.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - true).norm() <= 2 * (expected[name] - true).norm() + 1e-3 * true.norm(), name


class Products(TorchDispatchMode):
    """Counts the multiplications in products of matrices."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            *_, a, b = args
            self.count += a.numel() * b.shape[1]
        return operator(*args, **(kwargs or {}))


def test_beside_a_head_that_trains_the_norm_costs_no_product_of_its_own():
    """Guards against the gradient by the head's input, a product with all of the head's weights."""
    counts = []
    for kind in ("head alone", "head and norm"):
        model = tiny_model()
        trains(kind, model)
        objective = Objective(model, fast=True)
        with Products() as products:
            objective(BATCHES[0]).backward()
        counts.append(products.count)
    assert counts[1] - counts[0] < len(BATCHES[0].targets) * model.head.weight.numel() / 2


def test_frozen_weights_get_no_gradient():
    model = tiny_model()
    trains("mapping network", model)
    assert all(name.startswith("clip_project.") for name in gradients(model)[1])


def test_a_second_loss_before_the_first_goes_backwards_does_not_disturb_it():
    """Guards against gradients computed in memory that another loss has written to meanwhile."""
    model = tiny_model()
    expected = gradients(model)[1]
    model.zero_grad()
    objective = Objective(model, fast=True)
    sum(objective(batch) for batch in BATCHES).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-4, atol=1e-6), name


def test_going_backwards_twice_is_an_error():
    loss = Objective(tiny_model(), fast=True)(BATCHES[0])
    loss.backward(retain_graph=True)
    with pytest.raises((RuntimeError, AttributeError)):
        loss.backward()


def test_the_kept_memory_holds_nothing_of_an_earlier_step():
    model = tiny_model()
    first = gradients(model)[1]
    gradients(model)
    model.zero_grad(set_to_none=True)
    assert all(torch.equal(tensor, first[name]) for name, tensor in gradients(model)[1].items())


def test_the_kept_memory_holds_no_weight_of_an_earlier_step():
    """Guards against a head in bf16 that is converted once, and then stays as it was while the weights learn."""
    model = tiny_model()
    kept = Objective(model, fast=True)
    with torch.autocast("cpu", torch.bfloat16):
        kept(BATCHES[0]).backward()
        with torch.no_grad():
            model.head.weight.mul_(2)
        fresh = Objective(model, fast=True)(BATCHES[0]).item()
        assert kept(BATCHES[0]).item() == pytest.approx(fresh, rel=1e-6)


def test_a_large_layer_is_a_linear_one():
    layer = LargeLinear(8, 3)
    x = torch.randn(4, 8, requires_grad=True)
    found = torch.autograd.grad(layer(x).square().sum(), x)[0]
    expected = torch.autograd.grad(torch.nn.functional.linear(x, layer.weight, layer.bias).square().sum(), x)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_many_rows_are_left_to_autocast():
    """Guards against fp32 in place of bf16 within the blocks of other language models, whose layers may be as large."""
    layer, few = LargeLinear(8, 3), large_weights.FEW
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(few // 2, 2, 8)).dtype == torch.float32
        assert layer(torch.randn(few // 2 + 1, 2, 8)).dtype == torch.bfloat16


def test_the_names_of_the_parameters_and_what_trains_stay():
    """Guards against checkpoints that a faster layer has given other names, and tied weights that come apart."""
    model = tiny_model()
    model.train_only(lambda name: name.startswith("clip_project."))
    before = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    keys = list(model.state_dict())
    speed_up(model, large=0)
    after = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    assert list(model.state_dict()) == keys and before.keys() == after.keys()
    assert all(after[name][0] is parameter and after[name][1] == trains for name, (parameter, trains) in before.items())
    assert model.gpt.lm_head.weight is model.gpt.transformer.wte.weight
