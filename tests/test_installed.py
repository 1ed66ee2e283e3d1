"""The wheel beside what it requires and nothing more: its command captions, and training says what is lacking."""

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_setup import required

from clipcap.cli.status import TRAIN
from clipcap.world.scenes import scenes

ROOT = Path(__file__).resolve().parent.parent
BUILD = "import setuptools.build_meta as build; print(build.build_wheel('dist'))"


def closure(requirements: list[Requirement]) -> set[str]:
    """The names of what these requirements install, as far as this machine needs it."""
    found: set[str] = set()
    waiting = [(requirement.name, requirement.extras) for requirement in requirements]
    while waiting:
        name, extras = waiting.pop()
        try:
            needs = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:
            continue
        for need in needs:
            if need.name not in found and any(
                need.marker is None or need.marker.evaluate({"extra": e}) for e in ("", *extras)
            ):
                waiting.append((need.name, need.extras))
        found.add(name)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the wheel and what it requires."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "clipcap", source / "clipcap", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True, check=True)
    shutil.unpack_archive(source / "dist" / built.stdout.split()[-1], site, "zip")
    for name in closure(required()):
        package = distribution(name)
        parts = {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}
        for part in (part for part in parts if not (site / part).exists()):  # several packages share `nvidia`
            (site / part).symlink_to(package.locate_file(part))
    return site


def run(site: Path, folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run Python with these packages alone."""
    environment = {"PYTHONPATH": str(site), "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-S", *map(str, command)]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_command_captions_without_what_training_needs(site: Path, tmp_path: Path) -> None:
    """Guards against a caption that needs a package for training, and a wheel without the demo's weights."""
    assert not [name for name in TRAIN if (site / name).exists()]
    (tmp_path / "my photos").mkdir()
    (scene,) = scenes("test", 1)
    scene.draw().save(tmp_path / "my photos" / "a.png")
    done = run(site, tmp_path, "-m", "clipcap", "--weights", "demo", "my photos", "--output", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("my photos/a.png\t") and (tmp_path / "out.jsonl").is_file()
    done = run(site, tmp_path, "-c", "import clipcap.notebook as n; n.sample_images(1); import clipcap.page")
    assert done.returncode == 0, done.stderr


SCRIPTS = sorted(path.stem for path in ROOT.glob("*_finetuning.py")) + ["evaluate", "load_data"]
RUN_ALL = f"""
import sys
from clipcap.cli.status import run
for name in {SCRIPTS}:
    sys.argv = [name, "--demo", *(["demo"] if name == "evaluate" else [])]
    try:
        run(__import__(name).main)
    except SystemExit as ended:
        print(name, ended.code)
"""


def test_a_script_that_trains_names_the_extra(site: Path, tmp_path: Path) -> None:
    """Guards against the traceback of an import; in one process, since torch takes seconds to load."""
    for name in SCRIPTS:
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    done = run(site, tmp_path, "-c", RUN_ALL)
    assert done.stdout.splitlines() == [f"{name} 2" for name in SCRIPTS], done.stderr
    told = done.stderr.splitlines()
    assert len(told) == len(SCRIPTS)
    for line in told:
        assert line.startswith("error: this needs the package ") and "clipcap-instagram[train]" in line


def test_a_package_that_is_missing_for_another_reason_is_a_fault(site: Path, tmp_path: Path) -> None:
    """Guards against an extra that is recommended where it does not help."""
    code = "from clipcap.cli.status import run\nrun(lambda argv: __import__('no_such_package'))"
    assert run(site, tmp_path, "-c", code).returncode == 70


def test_the_extra_holds_what_the_message_names() -> None:
    assert {requirement.name for requirement in required("train")} - {r.name for r in required()} == TRAIN
