"""Whether, and when, what Azure did not begin is tried again. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from gateway.exchange.messages import Broken, Event, Json, Rejected

#: Between tries of what Azure did not begin: a streamed parent has taken half a minute to be seen.
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_LONGEST_PAUSE = 60.0


def pause(event: Event | None, attempt: int, *, resumes: bool) -> float | None:
    """How long to wait before trying again; None when it must not, or need not, be tried.

    A busy Azure is waited for only when resuming: before that, the app's own retry is as good.
    """
    if attempt >= len(PAUSES):
        return None
    match event:
        case Broken(sent=False):
            return PAUSES[attempt] if attempt < 2 else None
        case Rejected() if is_unseen(event):
            return PAUSES[attempt]
        case Rejected(status=429 | 503, headers=headers) if resumes and attempt < 3:
            return _retry_after(headers)
        case _:
            return None


def is_unseen(event: Event | None) -> bool:
    return isinstance(event, Rejected) and parent_unseen(event)


def parent_unseen(answer: Rejected) -> bool:
    """Whether Azure does not know the parent: one that was just streamed may become visible yet."""
    return answer.status == 400 and _code(answer.body) == "previous_response_not_found"


def _code(body: Json) -> Any:
    error = body.get("error")
    return error.get("code") if isinstance(error, dict) else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit
            return seconds if seconds <= _LONGEST_PAUSE else None
    return None
