"""Holding: every call of a round gets its ruling, and what policy leaves open goes to people.

One transaction writes the saved exchange, the approval requests (also those that policy settles
at once, so that every call has one life to follow) and the audit records.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson

from gateway.approvals import exchanges, lifecycle, views
from gateway.approvals.decisions import Approvals, subject
from gateway.approvals.kept import Kept, hold_on
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM
from gateway.exchange.messages import Answer, Call, Json, ServerFacts
from gateway.policy.evaluation import CallFacts, Ruling, evaluate
from gateway.policy.risk import RiskSignal, signals
from gateway.policy.rules import Effect, Policy
from gateway.store.ids import new_id
from gateway.store.tables import ApprovalRequest, ToolDefinition
from gateway.telemetry import decisions_total


@dataclass(frozen=True)
class Rules:
    """What decides without people: the policy in force, and the app's own stricter wishes.

    `strict` maps a server label to the tools the app wants asked for (None: all of them).
    """

    policy: Policy
    policy_digest: str
    strict: Mapping[str, frozenset[str] | None]
    expires: timedelta


@dataclass(frozen=True)
class Round:
    """The calls of a round that ended, and the servers behind their labels.

    `approvals` maps Azure's request ids to our approval ids so far. `saved` holds what resumes
    the exchange; it is None when the exchange ends and leaves the calls open.
    """

    kept: Kept
    calls: Sequence[Call]
    servers: Mapping[str, ServerFacts]
    approvals: Mapping[str, str]
    saved: Json | None


@dataclass(frozen=True)
class Opened:
    """The approval request made for a call; `answer` when policy settled it."""

    approval_id: str
    call: Call
    answer: Answer | None


@dataclass(frozen=True)
class _Ruled:
    call: Call
    server: ServerFacts
    ruling: Ruling
    risks: tuple[RiskSignal, ...]
    definition: ToolDefinition | None


async def open_hold(
    context: Approvals, ended: Round, rules: Rules, *, now: datetime
) -> tuple[list[Opened], dict[str, str]]:
    """Rule on the calls, save the exchange, open the requests; all of it in the signed head.

    Returns what was opened, and the map of request ids extended by it.
    """
    kept = ended.kept
    async with context.ledger.transaction() as tx:
        await hold_on(tx.session, kept)
        ruled = [await _rule(tx, ended, call, rules, now) for call in ended.calls]
        opened = [_open(tx, context, kept, item, rules, now) for item in ruled]
        ids = {**ended.approvals, **{item.call.request_id: item.approval_id for item in opened}}
        if ended.saved is not None:
            await exchanges.save(tx, context.envelope, kept, ended.saved, ids)
    if ended.saved is not None:
        kept.state = "holding"
    await tx.sealed()
    await context.wakeups.notify()
    return opened, ids


async def _rule(tx: Transaction, ended: Round, call: Call, rules: Rules, now: datetime) -> _Ruled:
    kept = ended.kept
    server = ended.servers.get(call.server_label)
    if server is None:
        # Azure asks for a call on a server that was not in the request: nobody can approve that.
        server = ServerFacts("", call.server_label, "")
        ruling = Ruling(Effect.DENY, None, "The server is not part of the request.")
        return _Ruled(call, server, ruling, (), None)
    definition = await tx.session.get(ToolDefinition, (server.id, call.tool))
    facts = CallFacts(
        app=kept.app_name,
        server=server.label,
        tool=call.tool,
        arguments=call.arguments,
        end_user=kept.end_user,
        definition=definition.pinned if definition else None,
    )
    ruling = evaluate(rules.policy, facts, now)
    if ruling.effect is Effect.ALLOW:
        ruling = _stricter(ruling, call, definition, rules)
    return _Ruled(call, server, ruling, (*_changed(definition), *signals(facts)), definition)


def _changed(definition: ToolDefinition | None) -> tuple[RiskSignal, ...]:
    if definition is None or definition.listed_digest == definition.pinned_digest:
        return ()
    sentence = "The server has changed the definition of this tool since it was pinned."
    return (RiskSignal("definition_changed", sentence),)


def _stricter(
    ruling: Ruling, call: Call, definition: ToolDefinition | None, rules: Rules
) -> Ruling:
    wanted = rules.strict.get(call.server_label, frozenset())
    if wanted is None or call.tool in wanted:
        return Ruling(Effect.HOLD, ruling.rule, "The app itself asks for approval of this call.")
    for signal in _changed(definition):
        return Ruling(Effect.HOLD, ruling.rule, signal.sentence)
    return ruling


def _open(
    tx: Transaction, context: Approvals, kept: Kept, item: _Ruled, rules: Rules, now: datetime
) -> Opened:
    call, ruling = item.call, item.ruling
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
    requested = _request_record(row, commitment, now)
    row.record_id = requested.id
    tx.record(requested)
    if (settled := _settled(ruling)) is not None:
        decided = _decision_record(row, settled, rules, commitment, now)
        row.state, row.decided_at, row.decided_by = settled, now, "policy"
        row.decision_record_id = decided.id
        decisions_total.labels(by="policy", outcome=settled).inc()
        tx.record(decided)
    tx.session.add(row)
    answer = lifecycle.answer(row.state, None)
    return Opened(row.id, call, answer)


def _settled(ruling: Ruling) -> str | None:
    match ruling.effect:
        case Effect.ALLOW:
            return lifecycle.APPROVED
        case Effect.DENY:
            return lifecycle.DENIED
        case Effect.HOLD:
            return None


def _row(
    context: Approvals, kept: Kept, item: _Ruled, rules: Rules, nonce: bytes, now: datetime
) -> ApprovalRequest:
    approval_id = new_id("apr", now)
    call, server, definition = item.call, item.server, item.definition
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
        quorum_needed=item.ruling.quorum,
        reviewer_groups=list(item.ruling.groups) or None,
        record_id="",
        created_at=now,
        deadline=now + (item.ruling.expires or rules.expires),
        always_ask=item.ruling.always_ask,
        undo_seconds=item.ruling.undo_seconds,
        execution_seconds=_seconds(item.ruling.execution_expires),
    )


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
    return records.make(
        "approval.requested", now=now, actor=SYSTEM, subject=subject(row), fields=fields
    )


def _decision_record(
    row: ApprovalRequest,
    state: str,
    rules: Rules,
    commitment: Mapping[str, Any],
    now: datetime,
) -> records.Record:
    verdict = "approve" if state == lifecycle.APPROVED else "deny"
    return records.make(
        "approval.decided",
        now=now,
        actor=SYSTEM,
        subject=subject(row),
        fields={
            "decision": {"value": verdict, "by": "policy"},
            "from": lifecycle.PENDING,
            "to": state,
            "digest": row.digest,
            "args": commitment,
            "policy": rules.policy_digest,
        },
    )
