"""A process that has imported everything and forks gateways that die at a chosen point.

`python -m tests.torture.zygote` reads orders (JSON lines) and answers each with the child's pid. A
child is the real `gatepass serve`; around every commit, every byte to and from Azure and every
write to the app stands a `point`. Which one kills is written into a shared file while it runs.
The zygote itself has neither threads nor an event loop: it could not be forked otherwise.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import struct
import sys
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import aiohttp
import aiosqlite  # noqa: F401  imported before the first fork, as all of these
import asyncpg  # noqa: F401
import uvicorn.protocols.http.httptools_impl  # noqa: F401
import uvloop  # noqa: F401
from aiohttp.http_writer import StreamWriter
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import config
from gateway.app import create_app
from gateway.audit.inserts import Inserts
from gateway.audit.sequencer import Sequencer
from gateway.cli.serving import serve
from gateway.proxy.http import Call
from gateway.store.database import Database
from gateway.telemetry import configure_logging

_kinds: ContextVar[list[str] | None] = ContextVar("kinds", default=None)


class Points:
    """Counts down to death once the other side has armed it; writes down where it came by."""

    def __init__(self, shared: Path, log: Path) -> None:
        with shared.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, name: str) -> None:
        """Come by the point `name`; a negative number only writes down."""
        left = struct.unpack("q", self._memory[:8])[0]
        if left == 0:
            return
        os.write(self._log, f"{name}\n".encode())
        self._memory[:8] = struct.pack("q", left - 1)
        if left == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def put_points(point: Points) -> None:
    """Around everything that the outside can tell apart."""
    _around_commits(point)
    _around_azure(point)
    _around_the_app(point)


def _around_commits(point: Points) -> None:
    connect, insert, seal = Database.connection, Inserts.records, Sequencer._write_head

    @contextlib.asynccontextmanager
    async def connection(self: Database) -> AsyncIterator[AsyncConnection]:
        kinds: list[str] = []
        _kinds.set(kinds)
        async with connect(self) as opened:
            yield opened
            name = "+".join(dict.fromkeys(kinds)) or "rows"
            point(f"commit {name} before")
        point(f"commit {name} after")

    async def records(self: Inserts, connection: AsyncConnection, written: Any) -> None:
        kinds = _kinds.get()
        if kinds is not None:
            kinds.extend(record.kind for record in written)
        await insert(self, connection, written)

    async def head(self: Sequencer, connection: AsyncConnection, frontier: Any) -> str:
        kinds = _kinds.get()
        if kinds is not None:
            kinds.append("head")
        return await seal(self, connection, frontier)

    Database.connection = connection  # type: ignore[method-assign]
    Inserts.records = records  # type: ignore[method-assign]
    Sequencer._write_head = head  # type: ignore[method-assign]


def _around_azure(point: Points) -> None:
    request, feed = aiohttp.ClientSession._request, aiohttp.StreamReader.feed_data
    write = StreamWriter._write

    async def send(self: Any, method: str, url: Any, **options: Any) -> Any:
        point(f"azure {method} not begun")
        answer = await request(self, method, url, **options)
        point(f"azure {method} answers")
        return answer

    def halves(self: StreamWriter, chunk: Any) -> None:
        raw = bytes(chunk)
        middle = len(raw) // 2
        write(self, raw[:middle])
        point("azure half sent")
        write(self, raw[middle:])
        point("azure all sent")

    def lines(self: StreamWriter, chunks: Iterable[Any]) -> None:
        halves(self, b"".join(chunks))

    def chunk(self: aiohttp.StreamReader, data: bytes, *rest: Any) -> Any:
        point("azure chunk read")
        return feed(self, data, *rest)

    aiohttp.ClientSession._request = send  # type: ignore[method-assign,assignment]
    aiohttp.StreamReader.feed_data = chunk  # type: ignore[method-assign]
    StreamWriter._write = halves  # type: ignore[method-assign]
    StreamWriter._writelines = lines  # type: ignore[method-assign]


def _around_the_app(point: Points) -> None:
    for name in ("start", "write", "end"):
        original = getattr(Call, name)

        async def written(self: Call, *parts: Any, _do: Any = original, _name: str = name) -> None:
            if self.method == "GET":  # somebody asks how it goes on
                await _do(self, *parts)
                return
            point(f"app {_name} before")
            await _do(self, *parts)
            point(f"app {_name} after")

        setattr(Call, name, written)


def _child(order: dict[str, Any]) -> None:
    os.environ.update(order["environ"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(number, target)
    settings = config.load(os.environ)
    configure_logging("warning")
    if order.get("points"):
        put_points(Points(Path(order["shared"]), Path(order["points"])))
    clock = order.get("clock")
    app = create_app(settings) if clock is None else create_app(settings, jumping(Path(clock)))
    failure = serve(app, settings)
    if failure is not None:
        traceback.print_exception(failure)


def jumping(file: Path) -> Any:
    """A clock that is off by as many seconds as the shared file says."""
    from datetime import timedelta

    from gateway.telemetry import utc_now

    with file.open("r+b") as opened:
        memory = mmap.mmap(opened.fileno(), 8)
    return lambda: utc_now() + timedelta(seconds=struct.unpack("q", memory[:8])[0])


def orders() -> Iterator[dict[str, Any]]:
    """Until the other side closes the pipe."""
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """Fork a child for each order."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    print("ready", flush=True)
    for order in orders():
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                _child(order)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
