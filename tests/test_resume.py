"""A run is resumed with the same experiment alone, from a whole state, and nothing in a state is executed."""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import importlib
import itertools
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from test_finetuning import FAST, changed, world  # noqa: F401
from test_training import same, tensors_of, trainer

import load_data
from clipcap.cli.processes import ALONE
from clipcap.errors import UserError
from clipcap.training.arguments import NO_NUMBERS
from clipcap.training.state import RUN, State, remove
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint
from clipcap.weights.format import read

SCRIPTS = [importlib.import_module(path.stem) for path in Path(load_data.__file__).parent.glob("*_finetuning.py")]
# What changes no number of a run, as the README's readers expect it. A new option is not among them by default.
HARMLESS = {"base", "output_dir", "resume", "report_to", "demo", "merged", "export_peft"}
# Of a run without --init.
FRESH = {"language_model", "mapping", "prefix_length", "clip_length", "mapping_layers", "normalize"}
NAMES = {"data": "data", "precision": "precision"}  # what a refusal calls the option, where it is not "--option"
OTHER = {
    **{"limit_train": "15", "prefix_length": "5", "clip_length": "4", "mapping_layers": "3"},
    **{"train": "mlp", "target": "c_fc"},
    **{"template": "say: {literal}", "precision": "bf16", "batch_size": "4", "rank": "3", "max_tokens": "66"},
    "controls": "hashtags",
    "patience": "7",
    "mapping_learning_rate": "5e-5",
}


def options_of(script: ModuleType) -> dict[str, dataclasses.Field]:
    """Every option of a script, by name."""
    found: list[type] = []

    def parse(_: Any, *groups: type, **__: Any) -> None:
        found.extend(groups)
        raise argparse.ArgumentError(None, "seen enough")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(argparse.ArgumentError):
        patch.setattr(script, "parse", parse)
        script.main([])
    return {field.name: field for group in found for field in dataclasses.fields(group)}


# Every other option of every script. LoRA has no fresh mapping network; of the device the kind counts, see below.
CASES = [
    (script, name)
    for script in SCRIPTS
    for name in options_of(script)
    if name not in HARMLESS | {"device"} and not (name in FRESH and script.__name__ == "lora_finetuning")
]


@pytest.fixture(scope="module")
def files(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    """Other contents, and the same contents elsewhere, of everything that an option names."""
    folder = tmp_path_factory.mktemp("files")
    rows = ["--source", "clipcap", str(world / "rows.pkl"), "--clip", "tiny"]
    load_data.main([*rows, "--val-fraction", "0.3", "--output", str(folder / "other_data")])
    shutil.copytree(world / "data", folder / "same_data")
    model = load_checkpoint(world / "literal.pt")
    with torch.no_grad():
        model.gpt.transformer.ln_f.bias += 0.5
    save_checkpoint(model, folder / "other.pt")
    shutil.copy(world / "literal.pt", folder / "same.pt")
    shutil.copytree(world / "gpt2", folder / "same_gpt2")
    shutil.copytree(world / "gpt2", folder / "other_gpt2")
    model.gpt.save_pretrained(folder / "other_gpt2")
    return {path.name: path for path in folder.iterdir()}


Start = Callable[[ModuleType, bool], list[str]]


@pytest.fixture(scope="module")
def begun(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:  # noqa: F811
    """Trains a script for two steps, once; gives the command line of that run."""
    lines: dict[tuple[ModuleType, bool], list[str]] = {}

    def start(script: ModuleType, fresh: bool) -> list[str]:
        if (script, fresh) not in lines:
            model = ["--language-model", str(world / "gpt2")] if fresh else ["--init", str(world / "literal.pt")]
            model += ["--mapping", "transformer"] if fresh else []
            if fresh and script.__name__ == "prompt_finetuning":
                model += ["--literal-weights", str(world / "literal.pt")]
            if script.__name__ == "frozen_finetuning":  # with the mapping network, which has an option of its own
                model += ["--train", "head", "mapping"]
            output = tmp_path_factory.mktemp(script.__name__)
            line = [*FAST, "--limit-train", "16", "--data", str(world / "data"), "--output-dir", str(output), *model]
            script.main(line)
            lines[script, fresh] = line
        return lines[script, fresh]

    return start


def other_value(script: ModuleType, field: dataclasses.Field, files: dict[str, Path]) -> list[str]:
    """Another value for an option than that of the run, as typed; found without knowing the option, where possible."""
    name, default, choices = field.name, field.default, field.metadata.get("choices")
    if name in ("data", "init", "language_model", "literal_weights"):
        return [str(files[{"data": "other_data", "language_model": "other_gpt2"}.get(name, "other.pt")])]
    if default is False:
        return []
    if name in OTHER:
        return [OTHER[name]]
    if choices:
        return [next(choice for choice in choices if choice != default)]
    assert isinstance(default, int | float), f"{script.__name__} has a new option {name}: give it a value in OTHER"
    return [str(default + 1 if isinstance(default, int) else default * 0.75)]


def test_what_may_change_is_known() -> None:
    """Guards against an option that is declared harmless in passing."""
    assert NO_NUMBERS == HARMLESS


@pytest.mark.parametrize(("script", "name"), CASES, ids=[f"{script.__name__}-{name}" for script, name in CASES])
def test_a_run_is_not_resumed_with_another_option(
    begun: Start, files: dict[str, Path], script: ModuleType, name: str
) -> None:
    """Nine of ten changed options were once accepted, and the weights were those of no experiment at all."""
    line = [*begun(script, name in FRESH), "--resume"]
    option = f"--{name.replace('_', '-')}"
    said = rf"other {NAMES.get(name, option)} \((.+), not (.+)\): give the same to --resume it, or start anew"
    value = other_value(script, options_of(script)[name], files)
    if name == "precision":
        AcceleratorState._reset_state()  # which accelerate keeps for the whole process
    with pytest.raises(UserError, match=said) as refused:
        script.main([*line, option, *value])
    if name == "precision":
        AcceleratorState._reset_state()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.__name__ for script in SCRIPTS])
