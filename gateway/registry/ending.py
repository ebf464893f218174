"""Ending remembered approvals when what they were given for changes: a definition, an address.

In the transaction of the change, so that not one call is answered for something else.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, update
from sqlmodel import col, select

from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM, Actor
from gateway.store.database import compare_and_set
from gateway.store.tables import Grant

REVOKED, DEFINITION, SERVER = "revoked", "definition_changed", "server_changed"


async def end_grants(
    tx: Transaction,
    *which: ColumnElement[bool],
    why: str,
    by: tuple[Actor, str] = (SYSTEM, "gateway"),
    now: datetime,
) -> int:
    """End the grants that are `which`, with a record each; how many there were.

    `by` is who does it, and the name that people see.
    """
    actor, name = by
    found = await tx.session.exec(select(Grant).where(col(Grant.ended_at).is_(None), *which))
    ended = 0
    for row in found.all():
        changed = await compare_and_set(
            tx.session,
            update(Grant)
            .where(col(Grant.id) == row.id, col(Grant.ended_at).is_(None))
            .values(ended_at=now, ended_by=name, ended_why=why),
        )
        if changed == 1:
            tx.record(_record(row, why, actor, now))
            ended += 1
    return ended


def of_tool(server_id: str, tool: str) -> ColumnElement[bool]:
    """The grants of one tool."""
    mine: Any = (col(Grant.server_id) == server_id) & (col(Grant.tool) == tool)
    return mine  # type: ignore[no-any-return]


def _record(row: Grant, why: str, actor: Actor, now: datetime) -> records.Record:
    return records.make(
        "grant.ended",
        now=now,
        actor=actor,
        subject={"app": row.app_name, "server": row.server_label, "tool": row.tool},
        key=row.id,
        fields={"grant": row.id, "code": why},
    )
