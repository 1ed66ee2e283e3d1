"""--compile: the same losses from few compiled forms, states that any run reads, and one sentence where it cannot be.

Dynamo alone, without what compiles its graphs, draws the dropout of plain PyTorch, so results are compared bit by bit.
"""

import json
import os
import signal

import pytest
import torch
from test_finetuning import train, world  # noqa: F401
from test_training import at_step, same, tensors_of, trainer
from torch._dynamo.utils import counters

import basic_finetuning
import frozen_finetuning
import lora_finetuning
from clipcap.errors import Interrupted, UserError
from clipcap.files import only_writer
from clipcap.training import losses
from clipcap.training.journal import Journal

SHORT = ["--limit-train", "16", "--precision", "fp32"]
# Of 16 captions in batches of 5 the last one is alone, and PyTorch has another form for batches of one row.
CASES = [(basic_finetuning, 5, 2), (lora_finetuning, 4, 1), (frozen_finetuning, 4, 1)]


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Trace the step, and run what was traced as it is: a real backend takes a minute."""
    monkeypatch.setattr(losses, "BACKEND", "eager")
    monkeypatch.setattr(Journal, "plot", lambda _: None)
    counters.clear()


@pytest.mark.parametrize(("script", "batch_size", "forms"), CASES, ids=[case[0].__name__ for case in CASES])
def test_losses_are_the_same_and_one_form_serves_all_lengths(world, tmp_path, script, batch_size, forms):  # noqa: F811
    """Guards against another loss, an option that does nothing, and a new compilation for every caption length."""
    plain, compiled = (
        train(script, world, tmp_path / option, option, *SHORT, "--batch-size", str(batch_size)) / "metrics.jsonl"
        for option in ("--no-fast", "--compile")
    )
    assert counters["stats"]["unique_graphs"] == forms
    wanted, found = ([json.loads(line) for line in file.read_text().splitlines()] for file in (plain, compiled))
    assert len(wanted) == len(found) >= 3
    for before, after in zip(wanted, found, strict=True):
        assert before == pytest.approx(after, abs=1e-4)


def test_an_interrupted_run_ends_with_the_weights_of_a_plain_one(tmp_path):
    """Guards against names of a compiled module in a state, and a trial step that moves weights or draws numbers."""
    trainer(tmp_path / "plain", no_fast=True).run()
    first = trainer(tmp_path / "compiled", compile=True)
    at_step(first, 9, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        first.run()
    state = torch.load(tmp_path / "compiled" / "state" / "pytorch_model.bin", weights_only=True)
    assert not [name for name in state if "_orig_mod" in name]
    trainer(tmp_path / "compiled", compile=True, resume=True).run()
    ends = [tensors_of(tmp_path / name / "weights.pt") for name in ("plain", "compiled")]
    assert same(*ends)


def test_where_it_cannot_be_compiled_nothing_is_lost(world, tmp_path, monkeypatch):  # noqa: F811
    """Guards against a traceback of several pages, after the state of an earlier run has gone."""

    def no_compiler(*_):
        raise RuntimeError("No working C++ compiler found\nand much more")

    train(frozen_finetuning, world, tmp_path, *SHORT)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(losses, "BACKEND", no_compiler)
    with pytest.raises(UserError, match=r"--compile does not work here \(.*\): it needs a C\+\+ compiler") as refused:
        train(frozen_finetuning, world, tmp_path, "--compile", *SHORT)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_that_cannot_go_on_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    """Guards against a minute of compiling before another option is refused, or another run in the folder."""
    trainer(tmp_path, compile=True, epochs=1).run()
    monkeypatch.setattr("clipcap.training.trainer.try_longest", lambda *_: pytest.fail("it compiles first"))
    with pytest.raises(UserError, match=r"other --epochs \(1, not 2\): give the same to --resume it"):
        trainer(tmp_path, compile=True, resume=True).run()
    with only_writer(tmp_path), pytest.raises(UserError, match="is being written by process"):
        trainer(tmp_path, compile=True, resume=True, epochs=1).run()


def test_it_is_not_for_sharded_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="leave --compile or --use_fsdp out"):
        trainer(tmp_path, compile=True)


@pytest.mark.skipif("TEST_INDUCTOR" not in os.environ, reason="compiling takes a minute or more: set TEST_INDUCTOR=1")
def test_kernels_compute_the_same(tmp_path, monkeypatch):
    """Guards against what dynamo alone does not show: other numbers from compiled kernels."""
    monkeypatch.setattr(losses, "BACKEND", "inductor")
    found = []
    for compiled in (False, True):
        run = trainer(tmp_path / str(compiled), compile=compiled, epochs=1)
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        run.run()
        rows = map(json.loads, (tmp_path / str(compiled) / "metrics.jsonl").read_text().splitlines())
        found.append([row["val_loss"] for row in rows if "val_loss" in row])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
