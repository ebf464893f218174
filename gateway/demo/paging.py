"""Lists cut into pages as the service cuts them: `after`, `limit`, `order`, `has_more`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.demo.wire import JSON, bad_request


def page(items: Sequence[JSON], query: Mapping[str, str], *, most: int = 100) -> JSON:
    """One page of what is given oldest first; newest first unless `order=asc`."""
    limit = _limit(query.get("limit", "20"), most)
    if query.get("order", "desc") not in ("asc", "desc"):
        raise bad_request("Invalid 'order': supported values are: 'asc' and 'desc'.", param="order")
    ordered = list(items) if query.get("order") == "asc" else list(reversed(items))
    if after := query.get("after"):
        ids = [item["id"] for item in ordered]
        if after not in ids:
            raise bad_request(f"Item with id '{after}' not found.", param="after")
        ordered = ordered[ids.index(after) + 1 :]
    shown = ordered[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(ordered) > limit,
    }


def _limit(text: str, most: int) -> int:
    limit = int(text) if text.isdecimal() else 0
    if not 1 <= limit <= most:
        raise bad_request(
            f"Invalid 'limit': expected an integer between 1 and {most}.", param="limit"
        )
    return limit
