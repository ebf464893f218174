"""Reviewing on both databases: one decision, one voice each, and what may still be taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from gateway.approvals import decisions, escalation, review
from gateway.approvals.decisions import Decision
from gateway.approvals.review import Reviewer, Submission
from gateway.approvals.views import ApprovalView
from gateway.audit import reading
from gateway.audit.live import verify_live
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict, NotAllowed, NotFound, Refused
from gateway.identity import people
from gateway.store.database import Database
from gateway.store.tables import ApprovalRequest
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage


@pytest.fixture
async def played(db: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(db, clock) as played:
        yield played
        await played.ledger.settle()
        report = await verify_live(db, played.ledger.signer.verifier)
        assert report.valid, list(map(str, report.findings))


async def records(played: Stage, kind: str) -> list[dict[str, Any]]:
    await played.ledger.settle()
    found = await reading.search(played.db, reading.Query(kind=kind, limit=200))
    return [entry.document for entry in reversed(found.items)]


async def submission(played: Stage, approval_id: str, verdict: str = "approve") -> Submission:
    digest = (await played.read(approval_id)).digest
    return Submission(approval_id, verdict, digest, "Checked")


async def submit(
    played: Stage, who: Reviewer, approval_id: str, verdict: str = "approve"
) -> ApprovalView:
    given = await submission(played, approval_id, verdict)
    return await review.review(played.approvals, who, given, now=played.clock())


async def test_E_01_fifty_simultaneous_approvals_make_one_decision(played: Stage) -> None:
    approval_id = await played.ask()
    given = await submission(played, approval_id)
    people = [await played.reviewer(f"r{number}@example.org") for number in range(50)]

    async def approve(who: Reviewer) -> object:
        try:
            return await review.review(played.approvals, who, given, now=played.clock())
        except Conflict as conflict:
            return conflict.code

    answers = await asyncio.gather(*map(approve, people))
    assert sum(isinstance(answer, ApprovalView) for answer in answers) == 1
    assert [answer for answer in answers if answer == "already_decided"] == ["already_decided"] * 49
    assert len(await records(played, "approval.decided")) == 1
    assert len(await records(played, "approval.reviewed")) == 1


async def test_E_02_of_approve_and_deny_at_once_one_wins_and_the_other_learns_who(
    played: Stage,
) -> None:
    approval_id = await played.ask()
    ann, bo = [await played.reviewer(f"{name}@example.org") for name in ("ann", "bo")]
    answers = await asyncio.gather(
        submit(played, ann, approval_id, "approve"),
        submit(played, bo, approval_id, "deny"),
        return_exceptions=True,
    )
    [lost] = [answer for answer in answers if isinstance(answer, BaseException)]
    assert isinstance(lost, Conflict)
    view = await played.read(approval_id)
    winner = view.reviews[0].reviewer
    assert f"{view.state} by {winner}" in lost.message
    assert len(await records(played, "approval.decided")) == 1


@pytest.mark.parametrize("late", [timedelta(0), timedelta(microseconds=1)])
async def test_E_03_at_the_deadline_nobody_approves_any_more(
    played: Stage, clock: FakeClock, late: timedelta
) -> None:
    approval_id = await played.ask()
    ann = await played.reviewer("ann@example.org")
    given = await submission(played, approval_id)
    deadline = (await played.read(approval_id)).deadline
    clock.now = deadline + late
    with pytest.raises(Conflict) as late_one:
        await review.review(played.approvals, ann, given, now=clock())
    assert late_one.value.code == "expired"
    assert await decisions.expire_due(played.approvals, now=clock()) == 1
    assert (await played.read(approval_id)).state == "expired"


async def test_E_03_an_approval_and_the_expiry_at_one_instant_have_one_outcome(
    played: Stage, clock: FakeClock
) -> None:
    ann = await played.reviewer("ann@example.org")
    for _ in range(5):
        approval_id = await played.ask()
        given = await submission(played, approval_id)
        deadline = (await played.read(approval_id)).deadline
        just_before = deadline - timedelta(microseconds=1)
        await asyncio.gather(
            review.review(played.approvals, ann, given, now=just_before),
            decisions.expire_due(played.approvals, now=deadline),
            return_exceptions=True,
        )
        clock.now = deadline
        view = await played.read(approval_id)
        assert view.state in {"approved", "expired"}
        decided = [
            record
            for record in await records(played, "approval.decided")
            if record["subject"]["approval"] == approval_id
        ]
        assert [record["to"] for record in decided] == [view.state]


async def test_C_07_the_same_review_again_is_the_same_and_the_opposite_one_is_refused(
    played: Stage,
) -> None:
    approval_id = await played.ask()
    ann = await played.reviewer("ann@example.org")
    first = await submit(played, ann, approval_id)
    assert await submit(played, ann, approval_id) == first
    with pytest.raises(Conflict) as opposite:
        await submit(played, ann, approval_id, "deny")
    assert "approved by ann@example.org" in opposite.value.message
    assert len(await records(played, "approval.reviewed")) == 1


async def test_E_16_one_person_counts_once_whatever_the_channel(played: Stage) -> None:
    approval_id = await played.ask(Wish(rule={"quorum": 2}))
    web = await played.reviewer("ann@example.org")
    cli = Reviewer(web.user_id, web.email, web.roles, web.groups, "cli", "host")
    answers = await asyncio.gather(
        submit(played, web, approval_id), submit(played, cli, approval_id)
    )
    assert {answer.state for answer in answers} == {"pending"}
    assert (await played.read(approval_id)).quorum.given == 1
    assert len(await records(played, "approval.reviewed")) == 1


async def test_E_16_two_who_complete_a_quorum_at_once_decide_it(
    played: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither sees half of a quorum: who comes second waits for the first one's review."""
    approval_id = await played.ask(Wish(rule={"quorum": 2}))
    ann, bo = [await played.reviewer(f"{name}@example.org") for name in ("ann", "bo")]
    take, both = review._take, asyncio.Event()
    here = 0

    async def both_have_read(*arguments: Any) -> Any:
        nonlocal here
        here += 1
        if here == 2:
            both.set()
        # Whoever holds the request keeps the other one out: that is what is wanted.
        await asyncio.wait([asyncio.ensure_future(both.wait())], timeout=1)
        return await take(*arguments)

    monkeypatch.setattr(review, "_take", both_have_read)
    await asyncio.gather(submit(played, ann, approval_id), submit(played, bo, approval_id))
    assert (await played.read(approval_id)).state == "approved"
    assert len(await records(played, "approval.decided")) == 1


