"""What a report of an error says about versions and the device."""

import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from clipcap import devices
from clipcap.errors import UserError


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    devices.main([])
    return {line[:16].strip(): line[16:] for line in capsys.readouterr().out.splitlines()}


def test_the_report_says_what_is_installed_and_what_auto_picks(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a report of an error from which nobody can tell what ran."""
    import torch

    told = report(capsys)
    assert {"python", "system", "threads"} <= told.keys()
    assert {name: told[name] for name in devices.REPORTED} == {name: version(name) for name in devices.REPORTED}
    device = devices.pick_device()
    assert told["device"] == str(device) and int(told["threads"]) == torch.get_num_threads()
    assert told["precision"] == {torch.bfloat16: "bf16", torch.float32: "fp32"}[devices.pick_dtype("auto", device)]
    assert ("GPU" in told) == torch.cuda.is_available()


def test_the_report_names_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a report that fails where there is a GPU, or does not name it."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    told = report(capsys)
    assert told["device"] == "cuda" and told["precision"] == "bf16" and told["GPU"].startswith("Some GPU, CUDA ")


def test_the_report_survives_what_it_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a report that needs the very package that is missing or broken."""

    def without_peft(name: str) -> str:
        if name == "peft":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(devices, "version", without_peft)
    monkeypatch.setitem(sys.modules, "torch", None)
    told = report(capsys)
    assert told["peft"] == "not installed" and "torch cannot be imported" in told["device"]
    assert "threads" not in told


@pytest.mark.parametrize("device", ["meta", None])
def test_device_that_computes_nothing_is_refused(device: str | None):
    with pytest.raises(UserError, match=f"'{device}' cannot be used"):
        devices.pick_device(device)


@pytest.mark.parametrize("supported", [True, False])
def test_auto_is_bf16_on_gpus_that_compute_in_it(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    """Guards against bf16 on older GPUs, which only emulate it."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or supported)
    wanted = torch.bfloat16 if supported else torch.float32
    assert devices.pick_dtype("auto", torch.device("cuda")) == wanted
