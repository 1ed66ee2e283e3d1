"""Training in two processes that torchrun starts: the losses of one, every file once, and nothing lost with a process.

This file is also the script that torchrun starts.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from test_finetuning import world  # noqa: F401
from test_processes import torchrun
from test_training import at_step
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import basic_finetuning
import frozen_finetuning
import lora_finetuning
import prompt_finetuning
from clipcap.cli.status import run
from clipcap.errors import Interrupted, UserError
from clipcap.training import losses
from clipcap.training.journal import Journal
from clipcap.training.trainer import Trainer
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint
from clipcap.weights.format import read

# 43 captions in batches of 7: the last batch of an epoch has one caption, and so none for the second process.
OPTIONS = ["--limit-train", "43", "--batch-size", "7", "--epochs", "2", "--learning-rate", "1e-3", "--device", "cpu"]
OPTIONS += ["--precision", "fp32", "--min-steps", "0", "--evals-per-epoch", "1"]
STRATEGIES: dict[str, tuple[ModuleType, list[str], str]] = {
    "full": (basic_finetuning, ["--accumulate", "2"], "base_weights.pt"),
    "prompted": (prompt_finetuning, [], "prompted_weights.pt"),
    "lora": (lora_finetuning, ["--dropout", "0", "--mapping-learning-rate", "1e-4"], "lora_4_weights.pt"),
    "head": (frozen_finetuning, [], "frozen_model_weights.pt"),
}
# What `accelerate launch` is given to divide the weights too, see docs/scale.md.
FSDP = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
FSDP += ["--fsdp_state_dict_type", "FULL_STATE_DICT", "--fsdp_cpu_ram_efficient_loading", "false"]
MACHINES = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
# What torch 2.8 prints for each process, in pieces that those of the other process may come between.
GLOO = r"(\[Gloo\] Rank |[01]| is connected to | peer ranks\. |Expected number of connected peer ranks is : )*"
STOP = 9  # of the 14 steps; an evaluation was at step 7


def train(strategy: str, folder: Path, name: str, *options: str, init: str = "still.pt") -> None:
    script, own, _ = STRATEGIES[strategy]
    given = ["--data", str(folder / "data"), "--init", str(folder / init), "--output-dir", str(folder / name)]
    script.main([*given, *OPTIONS, *own, *options])


def draw(folder: Path, name: str, *options: str) -> None:
    """A run with dropout, which draws random numbers."""
    train("lora", folder, name, "--dropout", "0.1", *options, init="literal.pt")


def with_trainer(train: Callable[[], None], first: Callable[[Trainer], Any]) -> None:
    """Train, and do something with the trainer before it runs."""
    whole = Trainer.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "plot", lambda _: None)  # which takes longer than the rest of the run
        patch.setattr(Trainer, "run", lambda trainer: (first(trainer), whole(trainer))[1])
        train()


def interrupted(train: Callable[[], None]) -> None:
    """Train until the last process is asked to terminate, in the middle of a step."""

    def happens() -> None:
        if os.environ.get("RANK", "1") == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"interrupted at step {STOP} of 14") as stopped:
        with_trainer(train, lambda trainer: at_step(trainer, STOP, happens))
    assert stopped.value.number == signal.SIGTERM


def kill_the_second() -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def sharded() -> Iterator[None]:
    """Inside this context accelerate takes the CPU for one of the devices for which it has FSDP."""

    def backend(*_: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    launch = launch_command_parser().parse_args([*FSDP, *MACHINES, __file__])
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialState, "_prepare_backend", backend)
        patch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
        for name, value in prepare_multi_gpu_env(launch).items():
            if "FSDP" in name:
                patch.setenv(name, value)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


def share_of_the_weights(trainer: Trainer) -> None:
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    own, all_of_them = (sum(map(count, trained)) for count in (lambda p: p.to_local().numel(), torch.numel))
    assert trainer.accelerator.is_fsdp2 and 0.4 < own / all_of_them < 0.6


def main(argv: Sequence[str]) -> None:
    """What both processes do, all in one start, which takes seconds."""
    folder = Path(argv[0])
    exchanged: dict[str, int] = dict.fromkeys(STRATEGIES, 0)

    def count(strategy: str, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        exchanged[strategy] += bucket.buffer().numel()
        return allreduce_hook(None, bucket)

    with pytest.raises(UserError, match=r"see different seed \(process 0: 0, process 1: 1\)"):
        train("head", folder, "different", "--seed", os.environ["RANK"])
    for strategy in STRATEGIES:
        with_trainer(
            lambda name=strategy: train(name, folder, f"two/{name}"),
            lambda trainer, name=strategy: trainer.objective.register_comm_hook(name, count),
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "BACKEND", "eager")  # any other takes a minute
        train("head", folder, "compiled", "--compile")
    train("head", folder, "one_then_two", "--resume")
    interrupted(lambda: train("head", folder, "two_then_one"))
    draw(folder, "drawn")
    interrupted(lambda: draw(folder, "interrupted"))
    draw(folder, "interrupted", "--resume")
    with sharded():
        with_trainer(lambda: train("prompted", folder, "sharded"), share_of_the_weights)
        interrupted(lambda: train("prompted", folder, "sharded_again"))
        train("prompted", folder, "sharded_again", "--resume")
    (folder / f"exchanged_{os.environ['RANK']}.json").write_text(json.dumps(exchanged))
    with_trainer(lambda: train("lora", folder, "killed"), lambda trainer: at_step(trainer, STOP, kill_the_second))


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:  # noqa: F811
    """A folder with the same runs in one process and in two, and what the two have said."""
    model = load_checkpoint(world / "literal.pt")
    model.config.gpt2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    save_checkpoint(model, world / "still.pt")
    folder = shutil.copytree(world, tmp_path_factory.mktemp("trained") / "world")
    interrupted(lambda: train("head", folder, "one_then_two"))
    done = torchrun(__file__, folder)
    assert (folder / "exchanged_1.json").is_file(), done.stderr
    for strategy in STRATEGIES:
        with_trainer(lambda name=strategy: train(name, world, f"one/{name}"), lambda _: None)
    return folder, done


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def close(run: Path, other: Path) -> None:
    """Assert that two runs have logged the same losses at the same steps."""
    rows, others = rows_of(run), rows_of(other)
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for row, expected in zip(rows, others, strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_have_the_losses_of_one(world: Path, trained: Any, strategy: str) -> None:  # noqa: F811
    """Guards against a mean over processes of means, though one has three captions and the other has four, or none."""
    one, two = world / "one" / strategy, trained[0] / "two" / strategy
    close(two, one)
    assert len(rows_of(two)) >= 5 and rows_of(two)[-1]["step"] == (8 if strategy == "full" else 14)
    weights = STRATEGIES[strategy][2]
    states = [read(folder / weights)["tensors"] for folder in (one, two)]
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-4) for name in states[0])
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()
    new = {"random_states_1.pkl"}
    assert {p.name for p in two.rglob("*")} - new == {p.name for p in one.rglob("*")}


def test_two_processes_compile_the_same_losses(world: Path, trained: Any) -> None:  # noqa: F811
    """Guards against a wrapper for several processes that cannot be traced, or that exchanges other gradients."""
    close(trained[0] / "compiled", world / "one" / "head")


def test_files_and_captions_are_computed_and_written_once(world: Path, trained: Any) -> None:  # noqa: F811
    """Guards against a line of output, a progress bar and literal captions for every process."""
    folder, done = trained
    names = [f"two/{name}" for name in STRATEGIES] + [
        "compiled",
        "one_then_two",
        "drawn",
        "interrupted",
        "sharded",
        "sharded_again",
    ]
    files = [weights for _, _, weights in STRATEGIES.values()]
    files += [*["frozen_model_weights.pt"] * 2, *["lora_4_weights.pt"] * 2, *["prompted_weights.pt"] * 2]
    printed = [line for line in done.stdout.splitlines() if not re.fullmatch(GLOO, line)]
    assert printed == [str(folder / name / file) for name, file in zip(names, files, strict=True)]
    assert done.stderr.count("LoRA 4: 100%") == done.stderr.count("LoRA 4: 86 captions in") == 3
    literals = {path.name: path.read_text() for path in (folder / "data").rglob("literal_captions/*/*")}
    assert literals == {path.name: path.read_text() for path in (world / "data").rglob("literal_captions/*/*")}
    assert len(literals) == 2


def test_nothing_is_exchanged_for_frozen_parameters(trained: Any) -> None:
    folder = trained[0]
    for rank in "01":
        for strategy, numbers in json.loads((folder / f"exchanged_{rank}.json").read_text()).items():
            record = read(folder / "two" / strategy / STRATEGIES[strategy][2])["record"]
            steps = 8 if strategy == "full" else 14
            assert numbers == steps * record["trained_parameters"]


def test_a_run_is_resumed_in_another_number_of_processes(
    world: Path,  # noqa: F811
    trained: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Guards against a state that only as many processes as have saved it can read."""
    folder, done = trained
    train("head", folder, "two_then_one", "--resume")
    told = "one_then_two was saved with 1 as the number of processes, which is 2 now: from here on dropout draws other"
    assert told in done.stderr
    assert "two_then_one was saved with 2 as the number of processes, which is 1 now" in capfd.readouterr().err
    for name in ("one_then_two", "two_then_one"):
        close(folder / name, world / "one" / "head")


