"""What is learned of a call after its outcome had been given up as unknown.

Evidence decides nothing: a person settles. But where a person has said that a call was not
executed, and it then shows that it was, that is an alarm, and the app is paused.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.exc import IntegrityError

from gateway.approvals import alarms
from gateway.approvals.alarms import About
from gateway.approvals.decisions import Approvals, subject
from gateway.audit import records
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict
from gateway.registry import pauses
from gateway.registry.changes import Change
from gateway.registry.versions import bump_config
from gateway.store.ids import new_id
from gateway.store.tables import ApprovalRequest, Evidence

#: Findings that say what became of the call.
TELLING = frozenset({"executed", "failed"})


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found (executed | failed | absent | unavailable) and where it was looked for."""

    what: str
    where: str
    matches: bool | None = None


async def note(
    context: Approvals,
    approval_id: str,
    finding: Finding,
    *,
    number: int | None = None,
    now: datetime,
) -> bool:
    """Keep a finding, with its record and the alarm that it may be. Waits for the signed head.

    `number` counts the looks of all processes: False when another one has taken this look.
    """
    evidence_id = new_id("evi", now) if number is None else f"{approval_id}.{number}"
    try:
        async with context.ledger.transaction() as tx:
            if finding.what == "executed":
                await bump_config(tx.session)  # first of all: it may lead to a pause
            # Whoever settles it meanwhile waits, or has been waited for.
            row = await tx.session.get_one(ApprovalRequest, approval_id, with_for_update=True)
            tx.session.add(
                Evidence(
                    id=evidence_id,
                    approval_id=approval_id,
                    finding=finding.what,
                    where=finding.where,
                    arguments_match=finding.matches,
                    gathered_at=now,
                )
            )
            fields: dict[str, records.JSONValue] = {
                "finding": finding.what,
                "where": finding.where[:200],
            }
            if finding.matches is not None:
                fields["match"] = finding.matches
            tx.record(
                records.make(
                    "execution.evidence",
                    now=now,
                    actor=SYSTEM,
                    subject=subject(row),
                    key=evidence_id,
                    fields=fields,
                )
            )
            if finding.what == "executed" and row.settlement == "not_executed":
                await _alarm(Change(tx, SYSTEM, now), row)
    except (IntegrityError, Conflict):
        return False
    await tx.sealed()
    await context.wakeups.notify()
    return True


async def _alarm(change: Change, row: ApprovalRequest) -> None:
    about = About(
        "late_execution",
        "executed_after_all",
        row.app_name,
        row.exchange_id,
        row.id,
        row.server_label,
        row.tool,
    )
    alarms.add(change.tx, about, now=change.now)
    reason = "A call was executed that had been settled as not executed."
    await pauses.pause_app(change, row.app_name, reason)
