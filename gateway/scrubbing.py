"""Takes secrets out of what strangers send back: the last line of defence, not the first. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property

import orjson

_REDACTED = b"[redacted]"
_SHORTEST_SECRET = 6
_PLAIN = re.compile("[A-Za-z0-9_-]+")
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
        longest_first = sorted(values, key=len, reverse=True)
        self._sought = tuple(_Sought(v) for v in longest_first if len(v) >= _SHORTEST_SECRET)
        texts = sorted(forms, key=len, reverse=True)
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
        """`raw` without any of the secrets, however deep in JSON they were written."""
        for sought in self._sought:
            if sought.core in raw:
                raw = sought.pattern.sub(_REDACTED, raw)
        return raw


class _Sought:
    """One secret in every spelling: each of its letters plain, after backslashes, or by number.

    Serialisers differ in what they escape, and a text may have been through several of them. None
    escapes plain letters: where the longest run of these is not, neither is the secret.
    """

    def __init__(self, value: str) -> None:
        self._value = value
        self.core = max(_PLAIN.findall(value), key=len, default="").encode()

    @cached_property
    def pattern(self) -> re.Pattern[bytes]:
        """Made when it is first needed: most answers have no secret in them."""
        return re.compile(b"".join(_any_spelling(letter) for letter in self._value))


def _any_spelling(letter: str) -> bytes:
    if _PLAIN.fullmatch(letter):
        return re.escape(letter.encode())
    units = letter.encode("utf-16-be").hex()
    numbers = (units[start : start + 4] for start in range(0, len(units), 4))
    by_number = "".join(rf"\\+u(?i:{number})" for number in numbers).encode()
    plain = rb"\\+" if letter == "\\" else rb"\\*" + re.escape(letter.encode())
    return rb"(?:%b|%b)" % (by_number, plain)


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
