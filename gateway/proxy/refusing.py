"""The record of a refused attempt of an app that is known."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from gateway.audit import records
from gateway.audit.ledger import Ledger
from gateway.errors import GatepassError
from gateway.proxy.http import Call
from gateway.registry.directory import AppView


async def record(
    ledger: Ledger, call: Call, app: AppView, error: GatepassError, *, now: datetime
) -> None:
    """Write down what was tried and how it was answered; durable when it returns."""
    fields: dict[str, Any] = {
        "code": error.code,
        "status": error.status,
        "request": call.id,
        "method": call.method[:16],
        "route": call.path[:200],
    }
    if error.param is not None:
        fields["where"] = error.param[:200]
    refused = records.make(
        "security.refused",
        now=now,
        actor=app.actor,
        subject={"app": app.name},
        key=call.id,
        fields=fields,
    )
    await ledger.append_all([refused])
