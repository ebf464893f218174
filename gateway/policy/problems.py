"""What is wrong with a document, and where, in the words of a person who wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Where a problem is: member names and list positions from the top of the document.
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a document, and where."""

    path: Path
    message: str
    #: For a member that does not exist: the ones that do. `message` is not used then.
    known: tuple[str, ...] = ()
    #: Line and column, from 1, within the text that stands there.
    within: tuple[int, int] | None = None

    def at(self, root: str) -> str:
        """The place in words: `policies[0].match.tool`."""
        return place(root, self.path)

    def text(self, root: str) -> str:
        """The whole sentence: what is wrong, where, and what to do."""
        if self.known:
            inside = place(root, self.path[:-1])
            return f"unknown member {self.path[-1]!r} in {inside}; known: {', '.join(self.known)}"
        if self.within:
            line, column = self.within
            return f"{self.at(root)}: line {line}, column {column}: {self.message}"
        return f"{self.at(root)}: {self.message}"


def place(root: str, path: Path) -> str:
    """`root` followed by `path` as a person writes it: `policies[0].match.tool`."""
    return root + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)


def kind_of(value: Any) -> str:
    """What a value of a document is, in the words of a person who writes YAML."""
    if value is None:
        return "nothing"
    words: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "text"),
        ((list, tuple), "a list"),
        (Mapping, "a mapping"),
    )
    name = type(value).__name__
    return next((text for kinds, text in words if isinstance(value, kinds)), f"a {name}")
