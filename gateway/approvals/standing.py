"""Standing: whether what was decided may be sent now, or has to be decided anew, or must wait.

A decision is about a call as it was when it was taken: its rules, its server, the definition of
its tool. Whatever of that has changed since is looked at in the transaction that claims the
release, under a configuration that nobody changes meanwhile. Changes nothing but `supersede`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals import lifecycle, tooldefs
from gateway.approvals.decisions import Approvals, subject
from gateway.approvals.kept import Kept
from gateway.approvals.reading import Opener
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict
from gateway.policy.evaluation import CallFacts
from gateway.policy.standing import DecidedUnder, stricter
from gateway.registry.directory import ServerView, View
from gateway.registry.pauses import PauseView
from gateway.store.database import compare_and_set
from gateway.store.tables import Alarm, ApprovalRequest, Exchange, SealedSecret, ToolDefinition

_SERVER = (
    "The server of this call was changed or removed after the decision, so the call was not made. "
    "A new request sees the server as it is now."
)
_APP = "This app may not use the server of this call any more, so the call was not made."
_STOPPED = (
    "Something else was executed for this request than had been approved, so nothing further of "
    "it is carried out."
)
_TOO_LONG = "Calls were paused until the time for this one was over, so it was not made."
#: As long as a record may name a secret.
_NAME = 400


@dataclass(frozen=True, slots=True)
class Waits:
    """A pause covers a call of the round; at `until` the time of one of them is over."""

    pause: PauseView
    until: datetime


@dataclass(frozen=True, slots=True)
class Fallen:
    """An approval that does not stand any more, and why. Without a `refusal`, which the model is
    told, the same call is ruled on and asked about anew.
    """

    approval_id: str
    why: str
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A server of a round as it was when its secret was opened, and the version of that."""

    server: ServerView
    version: str | None

    @property
    def sealed_as(self) -> str | None:
        """The name of the value in our own vault; None where it is elsewhere, or nowhere."""
        credential = self.server.credential
        sealed = credential is not None and credential.ref.store == "sealed"
        return credential.ref.stored_as if credential is not None and sealed else None

    @property
    def name(self) -> str | None:
        """Reference and version as records tell them; None without a secret."""
        if self.server.credential is None:
            return None
        version = f"@{self.version}" if self.version else ""
        return f"{self.server.credential.ref}"[: _NAME - len(version)] + version


async def harder(
    context: Approvals, approval_ids: Sequence[str], view: View, now: datetime
) -> dict[str, str | None]:
    """For each of these approvals, in what the rules in `view` have become stricter since."""
    if not approval_ids:
        return {}
    async with context.db.reading() as session:
        rows = await approved(session, approval_ids)
        definitions = await listed(session, rows)
        keys = await session.exec(
            select(Exchange.id, Exchange.data_key).where(
                col(Exchange.id).in_({row.exchange_id for row in rows})
            )
        )
        data_keys = dict(keys.all())
    found: dict[str, str | None] = {}
    for row in rows:
        definition = definitions.get((row.server_id, row.tool))
        opener = Opener(context.envelope, row.exchange_id, data_keys.get(row.exchange_id))
        facts = CallFacts(
            app=row.app_name,
            server=row.server_label,
            tool=row.tool,
            arguments=opener.payload(row)["arguments"],
            end_user=row.end_user,
            definition=(definition.pinned or definition.listed) if definition else None,
        )
        then = DecidedUnder(
            row.decided_by or "policy",
            row.quorum_needed,
            frozenset(row.reviewer_groups or ()),
            row.require_reason,
            row.step_up,
        )
        assessment = await context.rulings.assess(view.policy, facts, now)
        found[row.id] = stricter(assessment.ruling, then)
    return found


async def approved(session: AsyncSession, approval_ids: Sequence[str]) -> list[ApprovalRequest]:
    """These requests, each approved, not sent yet and not superseded; raises `Conflict`."""
    found = await session.exec(
        select(ApprovalRequest)
        .where(
            col(ApprovalRequest.id).in_(approval_ids),
            ApprovalRequest.state == lifecycle.APPROVED,
            ApprovalRequest.execution == "not_sent",
            col(ApprovalRequest.superseded_by).is_(None),
        )
        .order_by(col(ApprovalRequest.id))
    )
    rows = list(found.all())
    if len(rows) != len(approval_ids):
        raise Conflict("A call of this round may not be sent.", code="not_releasable")
    return rows


async def listed(
    session: AsyncSession, rows: Sequence[ApprovalRequest]
) -> dict[tuple[str, str], ToolDefinition]:
    """The definitions of the tools of these calls as they are now, by server and tool."""
    found = await session.exec(
        select(ToolDefinition).where(
            col(ToolDefinition.server_id).in_({row.server_id for row in rows}),
            col(ToolDefinition.name).in_({row.tool for row in rows}),
        )
    )
    return {(row.server_id, row.name): row for row in found}