def test_an_interrupted_run_in_two_processes_ends_with_the_same_weights(trained: Any) -> None:
    """One of them is asked to terminate, and both stop there. Guards against dropout that draws anew, or in step."""
    folder, done = trained
    drawn, again = (read(folder / name / "lora_4_weights.pt")["tensors"] for name in ("drawn", "interrupted"))
    assert drawn.keys() == again.keys() and all(torch.equal(drawn[name], again[name]) for name in drawn)
    close(folder / "interrupted", folder / "drawn")
    states = [torch.load(folder / "drawn" / "state" / f"random_states_{rank}.pkl", weights_only=False) for rank in "01"]
    assert not torch.equal(*(state["torch_manual_seed"] for state in states))


def test_sharded_weights_train_like_whole_ones(world: Path, trained: Any) -> None:  # noqa: F811
    """Guards against files that hold a share of the weights, and a state from which a sharded run goes on otherwise."""
    folder = trained[0]
    close(folder / "sharded", world / "one" / "prompted")
    two, whole, again = (
        load_checkpoint(folder / name / "prompted_weights.pt").state_dict()
        for name in ("two/prompted", "sharded", "sharded_again")
    )
    assert all(torch.allclose(two[name], whole[name], atol=1e-4) for name in two)
    assert two.keys() == whole.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(UserError, match=r"other FSDP \(True, not False\)"):
        train("prompted", folder, "sharded", "--resume")