async def test_a_decision_is_taken_once_whoever_takes_it(played: Stage) -> None:
    approval_id = await played.ask()
    await played.decide(approval_id, "deny")
    async with played.db.reading() as session:
        row = await session.get_one(ApprovalRequest, approval_id)
    late = Decision("approved", "reviewers", SYSTEM)
    async with played.ledger.transaction() as tx:
        taken = await decisions.decide(tx, row, late, played.clock())
        tx.records.clear()  # the ledger would refuse the second one, too
    assert not taken
    assert (await played.read(approval_id)).state == "denied"


async def test_a_request_that_was_altered_in_the_database_cannot_be_decided(
    played: Stage,
) -> None:
    ann = await played.reviewer("ann@example.org")
    for change in ({"tool": "read"}, {"server_url": "https://evil.example/mcp"}):
        approval_id = await played.ask()
        async with played.db.transaction() as session:
            mine = update(ApprovalRequest).where(col(ApprovalRequest.id) == approval_id)
            await session.exec(mine.values(**change))
        with pytest.raises(Conflict) as refused:
            await submit(played, ann, approval_id)
        assert refused.value.code == "digest_broken"
        assert (await played.read(approval_id)).state == "pending"


async def test_E_16_a_review_taken_back_during_the_second_one_does_not_count(
    played: Stage,
) -> None:
    ann, bo = [await played.reviewer(f"{name}@example.org") for name in ("ann", "bo")]
    for _ in range(5):
        approval_id = await played.ask(Wish(rule={"quorum": 2}))
        await submit(played, ann, approval_id)
        taken, second = await asyncio.gather(
            review.withdraw(played.approvals, ann, approval_id, now=played.clock()),
            submit(played, bo, approval_id),
            return_exceptions=True,
        )
        view = await played.read(approval_id)
        assert isinstance(second, ApprovalView)
        if isinstance(taken, Conflict):
            assert (view.state, view.quorum.given) == ("approved", 2)
        else:
            assert (view.state, view.quorum.given) == ("pending", 1)


async def test_a_review_is_taken_back_and_given_again(played: Stage) -> None:
    approval_id = await played.ask(Wish(rule={"quorum": 2}))
    ann = await played.reviewer("ann@example.org")
    with pytest.raises(NotFound):
        await review.withdraw(played.approvals, ann, approval_id, now=played.clock())
    await submit(played, ann, approval_id)
    view = await review.withdraw(played.approvals, ann, approval_id, now=played.clock())
    assert (view.quorum.given, view.reviews) == (0, ())
    assert (await submit(played, ann, approval_id)).quorum.given == 1
    assert len(await records(played, "review.withdrawn")) == 1


