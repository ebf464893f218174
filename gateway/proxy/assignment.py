"""What a driver works with, and what of it is kept with a waiting exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from pydantic import SecretStr

from gateway.approvals.decisions import Approvals
from gateway.approvals.lease import Lease
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Json
from gateway.proxy.azure import Azure, Wire
from gateway.registry.directory import Directory
from gateway.telemetry import Clock


@dataclass(frozen=True)
class Tools:
    """What every driver of this process works with."""

    context: Approvals
    lease: Lease
    azure: Azure
    directory: Directory
    clock: Clock
    approval_expires: timedelta
    grace: timedelta
    keepalive: timedelta
    allow_at_azure: bool = False


@dataclass(frozen=True)
class Assignment:
    """What one driver needs beside the machine; saved with a waiting exchange.

    `strict` maps a server label to the tools the app itself wants asked for (None: all).
    `keepalive`: whether typed keepalive events may be sent while holding.
    """

    wire: Wire
    strict: Mapping[str, frozenset[str] | None]
    keepalive: bool

    def document(self) -> Json:
        """Plain JSON."""
        strict = {label: None if names is None else sorted(names) for label, names in
                  self.strict.items()}  # fmt: skip
        return {"wire": self.wire.document(), "strict": strict, "keepalive": self.keepalive}

    @classmethod
    def restore(cls, document: Json, user: SecretStr | None = None) -> Assignment:
        """What `document` wrote; the end user's token is kept apart from it."""
        return cls(
            Wire(document["wire"]["headers"], document["wire"]["query"], user),
            {
                label: None if names is None else frozenset(names)
                for label, names in document["strict"].items()
            },
            document["keepalive"],
        )


def saved_document(
    exchange: Exchange,
    assignment: Assignment,
    approvals: Mapping[str, str],
    frames: list[str] | None = None,
) -> Json:
    """An exchange as it is kept, for this process or the next one to go on with."""
    return {
        "machine": exchange.snapshot(),
        "forward": assignment.document(),
        "approvals": dict(approvals),
        "frames": frames,
    }
