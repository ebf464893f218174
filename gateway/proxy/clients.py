"""Step 9 at the wire: keeping a waiting app content, on a stream or without one.

Measured tolerances of the official and common clients stand behind every number here; see
docs/waiting.md. Nothing is decided: a client reads along what the driver wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import orjson

from gateway.exchange.messages import Fault, Finished, Json
from gateway.exchange.sse import HEARTBEAT
from gateway.proxy.http import Call
from gateway.proxy.live import Live

_PATIENT_PYTHON = re.compile(r"^(Async)?(Azure)?(OpenAI)/Python ")
#: Clients whose stream helpers break on a typed keepalive event.
_FRAGILE = re.compile(r"OpenAI/JS 6\.4[0-9]|OpenAI/Java|openai-php", re.IGNORECASE)
_TRICKLE = 15.0


@dataclass(frozen=True)
class Patience:
    """How long a call without a stream is held, in seconds of the hold.

    `early` is when the 200 goes out before the answer is known (None: never), `trickle` the pause
    between two newlines after it, `limit` when the answer is `in_progress` (None: at the end).
    """

    early: float | None
    trickle: float
    limit: float | None


@dataclass(frozen=True)
class Limits:
    """The installation's settings behind `patience`, in seconds."""

    early: float
    plain: float
    strict: float


def patience(call: Call, plain: str, limits: Limits) -> Patience:
    """What this client is known, or says, to endure."""
    read = _seconds(call.header("x-stainless-read-timeout"))
    total = _seconds(call.header("x-stainless-timeout"))
    if plain == "strict":
        return Patience(None, _TRICKLE, min(limits.strict, *_less(read, total)))
    early, trickle = limits.early, _TRICKLE
    if read is not None:
        # The client's timer runs from byte to byte: newlines must come well within it.
        early, trickle = min(early, read * 0.6), min(trickle, read * 0.6)
    if _PATIENT_PYTHON.match(call.header("user-agent") or ""):
        return Patience(early, trickle, None)
    return Patience(early, trickle, min(limits.plain, *_less(total)))


def _seconds(value: str | None) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        seconds = float(value or "")
        return seconds if seconds > 0 else None
    return None


def _less(*seconds: float | None) -> Iterator[float]:
    """Each given time, less what an answer needs to arrive."""
    yield float("inf")
    for value in seconds:
        if value is not None:
            yield max(value - 3.0, value * 0.8)


def takes_keepalive(call: Call, heartbeat: str) -> bool:
    """Whether typed keepalive events may be sent to this client."""
    return heartbeat != "comments" and not _FRAGILE.search(call.header("user-agent") or "")


def headers_of(live: Live) -> dict[str, str]:
    """What every answer of an exchange carries."""
    named = {"gatepass-exchange": live.kept.id}
    return {**named, "gatepass-receipt": live.receipt} if live.receipt else named


# --- streams --------------------------------------------------------------------------------

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


async def stream(call: Call, live: Live, heartbeat: float, *, after: int = -1) -> None:
    """The frames numbered past `after`, then those to come, with comments while it is quiet."""
    position = after + 1
    async with _watched(call, live) as wake:
        while not wake.gone:
            wake.event.clear()
            if live.frames and not call.started:
                await call.start(200, {**STREAM_HEADERS, **headers_of(live)})
            while position < len(live.frames) and not wake.gone:
                # One whole event per write: some clients parse read by read.
                await call.write(live.frames[position])
                position += 1
            if live.finished is not None:
                await _end_stream(call, live, live.finished)
                return
            if not await wake.wait(heartbeat) and call.started:
                await call.write(HEARTBEAT)


async def _end_stream(call: Call, live: Live, finished: Finished) -> None:
    if call.started:
        await call.end()
    elif finished.fault is not None:
        await _fault(call, live, finished.fault)
    else:
        await call.start(200, {**STREAM_HEADERS, **headers_of(live)})
        await call.end()


# --- without a stream -----------------------------------------------------------------------


async def plain(call: Call, live: Live, patience: Patience) -> None:
    """The finished response; after `patience`, the same id as `in_progress`, to be polled."""
    loop = asyncio.get_running_loop()
    async with _watched(call, live) as wake:
        while live.finished is None and not wake.gone:
            wake.event.clear()
            held = None if live.held_since is None else loop.time() - live.held_since
            if held is not None and patience.limit is not None and held >= patience.limit:
                live.detached = True
                await _object(call, live, live.interim())
                return
            pause = None
            if held is not None:
                pause = await _reassure(call, live, patience, held)
            await wake.wait(pause)
        if not wake.gone and live.finished is not None:
            await _finished(call, live, live.finished)


async def _reassure(call: Call, live: Live, patience: Patience, held: float) -> float:
    """Send a sign of life if it is time; how long until the next look."""
    pauses = [patience.trickle]
    if patience.limit is not None:
        pauses.append(max(0.01, patience.limit - held))
    if not call.started and patience.early is not None:
        if held < patience.early:
            pauses.append(patience.early - held)
            return max(0.01, min(pauses))
        await call.start(200, {"content-type": "application/json", **headers_of(live)})
    if call.started:
        # JSON allows white space before the document; proxies see a body that moves.
        await call.write(b"\n")
    return min(pauses)


async def background(call: Call, live: Live) -> None:
    """The response object as soon as it has an id; the exchange goes on by itself."""
    async with _watched(call, live) as wake:
        while live.interim() is None and live.finished is None and not wake.gone:
            wake.event.clear()
            await wake.wait(None)
    if live.finished is not None and live.finished.response is None:
        await _finished(call, live, live.finished)
    elif not wake.gone:
        await _object(call, live, live.interim())


async def _finished(call: Call, live: Live, finished: Finished) -> None:
    if finished.fault is not None and not call.started:
        await _fault(call, live, finished.fault)
    else:
        await _object(call, live, finished.response)


async def _fault(call: Call, live: Live, fault: Fault) -> None:
    body = orjson.dumps(fault.body)
    await call.answer(fault.status, body, {**fault.headers, **headers_of(live)})


async def _object(call: Call, live: Live, response: Json | None) -> None:
    body = orjson.dumps(response)
    if call.started:
        await call.end(body)
    else:
        await call.answer(200, body, headers_of(live))


# --- waiting --------------------------------------------------------------------------------


class _Wake:
    """Set when the exchange moved, or the app's connection went away."""

    def __init__(self, event: asyncio.Event) -> None:
        self.event = event
        self.gone = False

    async def wait(self, seconds: float | None) -> bool:
        """False when `seconds` went by without anything new."""
        try:
            async with asyncio.timeout(seconds):
                await self.event.wait()
        except TimeoutError:
            return False
        return True


@contextlib.asynccontextmanager
async def _watched(call: Call, live: Live) -> AsyncIterator[_Wake]:
    with live.reading() as event:
        wake = _Wake(event)

        async def watch() -> None:
            await call.disconnected()
            wake.gone = True
            event.set()

        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(watch())
                try:
                    yield wake
                finally:
                    watcher.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
