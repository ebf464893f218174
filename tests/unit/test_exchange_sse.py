"""Bytes to frames: any chunking, any line ends, nothing that breaks a client."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.exchange import sse
from gateway.exchange.sse import HEARTBEAT, Frame, FrameReader, render

MARK = "\N{ZERO WIDTH NO-BREAK SPACE}".encode()


def read(*chunks: bytes) -> list[Frame]:
    reader = FrameReader()
    return [frame for chunk in chunks for frame in reader.feed(chunk)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_a_stream_of_every_line_end_is_read_without_waiting(end: bytes) -> None:
    raw = b"event: a\ndata: {}\n\ndata: 1\ndata: 2\n\n".replace(b"\n", end)
    assert read(raw) == [Frame("a", b"{}"), Frame(None, b"1\n2")]


def test_what_clients_break_on_is_dropped() -> None:
    raw = b": hello\n\nid: 3\nretry: 9\n\nevent: ping\n\nid: 4\nevent: x\ndata: 5\n\n"
    assert read(raw, HEARTBEAT) == [Frame("x", b"5")]


def test_fields_are_read_as_the_standard_says() -> None:
    raw = b"data:a\ndata:  b\ndata\nnothing\ndata : no\nevent:1\nevent: \xff\n\ndata:\n\n"
    assert read(raw) == [Frame("\ufffd", b"a\n b\n"), Frame(None, b"")]


def test_an_event_without_its_end_is_not_given() -> None:
    assert read(b"data: 1\n\ndata: 2\n") == [Frame(None, b"1")]


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 3))
def test_a_byte_order_mark_may_come_in_pieces(first: int, second: int) -> None:
    raw = MARK + b"data: 1\n\n" + MARK + b"data: 2\n\ndata: 3\n\n"
    split = sorted((first, second))
    chunks = (raw[: split[0]], raw[split[0] : split[1]], raw[split[1] :])
    assert read(*chunks) == [Frame(None, b"1"), Frame(None, b"3")]


LINES = st.sampled_from(
    ["data: äöü🙂", "data: {}", "data:", "event: x", ": c", "id: 1", "", "", "", "\ufeffdata: 9"]
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=25),
    st.lists(st.integers(0, 200), max_size=30),
)
@example([("data: 1", "\r"), ("", "\n")], [8, 8, 9])
def test_B_17_any_chunking_gives_the_same_frames(
    lines: list[tuple[str, str]], cuts: list[int]
) -> None:
    raw = "".join(line + end for line, end in lines).encode()
    places = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    chunks = [raw[a:b] for a, b in itertools.pairwise(places)]
    assert read(*chunks) == read(raw) == read(*(bytes([byte]) for byte in raw))


@settings(deadline=None)
@given(st.text("ab.", min_size=1), st.binary().filter(lambda b: not {10, 13} & set(b)))
def test_what_is_written_is_read_again(event: str, data: bytes) -> None:
    assert read(render(event, data)) == [Frame(event, data)]


def test_B_17_a_huge_event_in_small_chunks_takes_no_longer_than_it_is() -> None:
    """16 MiB in pieces of 1 KiB: copied at each of them, it would be 128 GiB."""
    reader, piece = FrameReader(), b"x" * 1024
    started = time.process_time()
    assert reader.feed(b"data: ") == []
    for _ in range(16 * 1024):
        assert reader.feed(piece) == []
    [frame] = reader.feed(b"\n\n")
    assert len(frame.data) == 16 * 1024 * 1024
    assert time.process_time() - started < 2


def test_D_05_an_event_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_LIMIT", 100)
    reader = FrameReader()
    assert reader.feed(b"data: " + b"x" * 90) == []
    with pytest.raises(ValueError, match="more than 64 MiB"):
        reader.feed(b"x" * 20)
