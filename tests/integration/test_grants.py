"""Remembered approvals on both databases: they answer holds, and never more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import update

from gateway.approvals import granted, grants, review
from gateway.approvals.review import Submission
from gateway.approvals.terms import Terms
from gateway.approvals.views import ApprovalView
from gateway.audit import reading
from gateway.audit.live import verify_live
from gateway.audit.records import SYSTEM, Actor
from gateway.errors import Conflict, NotAllowed, Refused
from gateway.registry import servers, tools
from gateway.store.database import Database
from gateway.store.tables import Exchange, Grant, Server, ToolDefinition
from tests.support.clock import FakeClock
from tests.support.stage import TRANSFER, Stage, Wish, stage

ANN = "ann@example.org"
OTHER = '{"to": "DE02 1203 0000 0000 2020 51", "amount": 7.00, "memo": "Coffee"}'


@pytest.fixture
async def played(db: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(db, clock) as played:
        yield played
        await played.ledger.settle()
        report = await verify_live(db, played.ledger.signer.verifier)
        assert report.valid, list(map(str, report.findings))


def terms(played: Stage, kind: str = "exact", scope: str = "app", **more: Any) -> Terms:
    until = more.pop("until", played.clock() + timedelta(hours=8))
    return Terms(kind, scope, until, **more)


async def remember(
    played: Stage, wanted: Terms, wish: Wish | None = None, email: str = ANN, **who: Any
) -> ApprovalView:
    """Ask, and approve and remember in one."""
    approval_id = await played.ask(wish)
    reviewer = await played.reviewer(email, **who)
    digest = (await played.read(approval_id)).digest
    given = Submission(approval_id, "approve", digest, "Checked", remember=wanted)
    return await review.review(played.approvals, reviewer, given, now=played.clock())


async def again(played: Stage, wish: Wish | None = None) -> ApprovalView:
    """Another call, and how it stands."""
    return await played.read(await played.ask(wish))


async def the_grant(played: Stage) -> granted.GrantView:
    page = await granted.listing(played.db, played.envelope, now=played.clock())
    return page.items[0]


async def records(played: Stage, kind: str) -> list[dict[str, Any]]:
    await played.ledger.settle()
    found = await reading.search(played.db, reading.Query(kind=kind, limit=200))
    return [entry.document for entry in reversed(found.items)]


# --- what it covers -------------------------------------------------------------------------


async def test_the_second_call_is_answered_by_the_grant_and_the_record_names_it(
    played: Stage,
) -> None:
    first = await remember(played, terms(played))
    assert (first.state, first.decision and first.decision.by) == ("approved", "reviewers")
    second = await again(played)
    grant = await the_grant(played)
    assert second.decision is not None
    assert (second.state, second.decision.by, second.decision.grant) == (
        "approved",
        "grant",
        grant.id,
    )
    assert (grant.uses, grant.creator, grant.exact) == (1, ANN, TRANSFER)
    decided = (await records(played, "approval.decided"))[-1]
    assert decided["decision"] == {"value": "approve", "by": "grant"}
    assert (decided["grant"], decided["use"]) == (grant.id, 1)
    [created] = await records(played, "grant.created")
    assert (created["grant"], created["terms"]) == (grant.id, grant.terms)
    assert "1250" not in str(created)


@pytest.mark.parametrize(
    ("kind", "fields", "arguments", "covered"),
    [
        ("exact", (), TRANSFER, True),
        ("exact", (), TRANSFER + " ", False),
        ("fields", ("/to",), OTHER, True),
        ("fields", ("/to", "/amount"), OTHER, False),
        ("fields", ("/amount",), TRANSFER.replace("1250.00", "1250"), False),
        ("fields", ("/to",), '{"to": "DE02 1203 0000 0000 2020 51", "to": "X"}', False),
        ("fields", ("/to",), "{}", False),
        ("tool", (), OTHER, True),
        ("tool", (), '{"a": 1, "a": 2}', False),
        ("tool", (), "not json", False),
    ],
)
async def test_B_25_a_grant_covers_what_was_shown_and_no_more(
    sqlite: Database,
    clock: FakeClock,
    kind: str,
    fields: tuple[str, ...],
    arguments: str,
    *,
    covered: bool,
) -> None:
    async with stage(sqlite, clock) as played:
        await remember(played, terms(played, kind, fields=fields))
        view = await again(played, Wish(arguments=arguments))
        assert view.state == ("approved" if covered else "pending")


@pytest.mark.parametrize(
    "changes",
    [
        {"app": "other-bot"},
        {"tool": "transfer_all"},
        {"server": "bank-2", "url": "https://other.example/mcp"},
    ],
)
async def test_B_25_another_app_tool_or_server_is_asked_about(
    sqlite: Database, clock: FakeClock, changes: dict[str, str]
) -> None:
    async with stage(sqlite, clock) as played:
        await remember(played, terms(played, "tool"))
        assert (await again(played, replace(Wish(), **changes))).state == "pending"


async def test_a_grant_for_an_end_user_is_for_nobody_else(played: Stage) -> None:
    await remember(played, terms(played, scope="end_user"))
    assert (await again(played)).state == "approved"
    assert (await again(played, Wish(end_user="customer-18"))).state == "pending"
    assert (await again(played, Wish(end_user=None))).state == "pending"
    with pytest.raises(Refused):
        await remember(played, terms(played, scope="end_user"), Wish(end_user=None, tool="x"))


async def test_a_grant_for_a_conversation_is_for_no_other(
    played: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = iter(("one", "one", "two"))
    opened = grants.answer

    async def in_a_thread(tx: Any, envelope: Any, asked: Any, now: Any) -> Any:
        thread = next(threads)
        mine = update(Exchange).where(Exchange.id == asked.kept.id)
        await tx.session.exec(mine.values(thread=thread))
        return await opened(tx, envelope, asked, now)

    monkeypatch.setattr(grants, "answer", in_a_thread)
    await remember(played, terms(played, scope="thread"))
    assert (await again(played)).state == "approved"
    assert (await again(played)).state == "pending"


async def test_without_a_conversation_none_is_remembered(played: Stage) -> None:
    with pytest.raises(Refused) as refused:
        await remember(played, terms(played, scope="thread"))
    assert refused.value.param == "scope"
    assert (await again(played)).state == "pending"


# --- its bounds -----------------------------------------------------------------------------


async def test_two_calls_at_once_never_use_it_more_often_than_granted(played: Stage) -> None:
    await remember(played, terms(played, max_uses=3))
    views = await asyncio.gather(*(again(played) for _ in range(12)))
    assert sorted(view.state for view in views) == ["approved"] * 3 + ["pending"] * 9
    grant = await the_grant(played)
    assert (grant.uses, grant.state) == (3, "used_up")
    decided = await records(played, "approval.decided")
    uses = [record["use"] for record in decided if "use" in record]
    assert uses == [1, 2, 3]


async def test_it_ends_at_its_time(played: Stage, clock: FakeClock) -> None:
    await remember(played, terms(played))
    clock.advance(8 * 3600 - 1)
    assert (await again(played)).state == "approved"
    clock.advance(1)
    assert (await again(played)).state == "pending"
    assert (await the_grant(played)).state == "expired"


async def test_it_is_revoked_at_once_and_once(played: Stage) -> None:
    await remember(played, terms(played))
    grant = await the_grant(played)
    by = Actor("user", "usr_1", "token"), "cy@example.org"
    answers = await asyncio.gather(
        *(grants.revoke(played.approvals, grant.id, by=by, now=played.clock()) for _ in range(4)),
        return_exceptions=True,
    )
    assert [answer for answer in answers if answer is None] == [None]
    assert (await again(played)).state == "pending"
    ended = await the_grant(played)
    assert (ended.state, ended.ended_by, ended.ended_why) == ("ended", "cy@example.org", "revoked")
    [record] = await records(played, "grant.ended")
    assert record["code"] == "revoked"


@pytest.mark.parametrize(
    "change",
    [
        lambda now: {"until": now + timedelta(days=30, seconds=1)},
        lambda now: {"until": now},
        lambda now: {"max_uses": 0},
        lambda now: {"kind": "anything"},
        lambda now: {"scope": "everybody"},
        lambda now: {"kind": "fields"},
        lambda now: {"fields": ("/to",)},
        lambda now: {"kind": "fields", "fields": ("/nothing",)},
    ],
)
async def test_terms_that_no_grant_may_have_leave_nothing_decided(
    sqlite: Database, clock: FakeClock, change: Callable[[Any], dict[str, Any]]
) -> None:
    async with stage(sqlite, clock) as played:
        with pytest.raises(Refused):
            await remember(played, replace(terms(played), **change(clock())))
        assert (await granted.listing(played.db, played.envelope, now=clock())).items == []
        [view] = (await review.listing(played.db, played.envelope, query=review.Query())).items
        assert (view.state, view.reviews) == ("pending", ())


async def test_a_definition_that_changes_ends_it_for_good(played: Stage, clock: FakeClock) -> None:
    await remember(played, terms(played))
    changed = {"name": "transfer", "description": "Send all of it."}
    await tools.observe(played.ledger, "srv_bank", [changed], now=clock())
    grant = await the_grant(played)
    assert (grant.state, grant.ended_why) == ("ended", "definition_changed")
    async with played.db.transaction() as session:  # as it was when it was approved
        row = await session.get_one(ToolDefinition, ("srv_bank", "transfer"))
        row.listed_digest = row.pinned_digest
        session.add(row)
    assert (await again(played)).state == "pending"


async def test_an_address_that_changes_ends_it(played: Stage, clock: FakeClock) -> None:
    await remember(played, terms(played))
    async with played.db.transaction() as session:
        row = await session.get_one(Server, "srv_bank")
        row.credential = None
        session.add(row)
    settings = replace(
        (await servers.read(played.db, "bank")).settings, url="https://moved.example/mcp"
    )
    await servers.change(played.ledger, settings, actor=SYSTEM, now=clock())
    assert (await the_grant(played)).ended_why == "server_changed"
    assert (await again(played, Wish(url="https://moved.example/mcp"))).state == "pending"


# --- never more than the rule ---------------------------------------------------------------


async def test_a_rule_that_always_asks_has_no_grants(played: Stage) -> None:
    with pytest.raises(NotAllowed) as refused:
        await remember(played, terms(played), Wish(rule={"always_ask": True}))
    assert refused.value.code == "always_asks"
    await remember(played, terms(played))
    assert (await again(played, Wish(rule={"always_ask": True}))).state == "pending"


async def test_a_rule_that_denies_beats_it(played: Stage) -> None:
    await remember(played, terms(played))
    view = await again(played, Wish(rule={"effect": "deny"}))
    assert (view.state, view.decision and view.decision.by) == ("denied", "policy")


async def test_a_rule_that_became_stricter_asks_people_again(played: Stage) -> None:
    await remember(played, terms(played))
    for stricter in ({"quorum": 2}, {"groups": ["desk"]}, {"require_reason": True}):
        assert (await again(played, Wish(rule=stricter))).state == "pending"
    assert (await again(played)).state == "approved"


async def test_with_a_quorum_of_two_it_is_made_after_the_second_approval(played: Stage) -> None:
    both = Wish(rule={"quorum": 2})
    with pytest.raises(Refused) as refused:
        await remember(played, terms(played), both)
    assert refused.value.code == "not_decided"
    approval_id = await played.ask(both)
    ann = await played.reviewer(ANN)
    with pytest.raises(Conflict):
        await grants.remember_later(
            played.approvals, ann, approval_id, terms(played), now=played.clock()
        )
    await played.decide(approval_id, "approve", "bo@example.org")
    await played.decide(approval_id, "approve", ANN)
    await grants.remember_later(
        played.approvals, ann, approval_id, terms(played), now=played.clock()
    )
    assert (await again(played, both)).state == "approved"


async def test_only_members_of_the_groups_remember(played: Stage) -> None:
    desk = Wish(rule={"groups": ["desk"]})
    with pytest.raises(NotAllowed):
        await remember(played, terms(played), desk)
    approval_id = await played.ask(desk)
    member = await played.reviewer("d@example.org", groups=("desk",))
    digest = (await played.read(approval_id)).digest
    given = Submission(approval_id, "approve", digest)
    await review.review(played.approvals, member, given, now=played.clock())
    outsider = await played.reviewer(ANN)
    with pytest.raises(NotAllowed):
        await grants.remember_later(
            played.approvals, outsider, approval_id, terms(played), now=played.clock()
        )
    await grants.remember_later(
        played.approvals, member, approval_id, terms(played), now=played.clock()
    )
    assert (await again(played, desk)).state == "approved"


async def test_nobody_remembers_for_oneself(played: Stage) -> None:
    await remember(played, terms(played))
    assert (await again(played, Wish(end_user=ANN))).state == "pending"
    assert (await again(played, Wish(owner="Ann@example.org"))).state == "pending"
    assert (await again(played, Wish(owner=None))).state == "approved"
    await played.reviewer(ANN, groups=("builders",))
    assert (await again(played, Wish(owner="builders"))).state == "pending"


async def test_only_what_people_approved_is_remembered(played: Stage) -> None:
    ann = await played.reviewer(ANN)
    allowed = await played.ask(Wish(rule={"effect": "allow"}))
    denied = await played.ask()
    await played.decide(denied, "deny", "bo@example.org")
    await remember(played, terms(played))
    by_grant = await played.ask()
    for approval_id in (allowed, denied, by_grant):
        with pytest.raises(Conflict):
            await grants.remember_later(
                played.approvals, ann, approval_id, terms(played), now=played.clock()
            )


async def test_what_has_changed_since_is_not_remembered(played: Stage, clock: FakeClock) -> None:
    approval_id = await played.ask()
    await played.decide(approval_id, "approve")
    changed = {"name": "transfer", "description": "Send all of it."}
    await tools.observe(played.ledger, "srv_bank", [changed], now=clock())
    ann = await played.reviewer(ANN)
    with pytest.raises(Conflict) as refused:
        await grants.remember_later(played.approvals, ann, approval_id, terms(played), now=clock())
    assert refused.value.code == "not_rememberable"


async def test_B_25_a_grant_that_was_widened_in_the_database_answers_nothing(
    played: Stage,
) -> None:
    await remember(played, terms(played, max_uses=1))
    async with played.db.transaction() as session:
        await session.exec(update(Grant).values(max_uses=1000))
    assert (await again(played)).state == "pending"


async def test_approving_and_remembering_again_changes_nothing(played: Stage) -> None:
    approval_id = await played.ask()
    ann = await played.reviewer(ANN)
    digest = (await played.read(approval_id)).digest
    given = Submission(approval_id, "approve", digest, remember=terms(played))
    for _ in range(2):
        await review.review(played.approvals, ann, given, now=played.clock())
    assert len(await records(played, "grant.created")) == 1
    plain = await played.ask(Wish(tool="other"))
    digest = (await played.read(plain)).digest
    await review.review(
        played.approvals, ann, Submission(plain, "approve", digest), now=played.clock()
    )
    given = Submission(plain, "approve", digest, remember=terms(played))
    with pytest.raises(Conflict):
        await review.review(played.approvals, ann, given, now=played.clock())


async def test_a_grant_that_the_ledger_does_not_have_yet_answers_nothing(
    played: Stage,
) -> None:
    await remember(played, terms(played))
    async with played.db.transaction() as session:
        await session.exec(update(Grant).values(record_id="none"))
    assert (await again(played)).state == "pending"


async def test_what_it_would_have_covered_is_counted_over_the_held_calls_of_the_app(
    played: Stage, clock: FakeClock
) -> None:
    first = await played.ask()
    for wish in (Wish(), Wish(arguments=OTHER), Wish(end_user="customer-18"), Wish(tool="read")):
        clock.advance(1)
        await played.ask(wish)
    await played.ask(Wish(rule={"effect": "allow"}))
    await played.ask(Wish(app="other-bot"))

    async def count(wanted: Terms) -> tuple[int, int]:
        seen = await granted.preview(played.db, played.envelope, first, wanted, now=clock())
        return seen.covered, seen.of

    assert await count(terms(played)) == (3, 5)
    assert await count(terms(played, scope="end_user")) == (2, 5)
    assert await count(terms(played, "tool")) == (4, 5)
    assert await count(terms(played, "fields", fields=("/amount",))) == (3, 5)
    assert await count(terms(played, scope="thread")) == (0, 5)
