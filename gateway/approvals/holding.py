"""Holding: every call of a round gets its ruling, and what policy leaves open goes to people.

One transaction writes the saved exchange, the approval requests (also those that policy settles
at once, so that every call has one life to follow) and the audit records.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals import exchanges, grants, lifecycle, shadows, standing, tooldefs, views
from gateway.approvals.decisions import Approvals, subject
from gateway.approvals.grants import Asked, Use
from gateway.approvals.kept import Kept, hold_on
from gateway.approvals.standing import Fallen
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM
from gateway.exchange.messages import Answer, Call, Json, Ran, ServerFacts
from gateway.policy.evaluation import CallFacts, Ruling
from gateway.policy.risk import RiskSignal
from gateway.policy.rules import Effect, Policy
from gateway.registry.pauses import PauseView
from gateway.store.ids import new_id
from gateway.store.tables import ApprovalRequest, ToolDefinition
from gateway.telemetry import decisions_total, executions_total


@dataclass(frozen=True)
class Rules:
    """What decides without people: the policy in force, and the app's own stricter wishes.

    `strict` maps a server label to the tools the app wants asked for (None: all of them).
    `shadow` decides nothing: what it would say is recorded. `labels` are those of all servers.
    """

    policy: Policy
    policy_digest: str
    strict: Mapping[str, frozenset[str] | None]
    expires: timedelta
    shadow: Policy | None = None
    pauses: Sequence[PauseView] = ()
    labels: Collection[str] = ()


@dataclass(frozen=True)
class Round:
    """The calls of a round that ended, and the servers behind their labels.

    `approvals` maps Azure's request ids to our approval ids so far. `saved` holds what resumes
    the exchange; it is None when the exchange ends and leaves the calls open. `fallen` are, by
    Azure's request id, earlier approvals of these calls that do not stand any more.
    """

    kept: Kept
    calls: Sequence[Call]
    servers: Mapping[str, ServerFacts]
    approvals: Mapping[str, str]
    saved: Json | None
    fallen: Mapping[str, Fallen] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """The approval request made for a call; `answer` when policy settled it."""

    approval_id: str
    call: Call
    answer: Answer | None


@dataclass(frozen=True)
class _Asked:
    """A call with what is known of it; `server` without an id is not part of the request.

    `fallen` is an earlier approval of the call that does not stand any more.
    """

    call: Call
    server: ServerFacts
    definition: ToolDefinition | None
    fallen: Fallen | None


@dataclass(frozen=True)
class _Ruled:
    """What is to happen to a call; `use` is of the grant that answers instead of people."""

    asked: _Asked
    ruling: Ruling
    risks: tuple[RiskSignal, ...]
    shadow: Ruling | None = None
    use: Use | None = None


async def open_hold(
    context: Approvals, ended: Round, rules: Rules, *, now: datetime
) -> tuple[list[Opened], dict[str, str]]:
    """Rule on the calls, save the exchange, open the requests; all of it in the signed head.

    Returns what was opened, and the map of request ids extended by it.
    """
    kept = ended.kept
    # Before the transaction: what takes long must not keep others from writing.
    ruled = await _rule_all(context, ended, rules, now)
    async with context.ledger.transaction() as tx:
        await hold_on(tx.session, kept)
        ruled = [await _remembered(tx, context, kept, item, now) for item in ruled]
        opened = [_open(tx, context, kept, item, rules, now) for item in ruled]
        for item in opened:
            if (fallen := ended.fallen.get(item.call.request_id)) is not None:
                await standing.supersede(tx, fallen, item.approval_id, now)
        ids = {**ended.approvals, **{item.call.request_id: item.approval_id for item in opened}}
        if ended.saved is not None:
            await exchanges.save(tx, context.envelope, kept, ended.saved, ids)
    if ended.saved is not None:
        kept.state = "holding"
    await tx.sealed()
    await context.wakeups.notify()
    return opened, ids


@dataclass(frozen=True)
class Leave:
    """What Azure was told about one tool: that it need not ask, by which rule of which policy."""

    server: ServerFacts
    rule: str
    policy_digest: str


async def record_ran(
    context: Approvals, kept: Kept, ran: Ran, leave: Leave, *, now: datetime
) -> tuple[str, bool]:
    """Keep a call that was made on leave, as one that policy allowed, with what became of it.

    Waits for the signed head. Returns its id, and whether its definition was another than that
    which leave was given for.
    """
    server = leave.server
    # Azure gives such a call no request id; ids of items may stand in several rounds.
    name = f"{views.UNASKED}{ran.call.round}:{ran.call.request_id}"
    call = dataclasses.replace(ran.call, request_id=name)
    async with context.db.reading() as session:
        definition = await session.get(ToolDefinition, (server.id, call.tool))
    asked = _Asked(call, server, definition, None)
    facts = _facts(kept, asked)
    # Nothing is left to rule on; what stands out is shown to whoever looks.
    found = (await context.rulings.assess(Policy(), facts, now)).signals
    why = f"Rule {leave.rule!r} allows every call of this tool, so that Azure did not ask."
    wrong = _unsettled(kept, asked)
    risks = (*wrong, *tooldefs.signs(definition), *found)
    item = _Ruled(asked, Ruling(Effect.ALLOW, leave.rule, why), risks)
    rules = Rules(Policy(), leave.policy_digest, {}, timedelta(0))
    async with context.ledger.transaction() as tx:
        opened = _open(tx, context, kept, item, rules, now)
        await tx.session.flush()
        row = await tx.session.get_one(ApprovalRequest, opened.approval_id)
        row.execution, row.executed_at = ran.outcome, now
        tx.session.add(row)
        tx.record(
            records.make(
                "execution.observed",
                now=now,
                actor=SYSTEM,
                subject=subject(row),
                fields={"outcome": ran.outcome, "round": call.round},
            )
        )
    executions_total.labels(outcome=ran.outcome).inc()
    await tx.sealed()
    await context.wakeups.notify()
    return opened.approval_id, bool(wrong) or tooldefs.refused(definition)


async def _rule_all(context: Approvals, ended: Round, rules: Rules, now: datetime) -> list[_Ruled]:
    async with context.db.reading() as session:
        asked = [await _look_up(session, ended, call) for call in ended.calls]
    return [await _rule(context, ended.kept, each, rules, now) for each in asked]


async def _look_up(session: AsyncSession, ended: Round, call: Call) -> _Asked:
    fallen = ended.fallen.get(call.request_id)
    server = ended.servers.get(call.server_label)
    if server is None:
        return _Asked(call, ServerFacts("", call.server_label, ""), None, fallen)
    definition = await session.get(ToolDefinition, (server.id, call.tool))
    return _Asked(call, server, definition, fallen)


async def _rule(
    context: Approvals, kept: Kept, asked: _Asked, rules: Rules, now: datetime
) -> _Ruled:
    if (refusal := _refusal(asked)) is not None:
        return _Ruled(asked, Ruling(Effect.DENY, None, refusal), ())
    facts = _facts(kept, asked)
    assessment = await context.rulings.assess(rules.policy, facts, now)
    ruling = assessment.ruling
    if ruling.effect is Effect.ALLOW:
        ruling = _stricter(ruling, kept, asked, rules)
    risks = (
        *_unsettled(kept, asked),
        *tooldefs.lookalikes(asked.server.label, rules.labels),
        *tooldefs.signs(asked.definition),
        *assessment.signals,
    )
    shadow = await shadows.ruling(context.rulings, rules.shadow, facts, now)
    return _Ruled(asked, ruling, risks, shadow)


def _refusal(asked: _Asked) -> str | None:
    """Why nobody can approve the call, whatever the rules say."""
    if asked.fallen is not None and asked.fallen.refusal is not None:
        return asked.fallen.refusal
    # Azure asks for a call on a server that was not in the request.
    if not asked.server.id:
        return "The server is not part of the request."
    return tooldefs.REFUSAL if tooldefs.refused(asked.definition) else None


async def _remembered(
    tx: Transaction, context: Approvals, kept: Kept, item: _Ruled, now: datetime
) -> _Ruled:
    """The same, answered by a grant where there is one: it answers a hold, never more."""
    call, server, definition = item.asked.call, item.asked.server, item.asked.definition
    if item.ruling.effect is not Effect.HOLD or _unsettled(kept, item.asked):
        return item
    definition_digest = definition.listed_digest if definition else None
    asked = Asked(kept, server, call.tool, call.arguments, definition_digest, item.ruling)
    return replace(item, use=await grants.answer(tx, context.envelope, asked, now))


def _facts(kept: Kept, asked: _Asked) -> CallFacts:
    return CallFacts(
        app=kept.app_name,
        server=asked.server.label,
        tool=asked.call.tool,
        arguments=asked.call.arguments,
        end_user=kept.end_user,
        definition=(asked.definition.pinned or asked.definition.listed)
        if asked.definition
        else None,
    )


def _unsettled(kept: Kept, asked: _Asked) -> tuple[RiskSignal, ...]:
    shown = tooldefs.shown_to(kept, asked.server.id, asked.call.tool)
    return tooldefs.unsettled(asked.definition, shown)


def _stricter(ruling: Ruling, kept: Kept, asked: _Asked, rules: Rules) -> Ruling:
    """What a rule allows, held where something else wants people to be asked."""
    wanted = rules.strict.get(asked.call.server_label, frozenset())
    if wanted is None or asked.call.tool in wanted:
        return Ruling(Effect.HOLD, ruling.rule, "The app itself asks for approval of this call.")
    for signal in _unsettled(kept, asked):
        return Ruling(Effect.HOLD, ruling.rule, signal.sentence)
    if any(pause.covers(kept.app_name, asked.server.label) for pause in rules.pauses):
        return Ruling(Effect.HOLD, ruling.rule, "A pause is in force: a rule alone lets no call.")
    return ruling


def _open(
    tx: Transaction, context: Approvals, kept: Kept, item: _Ruled, rules: Rules, now: datetime
) -> Opened:
    call, ruling = item.asked.call, item.ruling
    nonce = secrets.token_bytes(32)
    row = _row(context, kept, item, rules, nonce, now)
    commitment = {
        "commit": records.commit(nonce, views.raw_bytes(call.arguments)),
        "bytes": len(views.raw_bytes(call.arguments)),
    }
    fields: dict[str, Any] = {
        "effect": str(ruling.effect),
        "why": ruling.why[:400],
        "policy": rules.policy_digest,
        "args": commitment,
        "call": call.request_id[:200],
        "round": call.round,
    }
    if ruling.rule is not None:
        fields["rule"] = ruling.rule[:200]
    tx.record(
        records.make("call.ruled", now=now, actor=SYSTEM, subject=subject(row), fields=fields)
    )
    if item.shadow is not None and rules.shadow is not None:
        shadows.record(tx, row, (rules.shadow.digest, item.shadow), ruling, now)
    requested = _request_record(row, commitment, now)
    row.record_id = requested.id
    tx.record(requested)
    if (settled := _settled(item)) is not None:
        by, state = settled
        decided = _decision_record(row, item, rules, commitment, now)
        row.state, row.decided_at, row.decided_by = state, now, by
        row.grant_id = item.use.grant_id if item.use else None
        row.decision_record_id = decided.id
        decisions_total.labels(by=by, outcome=state).inc()
        tx.record(decided)
    tx.session.add(row)
    answer = lifecycle.answer(row.state, item.asked.fallen.refusal if item.asked.fallen else None)
    return Opened(row.id, call, answer)


def _settled(item: _Ruled) -> tuple[str, str] | None:
    """By what the call is settled without people, and how; None when people are to be asked."""
    match item.ruling.effect:
        case Effect.ALLOW:
            return "policy", lifecycle.APPROVED
        case Effect.DENY:
            return "policy", lifecycle.DENIED
        case Effect.HOLD:
            return None if item.use is None else ("grant", lifecycle.APPROVED)


def _row(
    context: Approvals, kept: Kept, item: _Ruled, rules: Rules, nonce: bytes, now: datetime
) -> ApprovalRequest:
    approval_id = new_id("apr", now)
    call, server, definition = item.asked.call, item.asked.server, item.asked.definition
    definition_digest = definition.listed_digest if definition else None
    digest = views.digest(
        views.Subject(
            approval_id=approval_id,
            exchange_id=kept.id,
            server_id=server.id,
            server_label=server.label,
            server_url=server.url,
            tool=call.tool,
            arguments=call.arguments,
            definition_digest=definition_digest,
            nonce=nonce.hex(),
        )
    )
    payload = orjson.dumps(
        {"arguments": call.arguments, "nonce": nonce.hex(), "label": call.server_label}
    )
    return ApprovalRequest(
        id=approval_id,
        exchange_id=kept.id,
        upstream_id=call.request_id,
        round=call.round,
        state=lifecycle.PENDING,
        app_id=kept.app_id,
        app_name=kept.app_name,
        end_user=kept.end_user,
        server_id=server.id,
        server_label=server.label,
        server_url=server.url,
        tool=call.tool,
        payload=context.envelope.seal(kept.data_key, kept.id, f"call:{approval_id}", payload),
        digest=digest,
        definition_digest=definition_digest,
        definition=definition.listed if definition else None,
        policy_digest=rules.policy_digest,
        rule=item.ruling.rule,
        risk_signals=[{"code": risk.code, "sentence": risk.sentence} for risk in item.risks],
        require_reason=item.ruling.require_reason,
        step_up=item.ruling.step_up,
        quorum_needed=item.ruling.quorum,
        reviewer_groups=list(item.ruling.groups) or None,
        record_id="",
        created_at=now,
        deadline=now + (item.ruling.expires or rules.expires),
        always_ask=item.ruling.always_ask,
        undo_seconds=item.ruling.undo_seconds,
        **_escalation(item.ruling, now),
        execution_seconds=_seconds(item.ruling.execution_expires),
        **_anew(context, kept, approval_id, item.asked.fallen),
    )


def _anew(
    context: Approvals, kept: Kept, approval_id: str, fallen: Fallen | None
) -> dict[str, Any]:
    """What a request that asks anew says of the one before, and the model of a refusal."""
    if fallen is None:
        return {}
    reason = None
    if fallen.refusal is not None:
        sentence = fallen.refusal.encode()
        reason = context.envelope.seal(kept.data_key, kept.id, f"reason:{approval_id}", sentence)
    return {"supersedes": fallen.approval_id, "reason": reason}


def _escalation(ruling: Ruling, now: datetime) -> dict[str, Any]:
    if ruling.escalate_after is None:
        return {}
    return {
        "escalates_at": now + ruling.escalate_after,
        "escalate_to": list(ruling.escalate_to),
    }


def _seconds(length: timedelta | None) -> int | None:
    return None if length is None else int(length.total_seconds())


def _request_record(
    row: ApprovalRequest, commitment: Mapping[str, Any], now: datetime
) -> records.Record:
    fields: dict[str, Any] = {
        "args": commitment,
        "digest": row.digest,
        "quorum": row.quorum_needed,
        "deadline": records.timestamp(row.deadline),
        "round": row.round,
    }
    if row.definition_digest:
        fields["tooldef"] = row.definition_digest
    if row.rule:
        fields["rule"] = row.rule[:200]
    if row.step_up:
        fields["step_up"] = True
    return records.make(
        "approval.requested", now=now, actor=SYSTEM, subject=subject(row), fields=fields
    )


def _decision_record(
    row: ApprovalRequest,
    item: _Ruled,
    rules: Rules,
    commitment: Mapping[str, Any],
    now: datetime,
) -> records.Record:
    by, state = _settled(item) or ("policy", lifecycle.DENIED)
    fields: dict[str, Any] = {
        "decision": {
            "value": "approve" if state == lifecycle.APPROVED else "deny",
            "by": by,
        },
        "from": lifecycle.PENDING,
        "to": state,
        "digest": row.digest,
        "args": commitment,
        "policy": rules.policy_digest,
    }
    if item.use is not None:
        fields |= {"grant": item.use.grant_id, "use": item.use.number}
    return records.make(
        "approval.decided", now=now, actor=SYSTEM, subject=subject(row), fields=fields
    )