def test_an_environment_in_which_it_cannot_train_is_one_sentence(
    world: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against errors of accelerate, an FSDP that shards nothing, and a state that only pickle could read."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for flag, value in {"version": "2", "state_dict_type": "FULL_STATE_DICT"}.items():
        with pytest.raises(UserError, match=f"--fsdp_{flag} of accelerate launch must be {value}, not ''.*--use_fsdp"):
            train("head", world, "no")
        monkeypatch.setenv(f"FSDP_{flag}".upper(), value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    with pytest.raises(UserError, match="accelerate shards nothing on the device cpu: leave --use_fsdp out"):
        train("head", world, "no")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2 in the environment, but RANK is not there"):
        train("head", world, "no")


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_one_gpu_for_several_processes_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:  # noqa: F811
    """Guards against a run on two devices: accelerate takes one GPU for each process, whichever was named."""
    # Each process on a machine of its own: those are several, too.
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("clipcap.training.start.meet", Mock(side_effect=AssertionError("refused too late")))
    with pytest.raises(UserError, match=f"--device {device} is one GPU, and the 2 processes .*: give --device cuda, "):
        train("head", world, "no", "--device", device)


def test_a_process_that_is_killed_stops_the_other_and_nothing_is_lost(world: Path, trained: Any) -> None:  # noqa: F811
    """The other one says so in a sentence, and the run goes on from the last evaluation to the same losses."""
    folder, done = trained
    assert done.returncode == 1
    assert done.stderr.count("error: another of the 2 processes has ended, and its own message says why") == 1
    assert "--resume" in done.stderr and "clipcap" not in "".join(done.stderr.split("Traceback")[1:])
    train("lora", folder, "killed", "--resume")
    close(folder / "killed", world / "one" / "lora")


if __name__ == "__main__":
    run(main)
