"""What several tests share."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is loaded, here and in every process that a test starts. Tiny models gain nothing from a second thread,
# and on a busy machine threads that wait for each other take twenty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that runs the tests in the background makes them deaf to Ctrl-C, and so the scripts that they send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def fast(request) -> bool:
    """Both ways of computing one thing: by `clipcap.fast`, and by plain PyTorch alone."""
    return request.param


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data kept beside the repository; a clone without it skips these tests."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data (a folder `shared` beside the repository) is not here")
    return folder