def test_a_run_is_resumed_with_the_same_contents_from_elsewhere(
    begun: Start, files: dict[str, Path], tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a state that knows its data and weights by path: a copied project would have to start anew."""
    elsewhere = {"data": "same_data", "init": "same.pt", "literal_weights": "same.pt"}
    options = options_of(script)
    line = [*begun(script, False), "--resume", "--device", "auto", "--demo"]
    for name, file in elsewhere.items():
        line += [f"--{name.replace('_', '-')}", str(files[file])] if name in options else []
    if script.__name__ == "lora_finetuning":
        rate = ["--mapping-learning-rate", "2e-5"]  # the demo has none
        line += ["--merged", "--export-peft", str(tmp_path / "peft"), *rate]
    script.main(line)
    assert "of an earlier version" not in capsys.readouterr().err
    if script.__name__ != "lora_finetuning":
        script.main([*begun(script, True), "--resume", "--language-model", str(files["same_gpt2"])])


@pytest.mark.parametrize(
    ("name", "option", "parts"),
    [("frozen_finetuning", "train", ["mlp", "head"]), ("lora_finetuning", "target", ["c_fc", "c_attn"])],
)
def test_a_list_means_the_same_in_any_order(
    world: Path,  # noqa: F811
    tmp_path: Path,
    name: str,
    option: str,
    parts: list[str],
) -> None:
    """Guards against a refusal of the very same run, and against a part that the weights record twice."""
    script = importlib.import_module(name)
    line = ["--data", str(world / "data"), "--init", str(world / "literal.pt"), *FAST, "--limit-train", "16"]
    line += ["--output-dir", str(tmp_path), f"--{option}"]
    script.main([*line, *parts, parts[0]])
    script.main([*line, *reversed(parts), "--resume"])
    record = read(next(tmp_path.glob("*_weights.pt")))["record"]
    assert record["arguments"][option] == sorted(parts)
    assert record["strategy"] in ("head + mlp", "LoRA 4")


def test_each_rank_is_resumed_alone_or_among_others(world: Path, tmp_path: Path) -> None:  # noqa: F811
    import lora_finetuning

    line = ["--data", str(world / "data"), "--init", str(world / "literal.pt"), *FAST, "--limit-train", "16"]
    lora_finetuning.main([*line, "--output-dir", f"{tmp_path}/run/", "--rank", "2", "4"])
    assert {path.name for path in tmp_path.iterdir()} == {"run_2", "run_4"}  # a slash at the end changes nothing
    lora_finetuning.main([*line, "--output-dir", str(tmp_path / "run_4"), "--rank", "4", "--resume"])
    with pytest.raises(UserError, match=r"other --rank \(\[4\], not \[2\]\)"):
        lora_finetuning.main([*line, "--output-dir", str(tmp_path / "run_4"), "--rank", "2", "--resume"])


def test_a_state_of_an_earlier_version_is_taken_for_what_it_records(
    begun: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds no more than this: what it says must be the same, and what it does not say is named."""
    import basic_finetuning

    line = begun(basic_finetuning, False)
    shutil.copytree(line[line.index("--output-dir") + 1], tmp_path / "run")
    file = tmp_path / "run" / "state" / "run.json"
    known = ["epochs", "batch_size", "seed", "rows", "precision", "data", "trained parameters"]
    file.write_text(json.dumps({name: json.loads(file.read_text())[name] for name in known}))
    line = [*line, "--output-dir", str(tmp_path / "run"), "--resume"]  # not of the other tests
    basic_finetuning.main(line)
    told = capsys.readouterr().err
    assert "of an earlier version" in told and "--max-tokens" in told and "--init" in told and "--epochs" not in told
    with pytest.raises(UserError, match=r"other --seed \(0, not 5\)"):
        basic_finetuning.main([*line, "--seed", "5"])


def test_a_state_of_several_processes_of_an_earlier_version_is_refused(begun: Start, tmp_path: Path) -> None:
    """There --batch-size counted the captions of each: the run would go on with half as many in a step."""
    import basic_finetuning

    line = begun(basic_finetuning, False)
    shutil.copytree(line[line.index("--output-dir") + 1], tmp_path / "run")
    file = tmp_path / "run" / "state" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processes": 2}))
    with pytest.raises(
        UserError, match="in which --batch-size counted the captions of each of 2 processes: start anew"
    ):
        basic_finetuning.main([*line, "--output-dir", str(tmp_path / "run"), "--resume"])


def test_another_strategy_leaves_the_run_in_a_folder_as_it_is(begun: Start, tmp_path: Path) -> None:
    """head-only in the folder of a LoRA run deleted the state from which that was to go on, and its metrics."""
    import basic_finetuning
    import frozen_finetuning

    line = begun(basic_finetuning, False)
    run = Path(shutil.copytree(line[line.index("--output-dir") + 1], tmp_path / "run"))
    line = [*line, "--output-dir", str(run)]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"holds a run of 'full', and this one, of 'head-only', .*another --output-dir"):
        frozen_finetuning.main(line)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    basic_finetuning.main(line)  # the same strategy begins anew, as it did
    for content in ("[]", "{", "[" * 100_000, '{"strategy": null}'):  # a state that says none is in nobody's way
        (run / "state" / "run.json").write_text(content)
        basic_finetuning.main(line)


