"""torchrun predict.py and evaluate.py: several processes do what one does, and losing one of them loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image
from test_evaluate import world  # noqa: F401  # a fixture
from test_processes import ROOT, torchrun
from tiny import save_tiny_weights

import evaluate
import predict
from clipcap.captioning import command
from clipcap.captioning.turns import Pictures, Turns
from clipcap.cli.processes import Processes
from clipcap.errors import UserError
from clipcap.evaluation.report import read_report

SCRIPT = """
import json
from contextlib import nullcontext

import evaluate
import predict
from clipcap.captioning import command
from clipcap.cli.processes import together
from clipcap.cli.status import run

def main(argv):
    with together() as met:  # processes meet once
        command.together = evaluate.together = lambda *_: nullcontext(met)
        scripts = {"predict": predict, "evaluate": evaluate}
        statuses = [scripts[name].main(options) for name, *options in json.loads(argv[0])]
        print("statuses", statuses, flush=True)

if __name__ == "__main__":
    run(main)
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a prompted model, which gives every picture another caption."""
    return save_tiny_weights(tmp_path_factory.mktemp("weights"), literal=True, prompt=" it is {literal}: ")


@pytest.fixture
def photos(world, tmp_path):  # noqa: F811
    """Eighteen pictures in two folders, and a file that is none."""
    for number, file in enumerate(sorted((world / "images").glob("*.png"))):
        folder = tmp_path / "photos" / ("sub" if number % 3 == 0 else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "photos/broken.png").write_text("no picture")
    return tmp_path / "photos"


def written(folder: Path) -> dict[str, bytes]:
    """The files that commands have written; they are taken away, so that others can write them."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".png", ".py")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    return found


def untimed(folder: Path) -> tuple[dict, list[dict]]:
    """A report, and the scores in it without how long captioning took."""
    report = read_report(folder)
    scores = [model.pop("scores") for model in report["models"]]
    return report, [{name: score for name, score in each.items() if name != "captions_per_second"} for each in scores]


def run(commands: list[list[str]]) -> list[int]:
    return [{"predict": predict, "evaluate": evaluate}[name].main(options) for name, *options in commands]


def test_two_processes_write_what_one_writes(world, weights, photos, tmp_path, capsys):  # noqa: F811
    """Guards against pictures that every process writes, rows in another order, and ranks that fall out of step."""
    out, models = tmp_path / "out", [world / f"{name}/{name}_weights.pt" for name in ("base", "prompted", "stranger")]
    short = ["--max-tokens", "8", "--precision", "fp32", "--device", "cpu"]
    captions = ["predict", "--weights", weights, *short, "--batch-size", "4", "--workers", "0", photos]
    several = ["--num-captions", "2", "--show-literal"]
    scores = ["evaluate", "--data", world / "data", *short, models[0]]
    commands = [
        [*captions, *several, "--sidecar", "--output", out / "rows.jsonl"],
        [*captions, *several, "--output", out / "part.jsonl"],
        [*captions, "--xmp", "--output", out / "table.csv"],
        [*captions, "--output", out / "book.html"],
        [*scores, "--output", out / "one", "--limit", "1"],
        [*scores, world / "broken_weights.pt", *models[1:], "--output", out / "report"],
    ]
    commands = [list(map(str, command)) for command in commands]
    assert run(commands) == [1, 1, 1, 1, 0, 1]
    printed = [line for line in capsys.readouterr().out.splitlines() if "\t" in line]
    reports = [untimed(out / name) for name in ("one", "report")]
    alone = written(tmp_path)
    assert len(alone) == 18 + 18 + 4 + 6
    part = [str(photos / "sub") if option == str(photos) else option for option in commands[1]]
    assert run([part]) == [0]  # these in one process, the others in two

    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun(tmp_path / "script.py", json.dumps(commands))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("statuses [1, 1, 1, 1, 0, 1]") == done.stdout.count("statuses [0, 0, 0, 0, 0, 0]") == 1
    for name, (report, scores) in zip(("one", "report"), reports, strict=True):
        assert untimed(out / name) == (report, [pytest.approx(each, abs=1e-6) for each in scores])
    assert done.stderr.count("error: broken is left out") == done.stderr.count("captioned 18, failed 1") // 3 == 1
    assert done.stderr.count("captioning: 100%") == 4
    both = written(tmp_path)
    assert both.keys() == alone.keys()
    for name in alone.keys() - {"out/part.jsonl"}:
        assert both[name] == alone[name] or name.startswith(("out/one/", "out/report/")), name
    assert sorted(both["out/part.jsonl"].splitlines()) == sorted(alone["out/part.jsonl"].splitlines())
    shown = [line for line in done.stdout.splitlines() if "\t" in line]
    assert len(shown) < len(printed) and set(shown) == set(printed)


