"""What Azure's items and errors say of a call: how it ended, with which arguments, if at all."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.exchange.messages import Json, Rejected

#: Answers that Azure gives before it does anything.
_BEFORE_ANYTHING = frozenset({400, 401, 403, 404, 405, 413, 415, 422, 429})


def never_ran(answer: Rejected) -> bool:
    """Whether the error proves that no tool was called. Output of a tool can be filtered, and
    a server error can come at any time; only a server too busy to begin says so.
    """
    if answer.status == 503:
        return any(name.lower() in {"retry-after", "retry-after-ms"} for name in answer.headers)
    error = answer.body.get("error")
    filtered = isinstance(error, dict) and error.get("code") == "content_filter"
    return answer.status in _BEFORE_ANYTHING and not filtered


def outcome_of(item: Json) -> str:
    """What an `mcp_call` item says of its call; one that was cut short says nothing."""
    status = item.get("status") or "completed"
    if item.get("error") or status == "failed":
        return "failed"
    return "executed" if status == "completed" else "unknown"


def arguments_text(arguments: Any) -> str:
    """The arguments as one string: as Azure sent it, or compact JSON where it sent an object."""
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
