"""Exchanges as they are kept: opened, saved while they wait, claimed, observed, finished.

Law of the path: what changes the world is recorded first. A claim (`release.begin_sending`) is a
compare-and-set on state and fence; whoever loses it must not send.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from gateway.approvals import items
from gateway.approvals.decisions import Approvals
from gateway.approvals.kept import Kept, claimed, hold_on
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict, NotFound
from gateway.exchange.document import read as read_document
from gateway.exchange.messages import Around, Json
from gateway.store.database import Database, compare_and_set
from gateway.store.envelope import Envelope
from gateway.store.ids import new_id
from gateway.store.tables import (
    App,
    AuditRecord,
    Exchange,
    ResponseId,
)


@dataclass(frozen=True)
class Opening:
    """What is known of an exchange when it is opened. `servers` are labels; `thread` is that of
    what it goes on from, `owner` the replica that drives it, `shown` the tool definitions that its
    model has been shown before, as in `Kept`.
    """

    app_id: str
    app_name: str
    model: str | None
    end_user: str | None
    streamed: bool
    background: bool
    stored: bool
    servers: tuple[str, ...]
    overridden: tuple[str, ...]
    body_digest: str
    idempotency: str | None = None
    conversation: str | None = None
    auth: str = "key"
    thread: str | None = None
    owner: str | None = None
    shown: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """An exchange read back. `document` is what `save` wrote: `machine`, `forward`, `frames` (of a
    stream so far), `approvals` (Azure's request id → ours); empty when it never waited.
    `withdrawn` is why its app wants no more of it, if it does not.
    """

    kept: Kept
    document: Json
    withdrawn: str | None = None


async def open_exchange(
    context: Approvals, opening: Opening, saved: Json | None = None, *, now: datetime
) -> Kept:
    """Record that an app's request was accepted. Waits for the signed head.

    `saved` is kept for one that goes on at Azure without us: see `Saved`.
    """
    exchange_id = new_id("exc", now)
    kept = Kept(
        exchange_id,
        opening.app_id,
        opening.app_name,
        opening.end_user,
        context.envelope.new_data_key(exchange_id),
        "forwarding",
        streamed=opening.streamed,
        background=opening.background,
        body_digest=opening.body_digest,
        idempotency=opening.idempotency,
        auth=opening.auth,
        stored=opening.stored,
        shown={
            server: {tool: list(seen) for tool, seen in tools.items()}
            for server, tools in opening.shown.items()
        },
        inherited=set(opening.shown),
    )
    try:
        async with context.ledger.transaction() as tx:
            _add(tx, context, kept, opening, saved, now)
    except IntegrityError:
        # Both looked before either was there.
        if opening.idempotency is not None:
            raise Alike("It is being answered already.", code="exchange_claimed") from None
        if opening.conversation is None:
            raise
        raise locked() from None
    await tx.sealed()
    return kept


class Alike(Conflict):
    """An exchange for the same idempotency key has just been opened by another replica."""


def locked() -> Conflict:
    """A conversation has one request at a time."""
    return Conflict(
        "Another request is still going on in this conversation; wait for its end.",
        code="conversation_locked",
        param="conversation",
    )


def _add(
    tx: Transaction,
    context: Approvals,
    kept: Kept,
    opening: Opening,
    saved: Json | None,
    now: datetime,
) -> None:
    tx.session.add(
        Exchange(
            id=kept.id,
            app_id=opening.app_id,
            state="forwarding",
            model=opening.model,
            end_user=opening.end_user,
            streamed=opening.streamed,
            background=opening.background,
            stored=opening.stored,
            body_digest=opening.body_digest,
            idempotency=opening.idempotency,
            conversation_id=opening.conversation,
            thread=opening.thread or kept.id,
            owner=opening.owner,
            data_key=kept.data_key,
            snapshot=_sealed(context, kept, "snapshot", saved),
            shown=kept.shown or None,
            created_at=now,
        )
    )
    fields: dict[str, Any] = {
        "streamed": opening.streamed,
        "background": opening.background,
        "stored": opening.stored,
        "servers": list(opening.servers),
    }
    if opening.model is not None:
        fields["model"] = opening.model[:200]
    tx.record(
        records.make(
            "exchange.opened",
            now=now,
            actor=kept.actor,
            subject=kept.subject,
            fields=fields,
        )
    )
    if opening.overridden:
        tx.record(
            records.make(
                "security.overridden",
                now=now,
                actor=kept.actor,
                subject=kept.subject,
                fields={"what": list(opening.overridden)[:50]},
            )
        )


async def name_response(
    context: Approvals, kept: Kept, response_id: str, round_number: int, *, now: datetime
) -> None:
    """Remember whose an upstream response id is; round 0's becomes the exchange's own.

    Raises `Superseded` when another process has claimed the exchange.
    """
    async with context.ledger.transaction() as tx:
        if await tx.session.get(ResponseId, response_id) is None:
            tx.session.add(
                ResponseId(
                    response_id=response_id,
                    exchange_id=kept.id,
                    app_id=kept.app_id,
                    round=round_number,
                    mediated=True,
                    created_at=now,
                )
            )
        if round_number:
            await hold_on(tx.session, kept)
            return
        own = update(Exchange).where(col(Exchange.id) == kept.id, col(Exchange.fence) == kept.fence)
        if await compare_and_set(tx.session, own.values(response_id=response_id)) != 1:
            raise claimed(kept)


async def save(
    tx: Transaction, envelope: Envelope, kept: Kept, saved: Json, approvals: Mapping[str, str]
) -> None:
    """Inside the caller's transaction: the exchange waits from now on, as `saved` says.

    Raises `Superseded` when another process has claimed it in between.
    """
    document = orjson.dumps({**saved, "approvals": approvals})
    changed = await compare_and_set(
        tx.session,
        update(Exchange)
        .where(
            col(Exchange.id) == kept.id,
            col(Exchange.state) == kept.state,
            col(Exchange.fence) == kept.fence,
        )
        .values(
            state="holding",
            shown=kept.shown or None,
            snapshot=envelope.seal(kept.data_key, kept.id, "snapshot", document),
            rounds=saved["machine"]["stitcher"]["round"] + 1,
        ),
    )
    if changed != 1:
        raise claimed(kept)


@dataclass(frozen=True)
class Ending:
    """How an exchange ended; `response` is the object that the app has been given.

    `retrievable`: it may be read from now on. `around` is what the app's items hide, by item id;
    `frames` are those of a stream. `heard`: somebody waits for the end and will be told; else it
    is kept for whoever comes back.
    """

    outcome: str
    rounds: int
    response: Json | None
    code: str | None = None
    around: Mapping[str, Around] = field(default_factory=dict)
    frames: Sequence[str] | None = None
    retrievable: bool = True
    heard: bool = False


async def finish(context: Approvals, kept: Kept, ending: Ending, *, now: datetime) -> None:
    """Keep the final response, record the end. Waits for the signed head.

    Raises `Superseded` when another process has claimed the exchange.
    """
    response = ending.response
    state = {"failed": "failed", "cancelled": "cancelled"}.get(ending.outcome, "done")
    missed = await _missed(context, kept) or not ending.heard
    readable = ending.retrievable or missed
    await items.hand_out(context, kept, (response or {}).get("output") or [], ending.around)
    values: dict[str, Any] = {
        "state": state,
        "final": _sealed(context, kept, "final", response) if readable else None,
        "log": _sealed(context, kept, "log", ending.frames) if kept.logged or missed else None,
        "rounds": ending.rounds,
        "finished_at": now,
        "shown": kept.shown or None,
        "snapshot": None,
    }
    async with context.ledger.transaction() as tx:
        changed = await compare_and_set(
            tx.session,
            update(Exchange)
            .where(
                col(Exchange.id) == kept.id,
                col(Exchange.state) == kept.state,
                col(Exchange.fence) == kept.fence,
            )
            .values(**values),
        )
        if changed != 1:
            raise claimed(kept)
        fields: dict[str, Any] = {"outcome": ending.outcome, "rounds": ending.rounds}
        if ending.code is not None:
            fields["code"] = ending.code[:200]
        tx.record(
            records.make(
                "exchange.finished",
                now=now,
                actor=SYSTEM,
                subject=kept.subject,
                fields=fields,
            )
        )
    kept.state = state
    await tx.sealed()


async def _missed(context: Approvals, kept: Kept) -> bool:
    """Whether somebody who wants to know the end is not here. Raises `Superseded`."""
    async with context.db.reading() as session:
        found = await session.exec(
            select(Exchange.left_at).where(
                col(Exchange.id) == kept.id, col(Exchange.fence) == kept.fence
            )
        )
        row = found.all()
    if not row:
        raise claimed(kept)
    return row[0] is not None


def _sealed(context: Approvals, kept: Kept, name: str, value: Any) -> bytes | None:
    if value is None:
        return None
    return context.envelope.seal(kept.data_key, kept.id, name, orjson.dumps(value))


# --- reading --------------------------------------------------------------------------------


async def last_round(db: Database, exchange_id: str) -> str | None:
    """Azure's id of the exchange's newest round, if it has given one."""
    async with db.reading() as session:
        found = await session.exec(
            select(ResponseId.response_id)
            .where(ResponseId.exchange_id == exchange_id)
            .order_by(col(ResponseId.round).desc())
            .limit(1)
        )
        return found.first()


async def load(db: Database, envelope: Envelope, exchange_id: str) -> Saved:
    """An exchange with its snapshot, if it has one; raises `NotFound`."""
    async with db.reading() as session:
        row = await session.get(Exchange, exchange_id)
        if row is None or row.data_key is None:
            raise NotFound(f"There is no exchange {exchange_id}.")
        app = await session.get(App, row.app_id)
    kept = Kept(
        row.id,
        row.app_id,
        app.name if app else row.app_id,
        row.end_user,
        row.data_key,
        row.state,
        row.fence,
        row.streamed,
        row.background,
        row.body_digest,
        row.idempotency,
        stored=row.stored,
        shown=row.shown or {},
    )
    if row.snapshot is None:
        return Saved(kept, {}, row.withdrawn)
    document = read_document(envelope.open(row.data_key, row.id, "snapshot", row.snapshot))
    return Saved(kept, document, row.withdrawn)


async def final_response(db: Database, envelope: Envelope, exchange_id: str) -> Json | None:
    """The finished response object as it was handed over, or None."""
    async with db.reading() as session:
        row = await session.get(Exchange, exchange_id)
    if row is None or row.final is None or row.data_key is None:
        return None
    response: Json = read_document(envelope.open(row.data_key, row.id, "final", row.final))
    return response


async def until_told(context: Approvals, exchange_id: str) -> None:
    """Wait until a signed head covers the end of a finished exchange: another replica may have
    written it a moment ago. Raises `Unavailable` when it cannot be signed now.
    """
    async with context.db.reading() as session:
        found = await session.exec(
            select(AuditRecord.id).where(
                AuditRecord.exchange == exchange_id,
                AuditRecord.kind == "exchange.finished",
                col(AuditRecord.index).is_(None),
            )
        )
        waiting = found.all()
    await context.ledger.sealed(waiting)


async def log(db: Database, envelope: Envelope, exchange_id: str) -> list[str] | None:
    """The frames of a finished stream, from the first one; None if none are kept."""
    async with db.reading() as session:
        row = await session.get(Exchange, exchange_id)
    if row is None or row.log is None or row.data_key is None:
        return None
    frames: list[str] = orjson.loads(envelope.open(row.data_key, row.id, "log", row.log))
    return frames
