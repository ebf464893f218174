"""What can be done with a stored response: replay its events, cancel it, page through its input."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from gateway.demo.events import encode
from gateway.demo.store import Stored
from gateway.demo.wire import JSON, bad_request

_LIVE = ("queued", "in_progress")


async def replay(stored: Stored, after: int) -> AsyncIterator[bytes]:
    """The events with a sequence number above `after`, from the log, then as they come."""
    sent = 0
    while True:
        async with stored.changed:
            while len(stored.log) == sent and not stored.ended:
                await stored.changed.wait()
            fresh, ended = stored.log[sent:], stored.ended
        sent += len(fresh)
        for event in fresh:
            if event["sequence_number"] > after:
                yield encode(event)
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


def input_items(context: Sequence[JSON], query: Mapping[str, str]) -> JSON:
    """One page of the input, newest first unless `order=asc`; inherited items are included."""
    try:
        limit = int(query.get("limit", "20"))
    except ValueError:
        limit = 0
    if not 1 <= limit <= 100:
        raise bad_request("Invalid 'limit': expected an integer between 1 and 100.", param="limit")
    items = list(context) if query.get("order") == "asc" else list(reversed(context))
    if after := query.get("after"):
        ids = [item["id"] for item in items]
        if after not in ids:
            raise bad_request(f"Item with id '{after}' not found.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > limit,
    }
