"""What the documents say is so: their commands run, their options, files and links exist, and every --help is true.

The commands of the README run in its order, in one folder, on the demo's weights and a few pictures: published names
stand for the demo's weights, and what would take long gets options that make it short.
"""

import argparse
import glob
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from mutation.mutants import MUTANTS
from packaging.specifiers import SpecifierSet

from clipcap.cli import options
from clipcap.cli.options import OnOff
from clipcap.clip.workers import MOST_WORKERS
from clipcap.decoding.options import SEQUENCES, Decoding
from clipcap.errors import UserError
from clipcap.model.config import ClipCapConfig
from clipcap.model.prompts import PROMPTS
from clipcap.training.arguments import LoopArguments, StartArguments
from clipcap.weights.published import INSTAGRAM, WEIGHTS, resolve_weights

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
DOCUMENTS += ["docs/troubleshooting.md", "docs/reliability.md", "docs/clipcap.md", "docs/scale.md", "docs/recipe.md"]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FORMS = sorted((ROOT / ".github").rglob("*.yml"))
NEWEST = 14  # the minor version of the newest Python that is tested
TRAINING = "--epochs 1 --limit-train 32 --batch-size 16 --evals-per-epoch 1 --min-steps 0"
SHORT = {"evaluate.py": "--limit 8"}  # added to a script's command: argparse takes the last of two values
SOURCES = {"instagram": "--source demo --limit 64", "demo": "--limit 64"}
SOURCES |= dict.fromkeys(("folder", "instagram-archive"), "--clip demo")
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
    run = (".venv/bin/python", ".venv-oldest/bin/python")
    return [line for line in done.stdout.splitlines() if line.startswith(run) and " pip " not in line]


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
    """A folder with photos, captioned photos, an export, and published weights as if downloaded before."""
    from clipcap.world.scenes import scenes
    from demo.archive import write_archive

    folder = tmp_path_factory.mktemp("documents")
    for name in ("photos", "my_photos", "cache"):
        (folder / name).mkdir()
    for scene in scenes("test", 12):
        scene.draw().save(folder / "my_photos" / f"{scene.image_id}.png")
        (folder / "my_photos" / f"{scene.image_id}.txt").write_text(scene.post(), encoding="utf-8")
    for name, scene in zip(("beach", "city", "dog"), scenes("validation", 3), strict=True):
        scene.draw().save(folder / "photos" / f"{name}.jpg")
    write_archive(folder / "EXPORT.zip", list(scenes("train", 24)))
    for file in (*(published.file for published in WEIGHTS.values()), *INSTAGRAM.values()):
        shutil.copy(resolve_weights("demo"), folder / "cache" / file)
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
        assert text == "source .venv/bin/activate" or words[:2] == ["git", "clone"] or words[0] == "cd", text


def is_python(words: list[str]) -> bool:
    return words[0] in ("python", ".venv/bin/python")


PYTHON = {name: [c for c in commands(name) if is_python(shlex.split(c))] for name in DOCUMENTS}
OTHERS = [(name, c) for name in DOCUMENTS for c in commands(name) if not is_python(shlex.split(c))]


@pytest.mark.parametrize("command", PYTHON["README.md"])
def test_commands_of_the_readme_run(folder: Path, command: str) -> None:
    """Guards against an option that was renamed, or a command that only ever worked on its author's machine."""
    assert run_short(command) in (None, 0)


@pytest.fixture(scope="module")
def make(folder: Path) -> Callable[[str], None]:
    """Runs the commands of a target of the Makefile in the folder, once for all tests that need what they make."""

    @cache
    def run_target(target: str) -> None:
        for command in made(target):
            assert run_short(command) in (None, 0), command

    return run_target


@pytest.mark.parametrize("target", ["demo", "compare"])
def test_commands_of_make_run(make: Callable[[str], None], target: str) -> None:
    """Guards against a Makefile that has fallen behind the scripts."""
    make(target)