# What a state holds, how it is replaced, and what is in it when somebody else wrote it.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, epochs=1).run()
    return folder


def test_a_state_is_flushed_through_files_that_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against what Windows refuses: os.fsync of a file that is open for reading."""
    modes = []
    flush = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE), flush(file))
    )
    trainer(tmp_path).state.save()
    assert len(modes) > 3 and os.O_RDONLY not in modes


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoiled."""
    return shutil.copytree(finished, tmp_path / "run")


STATE = ("pytorch_model.bin", "optimizer.bin", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl")
STATE += ("random_states_0.pkl", "run.json")


def test_the_files_of_a_state_are_those_that_are_attacked(finished: Path) -> None:
    assert {path.name for path in (finished / "state").iterdir()} == set(STATE)


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_nothing_in_a_state_is_executed(run: Path, tmp_path: Path, name: str, kind: str) -> None:
    """accelerate reads two of these files with `weights_only=False`: a stranger's state would run any code."""
    hostile = {"step": Hostile(tmp_path / "executed")}
    file = run / "state" / name
    if kind == "zip":
        torch.save(hostile, file)
    else:
        file.write_bytes(pickle.dumps(hostile, protocol=2))
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).run()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "garbage"])
def test_a_damaged_state_is_refused(run: Path, name: str, damage: str) -> None:
    """accelerate goes on without a random state that it cannot read: the weights would be others, and nobody told."""
    file = run / "state" / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"garbage" * 99}[damage])
    with pytest.raises(UserError, match="damaged or of another model.*start anew") as refused:
        trainer(run, epochs=1, resume=True).run()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["[]", "3", "[" * 100_000, '{"epochs": ', '"\\ud800"'])
