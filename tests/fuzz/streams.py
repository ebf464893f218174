"""Bytes of event streams in any pieces: the same frames, in a time that grows with their length."""

from __future__ import annotations

import time
from random import Random

from gateway.exchange.sse import FrameReader
from tests.fuzz.sources import cut, damaged, some

_LINES = [
    b"data: {}",
    b"data:x",
    b"data",
    b"event: response.created",
    b"event:",
    b": comment",
    b"id: 3",
    b"retry: 9",
    b"",
    b"",
    b"",
    b"data: \xc3\xa4",
    b"\xef\xbb\xbfdata: 1",
    b"nonsense",
    b"data: a: b",
]
_ENDS = [b"\n", b"\n", b"\r\n", b"\r"]


def make(random: Random) -> bytes:
    """A stream of any lines with any ends, damaged now and then; rarely a very long one."""
    count = 3000 if random.random() < 0.002 else 1 + some(random, 40)
    raw = b"".join(random.choice(_LINES) + random.choice(_ENDS) for _ in range(count))
    return damaged(raw, random) if random.random() < 0.3 else raw


def check(raw: bytes, random: Random) -> str:
    """Judge one stream in three ways to cut it."""
    started = time.process_time()
    whole = FrameReader().feed(raw)
    for pieces in (cut(raw, random), cut(raw, random), [bytes([byte]) for byte in raw]):
        reader = FrameReader()
        frames = [frame for piece in pieces for frame in reader.feed(piece)]
        assert frames == whole, pieces
    assert all(b"\r" not in frame.data for frame in whole)
    spent = time.process_time() - started
    assert spent < 0.5 + len(raw) * 20e-6, f"{spent:.2f} s for {len(raw)} bytes"
    return "frames" if whole else "none"
