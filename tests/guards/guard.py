"""A guard of the program, how it is taken away, and which test notices.

A guard is named by its text, which stands once in the function that holds it: where it is moved or
changed, the list has to be, too.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """In the function, or class, `inside` of a file (nothing: anywhere), `old` becomes `new`."""

    file: str
    inside: str
    old: str
    new: str

    def of(self, source: str) -> str:
        """The source without the guard; raises `LookupError` unless it stands there once."""
        lines = source.splitlines(keepends=True)
        first, last = _span(ast.parse(source), self.inside) if self.inside else (0, len(lines))
        part = "".join(lines[first:last])
        if (count := part.count(self.old)) != 1:
            where = f"{self.file}:{self.inside}".rstrip(":")
            raise LookupError(f"{self.old!r} stands {count} times in {where}")
        return "".join([*lines[:first], part.replace(self.old, self.new), *lines[last:]])


@dataclass(frozen=True)
class Guard:
    """What is promised no more without it; `tests` are pytest's names of those that notice."""

    name: str
    tests: tuple[str, ...]
    changes: tuple[Change, ...]


def guard(name: str, test: str, *changes: tuple[str, str, str]) -> Guard:
    """One guard: a test (below `tests/`), and what is changed as (`file:function`, old, new)."""
    made = []
    for place, old, new in changes:
        file, _, inside = place.partition(":")
        made.append(Change(f"gateway/{file}.py", inside, old, new))
    return Guard(name, tuple(f"tests/{name}" for name in test.split()), tuple(made))


def _span(tree: ast.AST, path: str) -> tuple[int, int]:
    """First and last line of a definition, as a slice; its decorators do not belong to it."""
    node = tree
    for name in path.split("."):
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        inner = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, kinds) and child.name == name
        ]
        if len(inner) != 1:
            raise LookupError(f"{path} is defined {len(inner)} times")
        node = inner[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    assert node.end_lineno is not None
    return node.lineno - 1, node.end_lineno
