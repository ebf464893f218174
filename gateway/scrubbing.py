"""Takes secrets out of what strangers send back: the last line of defence, not the first. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

import orjson

_REDACTED = b"[redacted]"
_SHORTEST_SECRET = 6
_DOUBTFUL = frozenset("\"&'+<>`")


class Scrubber:
    """Takes injected secrets out of everything that comes back: the last line of defence."""

    def __init__(self, values: Sequence[str]) -> None:
        forms: set[str] = set()
        for value in values:
            if len(value) >= _SHORTEST_SECRET:
                once = _spellings(value)
                forms |= {value, *once, *(twice for text in once for twice in _spellings(text))}
        self._values = tuple(values)
        texts = sorted(forms, key=len, reverse=True)
        self._forms = tuple(form.encode() for form in texts)
        self._longest = len(texts[0]) if texts else 0
        self._by_letter: dict[str, list[str]] = {}
        for text in texts:
            self._by_letter.setdefault(text[0], []).append(text)

    def beginning(self, text: str) -> int:
        """How many letters at the end of `text` could be the beginning of a secret."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            for form in self._by_letter.get(text[start], ()):
                if len(form) > len(text) - start and form.startswith(text[start:]):
                    return len(text) - start
        return 0

    def with_more(self, values: Sequence[str]) -> Scrubber:
        """One that takes these out, too."""
        more = [value for value in values if value not in self._values]
        return Scrubber([*self._values, *more]) if more else self

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
