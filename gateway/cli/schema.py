"""Bringing the database to the schema of this program, and saying when it is not.

SQLite is migrated by whoever starts on it; PostgreSQL only by `gatepass migrate`, so that a
rolling upgrade changes the schema once and on purpose.
"""

from __future__ import annotations

import asyncio
import logging
import os

from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from gateway.cli.runtime import sqlite_file
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.store import migration


def upgrade(settings: Settings) -> str:
    """Run every migration that is missing; returns the version reached. Safe to repeat."""
    _make_file(settings)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return migration.upgrade(settings.resolved_database_url)
    except CommandError as error:
        raise Unavailable(
            f"The database cannot be migrated: {error}. Was it made by a newer version?",
            code="schema_unknown",
        ) from None
    except DBAPIError as error:
        if not _is_locked(str(error.orig)):
            raise
        raise Unavailable(
            "The database is in use: a migration waited for what another connection has locked, "
            "and gave up. Nothing of that migration was done; run 'gatepass migrate' again.",
            code="schema_locked",
        ) from None


def prepare(settings: Settings) -> None:
    """Make sure that the schema is ours: migrate SQLite, refuse a PostgreSQL that is behind."""
    if not settings.postgresql:
        upgrade(settings)
        return
    found = asyncio.run(migration.current(settings.resolved_database_url))
    if found != migration.newest():
        raise Unavailable(
            f"The database is at version {found or 'none'}, this program needs "
            f"{migration.newest()}: run 'gatepass migrate' first.",
            code="schema_behind",
        )


def _is_locked(words: str) -> bool:
    return "lock timeout" in words or "database is locked" in words


def _make_file(settings: Settings) -> None:
    # Before the driver does: what it makes, others on this machine could read.
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (file := sqlite_file(settings)) is not None:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
