"""The loop learns, keeps the best weights, and goes on after an interruption to the very same weights."""

import errno
import io
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType
from tiny import byte_tokenizer, tiny_captioner_model, tiny_config, tiny_model

from clipcap.cli import status
from clipcap.errors import Interrupted, UserError
from clipcap.model.batches import encode_captions
from clipcap.model.clipcap import ClipCap
from clipcap.model.prompts import caption_embeddings
from clipcap.training import journal, record, setup
from clipcap.training.arguments import LoopArguments
from clipcap.training.journal import Journal
from clipcap.training.loader import CaptionDataset
from clipcap.training.losses import validation_loss
from clipcap.training.progress import Progress
from clipcap.training.setup import make_accelerator, parameter_groups
from clipcap.training.trainer import Trainer
from clipcap.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CAPTIONS = ["sunny days ☀️", "best friends!", "coffee first", "#nofilter"] * 12


def model_and_data() -> tuple[ClipCap, CaptionDataset, CaptionDataset]:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = tiny_config(tokenizer=tokenizer.to_str(), stop_token=tokenizer.token_to_id("<|endoftext|>"))
    config.gpt2["vocab_size"] = tokenizer.get_vocab_size()
    embeddings = np.random.default_rng(0).normal(size=(len(CAPTIONS), 16)).astype(np.float32)
    data = CaptionDataset(embeddings, encode_captions(tokenizer, CAPTIONS, 20))
    return ClipCap(config), data, CaptionDataset(data.embeddings, data.captions, rows=range(8))


def trainer(folder, **options) -> Trainer:
    model, train, validation = model_and_data()
    folder.mkdir(exist_ok=True)
    values = {
        "output_dir": str(folder),
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "device": "cpu",
        "patience": None,
    }
    references = [{"image": str(row), "reference": CAPTIONS[row]} for row in range(3)]
    args = LoopArguments(**(values | options))
    return Trainer(model, train, validation, args, "full", "weights.pt", {"data": {"rows": 48}}, references=references)


def at_step(run: Trainer, step: int, happens) -> None:
    """Let something happen in the middle of a step."""
    clip = run.accelerator.clip_grad_norm_

    def clip_and_happen(*args):
        clip(*args)
        if run.progress.step + 1 == step:
            happens()

    run.accelerator.clip_grad_norm_ = clip_and_happen


def tensors_of(path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder).run()
    return folder


def test_a_run_learns_and_writes_what_it_promises(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert len(losses) == 5 and losses[-1] < losses[1] < losses[0]
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 6, 12, 18, 24]
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [6, 12, 18, 24]
    assert samples[0]["captions"][0].keys() == {"image", "reference", "caption"}


