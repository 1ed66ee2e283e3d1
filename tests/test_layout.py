"""The shape of the code: which module may import which, how long a file may grow, what no file may hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
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
# What takes seconds to import, and what processes that only decode images must never load.
HEAVY = {"torch", "torchvision", "transformers", "open_clip", "datasets", "matplotlib", "peft", "accelerate"}
# Importing the key, even indirectly, from a module of the value would turn an arrow of the design around.
ABOVE = {
    "clipcap.captioner": ["encoder", "images", "decoding", "model", "mapping", "checkpoint", "published", "training"],
    "clipcap.training": ["model", "data", "checkpoint", "plots", "encoder", "images", "decoding", "mapping"],
    "clipcap.checkpoint": ["model", "decoding", "mapping", "data", "encoder", "images"],
    "clipcap.model": ["mapping", "decoding", "encoder", "images", "sources", "embeddings"],
    "clipcap.encoder": ["images", "model", "data", "checkpoint", "training", "metrics", "plots", "sources"],
}


def statements(node: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    """Every statement below a node, but not those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        if into_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from statements(child, into_functions)


@cache
def imports(path: Path, at_import_only: bool = False) -> frozenset[str]:
    """Dotted names that a file imports; `at_import_only` leaves out those that wait inside functions."""
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), not at_import_only):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; name the module in full"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & PACKAGE.keys()
            found.update(submodules or {node.module})
    return frozenset(found)


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


def test_nothing_imports_a_script() -> None:
    """Guards against strategies that lean on each other's scripts, and a package that cannot be installed alone."""
    for path in [*SCRIPTS.values(), *PACKAGE.values(), *(ROOT / "benchmarks").rglob("*.py")]:
        assert not top_level(imports(path)) & SCRIPTS.keys(), path


def test_only_the_encoder_imports_open_clip() -> None:
    """Guards against a second way to compute CLIP embeddings. The demo's builder trains a CLIP, so it makes one."""
    users = {name for name, path in PACKAGE.items() if "open_clip" in top_level(imports(path))}
    assert users <= {"clipcap.encoder", "clipcap.demo.build_clip"}
    assert not [name for name, path in SCRIPTS.items() if "open_clip" in top_level(imports(path))]


@pytest.mark.parametrize("upper", ABOVE)
def test_arrows_run_one_way(upper: str) -> None:
    """Guards against a low module that comes to need a high one."""
    for lower in ABOVE[upper]:
        path = PACKAGE.get(f"clipcap.{lower}")
        assert path is None or upper not in reached(path), f"clipcap.{lower} reaches {upper}"


def test_no_module_imports_itself_through_others() -> None:
    """Guards against import cycles, which work or break by the order in which modules are first imported."""
    for name, path in PACKAGE.items():
        assert name == "clipcap" or name not in reached(path, at_import_only=True), name


def test_training_never_imports_the_encoder() -> None:
    """Guards against training that computes embeddings again: it reads the stored ones."""
    assert "clipcap.encoder" not in reached(PACKAGE["clipcap.training"])
    assert "clipcap.encoder" not in reached(PACKAGE["clipcap.data"])


@pytest.mark.parametrize("name", ["clipcap.images", "clipcap.preprocessing", "clipcap.workers", "clipcap.cli"])
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
    known = packages_distributions()
    asked_for = {canonicalize_name(requirement.name) for requirement in required("dev", "wandb")}
    for path in [*SCRIPTS.values(), *PACKAGE.values()]:
        for name in top_level(imports(path)) - sys.stdlib_module_names - {"clipcap"}:
            assert {canonicalize_name(found) for found in known.get(name, [name])} & asked_for, f"{path.name}: {name}"


def test_files_stay_short() -> None:
    """Guards against a file that has come to hold several ideas."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.values()}
    assert not {path.name: length for path, length in lengths.items() if length > 400}
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SCRIPTS.values()}
    assert not {path.name: length for path, length in lengths.items() if length > 160}


def test_no_file_holds_a_path_of_one_machine() -> None:
    """Guards against paths and hosts that exist where the code was written and nowhere else."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    private = re.compile("|".join([r"/(?:home|Users)/\w", r"/root/", r"\bC:\\Users", re.escape(f"{ROOT}/")]))
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.suffix in {".py", ".md", ".toml", ".txt", ".yml", ".json", ".ipynb", ""} and path.is_file():
            found = private.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found or path == Path(__file__).resolve(), f"{name}: {found.group()}"


def test_no_module_changes_the_import_path() -> None:
    """Guards against code that runs from one folder only."""
    for path in [*SCRIPTS.values(), *PACKAGE.values()]:
        assert "sys.path" not in path.read_text(encoding="utf-8"), path