async def test_another_verdict_needs_the_first_to_be_taken_back(played: Stage) -> None:
    approval_id = await played.ask(Wish(rule={"quorum": 2}))
    ann = await played.reviewer("ann@example.org")
    await submit(played, ann, approval_id)
    with pytest.raises(Conflict) as standing:
        await submit(played, ann, approval_id, "deny")
    assert standing.value.code == "already_reviewed"
    await review.withdraw(played.approvals, ann, approval_id, now=played.clock())
    assert (await submit(played, ann, approval_id, "deny")).state == "denied"


async def test_a_decision_cannot_be_taken_back(played: Stage) -> None:
    approval_id = await played.ask()
    ann = await played.reviewer("ann@example.org")
    await submit(played, ann, approval_id)
    with pytest.raises(Conflict) as late:
        await review.withdraw(played.approvals, ann, approval_id, now=played.clock())
    assert late.value.code == "already_decided"


# --- the time to undo -----------------------------------------------------------------------


async def test_within_the_time_to_undo_an_approval_waits_and_then_counts(
    played: Stage, clock: FakeClock
) -> None:
    approval_id = await played.ask(Wish(rule={"undo_seconds": 20}))
    view = await submit(played, await played.reviewer("ann@example.org"), approval_id)
    assert (view.state, view.settles_at) == ("pending", clock() + timedelta(seconds=20))
    clock.advance(19)
    assert await review.settle_due(played.approvals, now=clock()) == 0
    clock.advance(1)
    settled = await asyncio.gather(
        *(review.settle_due(played.approvals, now=clock()) for _ in range(3))
    )
    assert any(settled)
    view = await played.read(approval_id)
    assert (view.state, view.decision and view.decision.by) == ("approved", "reviewers")
    assert len(await records(played, "approval.decided")) == 1


async def test_within_the_time_to_undo_an_approval_is_taken_back(
    played: Stage, clock: FakeClock
) -> None:
    approval_id = await played.ask(Wish(rule={"undo_seconds": 20}))
    ann = await played.reviewer("ann@example.org")
    await submit(played, ann, approval_id)
    clock.advance(19)
    view = await review.withdraw(played.approvals, ann, approval_id, now=clock())
    assert (view.state, view.settles_at) == ("pending", None)
    clock.advance(5)
    assert await review.settle_due(played.approvals, now=clock()) == 0
    assert (await played.read(approval_id)).state == "pending"


async def test_after_the_time_to_undo_it_is_too_late_even_before_anybody_has_looked(
    played: Stage, clock: FakeClock
) -> None:
    ann, bo = [await played.reviewer(f"{name}@example.org") for name in ("ann", "bo")]
    first = await played.ask(Wish(rule={"undo_seconds": 5}))
    second = await played.ask(Wish(rule={"undo_seconds": 5}))
    for approval_id in (first, second):
        await submit(played, ann, approval_id)
    clock.advance(5)
    with pytest.raises(Conflict):
        await review.withdraw(played.approvals, ann, first, now=clock())
    with pytest.raises(Conflict):
        await submit(played, bo, second, "deny")
    assert [(await played.read(one)).state for one in (first, second)] == ["approved"] * 2


async def test_within_the_time_to_undo_a_denial_counts_at_once(played: Stage) -> None:
    approval_id = await played.ask(Wish(rule={"undo_seconds": 20}))
    ann, bo = [await played.reviewer(f"{name}@example.org") for name in ("ann", "bo")]
    await submit(played, ann, approval_id)
    assert (await submit(played, bo, approval_id, "deny")).state == "denied"


async def test_what_was_approved_in_time_does_not_expire_while_it_can_be_undone(
    played: Stage, clock: FakeClock
) -> None:
    approval_id = await played.ask(Wish(rule={"undo_seconds": 20}))
    clock.now = (await played.read(approval_id)).deadline - timedelta(seconds=1)
    await submit(played, await played.reviewer("ann@example.org"), approval_id)
    clock.advance(2)
    assert await decisions.expire_due(played.approvals, now=clock()) == 0
    clock.advance(20)
    assert await review.settle_due(played.approvals, now=clock()) == 1
    assert (await played.read(approval_id)).state == "approved"


async def test_an_approval_in_time_beats_an_expiry_that_had_looked_before(
    played: Stage, clock: FakeClock
) -> None:
    approval_id = await played.ask(Wish(rule={"undo_seconds": 20}))
    async with played.db.reading() as session:
        seen_before = await session.get_one(ApprovalRequest, approval_id)
    await submit(played, await played.reviewer("ann@example.org"), approval_id)
    late = Decision("expired", "expiry", SYSTEM)
    async with played.ledger.transaction() as tx:
        assert not await decisions.decide(tx, seen_before, late, clock())


