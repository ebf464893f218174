"""Puts refused attempts of known callers into the ledger, at most one of a kind a minute.

Attempts of strangers are not recorded one by one: whoever has no credential could fill the disk.
A refusal stands whether or not it can be recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.audit import records
from gateway.audit.records import Actor
from gateway.errors import Conflict, GatepassError
from gateway.services import Services
from gateway.telemetry import log


@dataclass(frozen=True)
class Attempt:
    """Who tried what. `subject` names the caller as records do; `route` has no values in it."""

    actor: Actor
    subject: Mapping[str, str]
    code: str
    method: str
    route: str


async def record(services: Services, attempt: Attempt) -> None:
    """Record an attempt, unless the same was recorded in this minute."""
    now = services.clock()
    refusal = records.make(
        "security.refused",
        now=now,
        actor=attempt.actor,
        subject=attempt.subject,
        key=f"{attempt.code} {attempt.method} {attempt.route} {now:%Y-%m-%dT%H:%M}",
        fields={
            "code": attempt.code,
            "where": "api",
            "method": attempt.method,
            "route": attempt.route[:200],
        },
    )
    try:
        await services.ledger.append_all([refusal])
    except Conflict:
        pass  # recorded in this minute already
    except GatepassError as error:
        log.warning("refusal.not_recorded", code=attempt.code, error=error.code)