def test_a_run_json_of_another_shape_is_refused(run: Path, content: str) -> None:
    (run / "state" / "run.json").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).run()


def test_what_a_state_says_never_reaches_the_terminal_raw(run: Path) -> None:
    file = run / "state" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"strategy": "\x1b[2J\n" + "long " * 999}))
    with pytest.raises(UserError, match="other strategy") as refused:
        trainer(run, epochs=1, resume=True).run()
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400


def spoil(file: Path, spoiled: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a file of tensors and plain values holds."""
    content = torch.load(file, weights_only=True)
    spoiled(content)
    torch.save(content, file)


PROGRESS = [
    *({"step": value} for value in (-1, "6", 10**6, 10**400, True, 6.0)),
    *({"best": value} for value in ("x", math.nan, -math.inf, 3, None)),
    *({"seconds": value} for value in ("x", math.inf, 10**400)),
    *({"window": value} for value in ("x", math.nan, torch.zeros(()))),
    *({"window_steps": value} for value in (-1, 0.0, 10**9)),
    *({"rows": value} for value in (5, None, [1], [{"x": 1}], [{"step": 1, "epoch": 1, "a": torch.zeros(3)}])),
    *({"rows": [{"step": 1, "epoch": 1.0, "val_loss": value}]} for value in ("\ud800", math.nan, None)),
    *({"samples": value} for value in (7, None, [1], [{"a": "\ud800"}], [{"a": torch.zeros(3)}], [{1: 2}])),
    {"load": 3},
]


@pytest.mark.parametrize("progress", PROGRESS, ids=range(len(PROGRESS)))
def test_progress_that_no_run_made_is_refused(run: Path, progress: dict[str, Any]) -> None:
    spoil(run / "state" / "custom_checkpoint_1.pkl", lambda whole: whole.update(progress))
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).state.load()


@pytest.mark.parametrize("progress", [{}, {"step": 1}])
def test_progress_of_which_a_part_is_gone_is_refused(run: Path, progress: dict[str, Any]) -> None:
    torch.save(progress, run / "state" / "custom_checkpoint_1.pkl")
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).state.load()


MOMENTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "one number": lambda moment: torch.zeros(1),
    "one number, seen many times": lambda moment: torch.zeros(1).expand(moment.shape),
    "other strides": lambda moment: torch.zeros(*moment.shape, 2)[..., 0],
    "sparse": torch.Tensor.to_sparse,
    "no tensor": lambda moment: "x",
}


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_moments_of_another_shape_never_reach_the_fused_kernel(run: Path, name: str, moment: str) -> None:
    """It writes as many numbers as the parameter has, and would write behind a smaller moment."""

    def spoiled(optimizer: dict[str, Any]) -> None:
        first = optimizer["state"][0]
        first[name] = MOMENTS[moment](first[name])

    spoil(run / "state" / "optimizer.bin", spoiled)
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).state.load()


OPTIMIZER: list[Callable[[dict[str, Any]], Any]] = [
    *(
        lambda whole, value=value, name=name: whole["param_groups"][0].update({name: value})
        for name, values in {
            **dict.fromkeys(("lr", "eps", "weight_decay", "initial_lr"), ("x", math.nan, torch.zeros(3))),
            "betas": ("x", (2, 2), (0.9,), (0.9, "x"), 3),
            **{"fused": (0, "x"), "amsgrad": (True, torch.zeros(3)), "unknown": (1,)},
        }.items()
        for value in values
    ),
    *(
        lambda whole, value=value: whole["state"][0].update(step=value)
        for value in (torch.tensor(-1.0), torch.tensor(math.nan), torch.zeros(3))
    ),
    lambda whole: whole["state"][0].pop("exp_avg_sq"),
    lambda whole: whole["state"].update({"other": {}}),
    lambda whole: whole["state"].clear(),
]


@pytest.mark.parametrize("spoiled", OPTIMIZER, ids=range(len(OPTIMIZER)))
def test_an_optimizer_that_no_run_made_is_refused(run: Path, spoiled: Callable[[dict[str, Any]], Any]) -> None:
    spoil(run / "state" / "optimizer.bin", spoiled)
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).state.load()


SCHEDULE = [
    *({"last_epoch": value} for value in ("x", -5, 1.5, torch.zeros(()))),
    *({"_step_count": value} for value in ("x", -5)),
    *({"base_lrs": value} for value in ("abc", [math.nan] * 2, [], ["x", "y"])),
    *({"lr_lambdas": 5}, {"optimizer": 1}, {"get_lr": 3}, {"step": "x"}, {1: 2}),
]


@pytest.mark.parametrize("schedule", SCHEDULE, ids=range(len(SCHEDULE)))
def test_a_schedule_that_no_run_made_is_refused(run: Path, schedule: dict[Any, Any]) -> None:
    """torch's schedule takes over every name, those of its own methods too."""
    spoil(run / "state" / "custom_checkpoint_0.pkl", lambda whole: whole.update(schedule))
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).state.load()


