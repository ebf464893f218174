"""Fixtures that every kind of test may use: a clock, and real databases of both kinds."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import create_engine

from gateway import telemetry
from gateway.store.database import Database, open_database
from gateway.store.tables import metadata
from tests.support.clock import FakeClock
from tests.support.postgres import PostgresServer, running_postgres


@pytest.fixture(autouse=True)
def log_of_its_own() -> Iterator[None]:
    """Who sets up the log in a test writes to what is captured of that test: nobody does later,
    when it is closed, and a line that cannot be written is an error of whatever said it.
    """
    yield
    structlog.reset_defaults()
    telemetry.say_on_stderr()
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in [*root.handlers]:
        if type(handler) is logging.StreamHandler:  # those of pytest are of other types
            root.removeHandler(handler)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still at 2026-01-05 09:00 UTC until the test moves it."""
    return FakeClock()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run; `await create()` gives a fresh database's URL."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """The maintenance database of the test server."""
    return postgres_server.url()


@pytest.fixture
async def postgres_database(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty PostgreSQL database that belongs to this test alone."""
    url = await postgres_server.create()
    yield url
    await postgres_server.drop(url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def db_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'gatepass.sqlite3'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = await server.create()
    yield url
    await server.drop(url)


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with every table: to copy it takes a tenth of the time of making them."""
    path = tmp_path_factory.mktemp("empty") / "gatepass.sqlite3"
    engine = create_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    engine.dispose()
    return path


@pytest.fixture
async def db(db_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """A database with every table, once of each kind."""
    if db_url.startswith("sqlite"):
        shutil.copy(request.getfixturevalue("empty_sqlite"), db_url.partition(":///")[2])
    database = open_database(db_url)
    if database.dialect == "postgresql":
        async with database.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


@pytest.fixture
async def sqlite(tmp_path: Path, empty_sqlite: Path) -> AsyncIterator[Database]:
    """A SQLite database with every table, for what need not be run on both kinds."""
    path = shutil.copy(empty_sqlite, tmp_path / "gatepass.sqlite3")
    database = open_database(f"sqlite+aiosqlite:///{path}")
    yield database
    await database.close()
