"""How the events of a stream are written: plainly, or with the habits that other servers have.

It changes bytes and never what is said; a client that parses events as it should sees no
difference, except where it asked for none of the padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.demo.wire import JSON, compact

_PIECE = 7


@dataclass(frozen=True)
class Framing:
    """The habits of one stream. `tiny` writes pieces that cut through lines and characters."""

    crlf: bool = False
    tiny: bool = False
    named: bool = True
    done_marker: bool = False
    flat_errors: bool = False
    obfuscated: bool = True

    def writes(self, event: JSON) -> Iterator[bytes]:
        """One event, in one write unless it is cut into pieces."""
        shown = event
        if not self.obfuscated:
            shown = {name: value for name, value in event.items() if name != "obfuscation"}
        if self.flat_errors and event["type"] == "error":
            shown = {**shown["error"], "type": "error", "sequence_number": event["sequence_number"]}
        name = f"event: {event['type']}\n" if self.named else ""
        yield from self._cut(f"{name}data: {compact(shown)}\n\n")

    def end(self) -> Iterator[bytes]:
        """What follows the last event."""
        if self.done_marker:
            yield from self._cut("data: [DONE]\n\n")

    def _cut(self, text: str) -> Iterator[bytes]:
        # JSON in one line holds no newline of its own, so these are the lines' ends.
        raw = (text.replace("\n", "\r\n") if self.crlf else text).encode()
        size = _PIECE if self.tiny else len(raw)
        yield from (raw[at : at + size] for at in range(0, len(raw), size))
