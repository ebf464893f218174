"""The list of guards is about the program as it is. That tests notice: `make guards`."""

from __future__ import annotations

import ast

import pytest

from tests.guards.guard import Change, Guard
from tests.guards.listed import GUARDS
from tests.support.repository import ROOT


def test_there_are_enough_guards_and_each_has_a_name_of_its_own() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS) >= 60


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name.replace(" ", "-"))
def test_G_18_a_listed_guard_stands_in_the_program_and_its_test_exists(guard: Guard) -> None:
    texts = {change.file: (ROOT / change.file).read_text() for change in guard.changes}
    for change in guard.changes:
        texts[change.file] = change.of(texts[change.file])
    for file, text in texts.items():
        ast.parse(text)
        assert text != (ROOT / file).read_text()
    for test in guard.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), test


def test_a_guard_that_moved_is_missed() -> None:
    source = "def one():\n    check()\n\n\ndef two():\n    pass\n"
    there = Change("x.py", "one", "check()", "pass")
    assert there.of(source) == "def one():\n    pass\n\n\ndef two():\n    pass\n"
    for gone in (Change("x.py", "two", "check()", ""), Change("x.py", "three", "check()", "")):
        with pytest.raises(LookupError):
            gone.of(source)