async def examine(
    session: AsyncSession,
    kept: Kept,
    rows: Sequence[ApprovalRequest],
    harder_now: Mapping[str, str | None],
    view: View,
    now: datetime,
) -> tuple[Fallen, ...] | Waits | None:
    """What does not stand any more, or else what to wait for, or None: all may be sent."""
    if not rows:
        return None
    definitions = await listed(session, rows)
    stopped = await session.exec(
        select(Alarm.id).where(Alarm.exchange_id == kept.id, Alarm.kind == "mismatch").limit(1)
    )
    if stopped.first() is not None:
        return tuple(Fallen(row.id, "stopped", _STOPPED) for row in rows)
    pauses = {row.id: view.paused(row.app_name, row.server_label) for row in rows}
    found = (
        _shut_out(row, view)
        or _outlived(row, pauses[row.id], now)
        or _changed(row, definitions.get((row.server_id, row.tool)))
        or _named(row, harder_now.get(row.id))
        for row in rows
    )
    if fallen := tuple(why for why in found if why is not None):
        return fallen
    pause = next((pause for pause in pauses.values() if pause is not None), None)
    return None if pause is None else Waits(pause, min(map(_end, rows)))


def _shut_out(row: ApprovalRequest, view: View) -> Fallen | None:
    server, app = view.servers.get(row.server_id), view.apps.get(row.app_id)
    if server is None:
        return Fallen(row.id, "server_removed", _SERVER)
    if server.url != row.server_url:
        return Fallen(row.id, "server_changed", _SERVER)
    if app is None:
        return Fallen(row.id, "app_disabled", _APP)
    return None if app.may_use(server.label) else Fallen(row.id, "server_not_allowed", _APP)


def _outlived(row: ApprovalRequest, pause: PauseView | None, now: datetime) -> Fallen | None:
    if now < _end(row):
        return None
    if pause is not None:
        return Fallen(row.id, "paused_too_long", _TOO_LONG)
    # Without a limit of its own, what was approved in time only waits for the rest of its round.
    return None if row.execution_seconds is None else Fallen(row.id, "execution_expired")


def _end(row: ApprovalRequest) -> datetime:
    if row.execution_seconds is None or row.decided_at is None:
        return row.deadline
    return row.decided_at + timedelta(seconds=row.execution_seconds)


def _changed(row: ApprovalRequest, definition: ToolDefinition | None) -> Fallen | None:
    if tooldefs.refused(definition):
        return Fallen(row.id, "tool_refused", tooldefs.REFUSAL)
    digest = definition.listed_digest if definition else None
    if digest != row.definition_digest:
        return Fallen(row.id, "definition_changed")
    gone = definition is not None and definition.gone_at is not None
    known = any(signal["code"] == tooldefs.GONE for signal in row.risk_signals or ())
    return Fallen(row.id, tooldefs.GONE) if gone and not known else None


def _named(row: ApprovalRequest, why: str | None) -> Fallen | None:
    return None if why is None else Fallen(row.id, why)


async def supersede(tx: Transaction, fallen: Fallen, successor: str, now: datetime) -> None:
    """Mark an approval as replaced by the request `successor`; raises `Conflict` if it was sent
    or replaced meanwhile.
    """
    with tx.session.no_autoflush:  # the successor may be written only once this one stands aside
        row = await tx.session.get_one(ApprovalRequest, fallen.approval_id)
        changed = await compare_and_set(
            tx.session,
            update(ApprovalRequest)
            .where(
                col(ApprovalRequest.id) == row.id,
                col(ApprovalRequest.state) == lifecycle.APPROVED,
                col(ApprovalRequest.execution) == "not_sent",
                col(ApprovalRequest.superseded_by).is_(None),
            )
            .values(superseded_by=successor),
        )
    if changed != 1:
        raise Conflict("This approval is used or replaced already.", code="not_releasable")
    tx.record(
        records.make(
            "approval.superseded",
            now=now,
            actor=SYSTEM,
            subject=subject(row),
            fields={"code": fallen.why, "successor": successor},
        )
    )


async def carried(
    session: AsyncSession, opened: Mapping[str, Opened], view: View
) -> Mapping[str, str | None] | None:
    """For each server, by id, the secret that goes along with its calls, as records name it; None
    when one of them is not the server, or not the secret, that it was when it was opened.
    """
    if any(view.servers.get(server_id) != one.server for server_id, one in opened.items()):
        return None
    newest = await _newest(session, [one for one in opened.values() if one.sealed_as])
    for one in opened.values():
        if one.sealed_as and newest.get(one.sealed_as) != one.version:
            return None
    return {server_id: one.name for server_id, one in opened.items()}


async def _newest(session: AsyncSession, opened: Sequence[Opened]) -> dict[str, str]:
    """The newest versions of our own values."""
    if not opened:
        return {}
    name, version = col(SealedSecret.name), func.max(col(SealedSecret.version))
    wanted = name.in_([one.sealed_as for one in opened])
    found = await session.exec(select(name, version).where(wanted).group_by(name))
    return {stored_as: str(number) for stored_as, number in found}
