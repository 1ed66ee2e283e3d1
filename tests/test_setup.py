"""What a newcomer installs: the same packages by make and by conda, in versions that fit the ranges."""

import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = SpecifierSet(PROJECT["requires-python"])
COLAB = {"python": "3.13", "torch": "2.11", "transformers": "5.15", "datasets": "4.0.0", "pyarrow": "18.1"}


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


def test_colab_keeps_its_packages() -> None:
    """Guards against a notebook that replaces Colab's gigabytes of torch, or restarts the runtime, to install."""
    allowed = {
        canonicalize_name(requirement.name): requirement.specifier for requirement in required("train", "published")
    }
    allowed["python"] = PYTHONS
    assert not [f"{name} {version}" for name, version in COLAB.items() if version not in allowed[name]]


def test_every_place_allows_the_same_pythons() -> None:
    """Guards against a Python that one way of installing takes and another refuses, and against one never tried."""
    allowed = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in PYTHONS]
    python = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][0]
    assert Requirement(python).specifier == PYTHONS
    makefile = (ROOT / "Makefile").read_text()
    (check,) = re.findall(r"-c '(import sys; sys.exit\(.+?\))' ", makefile)
    for version in [(3, 10, 9), *((3, minor, micro) for minor in range(11, 16) for micro in range(4))]:
        with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "version_info", version)
            exec(check)
        assert bool(ended.value.code) != (".".join(map(str, version)) in PYTHONS), version
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == allowed
    [tested] = re.findall(
        r"Python 3\.11 to 3\.\d+ \(not 3\.14\.1; tested to (3\.\d+)\)", (ROOT / "README.md").read_text()
    )
    classified = [text.removeprefix("Programming Language :: Python :: ") for text in PROJECT["classifiers"]]
    assert classified == allowed[: len(classified)] and classified[-1] == tested


@pytest.mark.parametrize("python", ["3.11.0", "3.12", "3.13", "3.14.0", "3.14.1"])
def test_every_pin_installs_on_every_python(python: str) -> None:
    """Guards against a pinned version that refuses a Python which the project takes."""
    refused = []
    for name, version in pins().items():
        with suppress(PackageNotFoundError):  # what this system does not need
            found = metadata(name)
            if found["Version"] == version and python not in SpecifierSet(found["Requires-Python"] or ""):
                refused.append(f"{name}=={version}: {found['Requires-Python']}")
    assert python not in PYTHONS or not refused


def test_the_oldest_environment_has_every_lower_bound(tmp_path: Path) -> None:
    """Guards against a package that `make test-oldest` takes in a later version than pyproject.toml allows."""
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / ".venv-oldest/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> calls\n')
    python.chmod(0o755)
    for _ in range(2):
        subprocess.run(["make", "test-oldest"], cwd=tmp_path, capture_output=True, check=True)
    installs, *tests = (tmp_path / "calls").read_text().splitlines()
    assert "--constraint .venv-oldest/constraints.txt --editable .[dev]" in installs
    assert len(tests) == 2 and all(call.startswith("-m pytest") for call in tests)
    oldest = (tmp_path / ".venv-oldest/constraints.txt").read_text().splitlines()
    for requirement in required("dev", "wandb", "trackio"):
        [bound] = [specifier.version for specifier in requirement.specifier if specifier.operator == ">="]
        assert f"{requirement.name}=={bound}" in oldest


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


@pytest.mark.parametrize(("target", "folder"), [("setup", ".venv"), ("test-oldest", ".venv-oldest")])
def test_an_environment_whose_python_is_gone_is_made_and_filled_again(tmp_path: Path, target: str, folder: str) -> None:
    """Guards against an upgrade of Python after which set-up reports success and leaves an empty environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / "python"  # it makes environments with itself inside, and writes down what it is asked for
    made = f'rm -rf {folder}; mkdir -p {folder}/bin; ln -s "$PWD/python" {folder}/bin/python'
    python.write_text(f'#!/bin/sh\ncase "$*" in *venv\\ --clear*) {made};; *install*) echo installed >> calls;; esac\n')
    python.chmod(0o755)
    command = ["make", target, f"PYTHON={python}"]
    for upgraded, installed in ((False, 1), (False, 1), (True, 2), (False, 2)):
        if upgraded:
            (tmp_path / folder / "bin/python").unlink()
            (tmp_path / folder / "bin/python").symlink_to(tmp_path / "gone")
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        assert (tmp_path / "calls").read_text().split() == ["installed"] * installed


def test_an_old_python_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Guards against pip's page of text when python3 is older than the packages allow, or missing."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = ["make", "setup", "PYTHON=no-such-python"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    assert "error: Python 3.11 to 3.14 is needed, but not 3.14.1, and no-such-python is not there" in done.stderr
