"""Takes secrets out of what Azure sends back: the last line of defence, not the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from gateway.exchange.messages import FrameSeen

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
        texts = sorted(forms, key=len, reverse=True)
        self._forms = tuple(form.encode() for form in texts)
        self._longest = len(texts[0]) if texts else 0
        self._by_letter: dict[str, list[str]] = {}
        for text in texts:
            self._by_letter.setdefault(text[0], []).append(text)

    def begins(self, text: str) -> bool:
        """Whether the end of `text` could be the beginning of a secret."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            for form in self._by_letter.get(text[start], ()):
                if len(form) > len(text) - start and form.startswith(text[start:]):
                    return True
        return False

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


class Seams:
    """Finds secrets that are split over the deltas of one text of a stream.

    A delta that could end in the beginning of a secret waits for the next frame; a delta of the
    same text then takes it in.
    """

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._held: FrameSeen | None = None

    def feed(self, frame: FrameSeen) -> list[FrameSeen]:
        """The frames that may go on because of this one."""
        held, self._held = self._held, None
        if _text_of(frame) is not None:
            if held is not None and _place(held) == _place(frame):
                frame, held = self._joined(held, frame), None
            if self._scrubber.begins(_text_of(frame) or ""):
                self._held = frame
                return [held] if held is not None else []
        return [frame] if held is None else [held, frame]

    def end(self) -> list[FrameSeen]:
        """What still waits when there is no next frame."""
        held, self._held = self._held, None
        return [] if held is None else [held]

    def _joined(self, first: FrameSeen, second: FrameSeen) -> FrameSeen:
        text = f"{_text_of(first)}{_text_of(second)}".encode("utf-8", "surrogatepass")
        data = {**second.data, "delta": self._scrubber.clean(text).decode("utf-8", "surrogatepass")}
        probable = first.data.get("logprobs"), second.data.get("logprobs")
        if isinstance(probable[0], list) and isinstance(probable[1], list):
            data["logprobs"] = [*probable[0], *probable[1]]
        return FrameSeen(second.type, data)


def _text_of(frame: FrameSeen) -> str | None:
    delta = frame.data.get("delta")
    return delta if isinstance(delta, str) and frame.type.endswith(".delta") else None


def _place(frame: FrameSeen) -> tuple[Any, ...]:
    names = ("item_id", "output_index", "content_index", "summary_index")
    return (frame.type, *(frame.data.get(name) for name in names))


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
