"""Reads members of a mapping with exact errors, for files and for the API alike.

Each getter reports what is wrong and gives None (or the default), so that one pass finds every
error. The place of an error is a path; whoever knows the file adds the line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gateway.errors import Refused
from gateway.policy.problems import Path, Problem, kind_of

T = TypeVar("T")

__all__ = ["Members", "Path", "read_object"]


@dataclass(frozen=True, slots=True)
class Members:
    """The members of one mapping at `path`; problems go to the shared list."""

    data: Mapping[str, Any]
    path: Path
    problems: list[Problem] = field(repr=False)

    @classmethod
    def of(cls, value: Any, path: Path, problems: list[Problem]) -> Members | None:
        """The members of `value`; None, and a problem, when it is no mapping."""
        if isinstance(value, Mapping):
            return cls(value, path, problems)
        problems.append(Problem(path, f"must be a mapping, not {kind_of(value)}"))
        return None

    def report(self, name: str | None, message: str) -> None:
        """Say that a member (or, for None, the mapping itself) is wrong."""
        path = self.path if name is None else (*self.path, name)
        self.problems.append(Problem(path, message))

    def only(self, known: Sequence[str]) -> None:
        """Report every member that is not `known`."""
        for name in self.data:
            if name not in known:
                path = (*self.path, str(name))
                self.problems.append(Problem(path, "unknown member", tuple(known)))

    def text(self, name: str, *, required: bool = False) -> str | None:
        """A non-empty text of at most 2,048 characters."""
        value = self.data.get(name)
        if value is None:
            if required:
                self.report(None, f"needs a {name}")
            return None
        if not isinstance(value, str) or not 0 < len(value) <= 2048:
            shown = "an empty one" if value == "" else kind_of(value)
            self.report(name, f"must be text, not {shown}")
            return None
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of `choices`; the first when the member is absent."""
        value = self.data.get(name)
        if value is None:
            return choices[0]
        if value not in choices:
            shown = repr(value) if isinstance(value, str) else kind_of(value)
            self.report(name, f"must be {' or '.join(choices)}, not {shown}")
            return choices[0]
        return str(value)

    def flag(self, name: str) -> bool:
        """True or false; false when the member is absent."""
        value = self.data.get(name, False)
        if not isinstance(value, bool):
            self.report(name, f"must be true or false, not {kind_of(value)}")
        return value is True

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of texts without repetitions; None when the member is absent."""
        if self.data.get(name) is None:
            return None
        items = self._list(name)
        for index, item in enumerate(items):
            if not isinstance(item, str) or not 0 < len(item) <= 320:
                self._at(name, index, f"must be text, not {kind_of(item)}")
            elif item in items[:index]:
                self._at(name, index, f"{item!r} stands in the list twice")
        return tuple(item for item in items if isinstance(item, str))

    def items(self, name: str) -> list[Members]:
        """The mappings of a list; empty when the member is absent."""
        if self.data.get(name) is None:
            return []
        found = [
            Members.of(item, (*self.path, name, index), self.problems)
            for index, item in enumerate(self._list(name))
        ]
        return [members for members in found if members is not None]

    def inner(self, name: str) -> Members | None:
        """The members of a mapping inside; None when it is absent or wrong."""
        value = self.data.get(name)
        return None if value is None else Members.of(value, (*self.path, name), self.problems)

    def checked(self, name: str, value: str | None, check: Callable[[str], str]) -> str | None:
        """`check(value)`; what it refuses becomes a problem of the member."""
        if value is None:
            return None
        try:
            return check(value)
        except Refused as error:
            self.report(name, error.message)
            return None

    def _list(self, name: str) -> list[Any]:
        value = self.data[name]
        if isinstance(value, list | tuple):
            return list(value)
        self.report(name, f"must be a list, not {kind_of(value)}")
        return []

    def _at(self, name: str, index: int, message: str) -> None:
        self.problems.append(Problem((*self.path, name, index), message))


def read_object(data: Any, root: str, reader: Callable[[Members], T | None]) -> T:
    """Read one object that came by API or command line; raises `Refused` with every problem."""
    problems: list[Problem] = []
    members = Members.of(data, (), problems)
    found = None if members is None else reader(members)
    if problems or found is None:
        lines = "\n".join(problem.text(root) for problem in problems)
        param = problems[0].at(root) if problems else root
        raise Refused(lines, code="config_invalid", param=param)
    return found
