"""The life of an approval request. Pure.

    pending → approved    a quorum of approving reviews
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
    """What a request asks of its reviewers."""

    quorum: int
    groups: frozenset[str]
    require_reason: bool
    owner: str | None
    end_user: str | None


def barrier(standing: Standing, email: str, groups: frozenset[str]) -> str | None:
    """Why this person may not review the request, in a sentence, or None if they may."""
    address = email.casefold()
    if standing.owner is not None and standing.owner.casefold() == address:
        return "You own the app that asks; somebody else has to decide."
    if standing.end_user is not None and standing.end_user.casefold() == address:
        return "The request names you as its end user; somebody else has to decide."
    if standing.groups and not standing.groups & groups:
        names = ", ".join(sorted(standing.groups))
        return f"Only members of {names} may decide about this request."
    return None


def outcome(standing: Standing, verdicts: Sequence[str]) -> str:
    """The state that these reviews make: one denial denies, a quorum approves."""
    if "deny" in verdicts:
        return DENIED
    return APPROVED if verdicts.count("approve") >= standing.quorum else PENDING


def answer(state: str, reason: str | None) -> Answer | None:
    """What Azure is told once the request is in `state`; None while it is pending."""
    if state == PENDING:
        return None
    if state == APPROVED:
        return Answer(approve=True)
    given = {EXPIRED: EXPIRED_REASON, CANCELLED: CANCELLED_REASON}.get(state)
    return Answer(approve=False, reason=given or reason or POLICY_REASON)
