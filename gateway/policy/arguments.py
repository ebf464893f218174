"""Reads the raw argument string of a call the way a careful person would, and names its hazards.

A hazard is a place where two JSON readers may understand different things. The raw string stays
what is approved and sent; the value read here only feeds conditions and risk signals.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_MAX_DEPTH = 32
_SAFE_INTEGER = 2**53
_SAFE_DIGITS = 17
_HALF = re.compile("[\ud800-\udfff]")
#: A whole text, also one without an end, or one bracket.
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)
_PROTOTYPE_KEYS = frozenset({"__proto__", "constructor", "prototype"})


class Hazard(StrEnum):
    """Why two readers of the same argument string may disagree, or cannot read it at all."""

    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    DUPLICATE_KEYS = "duplicate_keys"
    LOOKALIKE_KEYS = "lookalike_keys"
    PROTOTYPE_KEYS = "prototype_keys"
    INEXACT_NUMBERS = "inexact_numbers"
    BROKEN_TEXT = "broken_text"
    DEEP = "deep"


@dataclass(frozen=True, slots=True)
class Arguments:
    """`value` is the parsed document (None when it cannot be read); `hazards` is what is odd."""

    value: Any
    hazards: frozenset[Hazard]


def read(raw: str) -> Arguments:
    """Parse `raw` strictly; never raises. An empty string, as some models send it, means `{}`."""
    found: set[Hazard] = set()
    if not raw.strip(" \t\r\n"):
        return Arguments({}, frozenset())
    if _deeper_than(raw, _MAX_DEPTH):
        return Arguments(None, frozenset({Hazard.DEEP}))
    try:
        value = json.loads(
            raw,
            object_pairs_hook=lambda pairs: _object(pairs, found),
            parse_int=lambda text: _integer(text, found),
            parse_float=lambda text: _float(text, found),
            parse_constant=lambda _text: _refuse(),
        )
    except (ValueError, RecursionError):
        return Arguments(None, frozenset({Hazard.NOT_JSON}))
    if not isinstance(value, dict):
        found.add(Hazard.NOT_AN_OBJECT)
    if any(_is_broken(text) for text in texts(value)):
        found.add(Hazard.BROKEN_TEXT)
    return Arguments(value, frozenset(found))


def texts(value: Any) -> Iterator[str]:
    """Every string in `value`, member names included."""
    pending = [value]
    while pending:
        match pending.pop():
            case str() as text:
                yield text
            case dict() as members:
                yield from members
                pending.extend(members.values())
            case list() as items:
                pending.extend(items)
            case _:
                pass


def _refuse() -> Any:
    raise ValueError("NaN and Infinity are not JSON")


def _object(pairs: list[tuple[str, Any]], found: set[Hazard]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        found.add(Hazard.DUPLICATE_KEYS)
    # Some readers match names without regard to case, others normalise them first.
    elif len({_folded(name) for name in members}) != len(members):
        found.add(Hazard.LOOKALIKE_KEYS)
    if not _PROTOTYPE_KEYS.isdisjoint(members):
        found.add(Hazard.PROTOTYPE_KEYS)
    return members


def _folded(name: str) -> str:
    return name if name.isascii() and name.islower() else _fold(name)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _integer(text: str, found: set[Hazard]) -> int | float:
    if len(text) > 20:
        found.add(Hazard.INEXACT_NUMBERS)
        return float(text)
    number = int(text)
    if abs(number) > _SAFE_INTEGER or text == "-0":
        found.add(Hazard.INEXACT_NUMBERS)
    return number


def _float(text: str, found: set[Hazard]) -> float:
    number = float(text)
    digits = text.lower().partition("e")[0].replace(".", "").lstrip("-0")
    if number in (float("inf"), float("-inf")) or len(digits) > _SAFE_DIGITS:
        found.add(Hazard.INEXACT_NUMBERS)
    return number


def _is_broken(text: str) -> bool:
    # NUL ends a string for some readers; lone surrogates cannot be written as UTF-8.
    return "\0" in text or _HALF.search(text) is not None


def _deeper_than(raw: str, limit: int) -> bool:
    if raw.count("[") + raw.count("{") <= limit:
        return False
    depth = 0
    for token in _BRACKETS.finditer(raw):
        character = token[0][0]
        if character in "[{":
            depth += 1
            if depth > limit:
                return True
        elif character in "]}":
            depth -= 1
    return False
