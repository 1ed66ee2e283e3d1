"""Progress bars: lines where no terminal shows them, and never in the middle of a row."""

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from clipcap.cli.progress import ProgressBar

ROOT = Path(__file__).resolve().parent.parent
ROWS = """
from clipcap.captioning.console import write_out
from clipcap.captioning.rows import Row
rows = (Row(f"{number}.jpg", [f"caption {number}"]) for number in range(30))
write_out(rows, 30, [], 0)
"""


@pytest.mark.parametrize("count, tenths", [(100, range(10, 101, 10)), (1005, range(10, 101, 10)), (3, [33, 67, 100])])
def test_a_log_file_gets_one_line_for_every_tenth(capsys, count: int, tenths: list[int]) -> None:
    """Guards against a log whose one line holds ten thousand bars."""
    for _ in ProgressBar(range(count), "work", unit="image"):
        pass
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert "\r" not in err and out == "" and [int(line.split("%")[0][5:]) for line in lines] == list(tenths)
    assert f"{count}/{count}" in lines[-1] and "image/s]" in lines[-1]


def test_a_bar_tells_where_it_ended(capsys) -> None:
    """Guards against a run that stops and leaves no word of how far it came."""
    with ProgressBar(total=100, initial=50, desc="work") as bar:
        bar.update(5)
    with ProgressBar(range(100), leave=False) as short:  # a step of a moment: ten lines of it would be too many
        list(short)
    assert [line.split("|")[0] for line in capsys.readouterr().err.splitlines()] == ["work:  50%", "work:  55%"]


def shown(piped: bool) -> tuple[str, str]:
    """What a terminal shows of rows with a bar, and what a pipe gets of the rows."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))  # without a size, tqdm 4.66 has no room for a bar
    stdout = subprocess.PIPE if piped else end
    with subprocess.Popen([sys.executable, "-c", ROWS], cwd=ROOT, stdout=stdout, stderr=end) as process:
        os.close(end)
        rows, seen = process.stdout.read().decode() if piped else "", b""
        try:
            while part := os.read(terminal, 4096):
                seen += part
        except OSError:  # Linux's way to say that nobody writes there any more
            pass
    os.close(terminal)
    return seen.decode(), rows


def test_rows_and_bars_share_a_terminal() -> None:
    """Guards against `20%|██        | 3/13 [00:00<00:02]a.jpg<TAB>a caption`, with `| tee` too."""
    seen, _ = shown(piped=False)
    lines = [re.sub(r".*\r", "", line) for line in re.split(r"\r*\n", seen)]
    assert [line for line in lines if "caption " in line] == [f"{number}.jpg\tcaption {number}" for number in range(30)]
    seen, rows = shown(piped=True)
    assert len(rows.splitlines()) == 30 and "\r" not in seen.replace("\r\n", "\n")
    assert sum("%|" in line for line in seen.splitlines()) == 10
