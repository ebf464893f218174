"""Every row of the conformance list has a test, found by the number in its name.

A row's tests are named `test_P_07_…`, or `test_B_14_P_40_…` where they are of the attack catalogue
too. Read from the source, never imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.support.repository import ROOT, files

ROWS = range(1, 51)
_ROW = re.compile(r"_P_(\d{2})_")


def names(source: str) -> Iterator[str]:
    """Of all tests in a module, those of classes included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
            "test"
        ):
            yield node.name


def rows(found: Iterator[str]) -> set[int]:
    """The numbers in the names."""
    return {int(number) for name in found for number in _ROW.findall(name)}


def all_names() -> Iterator[str]:
    """Of every test in the repository."""
    for path in files():
        if path.is_relative_to(ROOT / "tests") and path.name.startswith("test_"):
            yield from names(path.read_text())


def test_every_row_has_a_test() -> None:
    assert sorted(set(ROWS) - rows(all_names())) == []


def test_no_test_names_a_row_that_does_not_exist() -> None:
    assert sorted(rows(all_names()) - set(ROWS)) == []


def test_a_row_without_its_test_would_be_seen() -> None:
    source = "async def test_B_14_P_40_x(): ...\ndef test_P_07_y(): ...\ndef help_P_08_z(): ...\n"
    assert rows(names(source)) == {7, 40}
