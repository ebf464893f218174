"""Grants: an approval that is remembered answers calls like the one it was given for.

It answers a hold, never more: a rule that denies beats it, a rule that always asks forbids it,
and a rule that has become stricter than what was approved asks people again. Uses are counted
by compare-and-set in the transaction of the decision they make.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import update
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals import case, lifecycle, terms, tooldefs
from gateway.approvals.case import Case, Reviewer
from gateway.approvals.decisions import Approvals
from gateway.approvals.kept import Kept
from gateway.approvals.lifecycle import Person, Standing
from gateway.approvals.terms import Pattern, Terms
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import Actor
from gateway.errors import Conflict, NotAllowed, NotFound, Refused
from gateway.exchange.messages import ServerFacts
from gateway.identity import lookup
from gateway.identity.roles import Permission
from gateway.policy.evaluation import Ruling
from gateway.policy.rules import Effect
from gateway.policy.standing import DecidedUnder, stricter
from gateway.registry import ending
from gateway.store.envelope import Envelope
from gateway.store.ids import new_id
from gateway.store.tables import (
    App,
    ApprovalRequest,
    AuditRecord,
    Exchange,
    Grant,
    Review,
    Server,
    ToolDefinition,
    User,
)
from gateway.telemetry import log

__all__ = ["Asked", "Terms", "Use", "answer", "remember", "remember_later", "revoke"]


@dataclass(frozen=True)
class Asked:
    """A call that policy holds, and what it is asked on."""

    kept: Kept
    server: ServerFacts
    tool: str
    arguments: str
    definition_digest: str | None
    ruling: Ruling


@dataclass(frozen=True)
class Use:
    """A grant that answers a call; `number` says how often it has been used with that."""

    grant_id: str
    number: int


# --- making one -----------------------------------------------------------------------------


async def remember_later(
    context: Approvals, reviewer: Reviewer, approval_id: str, wanted: Terms, *, now: datetime
) -> str:
    """Remember an approval that reviewers have decided; returns the id of the grant.

    Raises `Refused`, `NotAllowed` and `NotFound` as `remember` does, `Conflict` for a request
    that was not approved by a quorum of reviewers.
    """
    case.check_may(reviewer, Permission.REVIEW_REQUESTS, "Only reviewers may remember approvals.")
    async with context.ledger.transaction() as tx:
        found = await case.lock(tx, context.envelope, approval_id, reviewer)
        row = found.row
        if row.state != lifecycle.APPROVED or row.decided_by != "reviewers":
            raise Conflict(
                "Only what reviewers have approved can be remembered.", code="not_decided"
            )
        alone = await tx.session.exec(
            select(Review.id).where(Review.approval_id == row.id, col(Review.emergency).is_(True))
        )
        if alone.first() is not None:
            raise Conflict("An emergency is no precedent.", code="not_decided")
        found.check_fresh(reviewer, context.step_up, now)
        if found.recomputed() != row.digest:
            raise Conflict("The stored request does not match its digest.", code="digest_broken")
        grant_id = await remember(tx, found, reviewer, wanted, now)
    await tx.sealed()
    return grant_id


async def remember(
    tx: Transaction, found: Case, reviewer: Reviewer, wanted: Terms, now: datetime
) -> str:
    """Make a grant of a request that is approved in this transaction or was before.

    Raises `NotAllowed` when the rule always asks or this person may not decide the request,
    `Refused` for terms that it cannot have, `Conflict` when server or tool have changed since.
    """
    row = found.row
    wanted.check(now)
    if row.always_ask:
        raise NotAllowed(
            "The rule always asks: its approvals are not remembered.", code="always_asks"
        )
    await found.right_of(tx.session, reviewer, (), now)
    await _check_unchanged(tx.session, row)
    nonce = secrets.token_bytes(32)
    arguments = found.opener.payload(row)["arguments"]
    pattern = Pattern.of(wanted, arguments, nonce.hex())
    grant_id = new_id("grt", now)
    envelope = found.opener.envelope
    data_key = envelope.new_data_key(grant_id)
    grant = Grant(
        id=grant_id,
        approval_id=row.id,
        app_id=row.app_id,
        app_name=row.app_name,
        server_id=row.server_id,
        server_label=row.server_label,
        server_url=row.server_url,
        tool=row.tool,
        definition_digest=row.definition_digest,
        rule=row.rule,
        scope=wanted.scope,
        subject=_subject(found, wanted),
        kind=wanted.kind,
        data_key=data_key,
        arguments=envelope.seal(data_key, grant_id, "arguments", pattern.document()),
        max_uses=wanted.max_uses,
        created_at=now,
        created_by=reviewer.user_id,
        creator=reviewer.email,
        expires_at=wanted.until,
        record_id="",
    )
    record = _created(grant, row.digest, pattern, reviewer.actor, now)
    grant.record_id = record.id
    tx.session.add(grant)
    tx.record(record)
    return grant_id


async def _check_unchanged(session: AsyncSession, row: ApprovalRequest) -> None:
    server = await session.get(Server, row.server_id)
    definition = await session.get(ToolDefinition, (row.server_id, row.tool))
    same_server = server is not None and server.removed_at is None and server.url == row.server_url
    if not same_server or _settled_digest(definition) != (row.definition_digest, True):
        raise Conflict(
            "The server or the tool has changed since this was approved.", code="not_rememberable"
        )


def _settled_digest(definition: ToolDefinition | None) -> tuple[str | None, bool]:
    if definition is None:
        return None, True
    settled = not tooldefs.unsettled(definition) and not tooldefs.refused(definition)
    return definition.listed_digest, settled


def _subject(found: Case, wanted: Terms) -> str:
    row = found.row
    subject = {
        terms.APP: row.app_id,
        terms.END_USER: row.end_user,
        terms.THREAD: found.thread,
    }[wanted.scope]
    if not subject:
        raise Refused("The call names no end user, or belongs to no conversation.", param="scope")
    return subject


def facts(grant: Grant, approval_digest: str) -> Mapping[str, Any]:
    """Everything that is granted beside the arguments, for the digest of the terms."""
    return {
        "grant": grant.id,
        "approved": approval_digest,
        "app": grant.app_id,
        "server": grant.server_id,
        "url": grant.server_url,
        "tool": grant.tool,
        "tooldef": grant.definition_digest,
        "scope": grant.scope,
        "subject": grant.subject,
        "kind": grant.kind,
        "expires": records.timestamp(grant.expires_at),
        "max_uses": grant.max_uses,
    }


def opened(envelope: Envelope, grant: Grant) -> Pattern:
    """What has to be the same, opened."""
    return Pattern.read(envelope.open(grant.data_key, grant.id, "arguments", grant.arguments))


def _created(
    grant: Grant, approval_digest: str, pattern: Pattern, actor: Actor, now: datetime
) -> records.Record:
    kept = pattern.document()
    fields: dict[str, Any] = {
        "grant": grant.id,
        "terms": terms.digest(facts(grant, approval_digest), pattern),
        "digest": approval_digest,
        "scope": grant.scope,
        "pattern": grant.kind,
        "expires": records.timestamp(grant.expires_at),
        "args": {
            "commit": records.commit(bytes.fromhex(pattern.nonce), kept),
            "bytes": len(kept),
        },
        "url": grant.server_url[:512],
    }
    if grant.max_uses is not None:
        fields["max_uses"] = grant.max_uses
    if grant.definition_digest is not None:
        fields["tooldef"] = grant.definition_digest
    if grant.rule is not None:
        fields["rule"] = grant.rule[:200]
    return records.make(
        "grant.created",
        now=now,
        actor=actor,
        subject={
            "approval": grant.approval_id,
            "app": grant.app_name,
            "server": grant.server_label,
            "tool": grant.tool,
        },
        key=grant.id,
        fields=fields,
    )


# --- using one ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    grant: Grant
    approved: str  # the digest of the request
    quorum: int
    groups: Sequence[str] | None
    require_reason: bool
    step_up: bool
    recorded: bytes
    owner: str | None
    thread: str | None

    @property
    def under(self) -> DecidedUnder:
        """What the approval that it remembers rested on."""
        groups = frozenset(self.groups or ())
        return DecidedUnder("grant", self.quorum, groups, self.require_reason, self.step_up)


async def answer(tx: Transaction, envelope: Envelope, asked: Asked, now: datetime) -> Use | None:
    """The grant that answers this call, used once with that; None when people are to be asked."""
    if asked.ruling.effect is not Effect.HOLD:
        return None
    for found in await _candidates(tx.session, asked, now):
        if _fits(found, asked) and await _not_for_oneself(tx.session, found, asked):
            pattern = opened(envelope, found.grant)
            if not _as_recorded(found, pattern):
                log.error("grant.altered", grant=found.grant.id)
            elif pattern.covers(asked.arguments):
                used = await _use(tx.session, found.grant.id, now)
                if used is not None:
                    return Use(found.grant.id, used)
    return None


async def _candidates(session: AsyncSession, asked: Asked, now: datetime) -> list[_Candidate]:
    """The live grants of this tool for this app that stand in the signed ledger."""
    columns: Any = select
    found = await session.exec(
        columns(
            Grant,
            col(ApprovalRequest.digest),
            col(ApprovalRequest.quorum_needed),
            col(ApprovalRequest.reviewer_groups),
            col(ApprovalRequest.require_reason),
            col(ApprovalRequest.step_up),
            col(AuditRecord.body),
            col(App.owner),
            select(Exchange.thread).where(Exchange.id == asked.kept.id).scalar_subquery(),
        )
        .join(ApprovalRequest, col(ApprovalRequest.id) == Grant.approval_id)
        .join(AuditRecord, col(AuditRecord.id) == Grant.record_id)
        .join(App, col(App.id) == Grant.app_id)
        .where(
            Grant.app_id == asked.kept.app_id,
            Grant.server_id == asked.server.id,
            Grant.tool == asked.tool,
            *live(now),
            col(AuditRecord.index).is_not(None),
        )
        .order_by(col(Grant.expires_at), col(Grant.id))
        .limit(50)
    )
    return [_Candidate(*row) for row in found.all()]


def live(now: datetime) -> tuple[Any, ...]:
    """The conditions under which a grant may still answer."""
    return (
        col(Grant.ended_at).is_(None),
        col(Grant.expires_at) > now,
        or_(col(Grant.max_uses).is_(None), col(Grant.uses) < col(Grant.max_uses)),
    )


def _fits(found: _Candidate, asked: Asked) -> bool:
    grant = found.grant
    subject = {
        terms.APP: asked.kept.app_id,
        terms.END_USER: asked.kept.end_user,
        terms.THREAD: found.thread,
    }[grant.scope]
    return (
        grant.subject == subject
        and (grant.server_url, grant.definition_digest)
        == (asked.server.url, asked.definition_digest)
        and stricter(asked.ruling, found.under) is None
    )


async def _not_for_oneself(session: AsyncSession, found: _Candidate, asked: Asked) -> bool:
    """Whether who made the grant might decide this very call."""
    groups: frozenset[str] = frozenset()
    if found.owner is not None and "@" not in found.owner:
        known = await lookup.groups(session)
        creator = await session.get(User, found.grant.created_by)
        named = lookup.groups_of(known, creator) if creator else ()
        groups = frozenset((*lookup.memberships(known, found.grant.creator), *named))
    standing = Standing(1, frozenset(), False, found.owner, asked.kept.end_user)
    return lifecycle.conflict(standing, Person(found.grant.creator, groups)) is None


def _as_recorded(found: _Candidate, pattern: Pattern) -> bool:
    recorded = orjson.loads(found.recorded)
    digest = terms.digest(facts(found.grant, found.approved), pattern)
    return bool(recorded["type"] == "grant.created" and recorded["terms"] == digest)


async def _use(session: AsyncSession, grant_id: str, now: datetime) -> int | None:
    """Count a use: the number of it, or None when it is used up or over by now."""
    used = await session.exec(
        update(Grant)
        .where(col(Grant.id) == grant_id, *live(now))
        .values(uses=col(Grant.uses) + 1)
        .returning(col(Grant.uses))
        .execution_options(synchronize_session=False)
    )
    row = used.first()
    return None if row is None else int(row[0])


# --- ending one -----------------------------------------------------------------------------


async def revoke(
    context: Approvals, grant_id: str, *, by: tuple[Actor, str], now: datetime
) -> None:
    """End a grant at once. `by` is who does it, and the name that people see.

    Raises `NotFound`, `Conflict` when it has ended already.
    """
    async with context.ledger.transaction() as tx:
        if await tx.session.get(Grant, grant_id) is None:
            raise NotFound(f"There is no grant {grant_id}.")
        which: Any = col(Grant.id) == grant_id
        if not await ending.end_grants(tx, which, why=ending.REVOKED, by=by, now=now):
            raise Conflict("This grant has ended already.", code="grant_over")
