"""Standing in for a reviewer on both databases: the groups of the other, and no second voice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from gateway.approvals import review
from gateway.approvals.review import Reviewer, Submission
from gateway.approvals.views import ApprovalView
from gateway.audit.live import verify_live
from gateway.audit.records import SYSTEM, Actor
from gateway.errors import Conflict, NotAllowed, NotFound, Refused
from gateway.identity import delegations, people
from gateway.identity.delegations import DelegationView, NewDelegation, Speaker
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage

DESK = Wish(rule={"groups": ["desk"]})
HOST = Speaker(Actor("operator", "uid:0", "host"))


@pytest.fixture
async def played(db: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(db, clock) as played:
        yield played
        await played.ledger.settle()
        report = await verify_live(db, played.ledger.signer.verifier)
        assert report.valid, list(map(str, report.findings))


@pytest.fixture
async def ann(played: Stage) -> Reviewer:
    """A member of the group desk."""
    return await played.reviewer("ann@example.org", groups=("desk",))


@pytest.fixture
async def bo(played: Stage) -> Reviewer:
    """A reviewer of no group."""
    return await played.reviewer("bo@example.org")


def speaker(who: Reviewer, *roles: str) -> Speaker:
    return Speaker(who.actor, who.email, frozenset(roles) or who.roles)


async def stand_in(
    played: Stage,
    giver: Reviewer,
    taker: Reviewer,
    *,
    by: Speaker = HOST,
    days: tuple[float, float] = (0, 7),
) -> DelegationView:
    now = played.clock()
    starts, ends = (now + timedelta(days=number) for number in days)
    new = NewDelegation(giver.email, taker.email, starts, ends)
    return await delegations.create(played.ledger, new, speaker=by, now=now)


async def submit(played: Stage, who: Reviewer, approval_id: str) -> ApprovalView:
    digest = (await played.read(approval_id)).digest
    given = Submission(approval_id, "approve", digest)
    return await review.review(played.approvals, who, given, now=played.clock())


async def test_who_stands_in_has_the_groups_of_the_other_from_then_until_then(
    played: Stage, clock: FakeClock, ann: Reviewer, bo: Reviewer
) -> None:
    first, second, third = [await played.ask(DESK) for _ in range(3)]
    made = await stand_in(played, ann, bo, by=speaker(ann), days=(0.01, 0.02))
    assert made.state == "planned"
    with pytest.raises(NotAllowed):
        await submit(played, bo, first)
    clock.advance(0.01 * 86400)
    view = await submit(played, bo, second)
    assert (view.state, view.reviews[0].on_behalf_of) == ("approved", "ann@example.org")
    clock.advance(0.01 * 86400)
    with pytest.raises(NotAllowed):
        await submit(played, bo, third)


async def test_it_ends_when_it_is_revoked_and_only_once(
    played: Stage, ann: Reviewer, bo: Reviewer
) -> None:
    made = await stand_in(played, ann, bo)
    cy = await played.reviewer("cy@example.org")
    with pytest.raises(NotFound):
        await delegations.revoke(played.ledger, made.id, speaker=speaker(cy), now=played.clock())
    ended = await delegations.revoke(
        played.ledger, made.id, speaker=speaker(bo), now=played.clock()
    )
    assert ended.state == "revoked"
    with pytest.raises(Conflict):
        await delegations.revoke(played.ledger, made.id, speaker=HOST, now=played.clock())
    with pytest.raises(NotAllowed):
        await submit(played, bo, await played.ask(DESK))


async def test_E_16_two_who_speak_for_one_count_once(
    played: Stage, ann: Reviewer, bo: Reviewer
) -> None:
    cy = await played.reviewer("cy@example.org")
    for taker in (bo, cy):
        await stand_in(played, ann, taker)
    both = Wish(rule={"groups": ["desk"], "quorum": 2})
    for first, *others in ((ann, bo, cy), (bo, ann, cy)):
        approval_id = await played.ask(both)
        assert (await submit(played, first, approval_id)).quorum.given == 1
        for other in others:
            with pytest.raises(NotAllowed):
                await submit(played, other, approval_id)


async def test_in_ones_own_right_both_count(played: Stage, ann: Reviewer, bo: Reviewer) -> None:
    await stand_in(played, ann, bo)
    approval_id = await played.ask(Wish(rule={"quorum": 2}))
    await submit(played, ann, approval_id)
    view = await submit(played, bo, approval_id)
    assert view.state == "approved"
    assert [given.on_behalf_of for given in view.reviews] == [None, None]


@pytest.mark.parametrize("excluded", ["ann@example.org", "bo@example.org", "desk"])
async def test_neither_decides_about_their_own_nor_through_the_other(
    played: Stage, ann: Reviewer, bo: Reviewer, excluded: str
) -> None:
    await stand_in(played, ann, bo)
    wish = Wish(owner=excluded, rule={"groups": ["desk"]})
    with pytest.raises(NotAllowed):
        await submit(played, bo, await played.ask(wish))
    if "@" in excluded:
        named = Wish(end_user=excluded.upper(), rule={"groups": ["desk"]})
        with pytest.raises(NotAllowed):
            await submit(played, bo, await played.ask(named))


async def test_nothing_is_passed_on(played: Stage, ann: Reviewer, bo: Reviewer) -> None:
    cy = await played.reviewer("cy@example.org")
    await stand_in(played, ann, bo)
    await stand_in(played, bo, cy)
    with pytest.raises(NotAllowed):
        await submit(played, cy, await played.ask(DESK))


async def test_who_is_disabled_or_no_reviewer_any_more_lends_nothing(
    played: Stage, ann: Reviewer, bo: Reviewer
) -> None:
    await stand_in(played, ann, bo)
    now = played.clock()
    await people.set_roles(played.ledger, ann.user_id, ["viewer"], actor=SYSTEM, now=now)
    with pytest.raises(NotAllowed):
        await submit(played, bo, await played.ask(DESK))
    await people.set_roles(played.ledger, ann.user_id, ["reviewer"], actor=SYSTEM, now=now)
    await people.disable(played.ledger, ann.user_id, actor=SYSTEM, now=now)
    with pytest.raises(NotAllowed):
        await submit(played, bo, await played.ask(DESK))


async def test_only_for_oneself_unless_an_admin_says_it(
    played: Stage, ann: Reviewer, bo: Reviewer
) -> None:
    with pytest.raises(NotAllowed):
        await stand_in(played, ann, bo, by=speaker(bo))
    await stand_in(played, ann, bo, by=speaker(bo, "admin"))
    mine = await delegations.listing(played.db, speaker=speaker(bo), now=played.clock())
    assert [one.from_email for one in mine] == ["ann@example.org"]
    cy = await played.reviewer("cy@example.org")
    assert await delegations.listing(played.db, speaker=speaker(cy), now=played.clock()) == []


async def test_what_cannot_be_is_refused(played: Stage, ann: Reviewer, bo: Reviewer) -> None:
    viewer = await played.reviewer("vi@example.org", "viewer")
    for giver, taker, days in (
        (ann, ann, (0, 1)),
        (ann, viewer, (0, 1)),
        (ann, bo, (1, 1)),
        (ann, bo, (-2, -1)),
        (ann, bo, (0, 181)),
    ):
        with pytest.raises(Refused):
            await stand_in(played, giver, taker, days=days)
