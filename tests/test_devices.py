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
    assert told["precision"] == devices.precision_of(devices.pick_dtype("auto", device))
    assert ("GPU" in told) == torch.cuda.is_available()


def test_the_report_names_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a report that fails where there is a GPU, or does not name it."""
    import torch

    gpu(monkeypatch, capability=(7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    told = report(capsys)
    assert told["device"] == "cuda" and told["precision"] == "fp16" and told["GPU"].startswith("Some GPU, CUDA ")


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


def test_the_report_survives_half_a_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback, or a torch that is said to be broken, where WORLD_SIZE is set and RANK is not."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = report(capsys)
    assert told["device"].startswith("none: ") and "RANK" in told["device"] and "imported" not in told["device"]


@pytest.mark.parametrize("device", ["meta", None])
def test_device_that_computes_nothing_is_refused(device: str | None):
    with pytest.raises(UserError, match=f"'{device}' cannot be used"):
        devices.pick_device(device)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((10, 0), "bfloat16")])
def test_auto_is_bf16_on_gpus_that_compute_in_it_and_fp16_on_older_ones(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
) -> None:
    """Guards against bf16 on a T4, which only emulates it, and against fp32, for which it has no tensor cores."""
    import torch

    gpu(monkeypatch, capability)
    assert devices.pick_dtype("auto", torch.device("cuda", 1)) == getattr(torch, dtype)
    assert devices.pick_dtype("auto", torch.device("mps")) == torch.float32
    assert [devices.precision_of(devices.pick_dtype(name, torch.device("cuda"))) for name in devices.DTYPES] == [
        *devices.DTYPES
    ]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_auto_takes_a_gpu_that_adds_and_else_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Guards against the end of every command on a GPU that this PyTorch has no kernels for."""
    devices.tell_once.cache_clear()
    gpu(monkeypatch, kind=kind)
    assert str(devices.pick_device()) == kind and not capsys.readouterr().err
    gpu(monkeypatch, kind=kind, fails="CUDA error: no kernel image is available for execution on the device\nmore")
    assert [str(devices.pick_device()) for _ in range(2)] == ["cpu"] * 2
    told = capsys.readouterr().err
    assert told.startswith(f"the GPU {kind} cannot be used (CUDA error: no kernel image is available for execution on")
    assert told.count("\n") == 1 and "so the CPU is" in told
    with pytest.raises(UserError, match=f"device '{kind}' cannot be used here .CUDA error: no kernel image"):
        devices.pick_device(kind)


@pytest.mark.parametrize(
    "fails", ["CUDA error: out of memory", "CUDA error: all CUDA-capable devices are busy or unavailable"]
)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_in_use_by_others_is_told_of(monkeypatch: pytest.MonkeyPatch, fails: str, device: str) -> None:
    """Guards against days on the CPU, and the advice to install another PyTorch, where a notebook holds the memory."""
    gpu(monkeypatch, fails=fails)
    with pytest.raises(UserError, match="the GPU cuda is in use .CUDA error.*--device cpu"):
        devices.pick_device(device)


def gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (8, 0), kind: str = "cuda", fails: str = ""
) -> None:
    """A machine with a GPU, which may fail to compute."""
    import torch

    def zeros(*_: int, device: torch.device) -> torch.Tensor:
        if fails and device.type == kind:
            raise RuntimeError(fails)
        return torch.ones(1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "zeros", zeros)
