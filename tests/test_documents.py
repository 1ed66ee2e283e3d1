"""What the documents say is so: their commands run, their options, files and links exist, and every --help is short.

The commands of the README run in its order, in one folder, on the demo's weights and a few pictures: published names
stand for the demo's weights, and what would take long gets options that make it short.
"""

import glob
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipcap.errors import UserError
from clipcap.weights.published import WEIGHTS, resolve_weights

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TRAINING = "--epochs 1 --limit-train 32 --batch-size 16 --evals-per-epoch 1"
SHORT = {"evaluate.py": "--limit 8"}  # added to a script's command: argparse takes the last of two values
SOURCES = {"instagram": "--source demo --limit 64", "folder": "--clip demo", "demo": "--limit 64"}
EXAMPLE = "bias_finetuning.py"  # the worked example of CONTRIBUTING.md


def fenced(document: str, language: str) -> list[str]:
    """The code blocks of a language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)


def commands(document: str) -> list[str]:
    lines = "\n".join(fenced(document, "bash")).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def inline(document: str) -> list[str]:
    """What stands between backticks outside code blocks."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def made(target: str) -> list[str]:
    """The commands that a target of the Makefile runs once everything is installed."""
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(".venv/bin/python") and " pip " not in line]


def script_of(words: list[str]) -> str | None:
    """The script or module that a Python command runs; None for `python -m` of a tool from elsewhere."""
    if words[1] == "-m":
        return words[2] if words[2].startswith(("clipcap", "demo", "benchmarks")) else None
    return words[1]


def run(script: str, argv: list[str]) -> int | None:
    """Drive a script of the project, one that a document just wrote into this folder, or a module with a main."""
    if Path(script).is_file() and not (ROOT / script).is_file():
        spec = importlib.util.spec_from_file_location(Path(script).stem, script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(script.removesuffix(".py"))
    return module.main(argv)


def run_short(command: str) -> int | None:
    """A document's command, word for word, with options that make it short."""
    words = shlex.split(command)
    script, argv = script_of(words), expanded(words[3 if words[1] == "-m" else 2 :])
    short = SHORT.get(script, TRAINING if script.endswith("_finetuning.py") else "")
    if script == "load_data.py":
        short = SOURCES[argv[argv.index("--source") + 1] if "--source" in argv else "demo"]
    return run(script, [*argv, *short.split()])


def expanded(words: list[str]) -> list[str]:
    """Wildcards as a shell fills them in."""
    return [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word]) or [word]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos, captioned photos, and published weights as if they had been downloaded before."""
    from clipcap.world.scenes import scenes

    folder = tmp_path_factory.mktemp("documents")
    for name in ("photos", "my_photos", "cache"):
        (folder / name).mkdir()
    for scene in scenes("test", 12):
        scene.draw().save(folder / "my_photos" / f"{scene.image_id}.png")
        (folder / "my_photos" / f"{scene.image_id}.txt").write_text(scene.post(), encoding="utf-8")
    for name, scene in zip(("beach", "city", "dog"), scenes("validation", 3), strict=True):
        scene.draw().save(folder / "photos" / f"{name}.jpg")
    for published in WEIGHTS.values():
        shutil.copy(resolve_weights("demo"), folder / "cache" / published.file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPCAP_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


def check_other(words: list[str]) -> None:
    """A command that is not Python's: what it names must be here."""
    text = " ".join(words)
    if words[0] == "make":
        for target in words[1:]:
            assert "=" in target or made(target) or target == "setup"
    elif "pip" in words[0]:
        for extras in re.findall(r"\[([a-z,]+)\]", text):
            assert set(extras.split(",")) <= EXTRAS.keys(), text
    elif words[0] == "conda":
        assert text == "conda env create -f environment.yml" and (ROOT / "environment.yml").is_file()
    else:
        assert text in ("source .venv/bin/activate", "cd REPOSITORY") or words[:2] == ["git", "clone"], text


def is_python(words: list[str]) -> bool:
    return words[0] in ("python", ".venv/bin/python")