# --- who may --------------------------------------------------------------------------------


async def test_B_22_a_disabled_reviewer_is_refused_although_the_session_was_read_before(
    played: Stage,
) -> None:
    approval_id = await played.ask()
    ann = await played.reviewer("ann@example.org")
    await people.disable(played.ledger, ann.user_id, actor=SYSTEM, now=played.clock())
    with pytest.raises(NotAllowed) as refused:
        await submit(played, ann, approval_id)
    assert refused.value.code == "user_disabled"


async def test_B_22_the_review_of_somebody_disabled_since_does_not_count(
    played: Stage, clock: FakeClock
) -> None:
    ann, bo, cy = [await played.reviewer(f"{name}@example.org") for name in ("ann", "bo", "cy")]
    two = await played.ask(Wish(rule={"quorum": 2}))
    undone = await played.ask(Wish(rule={"undo_seconds": 5}))
    await submit(played, ann, two)
    await submit(played, ann, undone)
    await people.disable(played.ledger, ann.user_id, actor=SYSTEM, now=clock())
    view = await submit(played, bo, two)
    assert (view.state, view.quorum.given) == ("pending", 1)
    assert (await submit(played, cy, two)).state == "approved"
    clock.advance(5)
    await review.settle_due(played.approvals, now=clock())
    view = await played.read(undone)
    assert (view.state, view.settles_at, view.quorum.given) == ("pending", None, 0)


async def test_B_22_disabling_and_reviewing_at_once_leave_a_sound_ledger(played: Stage) -> None:
    bo = await played.reviewer("bo@example.org")
    for number in range(5):
        ann = await played.reviewer(f"ann{number}@example.org")
        approval_id = await played.ask(Wish(rule={"quorum": 2}))
        await submit(played, ann, approval_id)
        await asyncio.gather(
            submit(played, bo, approval_id),
            people.disable(played.ledger, ann.user_id, actor=SYSTEM, now=played.clock()),
        )  # the fixture verifies that what the ledger tells could happen


@pytest.mark.parametrize("owner", ["Ann@Example.org", "ann@example.org", "Builders"])
async def test_B_21_nobody_decides_about_an_app_of_their_own_or_of_their_group(
    played: Stage, owner: str
) -> None:
    approval_id = await played.ask(Wish(owner=owner))
    ann = await played.reviewer("ann@example.org", groups=("builders",))
    with pytest.raises(NotAllowed) as refused:
        await submit(played, ann, approval_id)
    assert refused.value.code == "reviewer_excluded"


async def test_B_21_nobody_decides_about_a_request_that_names_them(played: Stage) -> None:
    approval_id = await played.ask(Wish(end_user="ANN@example.org"))
    with pytest.raises(NotAllowed):
        await submit(played, await played.reviewer("ann@example.org"), approval_id)


async def test_a_denial_without_a_reason_is_refused(played: Stage) -> None:
    approval_id = await played.ask()
    digest = (await played.read(approval_id)).digest
    ann = await played.reviewer("ann@example.org")
    with pytest.raises(Refused):
        await review.review(
            played.approvals, ann, Submission(approval_id, "deny", digest), now=played.clock()
        )


# --- escalation -----------------------------------------------------------------------------


ESCALATING = {"groups": ["desk"], "escalate": {"after": "10m", "to": ["chiefs"]}}


async def test_unanswered_in_time_other_groups_may_decide_too(
    played: Stage, clock: FakeClock
) -> None:
    approval_id = await played.ask(Wish(rule=ESCALATING))
    chief = await played.reviewer("chief@example.org", groups=("chiefs",))
    with pytest.raises(NotAllowed):
        await submit(played, chief, approval_id)
    clock.advance(9 * 60)
    assert await escalation.escalate_due(played.approvals, now=clock()) == 0
    clock.advance(60)
    done = await asyncio.gather(
        *(escalation.escalate_due(played.approvals, now=clock()) for _ in range(3)),
    )
    assert sum(done) == 1
    view = await played.read(approval_id)
    assert view.groups == ("chiefs", "desk")
    assert view.escalation is not None
    assert view.escalation.since == clock()
    [record] = await records(played, "approval.escalated")
    assert record["groups"] == ["chiefs"]
    assert (await submit(played, chief, approval_id)).state == "approved"


async def test_what_is_decided_is_not_escalated(played: Stage, clock: FakeClock) -> None:
    approval_id = await played.ask(Wish(rule=ESCALATING))
    await submit(played, await played.reviewer("d@example.org", groups=("desk",)), approval_id)
    clock.advance(11 * 60)
    assert await escalation.escalate_due(played.approvals, now=clock()) == 0
