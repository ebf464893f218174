"""Pages of items without those that exist only between Azure and the gateway.

A page that loses items is filled up from the ones behind it, so that `limit`, `has_more` and the
cursors stay true.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from gateway.errors import Refused
from gateway.exchange.messages import HIDDEN_ITEMS, Json

#: What may be asked of a list.
LIST_QUERY = frozenset({"after", "limit", "order", "include", "include[]"})
Query = Mapping[str, str | list[str]]
#: Asks Azure for one page.
Fetch = Callable[[Query], Awaitable[Json]]
_DEFAULT, _MOST = 20, 100


def limit_of(query: Query) -> int:
    """How many items a page is to have; raises `Refused` for what is no such number."""
    text = query.get("limit", str(_DEFAULT))
    if not (
        isinstance(text, str) and text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST
    ):
        raise Refused(f"'limit' must be a number from 1 to {_MOST}.", param="limit")
    return int(text)


async def visible_page(fetch: Fetch, query: Query, *, shows_approvals: bool = False) -> Json:
    """One page of what the app may see, in the shape of Azure's own."""
    limit = limit_of(query)
    found: list[Json] = []
    listing: Json = {}
    while len(found) <= limit:
        listing = await fetch(query)
        data = listing.get("data") or []
        found += data if shows_approvals else visible(data)
        if not listing.get("has_more") or not data:
            break
        query = {**query, "after": str(data[-1].get("id"))}
    page = found[:limit]
    ends = (page[0].get("id"), page[-1].get("id")) if page else (None, None)
    return {
        **listing,
        "data": page,
        "first_id": ends[0],
        "last_id": ends[1],
        "has_more": len(found) > limit,
    }


def visible(items: Sequence[Any]) -> list[Json]:
    """The items that an app may see, without the names of approvals."""
    return [
        {**item, "approval_request_id": None} if item.get("approval_request_id") else item
        for item in items
        if isinstance(item, dict) and item.get("type") not in HIDDEN_ITEMS
    ]