def test_a_file_that_a_state_never_has_is_refused_whatever_its_reader_raises(run: Path) -> None:
    (run / "state" / "model.safetensors").write_bytes(b"junk" * 99)
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).state.load()


@pytest.mark.parametrize("name", STATE)
def test_only_regular_files_of_a_state_are_read(run: Path, name: str) -> None:
    """Guards against waiting for a pipe without end; the null device stands for it, which a test need not wait for."""
    file = run / "state" / name
    file.unlink()
    file.symlink_to(os.devnull)
    with pytest.raises(UserError, match=f"damaged .*{name}.*no file"):
        trainer(run, epochs=1, resume=True).state.load()


def test_a_run_whose_best_weights_are_gone_is_not_resumed(run: Path) -> None:
    """It would end by naming a file that is not there, unless its losses happened to fall further."""
    (run / "weights.pt").unlink()
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"weights\.pt.* is gone: put the file back, or start anew"):
        trainer(run, epochs=1, resume=True).run()
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("record", [None, {}, {"losses": {"validation": 99.0}}, {"losses": 1}])
def test_best_weights_of_another_run_are_not_taken_for_its_own(run: Path, record: Any) -> None:
    """It ended with success and named a file that it had not written."""
    content = torch.load(run / "weights.pt", weights_only=True)
    torch.save(content | {"record": record}, run / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt.* is the file of another run: put the file back"):
        trainer(run, epochs=1, resume=True).run()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["state", "state.old", "state.new"])
@pytest.mark.parametrize("kind", ["link", "broken link", "file"])
def test_a_link_in_the_place_of_a_state_is_replaced_and_never_written_through(
    run: Path, tmp_path: Path, name: str, kind: str, resume: bool
) -> None:
    elsewhere = tmp_path / "elsewhere"
    if kind == "link":
        elsewhere.mkdir()
        (elsewhere / "mine.txt").touch()
    shutil.rmtree(run / "state") if name == "state" else None
    if kind == "file":
        (run / name).touch()
    else:
        (run / name).symlink_to(elsewhere)
    going = trainer(run, epochs=1)
    if kind == "link" and name == "state" and resume:
        with pytest.raises(UserError, match="damaged"):
            going.state.start(resume, run / "weights.pt")
    else:
        going.state.start(resume, run / "weights.pt")
    going.state.save()
    assert {path.name for path in run.iterdir() if path.name.startswith("state")} == {"state"}
    assert not (run / "state").is_symlink() and {path.name for path in (run / "state").iterdir()} == set(STATE)
    assert not elsewhere.exists() or [path.name for path in elsewhere.iterdir()] == ["mine.txt"]


def test_a_random_state_without_the_one_that_counts_is_refused(run: Path) -> None:
    torch.save({"step": 0}, run / "state" / "random_states_0.pkl")
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).run()


