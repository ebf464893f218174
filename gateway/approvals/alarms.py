"""Alarms: what people must look at. On every page until somebody closes it.

Raised in the transaction of what they tell; closing one is an act of its own with a note, and
whoever caused one cannot close it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import update
from sqlmodel import col, select

from gateway.approvals.decisions import Approvals
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM, Actor
from gateway.errors import Conflict, NotAllowed, NotFound, Refused
from gateway.store.database import Database, compare_and_set
from gateway.store.ids import new_id
from gateway.store.tables import Alarm
from gateway.telemetry import alarms_total

_NOTE_LIMIT = 2000


@dataclass(frozen=True)
class About:
    """What an alarm is about. `kind`: mismatch | break_glass | late_execution."""

    kind: str
    code: str
    app_name: str
    exchange_id: str | None = None
    approval_id: str | None = None
    server_label: str | None = None
    tool: str | None = None

    @property
    def subject(self) -> dict[str, str]:
        """As audit records name it."""
        named = {
            "app": self.app_name,
            "exchange": self.exchange_id,
            "approval": self.approval_id,
            "server": self.server_label,
            "tool": self.tool,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class AlarmView:
    """An alarm as people see it."""

    id: str
    about: About
    raised_at: datetime
    due_at: datetime | None
    closed_at: datetime | None = None
    closed_by: str | None = None

    def overdue(self, now: datetime) -> bool:
        """Whether it should have been closed by now."""
        return self.closed_at is None and self.due_at is not None and self.due_at <= now


@dataclass(frozen=True)
class Closing:
    """Who closes an alarm (`name`: e-mail address), and what they found out."""

    actor: Actor
    name: str
    note: str


def add(
    tx: Transaction,
    about: About,
    *,
    raised_by: Actor = SYSTEM,
    due_at: datetime | None = None,
    now: datetime,
) -> str:
    """Raise an alarm in the caller's transaction; returns its id."""
    alarm_id = new_id("alm", now)
    tx.session.add(
        Alarm(
            id=alarm_id,
            kind=about.kind,
            code=about.code,
            app_name=about.app_name,
            exchange_id=about.exchange_id,
            approval_id=about.approval_id,
            server_label=about.server_label,
            tool=about.tool,
            raised_by=raised_by.ref,
            raised_at=now,
            due_at=due_at,
        )
    )
    tx.record(
        records.make(
            "alarm.raised",
            now=now,
            actor=raised_by,
            subject=about.subject,
            key=alarm_id,
            fields={"alarm": alarm_id, "what": [about.kind], "code": about.code},
        )
    )
    alarms_total.labels(kind=about.kind).inc()
    return alarm_id


async def listing(db: Database, *, closed: bool = False, limit: int = 100) -> list[AlarmView]:
    """Open alarms, or closed ones; the newest first."""
    wanted = col(Alarm.closed_at).is_not(None) if closed else col(Alarm.closed_at).is_(None)
    async with db.reading() as session:
        found = await session.exec(
            select(Alarm).where(wanted).order_by(col(Alarm.id).desc()).limit(limit)
        )
        return [_view(row) for row in found]


async def close(context: Approvals, alarm_id: str, closing: Closing, *, now: datetime) -> AlarmView:
    """Say that an alarm was looked into. Raises `Refused` without a note, `NotFound`,
    `NotAllowed` for whoever caused it, `Conflict` when it is closed already.
    """
    note = closing.note.strip()
    if not note or len(note) > _NOTE_LIMIT:
        raise Refused(f"Say what you found out, in 1 to {_NOTE_LIMIT} characters.", param="note")
    async with context.ledger.transaction() as tx:
        row = await tx.session.get(Alarm, alarm_id)
        if row is None:
            raise NotFound(f"There is no alarm {alarm_id}.")
        if row.raised_by == closing.actor.ref:
            raise NotAllowed(
                "You caused this alarm; somebody else has to close it.", code="own_alarm"
            )
        data_key = context.envelope.new_data_key(alarm_id)
        changed = await compare_and_set(
            tx.session,
            update(Alarm)
            .where(col(Alarm.id) == alarm_id, col(Alarm.closed_at).is_(None))
            .values(
                closed_at=now,
                closed_by=closing.name,
                data_key=data_key,
                note=context.envelope.seal(data_key, alarm_id, "note", note.encode()),
            ),
        )
        if changed != 1:
            raise Conflict("This alarm is closed already.", code="alarm_closed")
        tx.record(
            records.make(
                "alarm.closed",
                now=now,
                actor=closing.actor,
                subject=_view(row).about.subject,
                key=alarm_id,
                fields={"alarm": alarm_id, "what": [row.kind]},
            )
        )
    await tx.sealed()
    async with context.db.reading() as session:
        return _view(await session.get_one(Alarm, alarm_id))


def _view(row: Alarm) -> AlarmView:
    about = About(
        row.kind,
        row.code,
        row.app_name,
        row.exchange_id,
        row.approval_id,
        row.server_label,
        row.tool,
    )
    return AlarmView(row.id, about, row.raised_at, row.due_at, row.closed_at, row.closed_by)
