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
from gateway.exchange.sse import HEARTBEAT, render
from gateway.proxy.http import Call
from gateway.proxy.live import Live
from gateway.store.ids import time_of

_PATIENT_PYTHON = re.compile(r"^(Async)?(Azure)?(OpenAI)/Python ")
#: Clients whose stream helpers break on a typed keepalive event.
_FRAGILE = re.compile(r"OpenAI/JS 6\.4[0-9]|OpenAI/Java|openai-php", re.IGNORECASE)
_TRICKLE = 15.0
#: The answer is to be had by asking again, maybe of another replica.
MOVED = Fault(
    503,
    {
        "error": {
            "message": "Another gateway goes on with this request. Send it again.",
            "type": "server_error",
            "param": None,
            "code": "exchange_moved",
        }
    },
    {"x-should-retry": "true", "retry-after-ms": "500"},
)


@dataclass(frozen=True)
class Patience:
    """How long a call without a stream is held, in seconds of the hold.

    `early` is when the 200 goes out before the answer is known (None: never), `trickle` the pause
    between two newlines after it, `limit` the age of the call at which a held one is answered
    `in_progress` (None: at the end).
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
    named = {**live.headers, "gatepass-exchange": live.kept.id}
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
            if (live.frames or live.held_since is not None) and not call.started:
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
    await _come_again(call, live)


async def _end_stream(call: Call, live: Live, finished: Finished) -> None:
    if not call.started and finished.fault is not None:
        await _fault(call, live, finished.fault)
        return
    if not call.started:
        await call.start(200, {**STREAM_HEADERS, **headers_of(live)})
    if not live.frames and finished.fault is not None:
        # It was held before its first frame, and Azure never gave it an id.
        for kind, data in live.exchange.stitcher.failure(_error(finished.fault), told=False):
            if "response" in data:
                data["response"] = _unborn(live, finished.fault)
            await call.write(render(kind, orjson.dumps(data)))
    await call.end()


# --- without a stream -----------------------------------------------------------------------


async def plain(call: Call, live: Live, patience: Patience) -> None:
    """The finished response; after `patience`, the same id as `in_progress`, to be polled."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with _watched(call, live) as wake:
        while live.finished is None and not wake.gone:
            wake.event.clear()
            now = loop.time()
            # One that joins later has only begun to wait, however long the hold has been.
            held = None if live.held_since is None else now - max(began, live.held_since)
            left = None if patience.limit is None else began + patience.limit - now
            if held is not None and left is not None and left <= 0:
                await _postpone(call, live)
                return
            pause = patience.trickle if call.started else None
            if held is not None:
                pause = await _reassure(call, live, patience, held)
                pause = pause if left is None else min(pause, left)
            if not await wake.wait(pause) and call.started and held is None:
                await call.write(b"\n")  # decided, but the answer takes its time
        if not wake.gone and live.finished is not None:
            await _finished(call, live, live.finished)
            return
    await _come_again(call, live)


async def _postpone(call: Call, live: Live) -> None:
    """The limit came first: the answer is to be polled, or, without an id yet, asked for again."""
    interim = live.interim()
    if interim is not None:
        live.detached, live.joinable = True, False
        await _object(call, live, interim)
        return
    error = {
        "message": "Nobody has decided yet. Send the same request again to go on waiting.",
        "type": "invalid_request_error",
        "param": None,
        "code": "approval_pending",
    }
    fault = Fault(424, {"error": error}, {"x-should-retry": "false"})
    await _finished(call, live, Finished("failed", None, fault))


async def _reassure(call: Call, live: Live, patience: Patience, held: float) -> float:
    """Send a sign of life if it is time; how long until the next look."""
    if not call.started and patience.early is not None:
        if held < patience.early:
            return patience.early - held
        await call.start(200, {"content-type": "application/json", **headers_of(live)})
    if call.started:
        # JSON allows white space before the document; proxies see a body that moves.
        await call.write(b"\n")
    return patience.trickle


async def background(call: Call, live: Live) -> None:
    """The response object as soon as it has an id; the exchange goes on by itself."""
    async with _watched(call, live) as wake:
        while live.interim() is None and live.finished is None and not wake.gone:
            wake.event.clear()
            await wake.wait(None)
    if live.finished is not None and live.finished.response is None:
        await _finished(call, live, live.finished)
    elif wake.gone:
        await _come_again(call, live)
    else:
        await _object(call, live, live.finished.response if live.finished else live.interim())


async def _come_again(call: Call, live: Live) -> None:
    """Another replica goes on with it: whoever asks again finds it there."""
    if live.lost and not call.started:
        await _fault(call, live, MOVED)
    elif live.lost:
        call.cut()


async def _finished(call: Call, live: Live, finished: Finished) -> None:
    response, fault = finished.response, finished.fault
    if fault is not None and not call.started:
        await _fault(call, live, fault)
    elif response is None and fault is not None:
        await _object(call, live, _unborn(live, fault))
    else:
        await _object(call, live, response)


def _error(fault: Fault) -> Json:
    error = fault.body.get("error")
    return error if isinstance(error, dict) else {}


def _unborn(live: Live, fault: Fault) -> Json:
    """The failed response of an exchange that Azure never gave an id: it cannot be retrieved."""
    error = _error(fault)
    return {
        "id": f"resp_{live.kept.id.partition('_')[2]}",
        "object": "response",
        "created_at": time_of(live.kept.id),
        "status": "failed",
        "error": {"code": error.get("code"), "message": error.get("message")},
        "incomplete_details": None,
        "model": live.exchange.plan.asked.get("model"),
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


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

    def __init__(self, event: asyncio.Event, live: Live) -> None:
        self.event = event
        self.cut = False
        self._live = live

    @property
    def gone(self) -> bool:
        """Whether there is nobody to tell anything, or nothing that is ours to tell."""
        return self.cut or self._live.lost

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
        wake = _Wake(event, live)

        async def watch() -> None:
            await call.disconnected()
            wake.cut = True
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