def test_make_compare_evaluates_what_it_trained() -> None:
    """Guards against weights of other runs in the table, such as those of the worked example in CONTRIBUTING.md."""
    _, *trainings, evaluation = made("compare")
    assert len(trainings) == 4 and evaluation.count("_weights.pt ") == 5 and "*" not in evaluation  # LoRA has two ranks


@pytest.mark.parametrize("command", PYTHON["CONTRIBUTING.md"])
def test_the_worked_example_works(folder: Path, command: str) -> None:
    """Guards against a guide to adding a strategy that nobody could follow any more."""
    (example,) = fenced("CONTRIBUTING.md", "python")
    (folder / EXAMPLE).write_text(example, encoding="utf-8")
    assert run_short(command) in (None, 0)


@pytest.mark.parametrize("command", PYTHON["docs/troubleshooting.md"])
def test_commands_of_the_troubleshooting_run(folder: Path, command: str) -> None:
    """Guards against a report of an error that ends in an error."""
    assert run_short(command) in (None, 0)


@pytest.mark.parametrize("command", PYTHON["docs/clipcap.md"])
def test_commands_for_those_who_know_clipcap_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a training of days that is asked for in options that no script has, or that exclude each other."""

    class Understood(Exception):
        pass

    class Checked(options.Parser):
        def parse_into_dataclasses(self, argv: list[str]) -> None:
            (*groups, _), unknown = super().parse_into_dataclasses(argv)
            assert not unknown
            for group in groups:
                if isinstance(group, LoopArguments | StartArguments):
                    group.check()
            raise Understood

    monkeypatch.setattr(options, "Parser", Checked)
    _, script, *argv = shlex.split(command)
    with pytest.raises(Understood):
        run(script, argv)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_folder_to_enter_is_one_that_was_cloned(document: str) -> None:
    """Guards against an address that was changed in one line and not in the next."""
    told = commands(document)
    for before, command in zip(["", *told], told, strict=False):
        if command.startswith("cd "):
            assert before.startswith("git clone ") and before.endswith("/" + command.removeprefix("cd ")), command


@pytest.mark.parametrize(("document", "command"), OTHERS)
def test_other_commands_name_what_exists(document: str, command: str) -> None:
    """Guards against a target, an extra or a file that the documents name and nobody can find."""
    check_other(shlex.split(command))


def test_python_of_the_readme_runs(folder: Path) -> None:
    """Guards against an example that does not fit the public names."""
    for block in fenced("README.md", "python"):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.fixture
def fill_readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_readme", ROOT / "docs" / "fill_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_documents(folder: Path) -> None:
    """What `make readme` writes into."""
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "notebooks").glob("*.ipynb")]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())


def test_the_readme_is_filled_from_what_was_made(
    folder: Path, make: Callable[[str], None], fill_readme: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against figures that were typed in, and against a second filling that doubles or eats the text."""
    make("compare")
    (folder / "docs").mkdir(exist_ok=True)
    copy_documents(folder)
    monkeypatch.setattr(fill_readme, "ROOT", folder)
    fill_readme.main([])
    filled = (folder / "README.md").read_text()
    fill_readme.main([])
    assert (folder / "README.md").read_text() == filled
    results = filled.partition("<!-- results -->")[2].partition("<!-- end of results -->")[0].strip()
    head, ruler, *rows = [line for line in results.splitlines() if line.startswith("|")]
    report = (folder / "runs/demo/report/report.md").read_text().strip().splitlines()
    assert report[:2] == [head, ruler] and report[-1] in results.splitlines()
    assert set(rows) <= set(report) and len(rows) == len(fill_readme.ROWS) <= 10
    assert filled.count(results) == 1 and filled.count("docs/captioned_1.png") == 1
    assert re.search(r"^The times are those of .+\.$", results, re.MULTILINE), "no machine is named"
    assert (
        filled.partition("<!-- end of results -->")[2]
        == (ROOT / "README.md").read_text().partition("<!-- end of results -->")[2]
    )
    with pytest.raises(UserError, match="no section"):
        fill_readme.fill("text", "results", results)


