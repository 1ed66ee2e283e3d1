"""The shape of the code: which module may import which, how long a file may grow, what no file may hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from test_setup import required

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}
PACKAGE = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "clipcap").rglob("*.py")
}
TOOLS = [path for folder in ("demo", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
# The floors, from the top: a module imports from its own floor and from those below it. A name ending in "." is a room.
LAYERS = (
    ("notebook", "__main__"),
    ("evaluation.",),
    ("captioning.",),
    ("training.",),
    ("data.",),
    ("weights.",),
    ("model.",),
    ("page",),
    ("clip.",),
    ("decoding.",),
    ("fast.",),
    ("world.",),
    ("cli.", "devices", "files", "offline"),
    ("text", "errors"),
)
# What takes seconds to import, and what processes that only decode images must never load.
HEAVY = {"torch", "torchvision", "transformers", "open_clip", "datasets", "pyarrow", "matplotlib", "peft", "accelerate"}
Graph = dict[str, frozenset[str]]


def imports_of(tree: ast.AST, package: Iterable[str], at_import_only: bool = False) -> frozenset[str]:
    """Dotted names that a module imports, those inside functions and for type checkers included.

    `at_import_only` leaves these two out. `from clipcap.clip import images` counts as an import of clipcap.clip.images.
    """
    found: set[str] = set()
    for node in statements(tree, at_import_only):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import; name the module in full"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(package)
            found.update(submodules or {node.module})
    return frozenset(found)


def statements(node: ast.AST, at_import_only: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if at_import_only and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        if not at_import_only or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from statements(child, at_import_only)


@cache
def imports(path: Path, at_import_only: bool = False) -> frozenset[str]:
    return imports_of(ast.parse(path.read_text(encoding="utf-8")), PACKAGE, at_import_only)


def graph_of(sources: dict[str, str]) -> Graph:
    """Module -> the modules of the package that it imports."""
    return {
        name: frozenset(imports_of(ast.parse(text), sources) & sources.keys() - {"clipcap"})
        for name, text in sources.items()
    }


def floor(module: str) -> int:
    """The number of a module's floor, counted from the top."""
    name = module.removeprefix("clipcap.")
    for number, members in enumerate(LAYERS):
        if name in members or any(m.endswith(".") and (name + ".").startswith(m) for m in members):
            return number
    raise AssertionError(f"{module} is on no floor of LAYERS")


def upward(graph: Graph) -> list[str]:
    return [
        f"{module} -> {imported}"
        for module, names in graph.items()
        for imported in names
        if module != "clipcap" and floor(imported) < floor(module)
    ]


def circles(graph: Graph) -> list[str]:
    """Modules that import themselves through others."""
    found = []
    for start in graph:
        seen, waiting = set(), list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(graph[name])
        if start in seen:
            found.append(start)
    return found


def reached(start: Path, at_import_only: bool = False) -> set[str]:
    """Everything that a file imports, itself or through the package."""
    seen: set[str] = set()
    waiting = list(imports(start, at_import_only))
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(imports(PACKAGE[name], at_import_only) if name in PACKAGE else ())
    return seen


