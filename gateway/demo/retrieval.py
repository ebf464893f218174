"""What can be done with a stored response: replay its events, cancel it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gateway.demo.framing import Framing
from gateway.demo.store import Stored
from gateway.demo.wire import JSON, bad_request

_LIVE = ("queued", "in_progress")


async def replay(stored: Stored, after: int, framing: Framing) -> AsyncIterator[bytes]:
    """The events with a sequence number above `after`, from the log, then as they come."""
    async for event in told(stored):
        if event["sequence_number"] > after:
            for piece in framing.writes(event):
                yield piece
    for piece in framing.end():
        yield piece


async def told(stored: Stored) -> AsyncIterator[JSON]:
    """Every event, from the log, then as they come."""
    sent = 0
    while True:
        async with stored.changed:
            while len(stored.log) == sent and not stored.ended:
                await stored.changed.wait()
            fresh, ended = stored.log[sent:], stored.ended
        sent += len(fresh)
        for event in fresh:
            yield event
        if ended and sent == len(stored.log):
            return


async def cancelled(stored: Stored) -> JSON:
    """The response after a cancel: idempotent, and only for background responses."""
    if not stored.background:
        raise bad_request("Cannot cancel a synchronous response.")
    if stored.response["status"] in _LIVE:
        stored.response["status"] = "cancelled"
        stored.cancel()
        await stored.end()
    return stored.response
