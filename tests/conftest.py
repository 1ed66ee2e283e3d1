"""What several tests share."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is loaded, here and in every process that a test starts. Tiny models gain nothing from a second thread,
# and on a busy machine threads that wait for each other take twenty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that runs the tests in the background makes them deaf to Ctrl-C, and so the scripts that they send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported, a million objects that stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_loss_plot() -> Iterator[None]:
    """The first loss.png of the session is drawn, and every later one is a copy: drawing takes longer than training."""
    from clipcap.files import write_whole
    from clipcap.training import plots

    plot_losses = plots.plot_losses
    drawn: list[bytes] = []

    def plot(runs: object, path: Path, title: str) -> None:
        if drawn:
            write_whole(path, drawn[0])
        else:
            plot_losses(runs, path, title)
            drawn.append(Path(path).read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_losses", plot)
        if journal := sys.modules.get("clipcap.training.journal"):  # importing it takes seconds
            patch.setattr(journal, "plot_losses", plot)
        yield


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def fast(request) -> bool:
    """Both ways of computing one thing: by `clipcap.fast`, and by plain PyTorch alone."""
    return request.param


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """The files that belong to the project, which git knows; without it these tests are skipped."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if listed.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data kept beside the repository; a clone without it skips these tests."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data (a folder `shared` beside the repository) is not here")
    return folder
