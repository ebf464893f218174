"""What commands work with: the real parts on the real database, opened for one command.

Commands are use cases like any other edge's: the host's operator is the actor, and what they
write stands in the signed ledger before they end. A running server is not needed, and is not
disturbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import make_url

from gateway import config
from gateway.approvals.review import Approvals
from gateway.approvals.wakeups import Wakeups
from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.audit.signing import load_signer
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.store.database import Database, open_database
from gateway.store.envelope import Envelope, load_or_create_key
from gateway.telemetry import Clock, utc_now

T = TypeVar("T")


@dataclass(frozen=True)
class House:
    """The parts of one command."""

    settings: Settings
    db: Database
    ledger: Ledger
    envelope: Envelope
    wakeups: Wakeups
    actor: Actor
    clock: Clock

    @property
    def approvals(self) -> Approvals:
        """The collaborators of reviews."""
        return Approvals(self.ledger, self.envelope, self.wakeups)


def read_settings() -> Settings:
    """The settings from the environment; raises `Refused` naming what is wrong."""
    return config.load(config.environment())


def run(work: Callable[[House], Awaitable[T]]) -> T:
    """Do `work` and return its result once everything it wrote stands in the signed ledger."""

    async def whole() -> T:
        async with _opened(read_settings()) as house:
            result = await work(house)
            await house.ledger.settle()
            return result

    return asyncio.run(whole())


def look(work: Callable[[House], Awaitable[T]]) -> T:
    """Do `work` that only reads."""

    async def whole() -> T:
        async with _opened(read_settings()) as house:
            return await work(house)

    return asyncio.run(whole())


def operator() -> Actor:
    """Whoever runs commands on the host: named by number, as the host knows them."""
    return Actor("operator", f"uid:{os.getuid()}", "host")


def sqlite_file(settings: Settings) -> Path | None:
    """The file of the embedded database; None with PostgreSQL."""
    url = make_url(settings.resolved_database_url)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[House]:
    file = sqlite_file(settings)
    if file is not None and not file.exists():
        raise Unavailable(
            f"There is no database at {file}: run 'gatepass migrate' first, or set "
            "GATEPASS_DATA_DIR."
        )
    envelope = Envelope(load_or_create_key(settings.resolved_master_key_file))
    signer = load_signer(settings.resolved_signing_key_file, settings.ledger_origin)
    db = open_database(settings.resolved_database_url)
    try:
        yield House(
            settings=settings,
            db=db,
            ledger=Ledger(db, signer, utc_now),
            envelope=envelope,
            wakeups=Wakeups(db),
            actor=operator(),
            clock=utc_now,
        )
    finally:
        await db.close()
