"""Runs the application under uvicorn and ends the process when any part of it has ended.

uvicorn serves on when what was started beside the routes has failed; a gateway whose ledger has
stopped must not. Failures become one sentence, never a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket

import orjson
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.app import Gatepass
from gateway.cli.connection import Connection
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.proxy.http import CUT, error_body
from gateway.proxy.keeping import Keeper

_BACKLOG = 2048
_STOPPING = Unavailable(
    "The gateway is stopping. Send it again: what waits is gone on with afterwards.",
    code="gateway_stopping",
)


def serve(app: Gatepass, settings: Settings) -> Exception | None:
    """Serve until a signal; returns what ended it early, None after a clean end."""
    watched = _Watched(app)
    host, port = settings.bind
    server = _Server(
        uvicorn.Config(
            watched,
            host=host,
            port=port,
            loop="uvloop",
            http=Connection,
            ws="none",
            lifespan="on",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_config=None,
            log_level="warning",
            backlog=_BACKLOG,
            timeout_graceful_shutdown=int(settings.drain.total_seconds()),
        )
    )
    watched.server = server
    server.keeper = app.keeper
    # uvicorn raises the signal again once it has shut down: a clean end is not a death.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # What start-up made lives as long as the process: no collection needs to look at it again,
    # and requests make little that is cyclic.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    try:
        server.run()
    except SystemExit:  # the start was refused, or the address is taken or not ours
        return watched.failure or OSError(
            f"cannot listen on {settings.listen}: is something else listening there?"
        )
    return watched.failure


class _Server(uvicorn.Server):
    """Hands over what waits for people before it waits for its connections to end."""

    keeper: Keeper

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.keeper.hand_over()
        await super().shutdown(sockets)


class _Watched:
    """Passes everything on, and notices how the application's lifespan ends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.server: uvicorn.Server | None = None
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope.setdefault("extensions", {})["gatepass.stopping"] = self._stopping
            try:
                await self.app(scope, receive, send)
            except asyncio.CancelledError:
                if not self._stopping():
                    raise
                await _break_off(scope, send)
            return

        async def without_traceback(message: Message) -> None:
            if message["type"].endswith(".failed"):
                message = {**message, "message": ""}
            await send(message)

        try:
            await self.app(scope, receive, without_traceback)
        except Exception as error:
            self.failure = _innermost(error)
            if self.server is not None:
                self.server.should_exit = True

    def _stopping(self) -> bool:
        """Whether the server is on its way out: streams that never end by themselves ask."""
        return self.server is not None and self.server.should_exit


async def _break_off(scope: Scope, send: Send) -> None:
    """The time for open answers is over. One that has not begun says so; of one that has, nobody
    is to take what was sent for the whole.
    """
    body = orjson.dumps(error_body(_STOPPING))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-should-retry": "true",
    }
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    with contextlib.suppress(RuntimeError):  # it has begun
        await send({"type": "http.response.start", "status": _STOPPING.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})
        return
    scope["state"][CUT]()


def _innermost(error: Exception) -> Exception:
    """What went wrong, out of the groups that the parts' task groups wrap it in."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
