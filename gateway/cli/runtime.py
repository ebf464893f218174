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
from gateway.app import create_services
from gateway.approvals.decisions import Approvals
from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.services import Services
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.telemetry import Clock

T = TypeVar("T")


@dataclass(frozen=True)
class House:
    """The parts of one command, and who gave it."""

    services: Services
    actor: Actor

    @property
    def settings(self) -> Settings:
        """What the environment says."""
        return self.services.settings

    @property
    def db(self) -> Database:
        """The database."""
        return self.services.db

    @property
    def ledger(self) -> Ledger:
        """The ledger; settled before the command ends."""
        return self.services.ledger

    @property
    def envelope(self) -> Envelope:
        """What opens sealed payloads."""
        return self.services.envelope

    @property
    def approvals(self) -> Approvals:
        """The collaborators of reviews."""
        return self.services.approvals

    @property
    def clock(self) -> Clock:
        """The time."""
        return self.services.clock


def read_settings() -> Settings:
    """The settings from the environment; raises `Refused` naming what is wrong."""
    return config.load(config.environment())


def run(work: Callable[[House], Awaitable[T]]) -> T:
    """Do `work` and return its result once everything it wrote stands in the signed ledger."""

    async def whole() -> T:
        async with opened(read_settings()) as house:
            result = await work(house)
            await house.ledger.settle()
            return result

    return asyncio.run(whole())


def look(work: Callable[[House], Awaitable[T]]) -> T:
    """Do `work` that only reads."""

    async def whole() -> T:
        async with opened(read_settings()) as house:
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
async def opened(settings: Settings) -> AsyncIterator[House]:
    """The parts, closed again afterwards. Raises `Unavailable` when there is no database yet."""
    file = sqlite_file(settings)
    if file is not None and not file.exists():
        raise Unavailable(
            f"There is no database at {file}: run 'gatepass migrate' first, or set "
            "GATEPASS_DATA_DIR."
        )
    services = create_services(settings)
    try:
        yield House(services, operator())
    finally:
        await services.close()