PYTHON = {name: [c for c in commands(name) if is_python(shlex.split(c))] for name in DOCUMENTS}
OTHERS = [(name, c) for name in DOCUMENTS for c in commands(name) if not is_python(shlex.split(c))]


@pytest.mark.parametrize("command", PYTHON["README.md"])
def test_commands_of_the_readme_run(folder: Path, command: str) -> None:
    """Guards against an option that was renamed, or a command that only ever worked on its author's machine."""
    assert run_short(command) in (None, 0)


@pytest.mark.parametrize("target", ["demo", "compare"])
def test_commands_of_make_run(folder: Path, target: str) -> None:
    """Guards against a Makefile that has fallen behind the scripts."""
    for command in made(target):
        assert run_short(command) in (None, 0), command


@pytest.mark.parametrize("command", PYTHON["CONTRIBUTING.md"])
def test_the_worked_example_works(folder: Path, command: str) -> None:
    """Guards against a guide to adding a strategy that nobody could follow any more."""
    (example,) = fenced("CONTRIBUTING.md", "python")
    (folder / EXAMPLE).write_text(example, encoding="utf-8")
    assert run_short(command) in (None, 0)


@pytest.mark.parametrize(("document", "command"), OTHERS)
def test_other_commands_name_what_exists(document: str, command: str) -> None:
    """Guards against a target, an extra or a file that the documents name and nobody can find."""
    check_other(shlex.split(command))


def test_python_of_the_readme_runs(folder: Path) -> None:
    """Guards against an example that does not fit the public names."""
    for block in fenced("README.md", "python"):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_readme_is_filled_from_what_was_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against figures that were typed in, and against a second filling that doubles or eats the text."""
    spec = importlib.util.spec_from_file_location("fill_readme", ROOT / "docs" / "fill_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    monkeypatch.setattr(module, "ROOT", folder)
    module.main([])
    filled = (folder / "README.md").read_text()
    module.main([])
    assert (folder / "README.md").read_text() == filled
    table = (folder / "runs/demo/report/report.md").read_text().strip()
    assert filled.count(table) == 1 and filled.count("docs/captioned_1.png") == 1
    assert (
        filled.partition("<!-- end of results -->")[2]
        == (ROOT / "README.md").read_text().partition("<!-- end of results -->")[2]
    )
    with pytest.raises(UserError, match="no section"):
        module.fill("text", "results", table)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_on_two_screens(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a help text that nobody reads to its end."""
    help_text = help_of(script, capsys)
    assert len(help_text.splitlines()) <= 80 and max(map(len, help_text.splitlines())) <= 120
    assert f"example:\n  python {script} " in help_text


def help_of(script: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(script, ["--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_and_files_that_are_named_exist(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against text that outlives what it describes."""
    helps = {script: help_of(script, capsys) for script in SCRIPTS}
    for code in inline(document):
        words = shlex.split(code) if code.count("'") % 2 == 0 and code.count('"') % 2 == 0 else code.split()
        if words[0] in ("make", "conda", "pip", ".venv/bin/pip"):
            check_other(words)
        for word in words:
            if re.fullmatch(r"--[a-z][a-z-]+", word):
                named = [help_text for script, help_text in helps.items() if script in words] or helps.values()
                assert any(re.search(rf"(?<!\S){word}\b(?!-)", text) for text in named), f"{document}: {code}"
            if re.fullmatch(r"(clipcap|notebooks|benchmarks|tests|docs)/[\w./]*", word):
                assert (ROOT / word).exists(), f"{document}: {code}"
            if re.fullmatch(r"\w+\.py", word) and word != EXAMPLE:
                assert list(ROOT.glob(word)) or list(ROOT.glob(f"clipcap/**/{word}")), f"{document}: {code}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_pictures_are_there(document: str) -> None:
    """Guards against a first screen with a broken picture."""
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not target.startswith(("http://", "https://", "#")):
            assert (ROOT / target.split("#")[0]).exists(), f"{document}: {target}"
