"""A run is resumed with the same experiment alone, from a whole state, and nothing in a state is executed."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from test_finetuning import FAST, changed, world  # noqa: F401
from test_training import same, tensors_of, trainer

import load_data
from clipcap.errors import UserError
from clipcap.training.arguments import NO_NUMBERS
from clipcap.training.state import State
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint

SCRIPTS = [importlib.import_module(path.stem) for path in Path(load_data.__file__).parent.glob("*_finetuning.py")]
# What changes no number of a run, as the README's readers expect it. A new option is not among them by default.
HARMLESS = {"output_dir", "resume", "report_to", "demo", "merged", "export_peft"}
FRESH = {"language_model", "mapping", "prefix_length", "clip_length", "normalize"}  # of a run without --init
NAMES = {"data": "data", "precision": "precision"}  # what a refusal calls the option, where it is not "--option"
OTHER = {
    **{"limit_train": "15", "prefix_length": "5", "clip_length": "4", "train": "mlp", "target": "c_fc"},
    **{"template": "say: {literal}", "precision": "bf16", "batch_size": "4", "rank": "3", "max_tokens": "66"},
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


CASES = [(script, name) for script in SCRIPTS for name in options_of(script)]


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
            if fresh and script.__name__ == "prompt_finetuning":
                model += ["--literal-weights", str(world / "literal.pt")]
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
    if name in HARMLESS or name == "device":
        pytest.skip("changes no number, or is recorded as the kind of device: see the next test")
    fresh = name in FRESH
    if fresh and script.__name__ == "lora_finetuning":
        pytest.skip("LoRA has no fresh mapping network")
    line = [*begun(script, fresh), "--resume"]
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
    line += ["--merged", "--export-peft", str(tmp_path / "peft")] if "merged" in options else []
    script.main(line)
    assert "of an earlier version" not in capsys.readouterr().err
    if script.__name__ != "lora_finetuning":
        script.main([*begun(script, True), "--resume", "--language-model", str(files["same_gpt2"])])


def test_each_rank_is_resumed_alone_or_among_others(world: Path, tmp_path: Path) -> None:  # noqa: F811
    import lora_finetuning

    line = ["--data", str(world / "data"), "--init", str(world / "literal.pt"), *FAST, "--limit-train", "16"]
    lora_finetuning.main([*line, "--output-dir", str(tmp_path / "run"), "--rank", "2", "4"])
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
    known = ["epochs", "batch_size", "seed", "rows", "processes", "precision", "data", "trained parameters"]
    file.write_text(json.dumps({name: json.loads(file.read_text())[name] for name in known}))
    line += ["--output-dir", str(tmp_path / "run"), "--resume"]
    basic_finetuning.main(line)
    told = capsys.readouterr().err
    assert "of an earlier version" in told and "--max-tokens" in told and "--init" in told and "--epochs" not in told
    with pytest.raises(UserError, match=r"other --seed \(0, not 5\)"):
        basic_finetuning.main([*line, "--seed", "5"])


# What a state holds, how it is replaced, and what is in it when somebody else wrote it.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, epochs=1).run()
    return folder


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


@pytest.mark.parametrize("progress", [{}, {"step": 1}, {"step": -1}, {"step": "6"}, {"load": 3}])
def test_progress_that_no_run_made_is_refused(run: Path, progress: dict[str, Any]) -> None:
    [file] = [f for f in (run / "state").glob("custom*") if "best" in torch.load(f, weights_only=True)]
    whole = torch.load(file, weights_only=True)
    torch.save(progress if len(progress) == 0 or progress == {"step": 1} else whole | progress, file)
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).run()


def test_a_random_state_without_the_one_that_counts_is_refused(run: Path) -> None:
    torch.save({"step": 0}, run / "state" / "random_states_0.pkl")
    with pytest.raises(UserError, match="damaged"):
        trainer(run, epochs=1, resume=True).run()


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
        patch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
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
        progress.step = 99
        killed = save_and_be_killed(state, moment, monkeypatch)
        state.load()
        steps.append(progress.step)
        progress.step = 100
        state.save()
        progress.step = 0
        state.load()
        assert progress.step == 100
        assert {path.name for path in state.folder.iterdir() if path.name.startswith("state")} == {"state"}
        if not killed:
            break
    assert len(steps) > 9 and steps == sorted(steps) and set(steps) == {12, 99}


def test_a_half_written_state_does_not_stay(run: Path) -> None:
    (run / "state.new").mkdir()
    (run / "state.new" / "optimizer.bin").write_bytes(b"half")
    before = tensors_of(run / "weights.pt")
    trainer(run, epochs=1, resume=True).run()
    assert not (run / "state.new").exists() and same(before, tensors_of(run / "weights.pt"))
