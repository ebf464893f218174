"""Breaking the glass on both databases: alone, for a reason, and looked into by somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from gateway.approvals import alarms, decisions, emergency, grants, review
from gateway.approvals.alarms import Closing
from gateway.approvals.review import Reviewer, Submission
from gateway.approvals.terms import Terms
from gateway.approvals.views import ApprovalView
from gateway.audit import reading
from gateway.audit.live import verify_live
from gateway.errors import Conflict, NotAllowed, Refused
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage

DAY = timedelta(days=1)
STRICT = Wish(rule={"quorum": 3, "groups": ["desk"], "undo_seconds": 30})


@pytest.fixture
async def played(db: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(db, clock) as played:
        yield played
        await played.ledger.settle()
        report = await verify_live(db, played.ledger.signer.verifier)
        assert report.valid, list(map(str, report.findings))


@pytest.fixture
async def ann(played: Stage) -> Reviewer:
    """Somebody who may break the glass, and review."""
    return await played.reviewer("ann@example.org", "reviewer", "break_glass")


async def kinds(played: Stage, about: str) -> list[str]:
    await played.ledger.settle()
    found = await reading.search(played.db, reading.Query(limit=200))
    documents = [entry.document for entry in reversed(found.items)]
    return [one["type"] for one in documents if one["subject"].get("approval") == about]


async def break_glass(
    played: Stage, who: Reviewer, approval_id: str, reason: str | None = "The pumps have stopped"
) -> ApprovalView:
    digest = (await played.read(approval_id)).digest
    given = Submission(approval_id, "approve", digest, reason)
    return await emergency.break_glass(
        played.approvals, who, given, look_into=DAY, now=played.clock()
    )


async def test_one_person_approves_alone_and_an_alarm_is_raised(
    played: Stage, clock: FakeClock, ann: Reviewer
) -> None:
    approval_id = await played.ask(STRICT)
    view = await break_glass(played, ann, approval_id)
    assert (view.state, view.reviews[0].emergency) == ("approved", True)
    [alarm] = await alarms.listing(played.db)
    assert (alarm.about.kind, alarm.about.approval_id, alarm.due_at) == (
        "break_glass",
        approval_id,
        clock() + DAY,
    )
    assert (await kinds(played, approval_id))[2:] == [
        "approval.reviewed",
        "alarm.raised",
        "break_glass.used",
        "approval.decided",
    ]


async def test_it_needs_the_role_which_no_admin_has_by_itself(played: Stage) -> None:
    approval_id = await played.ask(STRICT)
    for number, roles in enumerate((["admin"], ["reviewer", "admin"], ["viewer"])):
        who = await played.reviewer(f"r{number}@example.org", *roles)
        with pytest.raises(NotAllowed):
            await break_glass(played, who, approval_id)
    assert (await played.read(approval_id)).state == "pending"


@pytest.mark.parametrize("reason", [None, "", "   "])
async def test_it_needs_a_reason(played: Stage, ann: Reviewer, reason: str | None) -> None:
    with pytest.raises(Refused):
        await break_glass(played, ann, await played.ask(STRICT), reason)


async def test_never_for_oneself(played: Stage, ann: Reviewer) -> None:
    for wish in (Wish(owner="ANN@example.org"), Wish(end_user="ann@example.org")):
        with pytest.raises(NotAllowed):
            await break_glass(played, ann, await played.ask(wish))


async def test_never_against_a_rule_that_denies_nor_a_denial(played: Stage, ann: Reviewer) -> None:
    by_rule = await played.ask(Wish(rule={"effect": "deny"}))
    by_person = await played.ask()
    await played.decide(by_person, "deny", "bo@example.org")
    for approval_id in (by_rule, by_person):
        with pytest.raises(Conflict):
            await break_glass(played, ann, approval_id)
        assert (await played.read(approval_id)).state == "denied"


async def test_only_for_what_was_shown_and_in_time(
    played: Stage, clock: FakeClock, ann: Reviewer
) -> None:
    approval_id = await played.ask(STRICT)
    other = Submission(approval_id, "approve", "sha256:" + "0" * 64, "now")
    with pytest.raises(Conflict):
        await emergency.break_glass(played.approvals, ann, other, look_into=DAY, now=clock())
    clock.now = (await played.read(approval_id)).deadline
    with pytest.raises(Conflict):
        await break_glass(played, ann, approval_id)


async def test_who_has_reviewed_already_breaks_the_glass_all_the_same(
    played: Stage, ann: Reviewer
) -> None:
    approval_id = await played.ask(Wish(rule={"quorum": 2}))
    digest = (await played.read(approval_id)).digest
    await review.review(
        played.approvals, ann, Submission(approval_id, "approve", digest), now=played.clock()
    )
    view = await break_glass(played, ann, approval_id)
    assert (view.state, len(view.reviews)) == ("approved", 1)


async def test_two_at_once_break_it_once(played: Stage, ann: Reviewer) -> None:
    bo = await played.reviewer("bo@example.org", "break_glass")
    approval_id = await played.ask(STRICT)
    answers = await asyncio.gather(
        *(break_glass(played, who, approval_id) for who in (ann, bo)), return_exceptions=True
    )
    assert sum(isinstance(answer, Conflict) for answer in answers) == 1
    assert len(await alarms.listing(played.db)) == 1


async def test_it_is_no_precedent(played: Stage, ann: Reviewer) -> None:
    approval_id = await played.ask(STRICT)
    await break_glass(played, ann, approval_id)
    cy = await played.reviewer("cy@example.org", groups=("desk",))
    wanted = Terms("exact", "app", played.clock() + DAY)
    with pytest.raises(Conflict):
        await grants.remember_later(played.approvals, cy, approval_id, wanted, now=played.clock())


async def test_somebody_else_must_look_into_it_and_being_late_is_recorded_once(
    played: Stage, clock: FakeClock, ann: Reviewer
) -> None:
    approval_id = await played.ask(STRICT)
    await break_glass(played, ann, approval_id)
    [alarm] = await alarms.listing(played.db)
    own = Closing(ann.actor, ann.email, "It was me")
    with pytest.raises(NotAllowed):
        await alarms.close(played.approvals, alarm.id, own, now=clock())
    clock.now += DAY - timedelta(seconds=1)
    assert await emergency.note_overdue(played.approvals, now=clock()) == 0
    clock.advance(1)
    noted = await asyncio.gather(
        *(emergency.note_overdue(played.approvals, now=clock()) for _ in range(3))
    )
    assert sum(noted) == 1
    assert await emergency.note_overdue(played.approvals, now=clock()) == 0
    bo = await played.reviewer("bo@example.org")
    closing = Closing(bo.actor, bo.email, "The pumps had really stopped")
    await alarms.close(played.approvals, alarm.id, closing, now=clock())
    assert (await kinds(played, approval_id))[-2:] == ["alarm.overdue", "alarm.closed"]


async def test_closed_in_time_it_is_never_overdue(
    played: Stage, clock: FakeClock, ann: Reviewer
) -> None:
    await break_glass(played, ann, await played.ask(STRICT))
    [alarm] = await alarms.listing(played.db)
    bo = await played.reviewer("bo@example.org")
    await alarms.close(
        played.approvals, alarm.id, Closing(bo.actor, bo.email, "Right"), now=clock()
    )
    clock.now += 2 * DAY
    assert await emergency.note_overdue(played.approvals, now=clock()) == 0


async def test_what_has_expired_meanwhile_stays_so(
    played: Stage, clock: FakeClock, ann: Reviewer
) -> None:
    approval_id = await played.ask(STRICT)
    clock.now = (await played.read(approval_id)).deadline
    await decisions.expire_due(played.approvals, now=clock())
    with pytest.raises(Conflict):
        await break_glass(played, ann, approval_id)
