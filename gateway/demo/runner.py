"""Runs ASGI apps under uvicorn on a loopback port inside the current event loop.

For the demo, the tests and the benchmark. It installs no signal handlers and no logging, and what
it starts ends with the context manager.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol


class _Server(uvicorn.Server):
    """A server that says when its start-up is over, stops at once, and may leave signals alone."""

    def __init__(self, app: ASGIApp, *, owns_signals: bool) -> None:
        super().__init__(server_config(app))
        self.settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._owns_signals = owns_signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.settled.set()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        if self._owns_signals:
            await super().main_loop()
            return
        await self.on_tick(0)
        # Its own loop looks ten times a second whether it is over: too slow for many short tests.
        await self._stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if self._owns_signals:
            with super().capture_signals():
                yield
        else:
            yield


class CuttableProtocol(H11Protocol):
    """Lets an app cut its own connection, as a crashing or overloaded remote side would."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state.setdefault("connections", {})[self.client] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.app_state.get("connections", {}).pop(self.client, None)
        super().connection_lost(exc)


async def cut_connection(scope: Scope) -> None:
    """Close the connection of this request without finishing the answer.

    Only under `serve`; elsewhere RuntimeError, which ends in a 500 or a broken body.
    """
    connections: dict[Any, asyncio.Transport] = scope.get("state", {}).get("connections", {})
    transport = connections.get(scope.get("client"))
    if transport is None:
        raise RuntimeError("the connection can only be cut under gateway.demo.runner")
    # What was written so far shall arrive: a cut is not a reset.
    transport.close()
    await asyncio.sleep(0)


def server_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=CuttableProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        # Longer than a client keeps an idle connection, as the real service does: whoever ends it
        # first must not be the one who may be sent a request at that moment.
        timeout_keep_alive=60,
    )


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.create_server((host, port))
    # asyncio switches Nagle off only for sockets that name their protocol, and accepted ones
    # inherit that from the listener; without this, small answers wait 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


@asynccontextmanager
async def serve(app: ASGIApp, *, port: int = 0) -> AsyncIterator[str]:
    """Serve `app` on 127.0.0.1 until the block ends; yields `http://127.0.0.1:PORT`.

    Port 0 takes a free one. RuntimeError when the app's start-up fails.
    """
    listener = _listen("127.0.0.1", port)
    server = _Server(app, owns_signals=False)
    # Not a task group: an exception of the block would come out wrapped in an exception group.
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    try:
        await _started(server, task)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        await task
        listener.close()


async def _started(server: _Server, task: asyncio.Task[None]) -> None:
    settled = asyncio.get_running_loop().create_task(server.settled.wait())
    await asyncio.wait((settled, task), return_when=asyncio.FIRST_COMPLETED)
    settled.cancel()
    if not server.started:
        raise RuntimeError("the app refused to start")


async def run_until_stopped(app: ASGIApp, *, host: str, port: int, line: str) -> None:
    """Serve as a process of its own; prints `line` with `{url}` filled in once it is ready."""
    listener = _listen(host, port)
    server = _Server(app, owns_signals=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listener]))
        await server.settled.wait()
        if server.started:
            actual = listener.getsockname()[1]
            print(line.format(url=f"http://{host}:{actual}"), flush=True)  # noqa: T201