def top_level(names: set[str] | frozenset[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in PACKAGE.items()}


def test_no_import_runs_upwards(sources) -> None:
    """Guards against a low module that comes to need a high one, in a function or for a type checker too."""
    assert upward(graph_of(sources)) == []


def test_no_module_takes_a_public_name_from_the_package(sources) -> None:
    """Guards against an arrow to any room at all that hides behind `from clipcap import Captioner`."""
    for name, text in sources.items():
        assert "clipcap" not in imports_of(ast.parse(text), sources), name


def test_there_is_no_circle(sources) -> None:
    """Guards against modules that cannot be understood, or imported, one without the other."""
    assert circles(graph_of(sources)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("clipcap.model.mapping", "from clipcap.training.trainer import Trainer"),
        ("clipcap.fast.linear", "def late():\n    from clipcap.model.clipcap import ClipCap"),
        ("clipcap.errors", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import clipcap.cli.status"),
        ("clipcap.world.scenes", "from clipcap.captioning import rules"),
    ],
)
def test_a_single_upward_import_is_noticed(sources, module, line) -> None:
    """Guards against a layout test that no longer sees what it should."""
    found = upward(graph_of(sources | {module: f"{sources[module]}\n{line}\n"}))
    assert len(found) == 1 and found[0].startswith(module)


def test_a_circle_is_noticed(sources) -> None:
    text = sources["clipcap.clip.names"] + "\nfrom clipcap.clip import loading\n"
    assert "clipcap.clip.names" in circles(graph_of(sources | {"clipcap.clip.names": text}))


def test_the_listing_explains_the_project() -> None:
    """Guards against a package that grows flat again, and rooms whose purpose nobody has written down."""
    entries = [path for path in (ROOT / "clipcap").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 20, sorted(path.name for path in entries)
    for room in (path for path in entries if path.is_dir()):
        tree = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) and len(tree.body) == 1, f"{room.name}: one sentence, and nothing imported"


def test_nothing_imports_a_script() -> None:
    """Guards against strategies that lean on each other's scripts, and a package that cannot be installed alone."""
    for path in [*SCRIPTS.values(), *PACKAGE.values(), *TOOLS]:
        assert not top_level(imports(path)) & SCRIPTS.keys(), path


def test_only_its_loader_imports_open_clip() -> None:
    """Guards against a second way to compute CLIP embeddings."""
    users = {name for name, path in PACKAGE.items() if "open_clip" in top_level(imports(path))}
    assert users == {"clipcap.clip.loading"}
    assert not [name for name, path in SCRIPTS.items() if "open_clip" in top_level(imports(path))]


def test_training_never_imports_the_encoder() -> None:
    """Guards against training that computes embeddings again: it reads the stored ones."""
    for name in PACKAGE:
        if name.startswith("clipcap.training."):
            assert "clipcap.clip.encoder" not in reached(PACKAGE[name]), name


@pytest.mark.parametrize(
    "name", ["clipcap.clip.images", "clipcap.clip.preprocessing", "clipcap.clip.workers", "clipcap.cli.options"]
)
def test_decoding_processes_load_nothing_heavy(name: str) -> None:
    """Guards against worker processes that each spend seconds and memory on torch, and a slow `--help`."""
    assert not top_level(reached(PACKAGE[name], at_import_only=True)) & HEAVY
    code = f"import sys, {name}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & HEAVY


def test_scripts_start_light() -> None:
    """Guards against a script that loads torch before it has read its own command line."""
    for name, path in SCRIPTS.items():
        assert not top_level(imports(path, at_import_only=True)) & HEAVY, name


def test_every_package_that_is_imported_is_required() -> None:
    """Guards against a package that happens to be there because another one brought it."""
    known = packages_distributions() | {"llama_cpp": ["llama-cpp-python"]}  # which few have installed
    asked_for = {canonicalize_name(requirement.name) for requirement in required("dev", "wandb", "trackio", "llama")}
    own = {"clipcap", "demo", "benchmarks"}
    for path in [*SCRIPTS.values(), *PACKAGE.values(), *TOOLS]:
        for name in top_level(imports(path)) - sys.stdlib_module_names - own:
            assert {canonicalize_name(found) for found in known.get(name, [name])} & asked_for, f"{path.name}: {name}"


def test_files_stay_short() -> None:
    """Guards against a file that has come to hold several ideas."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.values()}
    assert not {path.name: length for path, length in lengths.items() if length > 250}
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SCRIPTS.values()}
    most = {path: 100 if path.name.endswith("_finetuning.py") else 160 for path in lengths}
    assert not {path.name: length for path, length in lengths.items() if length > most[path]}


@pytest.mark.parametrize("module", [name for name in PACKAGE if name.startswith("clipcap.fast.")])
def test_what_is_fast_says_what_it_buys(module) -> None:
    """Guards against a trick of speed that nobody measured, and that nobody dares to remove."""
    assert "buys" in (ast.get_docstring(ast.parse(PACKAGE[module].read_text(encoding="utf-8"))) or ""), module


def test_no_file_holds_a_path_of_one_machine(project_files) -> None:
    """Guards against paths and hosts that exist where the code was written and nowhere else."""
    private = re.compile("|".join([r"/(?:home|Users)/\w", r"/root/", r"\bC:\\Users", re.escape(f"{ROOT}/")]))
    for path in project_files:
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yml", ".json", ".ipynb", ""}:
            found = private.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found or path == Path(__file__).resolve(), f"{path}: {found.group()}"


def test_no_module_changes_the_import_path() -> None:
    """Guards against code that runs from one folder only."""
    for path in [*SCRIPTS.values(), *PACKAGE.values()]:
        assert "sys.path" not in path.read_text(encoding="utf-8"), path