def test_the_table_of_speed_says_what_was_measured(fill_readme: ModuleType) -> None:
    """Guards against another precision's name, a ratio upside down, and a row or a peer that nobody measured."""
    rates = {
        "ours": [4.0, 5, 4],
        "ours, fp32": [3.0, 3, 3],
        "ours, int8": [8.0, 8, 10],
        "alternative": [2.0, 2, 2],
        "llama.cpp": [4.0, 4, 5],
    }
    folder = {"rates": rates | {"published": [0.5, 1, 1]}, "work": {"ours": {"dtype": "torch.float16"}}}
    engines = {"CTranslate2, int8": [4.0, 4, 3], "CTranslate2, float32": [2.0, 2, 4]}
    decoded = {"rates": {"ours": [5.0, 5, 5], "ours, int8": [6.0, 6, 6], "ours, fp32": [1.0, 1, 3]} | engines}
    measured = {"folder": folder, "embedding": {"rates": {"ours": [9.0], "alternative": [6.0]}}}
    results = {"machine": {"CPU": "one"}, "rounds": 3, "measurements": measured | {"decoding greedy, batch 8": decoded}}
    lines = fill_readme.speed(results).splitlines()
    assert [line for line in lines if line.startswith("|")] == [
        "|  | this project, fp16 | fp32 | int8 | open_clip and `generate` | the published code |",
        "|---|---:|---:|---:|---:|---:|",
        "| a folder of photos, captions of 20 tokens | 4 | 3 | 8 | 2 (4.0x) | 1 (10x) |",
        "| embedding a folder | 9 |  |  | 6 (1.5x) |  |",
    ]
    assert lines[-1] == (
        "open_clip and llama.cpp (Q8_0) caption such a folder at 4 (2.0x). CTranslate2 only decodes; at batch 8 this "
        "project decodes 1.5x as fast in int8 and 0.50x as fast in fp32."
    )
    assert (
        "in int8 where the row has it, as open_clip and `generate` in fp16 and as the published code in fp32."
        in lines[0]
    )


def test_the_results_leave_out_what_says_nothing() -> None:
    """Guards against a process's size that is read as the memory of training, and against a table without its scale."""
    section = (ROOT / "README.md").read_text().partition("## Results")[2].partition("\n## ")[0]
    title, text = section.partition("\n")[::2]
    assert "drawn demo world" in title and "1.9 M parameters" in title
    assert "peak training memory" not in section
    for told in ("by construction", "not comparable", "CIDEr-D is on a scale of 0 to 10"):
        assert told in " ".join(text.split())


def git(folder: Path, *words: str) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        ("git@github.com:someone/captions.git", "https://github.com/someone/captions"),
        ("ssh://git@github.com/someone/captions", "https://github.com/someone/captions"),
        ("https://name:secret@github.com/someone/captions.git", "https://github.com/someone/captions"),
        ("https://git.example.org:8443/group/captions/", "https://git.example.org/group/captions"),
        ("/srv/git/captions.git", None),
        ("../captions", None),
        ("file:///srv/git/captions.git", None),
        ("http://127.0.0.1:8000/captions.git", None),
        ("git@alias:someone/captions.git", None),
        ("C:\\git\\captions", None),
        (None, None),
    ],
)
def test_the_address_comes_from_the_origin(
    tmp_path: Path, fill_readme: ModuleType, origin: str | None, url: str | None
) -> None:
    """Guards against an address that names nothing, a password in a document, and a path of one machine."""
    git(tmp_path, "init")
    if origin is not None:
        git(tmp_path, "remote", "add", "origin", origin)
    assert fill_readme.address(tmp_path) == url
    (tmp_path / "unpacked").mkdir()
    assert fill_readme.address(tmp_path / "unpacked") is None, "the address of another repository"


