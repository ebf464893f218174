"""The end user's token as it is kept: sealed, for its exchange alone, until the end."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from sqlmodel import select

from gateway.approvals import exchanges
from gateway.approvals.exchanges import Ending, Opening
from gateway.errors import Unavailable
from gateway.store.database import Database
from gateway.store.tables import App, Exchange
from tests.support.clock import FakeClock
from tests.support.stage import stage

TOKEN = SecretStr("canary-user-token")


async def test_it_is_sealed_until_the_end_and_then_gone(db: Database, clock: FakeClock) -> None:
    async with stage(db, clock) as played:
        async with db.transaction() as session:
            session.add(App(id="app_bot", name="bot", created_at=clock()))
        opening = Opening(
            "app_bot", "bot", "m", None, False, False, True, ("crm",), (), "sha256:0",
            user_token=TOKEN,
        )  # fmt: skip
        assert "canary" not in repr(opening)
        kept = await exchanges.open_exchange(played.approvals, opening, now=clock())
        other = await exchanges.open_exchange(played.approvals, opening, now=clock())
        async with db.reading() as session:
            rows = {row.id: row.user_token for row in await session.exec(select(Exchange))}
        sealed = rows[kept.id]
        assert sealed is not None
        assert b"canary" not in sealed
        saved = await exchanges.load(db, played.approvals.envelope, kept.id)
        assert saved.user_token == TOKEN
        assert "canary" not in repr(saved)

        await exchanges.finish(played.approvals, kept, Ending("failed", 0, None), now=clock())
        async with db.transaction() as session:
            assert (await session.get_one(Exchange, kept.id)).user_token is None
            (await session.get_one(Exchange, other.id)).user_token = sealed  # of another exchange
        with pytest.raises(Unavailable):
            await exchanges.load(db, played.approvals.envelope, other.id)
