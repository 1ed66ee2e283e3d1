"""Plant each bug of `mutants.py` in a copy of the repository, and run the tests that should notice it.

    python tests/mutation                         all of them, an hour on two cores
    python tests/mutation decoding/search         those in files whose path holds this text

The copy lies without the reference data beside it: what only a test with that data notices counts as unnoticed. The
exit status is 1 if a bug that is not explained in `mutants.py` goes unnoticed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from mutants import MUTANTS, Mutant
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
JOBS = 2  # copies in which bugs are planted side by side
LONGEST = 900  # seconds that the tests of one bug may take; one that makes them hang is noticed too


def copy_repository(target: Path) -> Path:
    """The files that git knows or would add, copied into a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def noticed(mutant: Mutant, copy: Path) -> bool:
    """Whether a test fails in the copy while it holds the bug."""
    file = copy / mutant.file
    text = file.read_text(encoding="utf-8")
    file.write_text(mutant.plant(text), encoding="utf-8")
    try:
        return fail(mutant.tests, copy, LONGEST)
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(text, encoding="utf-8")


def fail(tests: Iterable[str], copy: Path, seconds: float | None = None) -> bool:
    """Whether any of these tests fails in the copy. Raises TimeoutExpired where they take longer than that."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as told:
        ran = subprocess.Popen(command, cwd=copy, env=environment, stdout=told, stderr=told, start_new_session=True)
        try:
            status = ran.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(ran.pid, signal.SIGKILL)  # with what the tests have started
            ran.wait()
        told.seek(0)
        if status not in (0, 1):  # 1: tests failed; anything else says that pytest itself could not run them
            raise RuntimeError(f"{tests} cannot be run: {told.read().decode()[-4000:]}")
    return status == 1


def main(argv: Sequence[str]) -> int:
    """Try the chosen mutants; returns the exit status."""
    chosen = [mutant for mutant in MUTANTS if not argv or any(part in mutant.file for part in argv)]
    unnoticed = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JOBS) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(JOBS):
            copies.put(copy := copy_repository(Path(folder, str(number), "repository")))
        if fail(sorted({test for mutant in chosen for test in mutant.tests}), copy):
            raise SystemExit("these tests fail without any bug, and would notice every one: mend them first")

        def attempt(mutant: Mutant) -> bool:
            copy = copies.get()
            try:
                return noticed(mutant, copy)
            finally:
                copies.put(copy)

        results = zip(chosen, pool.map(attempt, chosen), strict=True)
        for mutant, found in tqdm(results, total=len(chosen), unit="bug", desc="planted"):
            if not found:
                unnoticed.append(mutant)
                tqdm.write(f"unnoticed: {mutant}" + f" ({mutant.explained})" * bool(mutant.explained))
    print(f"{len(chosen)} bugs planted, {len(chosen) - len(unnoticed)} noticed, {len(unnoticed)} unnoticed")
    return any(not mutant.explained for mutant in unnoticed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
