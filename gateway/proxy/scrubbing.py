"""Takes secrets out of what Azure sends back: the last line of defence, not the first."""

from __future__ import annotations

import json
from collections.abc import Sequence

import orjson

_REDACTED = b"[redacted]"
_SHORTEST_SECRET = 6
_DOUBTFUL = frozenset("\"&'+<>`")


class Scrubber:
    """Takes injected secrets out of everything Azure sends back: the last line of defence."""

    def __init__(self, values: Sequence[str]) -> None:
        forms: set[str] = set()
        for value in values:
            if len(value) >= _SHORTEST_SECRET:
                once = _spellings(value)
                forms |= {value, *once, *(twice for text in once for twice in _spellings(text))}
        self._values = tuple(values)
        self._forms = tuple(form.encode() for form in sorted(forms, key=len, reverse=True))

    def with_more(self, values: Sequence[str]) -> Scrubber:
        """One that takes these out, too."""
        return Scrubber([*self._values, *values])

    def clean(self, raw: bytes) -> bytes:
        """`raw` without any of the secrets."""
        for form in self._forms:
            if form in raw:
                raw = raw.replace(form, _REDACTED)
        return raw


def _spellings(text: str) -> set[str]:
    """How serialisers write a text inside of a JSON string; a plain text is written in one way."""
    forms = {orjson.dumps(text).decode()[1:-1], json.dumps(text)[1:-1], _cautious(text)}
    return forms | {form.replace("/", "\\/") for form in forms}


def _cautious(text: str) -> str:
    """As .NET writes it by default: what could mean something in HTML by its number."""
    return "".join(
        f"\\u{ord(letter):04X}" if letter in _DOUBTFUL else json.dumps(letter)[1:-1]
        for letter in text
    )