def test_a_process_that_is_killed_costs_a_round(weights, tmp_path):
    """Guards against a run that waits for ever for a process that has ended, and rows that are lost or doubled."""
    psutil = pytest.importorskip("psutil")
    (tmp_path / "photos").mkdir()
    for index in range(200):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / f"photos/{index:03}.png")
    out = tmp_path / "out.jsonl"
    options = ["--weights", weights, "--max-tokens", "8"]
    options = [str(option) for option in (*options, tmp_path / "photos", "--output", out)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / "predict.py"]
    with subprocess.Popen(
        list(map(str, [*command, *options, "--batch-size", "2", "--workers", "0"])),
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not out.exists() or out.stat().st_size < 500:
            assert process.poll() is None
            time.sleep(0.01)
        [second] = [each for each in psutil.Process(process.pid).children() if each.environ().get("RANK") == "1"]
        second.send_signal(signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    # The other one notices, or is told by torchrun first.
    assert "another of the 2 processes has ended" in said or "terminated: what was written is kept" in said, said
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert 0 < len(rows) < 200
    assert predict.main(options) == 0
    rows = [json.loads(line)["image"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows == sorted(map(str, (tmp_path / "photos").iterdir()))


def test_a_process_that_is_killed_costs_evaluation_the_model_in_hand(world, tmp_path):  # noqa: F811
    """Guards against a report that is lost, or half written, with the models that were done before."""
    (tmp_path / "script.py").write_text(
        "import os\n"
        "import evaluate\n"
        "from clipcap.cli.status import run\n"
        "from clipcap.evaluation import scores\n"
        "whole, seen = scores.evaluate_model, []\n"
        "def dies(weights, *settled):\n"
        "    seen.append(weights)\n"
        "    if len(seen) == 2 and os.environ['RANK'] == '1':\n"
        "        os._exit(9)\n"
        "    return whole(weights, *settled)\n"
        "scores.evaluate_model = dies\n"
        "run(evaluate.main)\n"
    )
    models = [world / f"{name}/{name}_weights.pt" for name in ("base", "prompted")]
    options = ["--data", world / "data", "--max-tokens", "8", "--precision", "fp32", "--device", "cpu", *models]
    options = [str(option) for option in (*options, "--output", tmp_path / "report")]
    assert torchrun(tmp_path / "script.py", *options).returncode == 1
    report, _ = untimed(tmp_path / "report")
    assert [model["name"] for model in report["models"]] == ["base"]
    assert evaluate.main(options) == 0
    again, _ = untimed(tmp_path / "report")
    assert [model["name"] for model in again["models"]] == ["base", "prompted"]
    assert again["models"][0] == report["models"][0]


@pytest.mark.parametrize("total", [0, 1, 2, 7, 8, 9, 40, 41])
def test_every_picture_has_its_turn_and_the_rows_are_in_order(total):
    """Guards against a picture that falls between two processes, and one process that does what all could share."""
    for world in (1, 2, 3):  # noqa: F402
        turns = [Turns(Processes(rank, world), total, 2, 4) for rank in range(world)]
        own = [list(each.own(map(Path, map(str, range(total))))) for each in turns]
        assert max(map(len, own)) - min(map(len, own)) < world
        given = [iter(each) for each in own]
        rows = [int(str(row)) for count in turns[0] for each in given for row in islice(each, count)]
        assert rows == list(range(total))


def test_names_of_pictures_survive_packing(tmp_path):
    """Guards against names with line ends, and bytes that are not UTF-8."""
    names = [b"a\n.png", b"\xff.png", "é🐶.png".encode(), b"z.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    found = Pictures.find([str(tmp_path)], lambda path: path.name != "z.png")
    assert [os.fsencode(path.name) for path in found] == sorted(names[:3])
    assert (found.found, found.todo) == (4, 3)
    assert found.identity != Pictures.find([str(tmp_path / "z.png")], lambda _: True).identity


def test_processes_that_see_other_pictures_do_not_start(photos, monkeypatch):
    """Guards against a picture that each of two processes leaves to the other."""

    class Two(Processes):
        def gather(self, value):
            return [value, "18 with the fingerprint of others"]

    monkeypatch.setattr(command, "together", lambda *_: nullcontext(Two(0, 2)))
    with pytest.raises(UserError, match=r"see different pictures \(process 0: 19 with .*, process 1: 18 with .* same"):
        predict.main(["--weights", "x.pt", str(photos)])
