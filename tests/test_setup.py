"""What a newcomer installs: the same packages by make and by conda, in versions that fit the ranges."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def required(*extras: str) -> list[Requirement]:
    """The project's requirements with those of the extras; an extra that names other extras brings theirs."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            found += required(*requirement.extras) if requirement.name == PROJECT["name"] else [requirement]
    return found


def test_every_requirement_has_a_tested_version_within_its_range() -> None:
    """Guards against a range that excludes the tested version, and a package that floats untested."""
    for requirement in required("dev"):
        assert pins()[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


def test_pins_are_exact_and_generic() -> None:
    """Guards against a pin frozen from one machine: a local build (+cpu), a file or an editable path."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line), line


def test_what_is_not_python_is_packaged_too() -> None:
    """Guards against an installed package (Colab) without the demo's weights or the report's style sheet."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["clipcap"]
    package = ROOT / "clipcap"
    packaged = {path for pattern in patterns for path in package.glob(pattern.replace("**", "**/*"))}
    others = {path for path in package.rglob("*.*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert not others - packaged


def test_conda_installs_what_make_installs() -> None:
    """Guards against environment.yml and the Makefile drifting apart."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    by_pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    makefile = (ROOT / "Makefile").read_text()
    installed = re.search(r"--constraint (\S+) --editable '(\S+)'", makefile).groups()
    assert by_pip == [f"-c {installed[0]}", f"-e {installed[1]}"]
    others = [Requirement(entry) for entry in environment["dependencies"] if isinstance(entry, str)]
    assert [entry.name for entry in others] == ["python", "pip"]
    for version, fits in (("3.10", False), ("3.11", True), ("3.12", True), ("3.13", True), ("3.14", True)):
        assert (version in others[0].specifier) is (version in SpecifierSet(PROJECT["requires-python"])) is fits


def test_set_up_is_done_once_and_again_only_when_the_packages_change(tmp_path: Path) -> None:
    """Guards against a reinstall of gigabytes on every `make demo`, and against a change that is never installed."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    command = ["make", "--dry-run", "demo"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / ".venv/installed").touch()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "pip install" in first and "pip install" not in second and "predict.py --demo" in second


def test_an_old_python_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Guards against pip's page of text when python3 is older than the packages allow, or missing."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = ["make", "setup", "PYTHON=no-such-python"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    assert "error: Python 3.11 or later is needed, and no-such-python is not there" in done.stderr
