"""A connection's deadlines and its end, with an application that only reads and echoes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.cli import connection
from gateway.cli.connection import Connection
from gateway.proxy.http import FAULT
from tests.support.sockets import exchange

pytestmark = pytest.mark.slow

HEAD = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n"


class Echo:
    """Answers with the length of the body; `early` before it has read it, `held` much later."""

    def __init__(self) -> None:
        self.faults: list[object] = []
        self.held = asyncio.Event()
        self.finished = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0
        if scope["path"] != "/early":
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.faults.append(scope["state"].get(FAULT))
                    return
                size += len(message["body"])
                more = message["more_body"]
        if scope["path"] == "/held":
            await self.held.wait()
        body = str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self.finished += 1


@asynccontextmanager
async def serving(app: Echo) -> AsyncIterator[int]:
    config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for open_one in list(state.connections):
            open_one.transport.abort()
        for _ in range(100):
            if not state.connections and not state.tasks:
                break
            await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(connection, "_BYTES_A_SECOND", 1000)
    monkeypatch.setattr(connection, "_LINGER", 0.2)


async def drip(port: int, start: bytes, drop: bytes, count: int = 100) -> tuple[bytes, float]:
    """Send `start`, then `drop` every 50 ms until the connection ends; what came, and when."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    reading = asyncio.ensure_future(reader.read())
    try:
        writer.write(start)
        for _ in range(count):
            await asyncio.wait([reading], timeout=0.05)
            if reading.done():
                break
            writer.write(drop)
        return await asyncio.wait_for(reading, 5), time.monotonic() - began
    finally:
        writer.close()


async def test_D_01_a_head_that_drips_in_is_cut_off_at_its_deadline() -> None:
    async with serving(Echo()) as port:
        for start in (b"POST /", b"POST / HTTP/1.1\r\nhost: h\r\n", b"POST / HTTP/1.1\r\nx-"):
            raw, took = await drip(port, start, b"a")
            assert raw.startswith(b"HTTP/1.1 408 "), raw
            assert b'"code":"request_too_slow"' in raw
            assert 0.25 < took < 1.5


async def test_D_01_a_body_that_drips_in_is_cut_off_and_its_reader_told_why() -> None:
    app = Echo()
    async with serving(app) as port:
        raw, took = await drip(port, HEAD % 1000, b"a")
    assert raw.startswith(b"HTTP/1.1 408 ")
    assert took < 1.5
    [fault] = app.faults
    assert getattr(fault, "code", None) == "request_too_slow"


async def test_D_01_a_body_that_comes_steadily_may_take_its_time() -> None:
    async with serving(Echo()) as port:
        reply = await exchange(port, HEAD % 1600, *([b"a" * 100] * 16), pause=0.05)
        assert (reply.statuses, reply.raw[-4:]) == ([200], b"1600")


async def test_D_01_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with serving(Echo()) as port:
        for start in (b"", b"\r\n", b"\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start)
            raw = await asyncio.wait_for(reader.read(), 3)
            assert raw == b"" or raw.startswith(b"HTTP/1.1 408 ")
            writer.close()


async def test_D_01_who_is_answered_early_has_no_longer_for_the_rest() -> None:
    async with serving(Echo()) as port:
        start = (HEAD % 10**9).replace(b"POST /", b"POST /early")
        raw, took = await drip(port, start, b"a" * 5000)
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert raw.count(b"HTTP/1.1") == 1
        assert took < 2


async def test_D_01_a_hold_is_not_a_slow_request() -> None:
    app = Echo()
    async with serving(app) as port:
        start = b"POST /held HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\na"
        asking = asyncio.ensure_future(exchange(port, start))
        await asyncio.sleep(0.8)
        assert not asking.done()
        app.held.set()
        assert (await asking).statuses == [200]


async def test_H_02_rubbish_behind_a_held_request_neither_answers_nor_ends_it() -> None:
    app = Echo()
    async with serving(app) as port:
        start = b"POST /held HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\na"
        asking = asyncio.ensure_future(exchange(port, start, b"rubbish\r\n\r\n", start, pause=0.1))
        await asyncio.sleep(0.5)
        app.held.set()
        reply = await asking
    assert (reply.statuses, reply.closed, app.finished) == ([200], True, 1)


async def test_a_connection_that_was_answered_early_is_used_again() -> None:
    early = b"POST /early HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\n"
    async with serving(Echo()) as port:
        reply = await exchange(port, early, b"ab", b"cd", HEAD % 1 + b"x", pause=0.05)
        assert reply.statuses == [200, 200]
