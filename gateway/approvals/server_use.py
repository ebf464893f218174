"""What a server is used for: its last calls, and what would end or be denied without it.

Reads only. Nothing here counts a whole table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func
from sqlmodel import col, select

from gateway.approvals import grants, lifecycle, reading
from gateway.registry.directory import View
from gateway.store.database import Database
from gateway.store.tables import ApprovalRequest, Grant, ToolDefinition

_NEWEST = 1_000
_COUNTED = 200


@dataclass(frozen=True, slots=True)
class Lately:
    """When a server was called last, and when it last listed a tool that was new or changed.

    `called` None: not among the newest 1,000 calls of all servers.
    """

    called: datetime | None = None
    listed: datetime | None = None


@dataclass(frozen=True, slots=True)
class Resting:
    """What rests on a server. Counts stop at 200; `more` then says that there are more.

    `apps` may use no server but those that they name, and name this one; `any_server` counts the
    apps that may use every registered one.
    """

    grants: int
    waiting: int
    apps: tuple[str, ...]
    any_server: int
    more: bool = False


async def lately(db: Database) -> Mapping[str, Lately]:
    """What happened last, by the id of the server."""
    newest = (
        select(ApprovalRequest.server_id, ApprovalRequest.created_at)
        .order_by(col(ApprovalRequest.id).desc())
        .limit(_NEWEST)
        .subquery()
    )
    called = select(newest.c.server_id, func.max(newest.c.created_at)).group_by(newest.c.server_id)
    listed = select(ToolDefinition.server_id, func.max(col(ToolDefinition.listed_at))).group_by(
        col(ToolDefinition.server_id)
    )
    async with db.reading() as session:
        calls: dict[str, Any] = dict((await session.exec(called)).all())
        lists: dict[str, Any] = dict((await session.exec(listed)).all())
    return {name: Lately(calls.get(name), lists.get(name)) for name in {*calls, *lists}}


async def rests_on(db: Database, view: View, server: tuple[str, str], now: datetime) -> Resting:
    """What rests on a server, named by id and label. `view` is the configuration in force."""
    server_id, label = server
    live = select(Grant.id).where(col(Grant.server_id) == server_id, *grants.live(now))
    pending = select(ApprovalRequest.id).where(
        col(ApprovalRequest.state) == lifecycle.PENDING,
        col(ApprovalRequest.server_id) == server_id,
        reading.shown(),
    )
    async with db.reading() as session:
        found = [
            len((await session.exec(wanted.limit(_COUNTED + 1))).all())
            for wanted in (live, pending)
        ]
    apps = view.apps.values()
    named = sorted(app.name for app in apps if app.servers is not None and app.may_use(label))
    return Resting(
        grants=min(found[0], _COUNTED),
        waiting=min(found[1], _COUNTED),
        apps=tuple(named),
        any_server=sum(app.servers is None for app in apps),
        more=max(found) > _COUNTED,
    )
