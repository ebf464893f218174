"""What the record of a request that passed through says: gathered while it passes, written once.

Owns no input or output. `passing` (the Responses API) and `relay` (everything beside it) fill it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from gateway.audit import records
from gateway.registry.directory import AppView

_NOTHING: Mapping[str, Any] = {}
#: What the usage of a response is called, and what that of a chat completion.
_COUNTED = (
    ("input_tokens", "input_tokens"),
    ("output_tokens", "output_tokens"),
    ("prompt_tokens", "input_tokens"),
    ("completion_tokens", "output_tokens"),
)


class Trace:
    """One request on its way through. `asked` is its body, empty where it has none."""

    def __init__(
        self,
        started: datetime,
        request_id: str,
        app: AppView,
        route: str,
        asked: Mapping[str, Any] = _NOTHING,
    ) -> None:
        self.started = started
        self.request_id = request_id
        self.app = app
        self.route = route
        self.method: str | None = None
        self.model = asked.get("model")
        self.streamed = bool(asked.get("stream"))
        self.outcome = "refused"
        self.status = 200
        self.tokens: dict[str, int] = {}
        self.recorded = False

    def count(self, answer: Mapping[str, Any]) -> None:
        """Take the usage of a finished answer over."""
        usage = answer.get("usage") or {}
        self.tokens = {
            ours: usage[theirs] for theirs, ours in _COUNTED if type(usage.get(theirs)) is int
        }

    def record(self, now: datetime) -> records.Record:
        """The record, as of `now`."""
        fields: dict[str, Any] = {
            "status": self.status,
            "route": self.route[:200],
            "outcome": self.outcome[:40],
            "streamed": self.streamed,
            "milliseconds": int((now - self.started).total_seconds() * 1000),
            **self.tokens,
        }
        if self.method is not None:
            fields["method"] = self.method
        if isinstance(self.model, str):
            fields["model"] = self.model[:200]
        return records.make(
            "request.completed",
            now=now,
            actor=self.app.actor,
            subject={"app": self.app.name},
            key=self.request_id,
            fields=fields,
        )