def test_samples_and_plot_show_what_they_say(tmp_path, monkeypatch):
    """Guards against captions without their prompt or beside another picture's reference, and a plot of nothing."""
    model, plotted = tiny_captioner_model(), []
    embeddings = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    prompts = [[5], [6, 7], [], [8]]
    data = CaptionDataset(embeddings.numpy(), [[1]] * 4, prompts)
    monkeypatch.setattr(journal, "plot_losses", lambda runs, path, title: plotted.append((runs, path)))
    progress = Progress()
    progress.rows = [{"step": 0, "epoch": 0.0, "val_loss": 2.0}]
    written = Journal(SimpleNamespace(is_main_process=True), tmp_path, "full", progress)
    written.sample(model, data, [{"image": str(row)} for row in range(3)])
    written.plot()
    [shown] = [json.loads(line)["captions"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    wanted = [caption_embeddings(model, embeddings[[n]], journal.SAMPLE, [prompts[n]])[0] for n in range(3)]
    assert shown == [{"image": str(row), "caption": caption} for row, caption in enumerate(wanted)]
    assert plotted == [({"full": progress.rows}, tmp_path / "loss.png")]


def test_the_weights_remember_how_they_were_trained(finished):
    model = load_checkpoint(finished / "weights.pt")
    record = model.record
    assert record["strategy"] == "full" and record["data"] == {"rows": 48}
    assert record["trained_parameters"] == record["total_parameters"] == sum(p.numel() for p in model.parameters())
    assert record["seconds"] > 0 and record["peak_memory_bytes"] > 1e6 and record["versions"]["torch"]
    _, _, validation = model_and_data()
    assert validation_loss(model, validation, 4) == pytest.approx(record["losses"]["validation"], abs=1e-5)


def test_where_nothing_tells_the_peak_memory_the_record_has_none(monkeypatch):
    """Guards against a module that Windows has not, without which no training began there."""
    monkeypatch.setitem(sys.modules, "resource", None)
    run_record = runpy.run_path(record.__file__)["run_record"]
    assert run_record(tiny_model(), "full", Progress(), 1.0, 2.0)["peak_memory_bytes"] is None


def test_the_peak_memory_is_that_of_this_run(tmp_path, monkeypatch):
    """Guards against LoRA ranks of one command that all have the peak of the largest before them."""
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    record.start_peak(torch.device("cpu"))
    record.start_peak(torch.device("cuda", 1))
    assert reset == [torch.device("cuda", 1)]
    run = trainer(tmp_path, epochs=1)
    started = []
    monkeypatch.setattr("clipcap.training.trainer.start_peak", lambda device: started.append(run.progress.step))
    run.run()
    assert started == [0]


@pytest.mark.parametrize("moment", [1, 6, 9, 13, 23])
def test_an_interrupted_run_ends_with_the_same_weights(finished, tmp_path, moment):
    first = trainer(tmp_path)
    number = signal.SIGTERM if moment == 9 else signal.SIGINT
    at_step(first, moment, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f"interrupted at step {moment} of 24.*--resume") as caught:
        first.run()
    assert caught.value.number == number  # of which the exit status tells: 130 or 143
    trainer(tmp_path, resume=True).run()
    assert same(tensors_of(tmp_path / "weights.pt"), tensors_of(finished / "weights.pt"))
    assert (tmp_path / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()
    assert (tmp_path / "samples.jsonl").read_text() == (finished / "samples.jsonl").read_text()


CLOSED = """
import fcntl, os, signal, sys, termios, time
from pathlib import Path
from clipcap.cli.status import run
from test_training import at_step, trainer

def closed():
    try:
        print("close me", flush=True)
        while True:
            time.sleep(0.01)
            os.write(2, b".")
    except OSError:
        return

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
training = trainer(Path(sys.argv[1]))
at_step(training, 9, closed)
run(lambda _: training.run() and None)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_costs_no_step(finished, tmp_path):
    """Guards against hours of training that end with the connection to a server.

    What is written to a closed terminal raises an error, which must not come before the state.
    """
    import pty

    terminal, other_end = pty.openpty()
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    ends = {"stdin": other_end, "stdout": other_end, "stderr": other_end}
    given = [sys.executable, "-c", CLOSED, str(tmp_path)]
    with subprocess.Popen(given, env=os.environ | paths, start_new_session=True, **ends) as process:
        os.close(other_end)
        said = b""
        while b"close me" not in said:
            said += os.read(terminal, 1000)
        os.close(terminal)
        process.wait(120)
    step = torch.load(tmp_path / "state" / "custom_checkpoint_1.pkl", weights_only=True)["step"]
    assert step in (9, 10)  # the signal may come a moment after the terminal has gone
    trainer(tmp_path, resume=True).run()
    assert same(tensors_of(tmp_path / "weights.pt"), tensors_of(finished / "weights.pt"))


def test_a_message_that_reaches_nobody_does_not_change_the_status(monkeypatch):
    """Guards against a closed terminal that takes a saved state for a file that cannot be written."""

    def interrupted(_):
        raise Interrupted("saved", signal.SIGTERM)

    class Closed(io.StringIO):
        def write(self, _):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Closed())
    with pytest.raises(SystemExit) as ended:
        status.run(interrupted)
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize("nohup", [False, True])
def test_nohup_is_respected(nohup):
    """Guards against a run that ends with its terminal although it was told to go on."""
    given = signal.SIG_IGN if nohup else signal.SIG_DFL
    before = signal.signal(signal.SIGHUP, given)
    try:
        with setup.deferred_interrupt() as received:
            heard = signal.getsignal(signal.SIGHUP) is not given  # asked first, since the default ends this process
            if heard or nohup:
                os.kill(os.getpid(), signal.SIGHUP)
            assert received == ([] if nohup else [signal.SIGHUP])
        assert signal.getsignal(signal.SIGHUP) is given
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_fast_an_interrupted_run_ends_with_the_same_weights_too(tmp_path):
    trainer(tmp_path / "straight", no_fast=True).run()
    first = trainer(tmp_path / "broken", no_fast=True)
    at_step(first, 9, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="interrupted at step 9"):
        first.run()
    trainer(tmp_path / "broken", no_fast=True, resume=True).run()
    assert same(*(tensors_of(tmp_path / name / "weights.pt") for name in ("straight", "broken")))


def test_a_killed_run_goes_on_from_its_last_evaluation(finished, tmp_path):
    first = trainer(tmp_path)
    at_step(first, 9, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        first.run()
    trainer(tmp_path, resume=True).run()
    assert same(tensors_of(tmp_path / "weights.pt"), tensors_of(finished / "weights.pt"))


def test_resuming_a_finished_run_changes_nothing(finished, tmp_path):
    before = (finished / "weights.pt").read_bytes()
    trainer(finished, resume=True).run()
    assert (finished / "weights.pt").read_bytes() == before


def test_other_arguments_than_those_of_the_state_are_refused(finished):
    with pytest.raises(UserError, match=r"other --batch-size \(4, not 8\)"):
        trainer(finished, resume=True, batch_size=8).run()


def test_accumulated_steps_move_the_weights_once(tmp_path):
    run = trainer(tmp_path, accumulate=3, epochs=1)
    assert run.steps == 4
    moved = []
    run.optimizer.optimizer.register_step_post_hook(lambda *_: moved.append(run.progress.step))
    run.run()
    assert run.progress.step == 4 and moved == [0, 1, 2, 3]


def test_vectors_do_not_decay():
    matrices, vectors = parameter_groups(tiny_model(), LoopArguments(weight_decay=0.1))
    assert all(parameter.ndim >= 2 for parameter in matrices["params"]) and matrices["weight_decay"] == 0.1
    assert all(parameter.ndim < 2 for parameter in vectors["params"]) and vectors["weight_decay"] == 0.0


def test_the_mapping_network_can_have_its_own_learning_rate(tmp_path):
    run = trainer(tmp_path, mapping_learning_rate=1e-5, epochs=1, warmup=0)
    mapping = {id(parameter) for parameter in run.model.clip_project.parameters()}
    for group in run.optimizer.param_groups:
        assert all((id(parameter) in mapping) == (group["initial_lr"] == 1e-5) for parameter in group["params"])
    before = [parameter.detach().clone() for parameter in run.model.clip_project.parameters()]
    run.run()
    moved = [
        float((now.detach() - then).abs().max())
        for now, then in zip(run.model.clip_project.parameters(), before, strict=True)
    ]
    assert 0 < max(moved) < 1e-5 * run.steps * 1.1


def test_the_rate_that_is_logged_is_one_that_trains(tmp_path):
    """Guards against the rate of a group without parameters, where the mapping network trains alone."""
    model, train, validation = model_and_data()
    model.train_only(lambda name: name.startswith("clip_project."))
    args = LoopArguments(str(tmp_path), epochs=1, batch_size=24, device="cpu", warmup=0, learning_rate=3e-3)
    args.mapping_learning_rate = 1e-5
    run = Trainer(model, train, validation, args, "mapping", "weights.pt", {})
    run.run()
    rates = [row["lr"] for row in run.progress.rows if "lr" in row]
    assert rates == pytest.approx([0.5e-5, 0.0])


def test_a_rate_for_a_mapping_network_that_does_not_train_is_refused():
    model = tiny_model()
    model.train_only(lambda name: not name.startswith("clip_project."))
    with pytest.raises(UserError, match="--mapping-learning-rate has an effect only"):
        parameter_groups(model, LoopArguments(mapping_learning_rate=1e-5))


def test_the_loss_before_the_first_step_is_logged_once_and_counts_for_nothing(tmp_path, monkeypatch):
    """Weights that begin better than they ever are again must still be written, and patience must not end with them."""
    losses = iter([1.0, 5.0, 4.0, 4.5])
    monkeypatch.setattr("clipcap.training.trainer.validation_loss", lambda *_: next(losses))
    run = trainer(tmp_path, epochs=3, evals_per_epoch=1, patience=2)
    run.run()
    logged = [(row["step"], row["val_loss"]) for row in run.progress.rows if "val_loss" in row]
    assert logged == [(0, 1.0), (12, 5.0), (24, 4.0), (36, 4.5)]
    assert load_checkpoint(run.weights).record["losses"]["validation"] == run.progress.best == 4.0
    assert run.progress.stale == 1


def test_the_seconds_of_training_are_those_of_its_steps(tmp_path, monkeypatch):
    """Guards against a time of training that holds the evaluations, which take as long as there are held-out images."""
    run, clock = trainer(tmp_path, epochs=1), Mock(now=0.0)
    monkeypatch.setattr("clipcap.training.trainer.time", Mock(perf_counter=lambda: clock.now))

    def lasts(seconds, does):
        def done(*given):
            clock.now += seconds
            return does(*given)

        return done

    run.step, run.evaluate = lasts(2.0, run.step), lasts(1000.0, run.evaluate)
    run.run()
    assert clock.now > 1000 and run.progress.seconds == 2.0 * run.steps


def test_a_first_loss_like_that_of_nonsense_says_what_to_check(tmp_path, capfd):
    told = "check that they were trained with the CLIP of the dataset"
    trainer(tmp_path / "usual", epochs=1).run()
    assert told not in capfd.readouterr().err
    run = trainer(tmp_path, epochs=1)
    with torch.no_grad():
        run.model.gpt.transformer.wte.weight.mul_(300)
    run.run()
    assert told in capfd.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    run = trainer(tmp_path)
    with torch.no_grad():
        run.model.gpt.transformer.wte.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="at step 0: check the weights"):
        run.run()


def test_a_loss_that_becomes_no_number_says_what_to_change(tmp_path):
    run = trainer(tmp_path)

    def spoil():
        with torch.no_grad():
            run.model.gpt.transformer.wte.weight.fill_(float("nan"))

    at_step(run, 3, spoil)
    with pytest.raises(UserError, match="at step 6: lower --learning-rate"):
        run.run()


def test_a_loss_beyond_the_range_of_fp16_says_so(tmp_path):
    accelerator = SimpleNamespace(mixed_precision="fp16")
    written = Journal(accelerator, tmp_path, "full", SimpleNamespace(step=3))
    with pytest.raises(UserError, match="at step 3: take --precision fp32"):
        written.log({"train_loss": math.inf}, 0.5)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}])
def test_impossible_arguments_are_refused(options):
    with pytest.raises(UserError, match="--"):
        LoopArguments(**options).check()


def test_metrics_go_to_tensorboard_too(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = trainer(tmp_path, report_to="tensorboard", epochs=1)
    run.run()
    written = events.EventAccumulator(str(tmp_path / "clipcap")).Reload()
    for name in ("train_loss", "val_loss", "lr"):
        logged = [(row["step"], pytest.approx(row[name])) for row in run.progress.rows if name in row]
        assert [(event.step, event.value) for event in written.Scalars(name)] == logged


TRACKIO = """
class config:
    update = lambda values, **_: None

class Run:
    log = lambda self, values, step=None: print("logged", step, *values)
    finish = lambda self: print("finished")

init = lambda project, **_: Run()
"""


def test_metrics_go_to_trackio_too(tmp_path, monkeypatch, capsys):
    """Guards against a tracker that is offered, and that accelerate does not know. A stand-in takes its place."""
    (tmp_path / "trackio.py").write_text(TRACKIO)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TRACKIO])
    trainer(tmp_path / "run", report_to="trackio", epochs=1).run()
    printed = capsys.readouterr().out
    assert "train_loss" in printed and "val_loss" in printed and printed.endswith("finished\n")


def test_a_tracker_that_cannot_start_is_one_sentence_and_costs_nothing(tmp_path, monkeypatch):
    """It ended in a traceback, as of a fault in this program."""
    (tmp_path / "trackio.py").write_text('def init(*_, **__):\n    raise RuntimeError("no API key\\nat line 3")\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TRACKIO])
    trainer(tmp_path / "run", epochs=1).run()
    with pytest.raises(UserError, match=r"^--report-to trackio .*\(no API key\): log in to it, or leave .* out$"):
        trainer(tmp_path / "run", epochs=1, report_to="trackio").run()
    assert (tmp_path / "run" / "state" / "run.json").is_file()


def test_a_run_that_is_refused_begins_none_of_the_tracker(finished, monkeypatch):
    """Guards against empty runs on a page that others read."""
    begun = Mock()
    monkeypatch.setattr(Accelerator, "init_trackers", begun)
    with pytest.raises(UserError, match="other --seed"):
        trainer(finished, resume=True, seed=1, report_to="tensorboard").run()
    begun.assert_not_called()


class HalfAccelerator(Accelerator):
    """What accelerate is on a CUDA device in fp16, on the CPU, where it would leave fp16 and its scaler out."""

    def __init__(self, cpu, **options):
        super().__init__(cpu=True, **options)
        if self.mixed_precision == "fp16":
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_in_fp16_learns_as_in_fp32(tmp_path, monkeypatch, accumulate):
    """Guards against gradients that underflow, a norm that is clipped while they are scaled, and a lost step."""
    args = {"epochs": 1, "accumulate": accumulate, "evals_per_epoch": 1}
    exact = trainer(tmp_path / "fp32", precision="fp32", **args)
    exact.run()
    AcceleratorState._reset_state()  # which accelerate keeps for the whole process
    monkeypatch.setattr(setup, "Accelerator", HalfAccelerator)
    monkeypatch.setattr(setup, "pick_device", lambda device: torch.device("cuda"))
    half = trainer(tmp_path / "fp16", precision="fp16", **args)
    seen = set()
    half.model.gpt.transformer.h[0].mlp.c_fc.register_forward_hook(lambda *given: seen.add(given[2].dtype))
    with warnings.catch_warnings(action="error", category=UserWarning):  # about a schedule that overtakes its optimizer
        half.run()
    AcceleratorState._reset_state()
    assert half.accelerator.scaler.get_scale() == 65536 and torch.float16 in seen
    assert half.state.facts["precision"] == "fp16" and (tmp_path / "fp16" / "state" / "scaler.pt").is_file()
    assert half.progress.best == pytest.approx(exact.progress.best, rel=0.02)


def test_fp16_is_refused_where_nothing_scales_its_gradients(tmp_path):
    """Guards against accelerate, which trains in fp32 on a CPU that is asked for fp16, and does not say so."""
    with pytest.raises(UserError, match="--precision fp16 trains on CUDA devices only, and this run is on cpu"):
        trainer(tmp_path, precision="fp16")


@pytest.mark.parametrize(("device", "chosen"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_a_run_is_on_the_device_that_was_named(monkeypatch, device, chosen):
    """Guards against a run on the first GPU, whichever was named: accelerate asks only which one is current."""
    current = []
    monkeypatch.setattr(setup, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    monkeypatch.setattr(setup, "Accelerator", Mock)
    assert make_accelerator(LoopArguments(device=device, precision="fp32"), 768).cpu == (device == "cpu")
    assert current == chosen
