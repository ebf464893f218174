"""Finds secrets that a stream of Azure spells over several frames."""

from __future__ import annotations

from typing import Any

from gateway.exchange.messages import FrameSeen
from gateway.scrubbing import Scrubber


class Seams:
    """Finds secrets that are split over the deltas of one text of a stream.

    Deltas that could be the beginning of a secret wait for what comes next. They go on as they
    were when it was none; when it was one, they become a single delta without it.
    """

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._held: list[FrameSeen] = []

    def feed(self, frame: FrameSeen) -> list[FrameSeen]:
        """The frames that may go on because of this one."""
        if _text_of(frame) is None:
            return [*self.end(), frame]
        before: list[FrameSeen] = []
        if self._held and _place(self._held[-1]) != _place(frame):
            before = self.end()
        self._held.append(frame)
        text = "".join(_text_of(held) or "" for held in self._held)
        clean = self._scrubber.clean(text.encode("utf-8", "surrogatepass"))
        if (cleaned := clean.decode("utf-8", "surrogatepass")) != text:
            self._held, text = [_joined(self._held, cleaned)], cleaned
        return before + self._release(len(text) - self._scrubber.beginning(text))

    def end(self) -> list[FrameSeen]:
        """What still waits when there is nothing more of its text."""
        held, self._held = self._held, []
        return held

    def _release(self, letters: int) -> list[FrameSeen]:
        """The first deltas, as far as they lie whole within so many letters."""
        ready: list[FrameSeen] = []
        while self._held and len(_text_of(self._held[0]) or "") <= letters:
            letters -= len(_text_of(self._held[0]) or "")
            ready.append(self._held.pop(0))
        return ready


def _joined(frames: list[FrameSeen], text: str) -> FrameSeen:
    data = {**frames[-1].data, "delta": text}
    probable = [frame.data.get("logprobs") for frame in frames]
    if all(isinstance(some, list) for some in probable):
        data["logprobs"] = []  # they would spell it out
    return FrameSeen(frames[-1].type, data)


def _text_of(frame: FrameSeen) -> str | None:
    delta = frame.data.get("delta")
    return delta if isinstance(delta, str) and frame.type.endswith(".delta") else None


def _place(frame: FrameSeen) -> tuple[Any, ...]:
    names = ("item_id", "output_index", "content_index", "summary_index")
    return (frame.type, *(frame.data.get(name) for name in names))
