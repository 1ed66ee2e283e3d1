"""What goes wrong around a run: a full disk, a second run in its folder, options and data that make no sense."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_files import file_size_limit
from test_finetuning import train, trained_adapters, world  # noqa: F401
from test_training import at_step, same, tensors_of, trainer

import basic_finetuning
import frozen_finetuning
import lora_finetuning
import prompt_finetuning
from clipcap.cli.processes import ALONE
from clipcap.data.store import EmbeddingStore
from clipcap.errors import Interrupted, UserError
from clipcap.files import only_writer
from clipcap.training import experiment, losses
from clipcap.training.arguments import LoopArguments
from clipcap.training.loader import loader
from clipcap.training.state import State
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.weights.peft_folder import export_peft


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder).run()
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, interrupted at step 9, behind its first evaluation."""
    folder = tmp_path_factory.mktemp("begun")
    run = trainer(folder)
    at_step(run, 9, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        run.run()
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted run."""
    return shutil.copytree(begun, tmp_path / "run")


def check_whole(folder: Path, before: Path) -> None:
    """Every file is a whole one, new or as it was, and none is left over."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in before.iterdir()}
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = (folder / name).read_text().splitlines()
        assert len([json.loads(row) for row in rows]) >= len((before / name).read_text().splitlines())
    assert (folder / "loss.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    load_checkpoint(folder / "weights.pt")


def ends_like(folder: Path, finished: Path) -> bool:
    names = ("metrics.jsonl", "samples.jsonl")
    rows = all((folder / name).read_text() == (finished / name).read_text() for name in names)
    return rows and same(tensors_of(folder / "weights.pt"), tensors_of(finished / "weights.pt"))


# The file that a limit of this many bytes is too small for: (a file of the interrupted run, bytes beyond its size).
LIMITS = {
    "metrics.jsonl": ("metrics.jsonl", -1),
    "loss.png": ("loss.png", -2000),
    "weights.pt": ("weights.pt", -2000),
    "state.new": ("state/pytorch_model.bin", 10_000),
}


@pytest.mark.parametrize("file", LIMITS)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_afterwards(
    begun: Path, run: Path, finished: Path, file: str
) -> None:
    name, more = LIMITS[file]
    limit, said = (run / name).stat().st_size + more, rf"{file} could not be written \(.+\): .*--resume to go on"
    with file_size_limit(limit), pytest.raises(UserError, match=said) as told:
        trainer(run, resume=True).run()
    assert "\n" not in str(told.value)
    check_whole(run, begun)
    trainer(run, resume=True).run()
    assert ends_like(run, finished)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_the_row_that_a_disk_has_no_room_for_leaves_nothing_behind(run: Path, name: str) -> None:
    going = trainer(run, resume=True)
    before = (run / name).read_bytes()
    with file_size_limit(len(before) + 9), pytest.raises(OSError, match=name):
        if name == "metrics.jsonl":
            going.journal.log({"train_loss": 1.0}, 0.5)
        else:
            going.journal.sample(going.model.eval(), going.validation, going.references)
    assert (run / name).read_bytes() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for a whole run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a file system of its own cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_small_disk_that_is_full_loses_nothing(small_disk: Path, finished: Path) -> None:
    """torch's own writer, which accelerate uses for the state, does not say why it could not write."""
    with pytest.raises(UserError, match="could not be written .*--resume to go on"):
        trainer(small_disk).run()
    written = {path.name for path in small_disk.iterdir()}
    assert {"metrics.jsonl", "samples.jsonl"} <= written <= {path.name for path in finished.iterdir()}
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.raises(UserError, match="could not be written"):  # nothing at all fits: no lock, no row
        trainer(small_disk, resume=True).run()
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    trainer(small_disk, resume=True).run()
    assert ends_like(small_disk, finished)


def test_adapters_for_peft_are_written_whole_or_not_at_all(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """safetensors raises an error of its own where there is no room."""
    model, settings = trained_adapters(world)
    export_peft(model, settings, tmp_path)
    before = contents(tmp_path)
    with torch.no_grad():
        model.gpt.transformer.h[0].attn.c_attn.lora_A["default"].weight += 1
    with file_size_limit(2000), pytest.raises(OSError) as told:
        export_peft(model, settings, tmp_path)
    assert told.value.errno == errno.EFBIG and Path(told.value.filename).name == "adapter_model.safetensors"
    assert contents(tmp_path) == before


# One run at a time


def contents(folder: Path) -> dict[str, Any]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_run_in_the_same_folder_leaves_without_a_trace(run: Path, resume: bool) -> None:
    """Two trainings in one folder once mixed their files, and the second deleted the first one's state."""
    second = trainer(run, resume=resume)
    with only_writer(run):
        before = contents(run)
        with pytest.raises(UserError, match=f"is being written by process {os.getpid()} .*choose another output"):
            second.run()
        assert contents(run) == before


def test_a_run_holds_its_folder_to_the_end_and_no_longer(tmp_path: Path) -> None:
    first = trainer(tmp_path, epochs=1)

    def another() -> None:
        with pytest.raises(UserError, match="is being written by"), only_writer(tmp_path):
            pass
        raise ZeroDivisionError

    at_step(first, 12, another)
    with pytest.raises(ZeroDivisionError):
        first.run()
    with only_writer(tmp_path):
        pass


def test_every_rank_and_an_exported_folder_have_one_writer(world: Path, tmp_path: Path) -> None:  # noqa: F811
    options = ["--rank", "2", "4", "--export-peft", str(tmp_path / "peft")]
    for folder in ("run_4", "peft"):
        (tmp_path / folder).mkdir(exist_ok=True)
        with only_writer(tmp_path / folder), pytest.raises(UserError, match=f"{folder}' is being written by"):
            train(lora_finetuning, world, tmp_path / "run", *options)
    same_folder = ["--export-peft", str(tmp_path / "one")]
    train(lora_finetuning, world, tmp_path / "one", *same_folder)  # a run is no second writer to itself


# Numbers


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("clip_norm", (0.0, -1.0, float("nan"))),
        ("learning_rate", (0.0, -1e-3, float("nan"), float("inf"))),
        ("weight_decay", (-0.1, float("nan"), float("inf"))),
        ("warmup", (-0.1, 1.0, float("nan"), float("inf"))),
        ("seed", (-1, 2**32, 10**30)),
        ("epochs", (0, -1, 10**12, 10**400)),
        ("accumulate", (0, 10**12)),
        ("evals_per_epoch", (0, 10**12, 10**400)),
        ("batch_size", (0, 10**12)),
        ("min_steps", (-1, 10**12)),
        ("patience", (0, -1)),
    ],
)
def test_a_number_out_of_range_is_refused_by_the_name_of_its_option(option: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"^--{option.replace('_', '-')} must be .*, not ") as refused:
            LoopArguments(**{option: value}).check()
        assert len(str(refused.value)) < 600 and "\n" not in str(refused.value)


HUGE = str(10**12)
TRANSFORMER = ["--language-model", "GPT2", "--mapping", "transformer"]


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (basic_finetuning, ["--max-tokens", "1"], "--max-tokens must be at least 2, not 1"),
        (basic_finetuning, ["--max-tokens", HUGE], "--max-tokens .* does not fit"),
        (basic_finetuning, ["--limit-train", "0"], "--limit-train must be at least 1, not 0"),
        (basic_finetuning, ["--batch-size", HUGE], "--batch-size must be at most"),
        (basic_finetuning, ["--language-model", "GPT2", "--prefix-length", "0"], "prefix_length must be at least 1"),
        (basic_finetuning, ["--language-model", "GPT2", "--prefix-length", HUGE], "prefix.length"),
        (basic_finetuning, [*TRANSFORMER, "--clip-length", "0"], "clip_length must be at least 1"),
        (
            basic_finetuning,
            [*TRANSFORMER, "--clip-length", str(2**31 - 1)],
            "this mapping network would have [0-9,]{12,} parameters.*--clip-length",
        ),
        (basic_finetuning, [*TRANSFORMER, "--mapping-layers", "0"], "mapping_layers must be at least 1"),
        (basic_finetuning, [*TRANSFORMER, "--mapping-layers", "1000000"], "--mapping-layers must be at most 1000, not"),
        (basic_finetuning, [*TRANSFORMER[:2], "--clip-length", "4"], "--clip-length .* only with --mapping tran"),
        (basic_finetuning, [*TRANSFORMER[:2], "--mapping-layers", "4"], "--mapping-layers .* only with --mapping"),
        (frozen_finetuning, ["--train", "last:" + "9" * 5000], "is no part of this model"),
        (lora_finetuning, ["--rank", "1000000000"], "--rank must be from 1 to 32, the model's width, not 1000000000"),
        (lora_finetuning, ["--rank", "2", "1000000000"], "--rank must be from 1 to 32, .* not 1000000000"),
        (lora_finetuning, ["--rank", "2", "-1"], "--rank must be from 1 to 32, .* not -1"),
        *((lora_finetuning, ["--alpha", value], "--alpha must be above 0") for value in ("nan", "inf", "0", "-1")),
        *((lora_finetuning, ["--dropout", value], "--dropout at least 0") for value in ("1.5", "1", "-0.1", "nan")),
        (prompt_finetuning, ["--template", "word " * 5000], "template|prompt"),
        (prompt_finetuning, ["--prompt", "none", "--template", "x"], "only with --prompt template, .* is none"),
        (prompt_finetuning, ["--template", "x", "--literal-weights", "y"], "only where the prompt holds a literal"),
    ],
)
def test_a_script_refuses_a_number_before_it_trains(
    world: Path,  # noqa: F811
    tmp_path: Path,
    script: Any,
    options: list[str],
    message: str,
) -> None:
    """Guards against tens of gigabytes asked for, and against hours of training of the first of two ranks."""
    options = [str(world / "gpt2") if option == "GPT2" else option for option in options]
    with pytest.raises(UserError, match=message):
        train(script, world, tmp_path / "run", *options)
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    "options",
    [["--limit-train", HUGE], ["--batch-size", "65536"], ["--accumulate", "65536"], ["--clip-norm", "inf"]],
)
def test_a_large_number_that_makes_sense_is_done(world: Path, tmp_path: Path, options: list[str]) -> None:  # noqa: F811
    train(basic_finetuning, world, tmp_path, *options)
    load_checkpoint(tmp_path / "base_weights.pt")


