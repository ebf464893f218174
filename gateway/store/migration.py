"""Brings a database to the version of this program, with Alembic. Blocking: not for the loop.

Owns how migrations are found and run; what they do stands in `migrations/versions`.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

#: Seconds that a migration waits for what another connection has locked.
LOCK_PATIENCE = 10.0
_FOLDER = Path(__file__).resolve().parents[2] / "migrations"


def upgrade(url: str, to: str = "head") -> str:
    """Run what is missing, in order, each in a transaction of its own; the version reached.

    Makes the folder of a SQLite file, open to its owner only.
    """
    address = make_url(url)
    if address.get_backend_name() == "sqlite" and address.database:
        Path(address.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    command.upgrade(_config(url), to)
    return newest()


def newest() -> str:
    """The version that this program needs."""
    head = ScriptDirectory(str(_FOLDER)).get_current_head()
    if head is None:
        raise RuntimeError("there are no migrations")
    return head


async def current(url: str) -> str | None:
    """The version a database is at; None when it is empty."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(
                lambda plain: MigrationContext.configure(plain).get_current_revision()
            )
    finally:
        await engine.dispose()


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["url"] = url
    return config