def test_an_address_is_written_everywhere_and_taken_out_again(tmp_path: Path, fill_readme: ModuleType) -> None:
    """Guards against a badge that opens another file, and a document that still names a repository that has moved."""
    copy_documents(tmp_path)
    fill_readme.fill_address(tmp_path, None)
    without = {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert len(without) == 4
    for url, on_github in (("https://github.com/someone/captions", True), ("https://git.example.org/captions", False)):
        for _ in range(2):  # a second filling changes nothing
            fill_readme.fill_address(tmp_path, url)
            for path, before in without.items():
                text = path.read_text()
                if path.suffix == ".md":
                    assert text.count(f"```bash\ngit clone {url}\ncd captions\n```") == 1
                    assert len(text.splitlines()) <= 210 and "git clone" not in before
                    continue
                notebook = json.loads(text)
                title, install = ("".join(cell["source"]) for cell in notebook["cells"][:2])
                opened = "https://colab.research.google.com/github/someone/captions/blob/main/notebooks"
                assert title.count(f"({opened}/{path.name})") == title.count("colab-badge.svg") == on_github
                assert f'\nREPOSITORY = "{url}"' in install and '"REPOSITORY = \\"\\"' in before
                assert "colab-badge" not in before
    fill_readme.fill_address(tmp_path, None)
    assert {path: path.read_text() for path in without} == without


def test_nothing_that_ships_names_a_repository_to_fill_in(project_files: list[Path]) -> None:
    """Guards against links that were left for somebody else to complete."""
    left = "OWN" + "ER"
    for path in project_files:
        if "world/weights" not in path.as_posix():
            assert left not in path.read_text(encoding="utf-8", errors="replace"), path


def test_the_readme_is_short_and_shows_every_room() -> None:
    """Guards against a first page that nobody reads to its end, and a file tree that has fallen behind the files."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 210
    for document in ("README.md", "CONTRIBUTING.md"):
        (tree,) = [block for block in fenced(document, "text") if "clipcap/\n" in block]
        told = set(re.findall(r"^ *([\w./]+)|· ([\w./]+)", tree, re.MULTILINE))
        names = {name for pair in told for name in pair if name}
        rooms = {f"{path.name}/" for path in (ROOT / "clipcap").iterdir() if path.is_dir() and path.name[0] != "_"}
        assert rooms <= names, document
        for name in names - {".py"}:
            assert (ROOT / name).exists() or (ROOT / "clipcap" / name).exists(), f"{document}: {name}"
        if document == "README.md":
            files = {path.name for path in (ROOT / "clipcap").glob("*.py")} - {"__init__.py"}
            assert files | set(SCRIPTS) <= names


def test_forms_and_workflow_are_yaml() -> None:
    """Guards against a form that the host passes over in silence."""
    assert len(FORMS) == 4
    read = {path.name: yaml.safe_load(path.read_text()) for path in FORMS}
    for name in ("bug.yml", "idea.yml"):
        form = read[name]
        assert form["name"] and form["description"]
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(set(ids)) == len(ids) > 0
        assert all(part["attributes"].get("label") for part in form["body"] if part["type"] != "markdown")
    assert "python -m clipcap.devices" in (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()


def test_the_workflow_tests_every_python_that_is_promised() -> None:
    """Guards against a version in pyproject.toml on which nobody runs the tests, and against 3.10 read as 3.1."""
    (job,) = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"].values()
    promised = SpecifierSet(PROJECT["requires-python"])
    versions = [f"3.{minor}" for minor in range(NEWEST + 1) if f"3.{minor}" in promised]
    assert job["strategy"]["matrix"]["python"] == versions == ["3.11", "3.12", "3.13", "3.14"]
    assert "make test PYTHON=python${{ matrix.python }}" in [step.get("run") for step in job["steps"]]


def test_the_citation_names_what_the_project_stands_on() -> None:
    """Guards against a citation of another version, and against a reference without title or authors."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["authors"]
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert all(reference["title"] and reference["authors"] for reference in citation["references"])
    told = " ".join(reference.get("url", reference["title"]) for reference in citation["references"])
    for reference in ("2111.09734", "2103.00020", "Unsupervised Multitask", "kkcosmos/instagram-images-with-captions"):
        assert reference in told


def test_the_changelog_names_this_version() -> None:
    """Guards against a release that nobody wrote down, and a move of modules that leads nowhere."""
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert PROJECT["version"] in headings
    moved = re.findall(r"^ *\| `clipcap\.\w+` \| (.+) \|$", text, re.MULTILINE)
    assert moved
    for module in (name for cell in moved for name in re.findall(r"`((?:clipcap|demo)[.\w]*)`", cell)):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_on_two_screens(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a help text that nobody reads to its end."""
    help_text = help_of(script, capsys)
    assert len(help_text.splitlines()) <= 80 and max(map(len, help_text.splitlines())) <= 120
    assert f"example: python {script} " in help_text


def help_of(script: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(script, ["--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


class Helped:
    """A script's parser as `main` builds it, its dataclasses, and what its help says: option -> text."""

    def __init__(self, script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        parsers: list[options.Parser] = []

        class Recorded(options.Parser):
            def __init__(self, *args, **kwargs) -> None:
                super().__init__(*args, **kwargs)
                parsers.append(self)

        monkeypatch.setattr(options, "Parser", Recorded)
        self.lines = help_of(script, capsys).splitlines()
        (parser,) = parsers
        self.actions: list[argparse.Action] = parser._actions
        self.fields: list[Field] = [field for kind in parser.dataclasses for field in fields(kind) if field.init]
        self.told: dict[str, str] = {}
        option = ""
        for line in self.lines:
            if found := re.match(r"  (--[\w\[\]-]+)", line):
                option = found[1].replace("[no-]", "")
                assert option not in self.told, f"{option} stands twice"
                # The text begins two spaces or more behind the option and its metavar, or in the next line.
                self.told[option] = " ".join(re.split(r"\s{2,}", line.strip())[1:])
            elif option and line.startswith(" " * 12):
                self.told[option] += " " + line.strip()
            else:
                option = ""


@pytest.fixture(params=SCRIPTS)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys) -> Helped:
    return Helped(request.param, monkeypatch, capsys)


def option_of(field: Field) -> str:
    return "--" + field.name.replace("_", "-")


CONFIG = ClipCapConfig()
# Defaults that a help text speaks of in its own words, since the field itself holds None or a list: what they must be.
IN_WORDS = {
    "batch_size": f"default: {SEQUENCES}, fewer with beams",
    **{name: f"default: {getattr(Decoding, name)})" for name in ("beams", "temperature", "top_p", "top_k", "seed")},
    "workers": f"default: one per CPU core, at most {MOST_WORKERS})",
    "language_model": f"default: {CONFIG.language_model})",
    "mapping": f"default: {CONFIG.mapping})",
    "prefix_length": f"default: {CONFIG.prefix_length})",
    "clip_length": f"default: {CONFIG.clip_length})",
    "mapping_layers": f"default: {CONFIG.mapping_layers})",
    "clip": f"default: the source's, or {CONFIG.clip_model})",
    "template": f"default: '{PROMPTS['template']}')",
    "output_dir": "default: runs/STRATEGY)",
    "max_hashtags": "default: all)",
    "mapping_learning_rate": "default: the same)",
    "pretrained": "default: openai)",
    "literal_weights": "default: the --init weights)",
}


def test_help_tells_every_default(parser: Helped) -> None:
    """Guards against a default of 0 that is hidden, and a text that still names the default of last year."""
    assert {option_of(field) for field in parser.fields} == parser.told.keys()
    for field in parser.fields:
        text, default = parser.told[option_of(field)], field.default
        named = re.findall(r"default: ([^)]*)\)", text)
        if default is MISSING:
            default = field.default_factory() if field.default_factory is not MISSING else None
        if default is True:
            assert named == ["on"], text
        elif isinstance(default, (int, float, str)) and default is not False and default != "":
            assert named == [str(default)], text
        elif isinstance(default, list) and default:
            assert named == [" ".join(map(str, default))], text
        elif named:
            assert default is None and IN_WORDS[field.name] in text, text
        if field.default is None and field.name in ("workers", "prefix_length", "mapping"):
            assert named, f"{field.name}: no default is told"


def test_help_tells_the_defaults_that_the_parser_has(parser: Helped) -> None:
    """Guards against a parser whose defaults are not those of the dataclasses."""
    negations = argparse._StoreFalseAction
    kept = {action.dest: action.default for action in parser.actions if not isinstance(action, negations)}
    for field in parser.fields:
        if field.default is not MISSING:
            assert kept[field.name] == field.default and type(kept[field.name]) is type(field.default), field.name


def test_help_tells_every_bound(parser: Helped) -> None:
    """Guards against "at most 8" workers that are 16 in the code."""
    bounds = {(option, bound) for option, text in parser.told.items() for bound in re.findall(r"at most (\d+)", text)}
    assert bounds == {("--workers", str(MOST_WORKERS))} & {(option, str(MOST_WORKERS)) for option in parser.told}
    assert not re.search(r"at least \d|up to \d|no more than \d", "\n".join(parser.told.values()))


def test_a_flag_that_can_be_negated_has_one_line(parser: Helped) -> None:
    """Guards against two lines for one choice."""
    on = [field.name for field in parser.fields if field.default is True]
    assert bool(on) == ("--source" in parser.told), "the steps of cleaning can be negated"
    names = [line.split()[0] for line in parser.lines if line.startswith("  --")]
    either = [field.name for field in parser.fields if field.metadata.get("action") is OnOff]  # neither on nor off
    for name in (field.replace("_", "-") for field in on + either):
        assert names.count(f"--[no-]{name}") == 1
        assert f"--{name}" not in names and f"--no-{name}" not in names
    assert sum(name.startswith("--[no-]") for name in names) == len(on + either)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_and_files_that_are_named_exist(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against text that outlives what it describes."""
    helps = {
        script: re.sub(r"--\[no-\]([\w-]+)", r"--\1 --no-\1", help_of(script, capsys)) for script in SCRIPTS
    }  # both names of a flag that can be negated
    for code in inline(document):
        words = shlex.split(code) if code.count("'") % 2 == 0 and code.count('"') % 2 == 0 else code.split()
        if words[0] in ("make", "conda", "pip", ".venv/bin/pip"):
            check_other(words)
        if words[0] in ("torchrun", "accelerate"):  # what stands before the script is theirs
            words = words[next((place for place, word in enumerate(words) if word.endswith(".py")), len(words)) :]
        if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):  # they have options of their own
            words = words[:3]
        for word in words:
            if re.fullmatch(r"--[a-z][a-z-]+", word) and word != "--help":  # which does not list itself
                named = [help_text for script, help_text in helps.items() if script in words] or helps.values()
                assert any(re.search(rf"(?<!\S){word}\b(?!-)", text) for text in named), f"{document}: {code}"
            if re.fullmatch(r"(clipcap|demo|notebooks|benchmarks|tests|docs)/[\w./]*", word):
                assert (ROOT / word).exists(), f"{document}: {code}"
            if re.fullmatch(r"\w+\.py", word) and word != EXAMPLE:
                assert list(ROOT.glob(word)) or list(ROOT.glob(f"clipcap/**/{word}")), f"{document}: {code}"
            if re.fullmatch(r"clipcap(\.\w+)+|demo(\.\w+)+", word) and document != "CHANGELOG.md":
                assert importlib.util.find_spec(word), f"{document}: {code}"


def test_every_promise_of_reliability_names_its_tests() -> None:
    """Guards against a promise that nothing keeps."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 20 and f"{len(MUTANTS)} bugs planted" in text
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.split("|")[-2])
        assert named, row
        for file, test in named:
            assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_pictures_are_there(document: str) -> None:
    """Guards against a first screen with a broken picture."""
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not target.startswith(("http://", "https://", "#")):
            assert (ROOT / document).parent.joinpath(target.split("#")[0]).exists(), f"{document}: {target}"
