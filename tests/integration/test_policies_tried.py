"""Drafts tried on past calls, versions beside each other, and versions that speak in shadow."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
import pytest
from sqlmodel import select

from gateway.approvals import holding, preallowing, shadows, simulation
from gateway.approvals.holding import Rules
from gateway.approvals.rulings import Rulings
from gateway.approvals.simulation import Outcome, Span
from gateway.audit.live import verify_live
from gateway.audit.records import SYSTEM, Actor
from gateway.errors import Conflict, NotFound, Refused
from gateway.exchange.messages import Call, Ran, ServerFacts
from gateway.policy import Policy, parse
from gateway.registry import pauses, policies
from gateway.registry.pauses import PauseView, Pausing
from gateway.store.database import Database
from gateway.store.tables import (
    ApprovalRequest,
    AuditRecord,
    Exchange,
    PolicyVersion,
    ShadowRuling,
    ToolDefinition,
)
from tests.support.clock import FakeClock
from tests.support.stage import BANK, Stage, Wish, stage

ADMIN = Actor("user", "usr_1", "token")
DENY = {"name": "no-deleting", "match": {"tool": "delete_*"}, "effect": "deny"}
ALLOW = {"name": "reads", "match": {"tool": "get_*"}, "effect": "allow"}


@pytest.fixture
async def played(db: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(db, clock) as played:
        yield played


async def ask(
    played: Stage, clock: FakeClock, tool: str, arguments: str = "{}", **rule: Any
) -> str:
    approval_id = await played.ask(Wish(tool, arguments, rule=rule))
    clock.advance(1)
    return approval_id


async def simulated(played: Stage, *rules: dict[str, Any], **span: Any) -> Outcome:
    return await simulation.simulate(played.approvals, parse(rules), Span(**span))


async def records(db: Database, *kinds: str) -> list[dict[str, Any]]:
    async with db.reading() as session:
        rows = await session.exec(select(AuditRecord).order_by(AuditRecord.position))
        return [orjson.loads(row.body) for row in rows if row.kind in kinds]


# --- simulation -----------------------------------------------------------------------------


async def test_a_draft_is_compared_with_what_happened(played: Stage, clock: FakeClock) -> None:
    held = await ask(played, clock, "get_a")
    denied = await ask(played, clock, "get_b")
    await played.decide(denied, "deny")
    approved = await ask(played, clock, "delete_c")
    await played.decide(approved, "approve")
    await ask(played, clock, "get_d", effect="allow")
    refused = await ask(played, clock, "get_e", effect="deny")
    await ask(played, clock, "put_f")
    outcome = await simulated(played, DENY, ALLOW)
    assert (outcome.calls, outcome.unreadable) == (6, 0)
    assert outcome.would_be == {"hold": 1, "allow": 4, "deny": 1}
    assert [(count.was, count.would_be, count.calls) for count in outcome.counts] == [
        ("allow", "allow", 1),
        ("deny", "allow", 1),
        ("hold", "allow", 2),
        ("hold", "deny", 1),
        ("hold", "hold", 1),
    ]
    assert (outcome.newly_allowed, outcome.allowed_though_denied) == (3, 1)
    assert [(c.id, c.was, c.became, c.by, c.would_be, c.rule) for c in outcome.changed] == [
        (refused, "deny", "denied", "policy", "allow", "reads"),
        (approved, "hold", "approved", "reviewers", "deny", "no-deleting"),
        (denied, "hold", "denied", "reviewers", "allow", "reads"),
        (held, "hold", "pending", None, "allow", "reads"),
    ]


async def test_each_call_is_ruled_on_as_of_its_time_and_definition(
    played: Stage, clock: FakeClock
) -> None:
    early = await ask(played, clock, "transfer", '{"amount": 5}')
    clock.advance(timedelta(hours=10).total_seconds())
    await ask(played, clock, "transfer", '{"amount": 5}')
    await ask(played, clock, "transfer", '{"amount": 500}')
    rule = {"name": "x", "effect": "allow"}
    rule["when"] = "args.amount < 9 && now.getHours() < 12 && call.annotations.destructiveHint"
    outcome = await simulated(played, rule)
    assert [changed.id for changed in outcome.changed] == [early]


async def test_what_changes_comes_in_pages(played: Stage, clock: FakeClock) -> None:
    ids = [await ask(played, clock, "get_a" if n % 2 else "put_a") for n in range(9)]
    wanted = [name for n, name in enumerate(ids) if n % 2][::-1]
    first = await simulated(played, ALLOW, limit=3)
    assert [changed.id for changed in first.changed] == wanted[:3]
    assert (first.calls, first.next) == (9, wanted[2])
    second = await simulated(played, ALLOW, limit=3, after=first.next)
    assert [changed.id for changed in second.changed] == wanted[3:]
    assert second.next is None
    whole = await simulated(played, ALLOW, limit=4)
    assert whole.next is None
    with pytest.raises(Refused):
        await simulated(played, ALLOW, after="apr_none")


async def test_only_the_last_calls_or_those_since_then(played: Stage, clock: FakeClock) -> None:
    ids = [await ask(played, clock, "get_a") for _ in range(4)]
    last = await simulated(played, ALLOW, last=2)
    assert [changed.id for changed in last.changed] == [ids[3], ids[2]]
    since = await simulated(played, ALLOW, since=clock() - timedelta(seconds=1))
    assert [changed.id for changed in since.changed] == [ids[3]]


async def test_calls_whose_arguments_are_gone_are_counted_apart(
    played: Stage, clock: FakeClock
) -> None:
    gone = await ask(played, clock, "get_a")
    await ask(played, clock, "get_a")
    async with played.db.transaction() as session:
        row = await session.get_one(ApprovalRequest, gone)
        exchange = await session.get_one(Exchange, row.exchange_id)
        exchange.data_key = None
        session.add(exchange)
    outcome = await simulated(played, ALLOW)
    assert (outcome.calls, outcome.unreadable) == (1, 1)


async def test_many_calls_need_no_more_memory_than_a_page(
    sqlite: Database, clock: FakeClock
) -> None:
    async with stage(sqlite, clock) as played:
        model = await ask(played, clock, "get_a")
        size = 12_000
        arguments = orjson.dumps({"arguments": '{"x": "' + "a" * size + '"}'})
        async with sqlite.transaction() as session:
            row = await session.get_one(ApprovalRequest, model)
            exchange = await session.get_one(Exchange, row.exchange_id)
            assert exchange.data_key is not None
            for number in range(2000):
                name = f"apr_{number:026}"
                sealed = played.envelope.seal(
                    exchange.data_key, exchange.id, f"call:{name}", arguments
                )
                copied = {**row.model_dump(), "id": name, "upstream_id": name, "payload": sealed}
                session.add(ApprovalRequest(**copied))
        tracemalloc.start()
        try:
            outcome = await simulated(played, {**ALLOW, "when": "args.x != 'b'"})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert outcome.calls == 2001
    assert outcome.newly_allowed == 2000
    assert peak < 2000 * size / 2


async def test_a_tool_that_had_changed_would_be_held_whatever_the_rules(
    played: Stage, clock: FakeClock
) -> None:
    await ask(played, clock, "get_a")
    async with played.db.transaction() as session:
        row = await session.get_one(ToolDefinition, ("srv_bank", "get_a"))
        row.listed_digest = "sha256:" + "3" * 64
        session.add(row)
    await played.ask(Wish("get_a", "{}", definition=None))
    outcome = await simulated(played, ALLOW)
    assert [(count.would_be, count.calls) for count in outcome.counts] == [
        ("allow", 1),
        ("hold", 1),
    ]


# --- versions -------------------------------------------------------------------------------


async def test_versions_beside_each_other(played: Stage, clock: FakeClock) -> None:
    who = {"actor": ADMIN, "now": clock()}
    big = {"name": "big", "effect": "hold", "when": "args.amount > 3"}
    await policies.save(played.ledger, parse([DENY, big]), **who)
    await policies.save(played.ledger, parse([{**big, "quorum": 2}, ALLOW]), **who)
    found = await policies.differences(played.db, 1, 2)
    assert [rule["name"] for rule in found.added] == ["reads"]
    assert [rule["name"] for rule in found.removed] == ["no-deleting"]
    assert [(rule.name, rule.members[0].member) for rule in found.changed] == [("big", "quorum")]
    assert found.lines == (
        "- no-deleting: deny delete_* on every server",
        "+ reads: allow get_* on every server",
        "~ big: quorum none → 2",
    )
    with pytest.raises(NotFound):
        await policies.differences(played.db, 1, 3)
    assert not (await policies.differences(played.db, 2, 2)).lines


async def test_a_version_that_is_only_saved_is_not_in_force(
    played: Stage, clock: FakeClock
) -> None:
    who = {"actor": ADMIN, "now": clock()}
    first = await policies.save(played.ledger, parse([DENY]), **who)
    draft = await policies.save(played.ledger, parse([ALLOW]), activate=False, **who)
    assert (draft.number, draft.active) == (2, False)
    active = await policies.read_active(played.db)
    assert active is not None
    assert active.number == 1
    await policies.activate(played.ledger, 2, **who)
    await policies.activate(played.ledger, 1, **who)
    found = await records(played.db, "policy.saved", "policy.activated")
    assert [(body["type"], body["policy"], body.get("before")) for body in found] == [
        ("policy.activated", first.digest, None),
        ("policy.saved", draft.digest, None),
        ("policy.activated", draft.digest, first.digest),
        ("policy.activated", first.digest, draft.digest),
    ]


# --- shadow ---------------------------------------------------------------------------------


async def test_a_shadow_is_recorded_beside_the_ruling_and_decides_nothing(
    played: Stage, clock: FakeClock
) -> None:
    played.shadow = parse([DENY, ALLOW])
    held = await ask(played, clock, "delete_a")
    allowed = await ask(played, clock, "get_b", effect="allow")
    assert (await played.read(held)).state == "pending"
    assert (await played.read(allowed)).state == "approved"
    rulings, shadowed = (
        await records(played.db, "call.ruled"),
        await records(played.db, "call.shadowed"),
    )
    assert [(body["effect"], body["subject"]["approval"]) for body in rulings] == [
        ("hold", held),
        ("allow", allowed),
    ]
    assert [(body["effect"], body["subject"]["approval"]) for body in shadowed] == [
        ("deny", held),
        ("allow", allowed),
    ]
    assert {body["policy"] for body in shadowed} == {played.shadow.digest}
    assert shadowed[0]["why"] == "Rule 'no-deleting' denies this call."
    told = await shadows.summary(played.db, played.shadow.digest)
    assert (told.calls, told.differing) == (2, 1)
    assert told.counts == (("allow", "allow", 1), ("hold", "deny", 1))
    [item] = told.items
    assert (item.approval_id, item.was, item.would_be) == (held, "hold", "deny")


async def test_the_summary_of_a_shadow_comes_in_pages(played: Stage, clock: FakeClock) -> None:
    played.shadow = parse([DENY])
    ids = [await ask(played, clock, "delete_a") for _ in range(5)]
    first = await shadows.summary(played.db, played.shadow.digest, limit=3)
    second = await shadows.summary(played.db, played.shadow.digest, limit=3, after=first.next)
    assert [told.approval_id for told in (*first.items, *second.items)] == ids[::-1]
    assert second.next is None


async def test_a_shadow_that_fails_changes_nothing(
    played: Stage, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(Rulings, "rule", fail)
    played.shadow = parse([DENY])
    held = await ask(played, clock, "delete_a")
    assert (await played.read(held)).state == "pending"
    assert not await records(played.db, "call.shadowed")
    async with played.db.reading() as session:
        assert not (await session.exec(select(ShadowRuling))).all()


async def test_one_version_at_a_time_is_in_shadow(played: Stage, clock: FakeClock) -> None:
    who = {"actor": ADMIN, "now": clock()}
    for rules in ([DENY], [ALLOW], []):
        await policies.save(played.ledger, parse(rules), **who)
    with pytest.raises(Conflict, match="is in force"):
        await policies.begin_shadow(played.ledger, 3, **who)
    with pytest.raises(NotFound, match="No version is in shadow"):
        await policies.end_shadow(played.ledger, **who)
    await policies.begin_shadow(played.ledger, 1, **who)
    await policies.begin_shadow(played.ledger, 1, **who)
    await policies.begin_shadow(played.ledger, 2, **who)
    assert [entry.shadow for entry in await policies.listing(played.db)] == [False, True, False]
    await played.directory.reload()
    assert played.directory.view.shadow == parse([ALLOW])
    assert played.directory.view.policy == Policy()
    with pytest.raises(NotFound, match="Version 1 is not in shadow"):
        await policies.end_shadow(played.ledger, 1, **who)
    # Put into force, it has nothing to say in shadow any more.
    await policies.activate(played.ledger, 2, **who)
    await played.directory.reload()
    assert played.directory.view.shadow is None
    found = await records(played.db, "policy.shadow_begun", "policy.shadow_ended")
    assert [(body["type"], body["number"]) for body in found] == [
        ("policy.shadow_begun", 1),
        ("policy.shadow_ended", 1),
        ("policy.shadow_begun", 2),
        ("policy.shadow_ended", 2),
    ]


async def test_an_altered_shadow_stops_nothing(played: Stage, clock: FakeClock) -> None:
    who = {"actor": ADMIN, "now": clock()}
    await policies.save(played.ledger, parse([DENY]), activate=False, **who)
    await policies.begin_shadow(played.ledger, 1, **who)
    async with played.db.transaction() as session:
        [row] = (await session.exec(select(PolicyVersion))).all()
        row.rules = [ALLOW]
        session.add(row)
    await played.directory.reload()
    assert played.directory.view.shadow is None
    assert played.directory.view.policy == Policy()


# --- annotations ----------------------------------------------------------------------------


async def test_R_14_a_hint_that_changed_after_the_pin_does_not_count(
    played: Stage, clock: FakeClock
) -> None:
    rule = {"effect": "allow", "when": "call.annotations.readOnlyHint"}
    pinned = {"name": "wipe", "annotations": {"readOnlyHint": False}}
    wish = Wish("wipe", "{}", rule=rule, definition=pinned)
    assert (await played.read(await played.ask(wish))).state == "pending"
    async with played.db.transaction() as session:
        row = await session.get_one(ToolDefinition, ("srv_bank", "wipe"))
        row.listed = {**pinned, "annotations": {"readOnlyHint": True}}
        row.listed_digest = "sha256:" + "3" * 64
        session.add(row)
    again = Wish("wipe", "{}", rule=rule, definition=None)
    assert (await played.read(await played.ask(again))).state == "pending"


# --- leave ----------------------------------------------------------------------------------


async def test_leave_is_recorded_and_so_is_what_was_called_on_it(
    played: Stage, clock: FakeClock
) -> None:
    kept = played.kept[await ask(played, clock, "transfer")]
    server = ServerFacts("srv_bank", "bank", BANK)
    await played.directory.reload()
    coming = preallowing.Coming(1, {"our-bank": server}, played.directory.view.version)
    policy = parse([{"name": "all", "effect": "allow"}])
    rules = Rules(policy, policy.digest, {}, timedelta(hours=1))
    leave = await preallowing.give_leave(played.approvals, kept, coming, rules, now=clock())
    assert list(leave) == [("our-bank", "transfer")]
    [record] = await records(played.db, "call.preallowed")
    assert (record["tools"], record["subject"]["server"]) == (["transfer"], "bank")
    call = Call("mcp_1", "our-bank", "transfer", '{"amount": 5}', 1)
    for number, outcome in ((1, "executed"), (2, "failed")):
        # The same id in another round is another call.
        ran = Ran(replace(call, round=number), outcome)
        given = leave["our-bank", "transfer"]
        approval_id, changed = await holding.record_ran(
            played.approvals, kept, ran, given, now=clock()
        )
        view = await played.read(approval_id)
        assert (view.state, view.execution, view.rule) == ("approved", outcome, "all")
        assert (view.arguments, view.policy_digest) == ('{"amount": 5}', policy.digest)
        assert not changed
    strict = replace(rules, strict={"our-bank": frozenset({"transfer"})})
    assert not await preallowing.give_leave(played.approvals, kept, coming, strict, now=clock())
    paused = replace(rules, pauses=(PauseView("pau_1", "app", "another", "odd", clock(), "ann"),))
    assert not await preallowing.give_leave(played.approvals, kept, coming, paused, now=clock())
    # By a configuration that is not the one in force any more nothing is left to Azure.
    await pauses.begin(played.ledger, Pausing("all", "", "odd", "ann"), actor=SYSTEM, now=clock())
    assert not await preallowing.give_leave(played.approvals, kept, coming, rules, now=clock())
    await played.ledger.settle()
    report = await verify_live(played.db, played.ledger.signer.verifier)
    assert report.valid, list(map(str, report.findings))
