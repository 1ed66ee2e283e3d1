"""Dropout from sixteen random bits: its rate, its scale, its gradient, and where it leaves the work to PyTorch."""

import pytest
import torch
from torch import nn

from clipcap.fast.dropout import Dropout
from clipcap.fast.exchange import speed_up


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_are_dropped_as_asked_for_and_the_rest_is_scaled_up(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(999, 1001, dtype=dtype)
    y = Dropout(p)(x)
    assert y.dtype == dtype and y.shape == x.shape
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-17)
    assert torch.allclose(y[y != 0].float(), torch.tensor(1 / (1 - p)), rtol=0.01)


@pytest.mark.parametrize("p", [1e-6, 0.9999, 0.999999])
def test_rates_at_the_ends(p):
    """Guards against one that is rounded to 1, which no 16 bits hold, and a scale that is not of the rounded rate."""
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(1 << 22))
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=1e-5)
    assert y.double().mean().item() == pytest.approx(1, abs=5 * (p / (1 - p) / y.numel()) ** 0.5)


def test_elements_are_independent():
    """Guards against the four numbers of one draw that would depend on each other."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1 << 18)) != 0).float() * 2 - 1
    for distance in range(1, 9):
        assert (kept[distance:] * kept[:-distance]).mean().abs() < 5 / (1 << 9)


def test_the_gradient_passes_where_the_value_did():
    x = torch.randn(1000, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert torch.allclose(x.grad, torch.where(y == 0, 0, 1 / 0.7))


def test_a_seed_repeats_it_and_the_next_call_differs():
    drop, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first) and not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation_or_at_rate_0():
    x = torch.randn(100)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()


def test_every_dropout_of_a_model_is_replaced():
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"a": nn.Dropout(0.1)}))).eval()
    speed_up(model)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [(type(module), module.p) for module in found] == [(Dropout, 0.2), (Dropout, 0.1)]
    assert not any(module.training for module in found)
