"""The number that tells every process that the configuration has changed."""

from __future__ import annotations

from sqlalchemy import Integer, String, cast, text, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.store.notifications import CONFIGURED, tell
from gateway.store.tables import Meta

#: The row of `meta` that grows with every change of apps, keys, servers, policies and groups.
CONFIG_VERSION = "config_version"


async def bump_config(session: AsyncSession) -> None:
    """Count a change of the configuration, in the caller's transaction; its commit tells others.

    Call it first: it serialises the writers of configuration, so that what is read after it stays
    as it was read until the commit.
    """
    await _add(session, 1)
    await tell(session, CONFIGURED)


async def lock_config(session: AsyncSession) -> None:
    """Serialise with other writers of configuration without counting a change."""
    await _add(session, 0)


async def current(session: AsyncSession) -> int:
    """The number as it is."""
    row = await session.get(Meta, CONFIG_VERSION)
    return int(row.value) if row else 0


async def hold_config(session: AsyncSession) -> int:
    """The number, which no writer of configuration changes before the caller's commit.

    For what must be done under the configuration that it was decided under; many may hold it.
    """
    row = select(Meta.value).where(Meta.name == CONFIG_VERSION).with_for_update(read=True)
    value = (await session.exec(row)).first()
    if value is None:
        await _add(session, 0)  # only a row that exists can be held
        value = (await session.exec(row)).first()
    return int(value or 0)


async def _add(session: AsyncSession, number: int) -> None:
    # Not `session.add`: two first writers would collide.
    first = text("INSERT INTO meta (name, value) VALUES (:name, '0') ON CONFLICT DO NOTHING")
    connection = await session.connection()
    await connection.execute(first, {"name": CONFIG_VERSION})
    grown = cast(cast(col(Meta.value), Integer) + number, String)
    await session.exec(update(Meta).where(col(Meta.name) == CONFIG_VERSION).values(value=grown))
