"""Where two documents of JSON differ, path by path: for people who accept a change. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: As many as a person reads; beyond it the whole documents are compared.
MOST = 200
_DEEPEST = 40


@dataclass(frozen=True, slots=True)
class Change:
    """One place that differs. `before` is absent in what was added, `after` in what was removed.

    `path` is a JSON pointer (RFC 6901); `kind` is added | removed | changed. Values are plain
    JSON, whole where a container was added or removed.
    """

    path: str
    kind: str
    before: Any = None
    after: Any = None


def difference(before: Any, after: Any) -> tuple[Change, ...]:
    """Every place where `after` differs from `before`, in the order of the names on the way.

    Members are compared by name and entries by position. At most `MOST` places are named; if
    there are more, the last is the whole document.
    """
    found: list[Change] = []
    for change in _walk(before, after, "", 0):
        if len(found) == MOST:
            return (*found[: MOST - 1], Change("", "changed", before, after))
        found.append(change)
    return tuple(found)


def step(name: str) -> str:
    """One step of a JSON pointer (RFC 6901 §3), with its slash."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _walk(before: Any, after: Any, path: str, depth: int) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(after, Mapping) and depth < _DEEPEST:
        yield from _members(before, after, path, depth)
    elif isinstance(before, list) and isinstance(after, list) and depth < _DEEPEST:
        was, now = dict(enumerate(before)), dict(enumerate(after))
        yield from _members(was, now, path, depth)
    elif not _same(before, after):
        yield Change(path, "changed", before, after)


def _members(
    before: Mapping[Any, Any], after: Mapping[Any, Any], path: str, depth: int
) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        inner = path + step(str(name))
        if name not in before:
            yield Change(inner, "added", None, after[name])
        elif name not in after:
            yield Change(inner, "removed", before[name], None)
        else:
            yield from _walk(before[name], after[name], inner, depth + 1)


def _same(before: Any, after: Any) -> bool:
    # As JSON: True is 1 in Python, and so is 1.0.
    return _written(before) == _written(after)


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
