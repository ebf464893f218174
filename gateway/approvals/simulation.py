"""What other rules would have done with past calls: counted, and each that would differ.

Reads, compares, changes nothing: a simulated ruling releases no call. Each call is ruled on with
the tool definition and the time it was asked with. Payloads are opened page by page and let go.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import col, select

from gateway.approvals import reading, tooldefs
from gateway.approvals.decisions import Approvals
from gateway.errors import Refused
from gateway.policy import CallFacts, Effect, Policy, Ruling
from gateway.store.tables import ApprovalRequest, Exchange

#: What is read and opened at one go; the event loop waits for it.
_PAGE = 50
LAST_AT_MOST = 100_000


@dataclass(frozen=True)
class Span:
    """Which calls to try: the `last` so many, asked for at `since` or later.

    `after` (`next` of the page before) goes on below a call; `limit` is how many to list.
    """

    last: int = LAST_AT_MOST
    since: datetime | None = None
    after: str | None = None
    limit: int = 50


@dataclass(frozen=True)
class Changed:
    """A call that other rules would have treated otherwise. Effects: allow, hold, deny.

    `became` is what came of it, and `by` through whom or what; both as in approval requests.
    """

    id: str
    app: str
    server: str
    tool: str
    asked_at: datetime
    was: str
    became: str
    by: str | None
    would_be: str
    rule: str | None
    why: str


@dataclass(frozen=True)
class Count:
    """How many calls that policy said `was` about would have been `would_be`."""

    was: str
    would_be: str
    calls: int


@dataclass(frozen=True)
class Outcome:
    """What was looked at, and what would have become of it.

    `newly_allowed` calls were not allowed by policy and would be; `allowed_though_denied` of them
    were denied by people. `unreadable` calls could not be tried: their arguments are not kept.
    """

    calls: int
    unreadable: int
    would_be: dict[str, int]
    counts: tuple[Count, ...]
    newly_allowed: int
    allowed_though_denied: int
    changed: tuple[Changed, ...]
    next: str | None


async def simulate(context: Approvals, policy: Policy, span: Span) -> Outcome:
    """Rule with `policy` on past calls, newest first; of those that change, one page is listed.

    The counts are of all calls of `span`, but those of a further page of what it looked at.
    """
    tally = _Tally(span.limit)
    async for row, arguments in _past(context, span):
        if arguments is None:
            tally.unreadable += 1
            continue
        tally.add(row, await _would_be(context, policy, row, arguments))
        if span.after is not None and tally.next is not None:
            break
        # The loop belongs to everybody, however many calls there are.
        await asyncio.sleep(0)
    return tally.outcome()


class _Tally:
    """What has been counted so far."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.unreadable = 0
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.denied = 0
        self.changed: list[Changed] = []
        self.next: str | None = None

    def add(self, row: ApprovalRequest, ruling: Ruling) -> None:
        """One more call."""
        was, would_be = _was(row), str(ruling.effect)
        self.pairs[was, would_be] += 1
        if was == would_be:
            return
        if would_be == Effect.ALLOW and (row.state, row.decided_by) == ("denied", "reviewers"):
            self.denied += 1
        if len(self.changed) < self.limit:
            self.changed.append(_changed(row, ruling))
        elif self.next is None:
            self.next = self.changed[-1].id

    def outcome(self) -> Outcome:
        """All of it."""
        would_be: Counter[str] = Counter()
        for (_, effect), number in self.pairs.items():
            would_be[effect] += number
        return Outcome(
            calls=sum(self.pairs.values()),
            unreadable=self.unreadable,
            would_be=dict(would_be),
            counts=tuple(Count(*pair, number) for pair, number in sorted(self.pairs.items())),
            newly_allowed=sum(
                number
                for (was, effect), number in self.pairs.items()
                if effect == Effect.ALLOW != was
            ),
            allowed_though_denied=self.denied,
            changed=tuple(self.changed),
            next=self.next,
        )


async def _past(
    context: Approvals, span: Span
) -> AsyncIterator[tuple[ApprovalRequest, str | None]]:
    """Past calls, newest first, each with its arguments; None where they are gone."""
    # Ids grow with time, and are indexed.
    ident = col(ApprovalRequest.id)
    statement = (
        select(ApprovalRequest, Exchange.data_key)
        .join(Exchange, col(Exchange.id) == ApprovalRequest.exchange_id)
        .where(reading.shown())
        .order_by(ident.desc())
    )
    if span.since is not None:
        statement = statement.where(col(ApprovalRequest.created_at) >= span.since)
    mark = await _known(context, span.after)
    left = span.last
    while left > 0:
        page = statement.limit(min(_PAGE, left))
        if mark is not None:
            page = page.where(ident < mark)
        async with context.db.reading() as session:
            rows = (await session.exec(page)).all()
        for row, data_key in rows:
            opener = reading.Opener(context.envelope, row.exchange_id, data_key)
            yield row, None if data_key is None else opener.payload(row)["arguments"]
        if not rows:
            return
        left -= len(rows)
        mark = rows[-1][0].id


async def _known(context: Approvals, after: str | None) -> str | None:
    if after is None:
        return None
    async with context.db.reading() as session:
        row = await session.get(ApprovalRequest, after)
    if row is None:
        raise Refused("'after' is not the id of a request.", param="after")
    return after


async def _would_be(
    context: Approvals, policy: Policy, row: ApprovalRequest, arguments: str
) -> Ruling:
    call = CallFacts(
        app=row.app_name,
        server=row.server_label,
        tool=row.tool,
        arguments=arguments,
        end_user=row.end_user,
        definition=row.definition,
    )
    ruling = await context.rulings.rule(policy, call, row.created_at)
    signals = {signal["code"]: signal["sentence"] for signal in row.risk_signals}
    unsettled = sorted(signals.keys() & tooldefs.UNSETTLED)
    if ruling.effect is Effect.ALLOW and unsettled:
        return Ruling(Effect.HOLD, ruling.rule, signals[unsettled[0]])
    return ruling


def _changed(row: ApprovalRequest, ruling: Ruling) -> Changed:
    return Changed(
        id=row.id,
        app=row.app_name,
        server=row.server_label,
        tool=row.tool,
        asked_at=row.created_at,
        was=_was(row),
        became=row.state,
        by=row.decided_by,
        would_be=str(ruling.effect),
        rule=ruling.rule,
        why=ruling.why,
    )


def _was(row: ApprovalRequest) -> str:
    if row.decided_by != "policy":
        return "hold"
    return "allow" if row.state == "approved" else "deny"