def test_more_evaluations_than_steps_are_one_after_every_step(tmp_path: Path) -> None:
    """A million epochs of a million evaluations were once a list of their steps, and filled the memory."""
    run = trainer(tmp_path, evals_per_epoch=10**6, epochs=10**6)
    at_step(run, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="at step 2 of 12000000"):
        run.run()
    assert [row["step"] for row in run.progress.rows if "val_loss" in row] == [0, 1, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 20, 48])
def test_evaluations_are_spread_evenly_and_end_with_the_run(tmp_path: Path, batch_size: int) -> None:
    for per_epoch in (1, 2, 3, 5, 7, 48):
        run = trainer(tmp_path, batch_size=batch_size, evals_per_epoch=per_epoch, epochs=3)
        found = [step for step in range(1, run.steps + 1) if run.evaluates_after(step)]
        assert len(found) == 3 * min(per_epoch, run.epoch_steps) and found[-1] == run.steps
        gaps = np.diff([0, *found])
        assert gaps.max() - gaps.min() <= 1


# Data from which nothing can be learnt


def test_captions_without_tokens_are_refused(
    world: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With an empty tokenizer every caption is nothing but its end, and the weights would stay broken."""
    from tokenizers import Tokenizer, models

    empty = Tokenizer(models.BPE())
    empty.add_special_tokens(["<|endoftext|>"])
    monkeypatch.setattr(experiment, "tokenizer_of", lambda _: empty)
    with pytest.raises(UserError, match="no caption of the split 'train' .* has a token"):
        train(basic_finetuning, world, tmp_path)
    assert not (tmp_path / "base_weights.pt").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_embedding_that_is_no_number_is_named(
    world: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    """The loss would become NaN, and the message would blame the learning rate."""
    store = EmbeddingStore.open(world / "data")
    spoiled = store.embeddings("train")
    spoiled.parts = [part.copy() for part in spoiled.parts]
    spoiled.parts[0][spoiled.numbers[7], 3] = value
    monkeypatch.setattr(EmbeddingStore, "embeddings", lambda self, split: spoiled)
    image = store.column("train", "image_id")[7]
    with pytest.raises(UserError, match=f"row 8 of the split 'train' .*, image '{image}', has NaN or infinity"):
        train(basic_finetuning, world, tmp_path)


def test_a_loss_that_grows_beyond_numbers_keeps_what_was_saved(run: Path) -> None:
    going = trainer(run, resume=True)
    kept = (run / "weights.pt").read_bytes()

    def spoil() -> None:
        with torch.no_grad():
            going.model.gpt.transformer.wte.weight.fill_(float("inf"))

    at_step(going, 11, spoil)
    with pytest.raises(UserError, match="--learning-rate; weights saved before are kept"):
        going.run()
    assert (run / "weights.pt").read_bytes() == kept


def test_an_interrupt_after_the_loss_is_no_number_keeps_the_state(run: Path, finished: Path) -> None:
    """The loss is looked at every ten steps; in between a state was saved that no run can be resumed from."""
    going = trainer(run, resume=True)

    def spoil() -> None:
        with torch.no_grad():
            going.model.gpt.transformer.wte.weight.fill_(float("nan"))

    at_step(going, 10, spoil)
    at_step(going, 11, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(UserError, match="became .*nan.* at step 11: lower --learning-rate; weights saved before"):
        going.run()
    trainer(run, resume=True).run()
    assert ends_like(run, finished)


def test_batches_go_with_the_run_even_if_its_error_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against workers that outlive a full disk: they ignore SIGTERM, and Python waits for them when it ends."""
    alive: list[weakref.ref] = []

    class Batches(list):
        def __iter__(self) -> Iterator[Any]:
            batches = (batch for batch in list.__iter__(self))
            alive.append(weakref.ref(batches))
            return batches

    monkeypatch.setattr("clipcap.training.trainer.loader", lambda *given: Batches(loader(*given)))
    run = trainer(tmp_path)
    at_step(run, 3, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError) as kept:
        run.run()
    assert kept.tb and len(alive) == 1 and alive[0]() is None


# Memory


def test_a_full_memory_says_how_the_run_goes_on(tmp_path: Path) -> None:
    """It said to take a smaller --batch-size, which --resume refused."""
    run = trainer(tmp_path)

    def fill() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    at_step(run, 3, fill)
    with pytest.raises(UserError, match=r"memory \(CUDA .*\): start anew with .* --accumulate, .*--resume") as told:
        run.run()
    assert "\n" not in str(told.value)


def test_on_a_gpu_the_longest_captions_come_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a memory that is found too small after hours, and an earlier run that is lost for it."""

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    before = contents(run)
    for resume in (True, False):
        going = trainer(run, resume=resume)
        with monkeypatch.context() as patch, pytest.raises(UserError, match="out of memory"):
            patch.setattr("clipcap.training.trainer.try_longest", full)
            patch.setattr(type(going.accelerator), "device", torch.device("cuda"))
            going.run()
        assert contents(run) == before


def test_the_longest_captions_change_nothing(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a try that moves something, and one of the shortest captions, which have memory anyway."""
    going, seen, tried = trainer(tmp_path), [], []
    backward = going.accelerator.backward
    hook = going.objective.register_forward_pre_hook(lambda _, given: tried.append(given[0].tokens.shape[1]))
    with monkeypatch.context() as patch:
        patch.setattr(going.accelerator, "backward", lambda loss: (seen.append(loss), backward(loss)))
        losses.try_longest(going.objective, going.accelerator, going.train_set, going.args, ALONE)
    hook.remove()
    lengths = going.train_set.lengths()
    assert tried == [max(lengths)] and min(lengths) < max(lengths)
    assert len(seen) == 1 and all(weight.grad is None for weight in going.model.parameters())
    going.run()
    assert ends_like(tmp_path, finished)


def test_a_folder_that_goes_while_a_state_is_written_is_one_sentence(tmp_path: Path) -> None:
    """torch's own writer then raises a RuntimeError of its own, which was a fault of the program."""

    def save_state(folder: str, safe_serialization: bool) -> None:
        torch.save({}, Path(folder, "gone", "model.bin"))

    state = State(SimpleNamespace(save_state=save_state), ALONE, tmp_path, {}, {}, None)
    with pytest.raises(OSError, match="the folder has gone") as raised:
        state._write(tmp_path)
    assert raised.value.errno == errno.ENOENT
