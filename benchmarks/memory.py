"""Peak memory, each figure in a process of its own.

    python -m benchmarks.memory "captioning, ours" PHOTOS --device cpu

prints the bytes that one of TASKS took at most. `predict_folders` watches predict.py itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import captioning, fine_tuning
from benchmarks.plan import Plan
from benchmarks.setting import TINY, Setting, Sizes
from clipcap.captioning.options import FIRST
from clipcap.decoding.options import SEQUENCES
from clipcap.devices import CAPTIONING
from clipcap.model.clipcap import ClipCap
from clipcap.weights.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PHOTOS, TOKENS = FIRST + SEQUENCES, 20  # ours decodes the first 32, and then a whole batch
FEW, MANY = 500, 10_000
RESET = Path("/proc/self/clear_refs")  # Linux forgets a process's peak when 5 is written here


def _captioning(setting: Setting, name: str) -> Callable[[], object]:
    folder = setting.photos(PHOTOS)
    if name in CAPTIONING:
        search = captioning.decoding("greedy", TOKENS)
        return partial(captioning.rows, setting.captioner(name), folder, search, PHOTOS)
    if name == "alternative":
        pipeline = setting.alternative(setting.model(setting.fast))
        return partial(captioning.in_batches, pipeline, folder, "greedy", TOKENS, SEQUENCES, PHOTOS)
    return partial(captioning.one_by_one, setting.published(setting.model()), folder, TOKENS, 1, 2)


def _training(setting: Setting, choose: Callable[[ClipCap], None]) -> Callable[[], object]:
    plan = Plan(rounds=1, quick=True, device=setting.device)
    contender = fine_tuning.ours(setting, plan, "ours", choose, longest=True)
    return partial(contender.run, contender.items)


def _published_training(setting: Setting, name: str) -> Callable[[], object]:
    contender = next(step for step in fine_tuning.published_steps(setting) if step.name == name)
    return partial(contender.run, contender.items)


TASKS: dict[str, tuple[Callable[..., Callable[[], object]], object]] = {
    "captioning, ours": (_captioning, "auto"),
    "captioning, ours, fp32": (_captioning, "fp32"),
    "captioning, ours, int8": (_captioning, "int8"),
    "captioning, published": (_captioning, "published"),
    "captioning, alternative": (_captioning, "alternative"),
    "fine-tuning, full": (_training, fine_tuning.full),
    "fine-tuning, LoRA": (_training, fine_tuning.lora),
    "fine-tuning, head-only": (_training, fine_tuning.head_only),
    "fine-tuning, published with CLIP, batch 16": (_published_training, "published with CLIP"),
    "fine-tuning, published, batch 40": (_published_training, "published"),
}


def tasks(setting: Setting) -> list[str]:
    """The names of those that a setting's device can do, in each of its precisions once."""
    left_out = set(CAPTIONING) - set(setting.precisions.values())
    return [name for name, (_, argument) in TASKS.items() if argument not in left_out]


def peak(task: str, setting: Setting) -> int:
    """Bytes that a task takes at most: on the GPU, or resident on the CPU, libraries included."""
    setting.photos(PHOTOS)
    command = [sys.executable, "-m", "benchmarks.memory", task, str(setting.folder / f"photos_{PHOTOS}")]
    command += ["--device", str(setting.device), *(["--tiny"] if setting.sizes is TINY else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def tiny(setting: Setting) -> Setting:
    """The same photos with tiny models, which caption thousands of them in a minute."""
    folder = setting.folder / "tiny"
    folder.mkdir()
    return Setting(folder, setting.device, TINY, setting.own_photos or str(setting.photos(PHOTOS)[0].parent))


def predict_folders(setting: Setting, few: int = FEW, many: int = MANY) -> dict[int, int]:
    """Number of photos -> bytes that predict.py and its workers take at most together."""
    weights = setting.folder / "weights.pt"
    save_checkpoint(setting.model(), weights)
    found = {}
    for count in (few, many):
        setting.photos(count)
        command = [sys.executable, "predict.py", "--weights", str(weights), str(setting.folder / f"photos_{count}")]
        command += ["--device", str(setting.device), "--max-tokens", "20"]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)
            found[count] = _watch(process)
            if process.returncode:
                log.seek(0)
                raise RuntimeError(f"predict.py failed: {log.read().decode(errors='replace')[-500:]}")
    return found


def _watch(process: subprocess.Popen) -> int:
    """The most bytes that a process and its children hold at one time, looked at until it ends."""
    import psutil  # type: ignore[import-untyped]

    most, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            most = max(most, sum(member.memory_info().rss for member in family))
        except psutil.NoSuchProcess:
            continue  # one of them ended while we were looking
        time.sleep(0.05)
    return most


def main(argv: list[str] | None = None) -> None:
    """Do one task and print its peak."""
    parser = argparse.ArgumentParser(description="Peak memory of one task, in bytes.")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("photos", help="a folder of them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    prepare, argument = TASKS[args.task]
    with tempfile.TemporaryDirectory() as folder:
        task = prepare(Setting(Path(folder), device, TINY if args.tiny else Sizes(), args.photos), argument)
        _forget_peak(device)
        task()
    print(_peak(device))


def _forget_peak(device: torch.device) -> None:
    """Leave out what it took to make the weights, which people load."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        RESET.write_text("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if RESET.exists():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) << 10
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
