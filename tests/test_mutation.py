"""The list of planted bugs stays in step with the code that they are planted in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_planted_bug_fits_the_code_and_its_tests_exist(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    planted = mutant.plant(text)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(text))
    assert mutant.tests and all((ROOT / test).is_file() for test in mutant.tests)


def test_there_are_bugs_in_every_room() -> None:
    rooms = {path.parent.name for path in ROOT.glob("clipcap/*/*.py")}
    assert rooms <= {Path(mutant.file).parent.name for mutant in MUTANTS}
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS) >= 60
