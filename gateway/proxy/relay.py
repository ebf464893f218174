"""One request to Azure beside /responses: sent once, its answer passed on, its record written.

What may be asked is decided before (`forwarding`, `files`). Whole answers wait for their record;
streams go on as they come, and end when either side goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp
import orjson

from gateway.audit.ledger import Ledger
from gateway.errors import GatepassError, UpstreamFailed
from gateway.exchange.messages import Json
from gateway.proxy.azure import Azure, Body, Wire, passed_on, rejection
from gateway.proxy.clients import STREAM_HEADERS
from gateway.proxy.http import Call, ClientGone
from gateway.proxy.multipart import Form
from gateway.proxy.trace import Trace
from gateway.registry.directory import AppView
from gateway.telemetry import Clock, requests_total

Deliver: TypeAlias = Callable[[aiohttp.ClientResponse], Awaitable[None]]
_USAGE = re.compile(rb'"usage"\s*:\s*\{')


@dataclass(frozen=True, slots=True)
class Ask:
    """What Azure is asked: `path` below the root, what goes along, and the body if there is one."""

    method: str
    path: str
    wire: Wire
    body: Body | None = None


@dataclass(frozen=True)
class Relay:
    """Sends and passes on. One per process."""

    azure: Azure
    ledger: Ledger
    clock: Clock

    @contextlib.asynccontextmanager
    async def tracing(self, call: Call, app: AppView, route: str) -> AsyncIterator[Trace]:
        """The trace of one request to `route`; recorded at the end of the block, if not before."""
        trace = Trace(self.clock(), call.id, app, call.path)
        trace.method = call.method
        try:
            yield trace
        except ClientGone:
            trace.outcome = "abandoned"
            raise
        except GatepassError as error:
            trace.status = error.status
            raise
        finally:
            requests_total.labels(route=route, outcome=trace.outcome).inc()
            if not trace.recorded:
                await self.record(trace)

    async def send(self, call: Call, trace: Trace, ask: Ask, deliver: Deliver) -> None:
        """Ask Azure; `deliver` gets its answer unless that is an error, which is passed on."""
        once = isinstance(ask.body, Form)  # a file is read while it is sent
        try:
            async with await self.azure.send(
                ask.method, ask.path, ask.wire, ask.body, once=once
            ) as response:
                trace.status = response.status
                if response.status >= 300:
                    await self._rejected(call, response, trace)
                else:
                    await deliver(response)
        except aiohttp.ClientConnectorError:
            trace.outcome = "unreachable"
            raise UpstreamFailed("Azure cannot be reached.", code="upstream_unreachable") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            trace.outcome = "broken"
            raise UpstreamFailed(
                f"The connection to Azure broke ({type(error).__name__})."
            ) from None

    async def fetch(self, call: Call, trace: Trace, ask: Ask) -> bytes | None:
        """A whole answer, for ourselves; None when Azure refused, and the app has been told."""
        found: list[bytes] = []

        async def deliver(response: aiohttp.ClientResponse) -> None:
            scrubber = await self.azure.thorough()
            found.append(scrubber.clean(await response.read()))

        await self.send(call, trace, ask, deliver)
        return found[0] if found else None

    async def record(self, trace: Trace) -> None:
        """Write the record; returns when it is durable."""
        trace.recorded = True
        await self.ledger.append_all([trace.record(self.clock())])

    async def whole(self, call: Call, response: aiohttp.ClientResponse, trace: Trace) -> None:
        """Pass a whole answer on, byte for byte, without any of our secrets."""
        scrubber = await self.azure.thorough()
        raw = scrubber.clean(await response.read())
        trace.outcome = "completed"
        with contextlib.suppress(orjson.JSONDecodeError):
            trace.count(_object(orjson.loads(raw)))
        await self.record(trace)
        await call.answer(response.status, raw, passed_on(response, scrubber))

    async def stream(self, call: Call, response: aiohttp.ClientResponse, trace: Trace) -> None:
        """Pass server-sent events on line by line, as they come."""
        scrubber = await self.azure.thorough()
        await call.start(200, {**STREAM_HEADERS, **passed_on(response, scrubber)})
        last = b""
        try:
            async with connected(call):
                async for lines in _lines(response):
                    if _USAGE.search(lines):
                        _count(lines, trace)
                    await call.write(scrubber.clean(lines))
        except (aiohttp.ClientError, TimeoutError) as error:
            trace.outcome, last = "broken", _broken(error)
        else:
            trace.outcome = "completed"
        await self.record(trace)
        await call.end(last)

    async def _rejected(self, call: Call, response: aiohttp.ClientResponse, trace: Trace) -> None:
        rejected = await rejection(response, await self.azure.thorough())
        trace.outcome, trace.status = "rejected", rejected.status
        await self.record(trace)
        await call.answer(rejected.status, orjson.dumps(rejected.body), rejected.headers)


@contextlib.asynccontextmanager
async def connected(call: Call) -> AsyncIterator[None]:
    """Ends the block with `ClientGone` when the app closes its connection."""

    async def watch() -> None:
        await call.disconnected()
        raise ClientGone

    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(watch())
            try:
                yield
            finally:
                watcher.cancel()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines, so that nothing that must be taken out can hide in a seam."""
    rest = b""
    async for chunk in response.content.iter_any():
        lines, mark, rest = (rest + chunk).rpartition(b"\n")
        if mark:
            yield lines + mark
    if rest:
        yield rest


def _count(lines: bytes, trace: Trace) -> None:
    for line in lines.splitlines():
        if _USAGE.search(line):
            with contextlib.suppress(orjson.JSONDecodeError):
                trace.count(_object(orjson.loads(line.removeprefix(b"data:"))))


def _object(document: Any) -> Json:
    return document if isinstance(document, dict) else {}


def _broken(error: Exception) -> bytes:
    """The end of a stream that has none, in a form that the official clients raise."""
    message = f"The connection to Azure broke ({type(error).__name__})."
    told = {"message": message, "type": "server_error", "param": None, "code": "upstream_failed"}
    return b"\n\ndata: " + orjson.dumps({"error": told}) + b"\n\n"
