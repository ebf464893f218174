"""A database that does not answer: whoever asks is told so, and may ask again."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gateway.store.database import open_database, outage
from tests.support.gateway import open_gateway

pytestmark = pytest.mark.e2e


def lost(kind: type[DBAPIError], *, invalidated: bool = False) -> DBAPIError:
    return kind("SELECT 1", None, ValueError(), connection_invalidated=invalidated)


@pytest.mark.parametrize(
    "error",
    [
        lost(OperationalError),
        lost(InterfaceError),
        lost(DBAPIError, invalidated=True),
        PoolTimeout(),
        ConnectionResetError(),
    ],
)
def test_no_answer_is_told_as_such(error: Exception) -> None:
    told = outage(error)
    assert told is not None
    assert (told.status, told.code) == (503, "unavailable")


@pytest.mark.parametrize("error", [lost(DBAPIError), lost(IntegrityError), ValueError(), OSError()])
def test_other_errors_are_other_errors(error: Exception) -> None:
    assert outage(error) is None


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def test_what_a_statement_was_given_stands_in_no_error(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'empty.sqlite3'}"
    if kind == "postgresql":
        url = await request.getfixturevalue("postgres_server").create()
    database = open_database(url)
    try:
        async with database.engine.connect() as connection:
            with pytest.raises(DBAPIError) as raised:
                await connection.execute(text("SELECT :what FROM nowhere"), {"what": "a payload"})
        assert "a payload" not in str(raised.value)
    finally:
        await database.close()


async def test_apps_and_programs_hear_of_it_as_503(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path)
        assert gateway.services is not None
        async with gateway.services.db.connection() as connection:
            for table in ("response_ids", "reviews"):
                await connection.execute(text(f"ALTER TABLE {table} RENAME TO {table}_gone"))
        answer = await gateway.raw("GET", "/openai/v1/responses/resp_1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        shown = await gateway.api("GET", "/approval-requests/apr_1")
        assert shown.status_code == 404
        listed = await gateway.api("GET", "/alarms")
        assert listed.status_code == 200
        async with gateway.services.db.connection() as connection:
            await connection.execute(text("ALTER TABLE alarms RENAME TO alarms_gone"))
        listed = await gateway.api("GET", "/alarms")
        assert (listed.status_code, listed.json()["code"]) == (503, "unavailable")
        assert "alarms" not in listed.json()["detail"]
        async with gateway.services.db.connection() as connection:
            for table in ("response_ids", "reviews", "alarms"):
                await connection.execute(text(f"ALTER TABLE {table}_gone RENAME TO {table}"))
