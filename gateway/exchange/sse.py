"""Bytes ↔ frames of a server-sent event stream (WHATWG HTML §9.2), incremental.

Any chunking of the same bytes gives the same frames. Comments, `id` and `retry` fields and
blocks without data are dropped: several clients break on them.
"""

from __future__ import annotations

from dataclasses import dataclass

#: A comment that every tested client takes as a sign of life, at any position.
HEARTBEAT = b": waiting\n\n"
_LIMIT = 64 * 1024 * 1024
_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Frame:
    """One event: its name, if the upstream gave one, and its data lines joined by newlines."""

    event: str | None
    data: bytes


class FrameReader:
    """Feed it chunks, get whole frames. One reader per stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._after_carriage = False
        self._beginning: bytes | None = b""

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames completed by `chunk`; raises ValueError past 64 MiB without an end."""
        text = self._newlines(self._without_mark(chunk))
        if self._buffer or b"\n\n" not in text:
            # A long event comes in many chunks: what came before is neither copied nor searched.
            searched = max(0, len(self._buffer) - 1)
            self._buffer += text
            if self._buffer.find(b"\n\n", searched) < 0:
                if len(self._buffer) > _LIMIT:
                    raise ValueError("an event of more than 64 MiB")
                return []
            text = bytes(self._buffer)
        *blocks, rest = text.split(b"\n\n")
        self._buffer = bytearray(rest)
        return [frame for block in blocks if (frame := _parse(block)) is not None]

    def _without_mark(self, chunk: bytes) -> bytes:
        if self._beginning is None:
            return chunk
        # A byte order mark may come in pieces: its first bytes wait for the rest.
        self._beginning += chunk
        if self._beginning != _MARK and _MARK.startswith(self._beginning):
            return b""
        chunk, self._beginning = self._beginning.removeprefix(_MARK), None
        return chunk

    def _newlines(self, chunk: bytes) -> bytes:
        if not chunk:
            return chunk
        # A carriage return at the end of a chunk counts at once; the other half of CRLF is skipped.
        if self._after_carriage and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_carriage = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk


def _parse(block: bytes) -> Frame | None:
    event: str | None = None
    data: list[bytes] = []
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon and value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value.decode("utf-8", "replace")
    if not data:
        return None
    return Frame(event, data[0] if len(data) == 1 else b"\n".join(data))


def render(event: str, data: bytes) -> bytes:
    """One whole event, as one write. `data` must hold no newline (compact JSON has none)."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)
