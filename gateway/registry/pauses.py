"""Pauses: nothing that one covers is released, and no call of it is allowed by a rule alone.

A pause counts as configuration: it is part of every process's view, and a release, which holds
the number of the configuration until its commit, either stands before the pause or sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import Conflict, NotFound, Refused
from gateway.registry.changes import Change, changing
from gateway.store.database import Database, compare_and_set
from gateway.store.ids import new_id
from gateway.store.tables import App, Pause, Server

SCOPES = ("all", "app", "server")
_REASON_LIMIT = 500


@dataclass(frozen=True, slots=True)
class PauseView:
    """A pause. `target` is the name of the app or the label of the server, empty for all."""

    id: str
    scope: str
    target: str
    reason: str
    begun_at: datetime
    begun_by: str
    ended_at: datetime | None = None
    ended_by: str | None = None

    @property
    def what(self) -> str:
        """What it covers, in a word or two."""
        return f"{self.scope} {self.target}".strip()

    def covers(self, app: str, server: str) -> bool:
        """Whether it covers calls of this app on this server."""
        return self.scope == "all" or self.target == (app if self.scope == "app" else server)


@dataclass(frozen=True, slots=True)
class Pausing:
    """What is to be paused, why, and by whom (`name`: e-mail address, operator or gateway)."""

    scope: str
    target: str
    reason: str
    name: str


async def begin(ledger: Ledger, wanted: Pausing, *, actor: Actor, now: datetime) -> PauseView:
    """Begin a pause. Nothing it covers is released after its record, which is in a signed head.

    Raises `Refused`, `NotFound` for what is not registered, `Conflict` when it is paused already.
    """
    wanted = _checked(wanted)
    async with changing(ledger, actor, now) as change:
        await _must_exist(change.session, wanted)
        if await _open(change.session, wanted) is not None:
            raise Conflict("This is paused already.", code="already_paused")
        view = add(change, wanted)
    await change.tx.sealed()
    return view


async def pause_app(change: Change, app: str, reason: str) -> None:
    """The gateway itself pauses an app, if it is not paused, in a transaction that has locked
    the configuration.
    """
    wanted = Pausing("app", app, reason, "gateway")
    if await _open(change.session, wanted) is None:
        add(change, wanted)


def add(change: Change, wanted: Pausing) -> PauseView:
    """The row and its record, in the caller's transaction."""
    pause_id = new_id("pau", change.now)
    row = Pause(
        id=pause_id,
        scope=wanted.scope,
        target=wanted.target,
        reason=wanted.reason,
        begun_at=change.now,
        begun_by=wanted.name,
    )
    change.session.add(row)
    fields = {"pause": pause_id, "covers": wanted.scope}
    change.record("pause.begun", _subject(wanted.scope, wanted.target), fields)
    return _view(row)


async def end(ledger: Ledger, pause_id: str, name: str, *, actor: Actor, now: datetime) -> None:
    """End a pause: what waited for it goes on. Raises `NotFound`, `Conflict` when it is over."""
    async with changing(ledger, actor, now) as change:
        row = await change.session.get(Pause, pause_id)
        if row is None:
            raise NotFound(f"There is no pause {pause_id}.", code="pause_unknown")
        ended = await compare_and_set(
            change.session,
            update(Pause)
            .where(col(Pause.id) == pause_id, col(Pause.ended_at).is_(None))
            .values(ended_at=now, ended_by=name),
        )
        if ended != 1:
            raise Conflict("This pause is over already.", code="pause_over")
        fields = {"pause": pause_id, "covers": row.scope}
        change.record("pause.ended", _subject(row.scope, row.target), fields)
    await change.tx.sealed()


async def listing(db: Database, *, ended: bool = False, limit: int = 100) -> list[PauseView]:
    """Pauses in force, or those that are over; the newest first."""
    async with db.reading() as session:
        return await read(session, ended=ended, limit=limit)


async def read(session: AsyncSession, *, ended: bool = False, limit: int = 1000) -> list[PauseView]:
    """The same in the caller's transaction."""
    wanted = col(Pause.ended_at).is_not(None) if ended else col(Pause.ended_at).is_(None)
    found = await session.exec(
        select(Pause).where(wanted).order_by(col(Pause.id).desc()).limit(limit)
    )
    return [_view(row) for row in found]


def _checked(wanted: Pausing) -> Pausing:
    reason = wanted.reason.strip()
    if wanted.scope not in SCOPES:
        raise Refused("'scope' must be 'all', 'app' or 'server'.", param="scope")
    if (wanted.scope == "all") != (not wanted.target):
        raise Refused("Name the app or the server; for all, name nothing.", param="target")
    if not reason or len(reason) > _REASON_LIMIT:
        raise Refused(f"Say why, in 1 to {_REASON_LIMIT} characters.", param="reason")
    return Pausing(wanted.scope, wanted.target, reason, wanted.name)


async def _must_exist(session: AsyncSession, wanted: Pausing) -> None:
    if wanted.scope == "all":
        return
    column = col(App.name) if wanted.scope == "app" else col(Server.label)
    if (await session.exec(select(column).where(column == wanted.target))).first() is None:
        raise NotFound(f"No {wanted.scope} has the name {wanted.target!r}.", code="target_unknown")


async def _open(session: AsyncSession, wanted: Pausing) -> Pause | None:
    found = await session.exec(
        select(Pause).where(
            Pause.scope == wanted.scope,
            Pause.target == wanted.target,
            col(Pause.ended_at).is_(None),
        )
    )
    return found.first()


def _subject(scope: str, target: str) -> dict[str, str]:
    return {} if scope == "all" else {scope: target}


def _view(row: Pause) -> PauseView:
    return PauseView(
        row.id,
        row.scope,
        row.target,
        row.reason,
        row.begun_at,
        row.begun_by,
        row.ended_at,
        row.ended_by,
    )
