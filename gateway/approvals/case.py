"""A case: one approval request with everything that a decision about it needs, under lock.

Two statements read it, whoever asks: the request with its exchange and app, and the people who
have reviewed it beside the one who is about to. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import String, bindparam, union_all
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals import lifecycle, reading, views
from gateway.approvals.lifecycle import Capacity, Person, Standing, Vote
from gateway.approvals.reading import Opener
from gateway.audit.ledger import Transaction
from gateway.audit.records import Actor
from gateway.errors import Conflict, NotAllowed, NotFound
from gateway.identity import delegations
from gateway.identity.roles import Permission, allowed
from gateway.store.envelope import Envelope
from gateway.store.tables import App, ApprovalRequest, Exchange, Review, User


@dataclass(frozen=True)
class Reviewer:
    """The person who reviews, and over which channel: web, api or cli."""

    user_id: str
    email: str
    roles: frozenset[str]
    groups: frozenset[str]
    channel: str
    auth: str
    authenticated_at: datetime | None = None  # when they last proved who they are

    @property
    def actor(self) -> Actor:
        """As audit records name the person."""
        return Actor("user", self.user_id, self.auth)

    @property
    def person(self) -> Person:
        """As the rules about who may decide see the person."""
        return Person(self.email, self.groups)


@dataclass(frozen=True)
class Own:
    """The review that somebody has given already."""

    review_id: str
    verdict: str
    digest: str


@dataclass(frozen=True)
class Case:
    """A locked request. `votes` are the reviews that stand; `own` is that of who is asking."""

    row: ApprovalRequest
    opener: Opener
    standing: Standing
    thread: str | None
    votes: tuple[Vote, ...]
    own: Own | None = None

    def seal(self, name: str, text: str | None) -> bytes | None:
        """A text of a person, sealed under the key of the exchange."""
        if text is None or self.opener.data_key is None:
            return None
        exchange, envelope = self.row.exchange_id, self.opener.envelope
        return envelope.seal(self.opener.data_key, exchange, name, text.encode())

    def recomputed(self) -> str:
        """The digest of what is stored now: a row that was altered has another one."""
        row, payload = self.row, self.opener.payload(self.row)
        return views.digest(
            views.Subject(
                approval_id=row.id,
                exchange_id=row.exchange_id,
                server_id=row.server_id,
                server_label=row.server_label,
                server_url=row.server_url,
                tool=row.tool,
                arguments=payload["arguments"],
                definition_digest=row.definition_digest,
                nonce=payload["nonce"],
            )
        )

    def check_digest(self, shown: str) -> None:
        """Raises `Conflict` when it is not what the person was shown."""
        if shown != self.row.digest:
            raise Conflict(
                "The request is not the one you were shown: read it again.", code="digest_stale"
            )
        if self.recomputed() != self.row.digest:
            raise Conflict(
                "The stored request does not match its digest; it cannot be decided.",
                code="digest_broken",
            )

    def check_open(self, now: datetime) -> None:
        """Raises `Conflict` when the request is decided, or its deadline has passed."""
        if self.row.state != lifecycle.PENDING:
            raise Conflict(self.already(), code="already_decided")
        if self.row.deadline <= now:
            raise Conflict("The deadline of this request has passed.", code="expired")

    def check_fresh(self, reviewer: Reviewer, within: timedelta, now: datetime) -> None:
        """Raises `NotAllowed` when the rule asks for a sign-in that is not older than `within`.

        Only a person at a browser can have one: a token proves nothing about who holds it now.
        """
        at = reviewer.authenticated_at
        if self.standing.step_up and not (at is not None and now - within <= at):
            raise NotAllowed(
                "The rule that holds this call asks for a fresh sign-in: sign in again on the "
                "request's page. A token cannot replace it.",
                code="step_up_needed",
            )

    def already(self) -> str:
        """Who decided it, and when, in a sentence."""
        row = self.row
        when = row.decided_at.strftime("%Y-%m-%d %H:%M:%S UTC") if row.decided_at else "before"
        names = ", ".join(vote.email for vote in self.votes)
        who = names if row.decided_by == "reviewers" and names else row.decided_by
        return f"This request was {row.state} by {who} at {when}."

    async def right_of(
        self, session: AsyncSession, reviewer: Reviewer, votes: Sequence[Vote], now: datetime
    ) -> Capacity:
        """In what right the person may decide beside these reviews; raises `NotAllowed`."""
        found = lifecycle.capacity(self.standing, reviewer.person, (), votes)
        if isinstance(found, str) and self.standing.groups:
            others = [
                Person(other.email, other.groups)
                for other in await delegations.delegators(session, reviewer.email, now)
            ]
            found = lifecycle.capacity(self.standing, reviewer.person, others, votes)
        if isinstance(found, str):
            raise NotAllowed(found, code="reviewer_excluded")
        return found


# Built once: making a statement costs more than running it.
_APPROVAL: Any = bindparam("approval")
_REQUEST = (
    select(ApprovalRequest, Exchange.data_key, Exchange.thread, App.owner)
    .join(Exchange, col(Exchange.id) == ApprovalRequest.exchange_id)
    .join(App, col(App.id) == ApprovalRequest.app_id, isouter=True)
    .where(col(ApprovalRequest.id) == _APPROVAL, reading.shown())
    .with_for_update(of=ApprovalRequest)
)
_PEOPLE = (
    select(User, Review)
    .join(
        Review,
        (col(Review.user_id) == User.id)
        & (col(Review.approval_id) == _APPROVAL)
        & col(Review.withdrawn_at).is_(None),
        isouter=True,
    )
    .where(
        col(User.id).in_(
            union_all(
                select(col(Review.user_id)).where(col(Review.approval_id) == _APPROVAL),
                select(bindparam("asking", type_=String)),
            )
        )
    )
    .order_by(col(User.id))
    .with_for_update(read=True, of=User)
)


async def lock(
    tx: Transaction, envelope: Envelope, approval_id: str, reviewer: Reviewer | None = None
) -> Case:
    """The request, locked until the transaction ends.

    Raises `NotFound`, and `NotAllowed` when the reviewer is disabled by now.
    """
    found = await tx.session.exec(_REQUEST, params={"approval": approval_id})
    first = found.first()
    if first is None:
        raise NotFound(f"There is no approval request {approval_id}.")
    row, data_key, thread, owner = first
    standing = Standing(
        row.quorum_needed,
        frozenset(row.reviewer_groups or ()),
        row.require_reason,
        owner,
        row.end_user,
        row.step_up,
    )
    people = await _people(tx.session, approval_id, reviewer.user_id if reviewer else None)
    if reviewer is not None:
        _check_still_welcome(reviewer, people)
    return Case(
        row,
        Opener(envelope, row.exchange_id, data_key),
        standing,
        thread,
        tuple(_vote(user, review) for user, review in people if review is not None),
        _own(reviewer, people),
    )


async def _people(
    session: AsyncSession, approval_id: str, asking: str | None
) -> Sequence[tuple[User, Review | None]]:
    """Who has reviewed the request, and who is asking, each as they are now.

    Locked against being disabled meanwhile: in the ledger, who was disabled first did not count.
    """
    found = await session.exec(_PEOPLE, params={"approval": approval_id, "asking": asking or ""})
    rows: Sequence[tuple[User, Review | None]] = found.all()
    return rows


def _check_still_welcome(reviewer: Reviewer, people: Sequence[tuple[User, Review | None]]) -> None:
    now = next((user for user, _ in people if user.id == reviewer.user_id), None)
    if now is None or now.disabled_at is not None:
        raise NotAllowed("This user is disabled.", code="user_disabled")


def _vote(user: User, review: Review) -> Vote:
    counts = user.disabled_at is None
    return Vote(user.id, review.reviewer, review.verdict, review.on_behalf_of, counts)


def _own(reviewer: Reviewer | None, people: Sequence[tuple[User, Review | None]]) -> Own | None:
    for user, review in people:
        if reviewer is not None and user.id == reviewer.user_id and review is not None:
            return Own(review.id, review.verdict, review.digest)
    return None


def check_may(reviewer: Reviewer, permission: Permission, sentence: str) -> None:
    """Raises `NotAllowed` with the sentence unless a role of the reviewer permits it."""
    if not allowed(reviewer.roles, permission):
        raise NotAllowed(sentence)