def test_no_switch_of_torch_is_in_the_way(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against the advice to throw a run away where torch is told elsewhere to load everything."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    trainer(run, epochs=1, resume=True).state.load()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1" and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("kind", ["mps", "cuda"])
def test_dropout_goes_on_where_the_device_draws_it(run: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Guards against masks that begin anew: accelerate keeps nothing of Apple's GPUs, and those of others by index."""
    device, restored = torch.get_device_module(kind), []
    monkeypatch.setattr("accelerate.checkpointing.is_cuda_available", lambda: False)
    monkeypatch.setattr(device, "get_rng_state", lambda: torch.tensor([3, 5], dtype=torch.uint8))
    monkeypatch.setattr(device, "set_rng_state", lambda state: restored.append(state.tolist()))
    state = trainer(run, epochs=1, resume=True).state
    monkeypatch.setattr(type(state.accelerator), "device", torch.device(kind))
    state.load()  # of a version that did not keep them
    assert restored == []
    state.save()
    state.load()
    assert restored == [[3, 5]]
    (run / "state" / "device_random_0.bin").write_bytes(b"junk")
    with pytest.raises(UserError, match="damaged"):
        state.load()


class Killed(BaseException):
    """Stands for SIGKILL: nothing cleans up after it."""


def save_and_be_killed(state: State, moment: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Save a state and die before the step of that number that changes the disk; whether there was such a step."""
    counted = 0

    def deadly(act: Callable[..., Any]) -> Callable[..., Any]:
        def acts(*args: Any, **options: Any) -> Any:
            nonlocal counted
            counted += 1
            if counted == moment:
                raise Killed
            return act(*args, **options)

        return acts

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", deadly(torch.save))
        for name in ("unlink", "rmdir"):  # of which rmtree makes one for each file and folder
            patch.setattr(os, name, deadly(getattr(os, name)))
        for name in ("rename", "replace", "write_text"):
            patch.setattr(Path, name, deadly(getattr(Path, name)))
        try:
            state.save()
        except Killed:
            return True
    return False


def test_whenever_a_run_is_killed_there_is_a_whole_state(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against an old state that goes before the new one stands, and one in whose way nothing can be saved."""
    going, steps = trainer(tmp_path / "run", epochs=1), []
    state, progress = going.state, going.progress
    for moment in range(1, 100):
        state.folder = shutil.copytree(finished, tmp_path / str(moment))
        progress.step = 7
        killed = save_and_be_killed(state, moment, monkeypatch)
        state.load()
        steps.append(progress.step)
        progress.step = 8
        state.save()
        progress.step = 0
        state.load()
        assert progress.step == 8
        assert {path.name for path in state.folder.iterdir() if path.name.startswith("state")} == {"state"}
        if not killed:
            break
    assert len(steps) > 9 and steps == sorted(steps, reverse=True) and set(steps) == {12, 7}


def test_two_kills_leave_a_whole_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a run that is killed between two names of its state, goes on, and is killed at the next one.

    The second save began by deleting `state.old`, which was all that the first one had left.
    """
    device, killed = torch.device("cpu"), True

    def save_state(folder: str, safe_serialization: bool) -> None:
        Path(folder).mkdir(exist_ok=True)
        for name in ("weights", "optimizer"):
            Path(folder, name).write_text("whole")

    for moments in itertools.product(range(1, 15), repeat=2):
        folder = tmp_path / "{}-{}".format(*moments)
        folder.mkdir()
        state = State(SimpleNamespace(save_state=save_state, device=device), ALONE, folder, {}, {}, None)
        state.save()
        for moment in moments:
            killed = save_and_be_killed(state, moment, monkeypatch)
            assert (left := state._last()) and {path.name for path in left.iterdir()} == {"weights", "optimizer", RUN}
            remove(folder / "state.new")  # as a run that goes on does
    assert not killed  # by the last ones: there are no moments beyond them


def test_a_half_written_state_does_not_stay(run: Path) -> None:
    (run / "state.new").mkdir()
    (run / "state.new" / "optimizer.bin").write_bytes(b"half")
    before = tensors_of(run / "weights.pt")
    trainer(run, epochs=1, resume=True).run()
    assert not (run / "state.new").exists() and same(before, tensors_of(run / "weights.pt"))
