"""The life of an approval request. Pure.

    pending → approved    a quorum of approving reviews, once they cannot be taken back any more
    pending → denied      one denying review
    pending → expired     the deadline; for Azure, a denial
    pending → cancelled   nobody wants the answer any more

A request is born decided where policy settles it. No state is ever left again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.exchange.messages import Answer

PENDING, APPROVED, DENIED, EXPIRED, CANCELLED = (
    "pending", "approved", "denied", "expired", "cancelled",
)  # fmt: skip
STATES = (PENDING, APPROVED, DENIED, EXPIRED, CANCELLED)

EXPIRED_REASON = "Nobody decided about this call in time, so it was not allowed."
CANCELLED_REASON = "The request for this call was withdrawn, so it was not allowed."
POLICY_REASON = "The policy of this organisation does not allow this call."


@dataclass(frozen=True, slots=True)
class Standing:
    """What a request asks of its reviewers. `owner` is an address or the name of a group."""

    quorum: int
    groups: frozenset[str]
    require_reason: bool
    owner: str | None
    end_user: str | None
    step_up: bool = False


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may decide, by e-mail address and reviewer groups."""

    email: str
    groups: frozenset[str]


@dataclass(frozen=True, slots=True)
class Vote:
    """A standing review. It counts while the person may still sign in."""

    user_id: str
    email: str
    verdict: str
    on_behalf_of: str | None = None
    counts: bool = True

    @property
    def people(self) -> frozenset[str]:
        """Whose one voice this is: of the reviewer, and of whom the reviewer stood in for."""
        named = (self.email, self.on_behalf_of)
        return frozenset(name.casefold() for name in named if name)


@dataclass(frozen=True, slots=True)
class Capacity:
    """In what right somebody reviews: `on_behalf_of` an address, or None for one's own."""

    on_behalf_of: str | None = None


def conflict(standing: Standing, person: Person) -> str | None:
    """Why it would be deciding about one's own request, in a sentence, or None."""
    address = person.email.casefold()
    if standing.owner is not None and standing.owner.casefold() in {
        address,
        *(group.casefold() for group in person.groups),
    }:
        return "You own the app that asks; somebody else has to decide."
    if standing.end_user is not None and standing.end_user.casefold() == address:
        return "The request names you as its end user; somebody else has to decide."
    return None


def barrier(standing: Standing, email: str, groups: frozenset[str]) -> str | None:
    """Why this person may not review the request, in a sentence, or None if they may."""
    if (why := conflict(standing, Person(email, groups))) is not None:
        return why
    if standing.groups and not standing.groups & groups:
        names = ", ".join(sorted(standing.groups))
        return f"Only members of {names} may decide about this request."
    return None


def capacity(
    standing: Standing, person: Person, delegators: Sequence[Person], votes: Sequence[Vote] = ()
) -> Capacity | str:
    """In what right this person may review, or why not.

    Somebody who stands in for another has the other's groups, and none of the other's conflicts:
    what the other may not decide, the one standing in may not decide for them. `votes` are the
    reviews so far: nobody has two voices, neither directly nor through somebody else.
    """
    heard = frozenset[str]().union(*(vote.people for vote in votes))
    if person.email.casefold() in heard:
        return "Somebody has reviewed this on your behalf; one person counts once."
    why = barrier(standing, person.email, person.groups)
    if why is None or conflict(standing, person) is not None:
        return Capacity() if why is None else why
    for delegator in sorted(delegators, key=lambda one: one.email.casefold()):
        if barrier(standing, delegator.email, delegator.groups) is None:
            if delegator.email.casefold() not in heard:
                return Capacity(delegator.email)
            why = "Whom you stand in for has reviewed this already; one person counts once."
    return why


def outcome(standing: Standing, votes: Sequence[Vote]) -> str:
    """The state that these reviews make: one denial denies, a quorum approves."""
    if any(vote.verdict == "deny" for vote in votes):
        return DENIED
    given = sum(vote.verdict == "approve" and vote.counts for vote in votes)
    return APPROVED if given >= standing.quorum else PENDING


def answer(state: str, reason: str | None) -> Answer | None:
    """What Azure is told once the request is in `state`; None while it is pending."""
    if state == PENDING:
        return None
    if state == APPROVED:
        return Answer(approve=True)
    given = {EXPIRED: EXPIRED_REASON, CANCELLED: CANCELLED_REASON}.get(state)
    return Answer(approve=False, reason=given or reason or POLICY_REASON)
