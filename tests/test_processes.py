"""Several processes for one command: how they meet, agree, and end. `torchrun` starts them, as users do."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipcap.cli.processes import Processes, launched, on_this_machine, together
from clipcap.cli.progress import ProgressBar
from clipcap.data.store import EmbeddingStore
from clipcap.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def torchrun(script: str | Path, *options: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script under torchrun on this machine, on the CPU, with one thread for each process."""
    return subprocess.run(
        [*(sys.executable, "-m", "torch.distributed.run", "--standalone"), f"--nproc-per-node={processes}"]
        + [str(script), *map(str, options)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_processes_gather_by_rank_and_say_what_they_see_differently(tmp_path):
    """Guards against ranks that go on with different files, and against results in another order than the ranks'."""
    script = tmp_path / "script.py"
    script.write_text(
        "from clipcap.cli.processes import together\n"
        "from clipcap.cli.status import run\n"
        "def main(argv):\n"
        "    with together() as processes:\n"
        "        everybody = processes.gather(f'rank {processes.rank}')\n"
        "        processes.agree(len(everybody), 'numbers')\n"
        "        if processes.main:\n"
        "            print(everybody, flush=True)\n"
        "        processes.agree(processes.rank, 'pictures')\n"
        "run(main)\n"
    )
    done = torchrun(script)
    assert done.returncode == 1  # torchrun's own, for a process that failed
    assert "['rank 0', 'rank 1']" in done.stdout
    assert "the 2 processes see different pictures (process 0: 0, process 1: 1)" in done.stderr


def test_a_process_whose_peer_has_ended_says_so(tmp_path):
    """Guards against waiting for ever, and against torch's traceback. No launcher stops the survivor here."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from clipcap.cli.processes import together\n"
        "from clipcap.cli.status import run\n"
        "def main(argv):\n"
        "    with together() as processes:\n"
        "        processes.gather(None)\n"
        "        if processes.rank:\n"
        "            os._exit(9)\n"
        "        processes.gather(None)\n"
        "run(main)\n"
    )
    import torch.distributed

    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    meeting |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen([sys.executable, script], env={**os.environ, **meeting, "RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [2, 9]
    assert "error: another of the 2 processes has ended, and its own message says why" in errors[0]
    assert "Traceback" not in errors[0]


DUPLICATE = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage, NCCL version 2.27.3\n"
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
    "Last error:\nDuplicate GPU detected : rank 0 and rank 1 both on CUDA device 40"
)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (DUPLICATE, "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 40"),
        ("NCCL error in: x, remote error\nLast error:\n", "NCCL error in: x, remote error"),
        ("Connection closed by peer\nframe #0: x", "Connection closed by peer"),
    ],
)
def test_what_torch_says_of_the_others_is_told(said, cause):
    """Guards against a search for the message of a process that has not ended: all of them named another one."""
    from torch import distributed

    told = pytest.raises(UserError, match=rf"of the 2 processes .*\({cause}\); what was written")
    with told as error, Processes(0, 2).watched():
        raise distributed.DistBackendError(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("gpus", [["a", "a"], ["a", "b"], [None, None]])
def test_two_processes_do_not_train_on_one_gpu(monkeypatch, gpus):
    """NCCL refuses it at the first step. Each may see one GPU alone, as clusters have it, if these are not the same."""
    import torch

    from clipcap.training import start

    class Met(Processes):
        def gather(self, value):
            assert value == gpus[0]
            return gpus

    monkeypatch.setattr(start, "meet", lambda _: Met(0, 2))
    monkeypatch.setattr(start, "pick_device", lambda device: torch.device("cuda:0" if gpus[0] else "cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=gpus[0]))
    if gpus == ["a", "a"]:
        with pytest.raises(UserError, match=r"2 processes would train on 1 GPU\(s\).* as there are GPUs, or .* cpu"):
            start.meet_on("auto")
    else:
        assert start.meet_on("auto").world == 2


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 in the environment, but RANK is not there"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not there"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment, and must be a number from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK is 2 .* must be below"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}, "could not meet at 127.0.0"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "no.invalid", "MASTER_PORT": "1"}, "could not meet at no.inv"),
    ],
)
def test_an_environment_without_the_means_to_meet_is_one_sentence(monkeypatch, environment, message):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as caught, together():
        pass
    assert "torchrun --nproc-per-node N" in str(caught.value)
    assert "\n" not in str(caught.value)


class Second(Processes):
    """The second of two processes, whose other one says what it is told here."""

    def __init__(self, *said) -> None:
        super().__init__(1, 2)
        vars(self).update(said=list(said), heard=[])

    def gather(self, value):
        self.heard.append(value)
        return [self.said.pop(0), value]


def test_processes_with_other_options_do_not_start(monkeypatch, tmp_path):
    """Guards against rows that come twice or never, and against embeddings of another precision in the same dataset."""
    import load_data
    import predict
    from clipcap.cli import processes

    class Other(Processes):
        """One of two processes, whose other one differs in this."""

        def gather(self, value):
            return [value, "bf16" if value == "torch.float32" else 9 if value == 4 else value]

    monkeypatch.setattr(processes, "meet", lambda _: Other(0, 2))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with pytest.raises(UserError, match=r"see different batch size \(process 0: 4, process 1: 9\)"):
        predict.main(["--weights", "demo", str(tmp_path), "--batch-size", "4"])
    with pytest.raises(UserError, match=r"see different precision \(process 0: torch.float32, process 1: bf16\)"):
        load_data.main(["--demo", "--limit", "5", "--output", str(tmp_path), "--precision", "fp32"])
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_one_process_fails_in_all():
    """Guards against a process that waits for the captions of another, which has gone on to the next model."""
    assert Second(("a", None)).attempt(lambda: "b") == ["a", "b"]
    with pytest.raises(UserError, match="no such file"):
        Second((None, "no such file")).attempt(lambda: "b")
    process = Second(("a", None))
    with pytest.raises(ZeroDivisionError):
        process.attempt(lambda: 1 / 0)
    assert process.heard == [(None, "division by zero")]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_a_machine_downloads_for_the_others(monkeypatch, rank):
    """Guards against eight downloads of one file at the same time."""
    meeting = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in meeting.items():
        monkeypatch.setenv(name, str(value))
    loaded: list[str] = []
    after: list[int] = []

    def attempt(_: Processes, work) -> None:
        work()
        after.append(len(loaded))

    monkeypatch.setattr(Processes, "attempt", attempt)
    assert Processes(rank, 2).load(lambda: loaded.append("model") or "model") == "model"
    assert after == [1 - rank, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_shows_the_bar(monkeypatch, capsys, rank):
    """Guards against a log with eight bars for one run."""
    for name, value in {"WORLD_SIZE": 2, "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    list(ProgressBar(range(3), "work"))
    Processes(rank, 2).note("once")
    said = capsys.readouterr().err
    assert (said.count("work"), said.count("once")) == ((3, 1) if rank == 0 else (0, 0))


def test_a_process_that_is_alone_meets_nobody(monkeypatch):
    """Guards against notebooks and clusters that set WORLD_SIZE=1, and against `together` where no launcher ran."""
    for world in (None, "1"):
        monkeypatch.setenv("WORLD_SIZE", world) if world else monkeypatch.delenv("WORLD_SIZE", raising=False)
        with together() as processes:
            assert processes == Processes()
            assert processes.main
            assert processes.gather("x") == ["x"]
            processes.agree(object(), "files")
        assert (launched(), on_this_machine()) == ((0, 1), (0, 1))


def test_each_process_has_a_gpu_and_its_share_of_the_cores(monkeypatch):
    """Guards against eight processes on the first GPU, and against eight times as many workers as cores."""
    import torch

    from clipcap.clip import workers
    from clipcap.devices import pick_device

    for name, value in {"WORLD_SIZE": 8, "RANK": 5, "LOCAL_RANK": 5, "LOCAL_WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))
    assert str(pick_device()) == str(pick_device("cuda")) == "cuda:1"
    assert str(pick_device("cuda:3")) == "cuda:3"
    started: list[int] = []
    monkeypatch.setattr(workers, "_decode_in_workers", lambda *given, ahead: started.append(given[2]) or iter(()))
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 24)
    monkeypatch.setattr(workers, "closing", lambda stream: __import__("contextlib").nullcontext())
    list(workers.pixel_batches(["a"] * 20, None, 4))
    assert started == [3]


def test_two_processes_make_the_dataset_of_one(tmp_path, monkeypatch):
    """Guards against images that are embedded twice or by nobody, and against a restart that begins anew.

    One command loses a process, and one process alone goes on with what is there; it keeps the shards.
    """
    import numpy as np
    from PIL import Image
    from tiny import save_tiny_clip

    clip, photos = save_tiny_clip(tmp_path / "clip"), tmp_path / "photos"
    photos.mkdir()
    draw = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(draw.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(photos / f"{number:02}.png")
        (photos / f"{number:02}.txt").write_text(f"caption {number}")
    (photos / "07.png").write_bytes(b"broken")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "import load_data\n"
        "from clipcap.cli.status import run\n"
        "from clipcap.data.writer import DatasetWriter\n"
        "load_data.IMAGES_PER_SHARD = 4\n"
        "write = DatasetWriter.write\n"
        "def last(self, *shard):\n"
        "    if os.environ.get('RANK') == '1' and 'dies' in sys.argv[0]:\n"
        "        os._exit(9)\n"
        "    with open(sys.argv[0] + '.written', 'a') as file:\n"
        "        file.write(shard[0].name + '\\n')\n"
        "    write(self, *shard)\n"
        "DatasetWriter.write = last\n"
        "run(load_data.main)\n"
    )
    (tmp_path / "dies.py").write_text(script.read_text())
    options = ["--source", "folder", photos, "--clip", clip, "--device", "cpu", "--workers", "0", "--batch-size", "3"]
    done = torchrun(tmp_path / "dies.py", *options, "--output", tmp_path / "stopped")
    written = list((tmp_path / "stopped" / ".parts").glob("train-*"))
    assert done.returncode and written and not (tmp_path / "stopped" / "dataset.json").exists()
    times = {file.name: file.stat().st_mtime_ns for file in written}
    done = torchrun(script, *options, "--output", tmp_path / "several")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("captions") == 1
    shards = (tmp_path / "script.py.written").read_text().split()
    assert len(shards) == len(set(shards)) == 9 + 1 + 1  # 36 images in fours, and two splits of two

    import load_data

    monkeypatch.setattr(load_data, "IMAGES_PER_SHARD", 4)
    for output, more in (("one", []), ("stopped", ["--keep-shards"])):
        load_data.main([*map(str, options), "--output", str(tmp_path / output), *more])
    kept = tmp_path / "stopped" / "shards"
    assert {name: (kept / name).stat().st_mtime_ns for name in times} == times
    assert len(list(kept.glob("train-*.arrow"))) == 9

    def contents(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(tmp_path / "several") == contents(tmp_path / "one")
    one, stopped = (EmbeddingStore.open(tmp_path / name) for name in ("one", "stopped"))
    assert one.identity == stopped.identity
    for split in one.splits:
        assert one.captions(split) == stopped.captions(split)
        np.testing.assert_array_equal(one.embeddings(split), stopped.embeddings(split))
    (kept / "train-00003.arrow").unlink()
    with pytest.raises(
        UserError, match="lacks 'shards/train-00003.arrow' of its split 'train'; make the dataset again"
    ):
        EmbeddingStore.open(tmp_path / "stopped")
