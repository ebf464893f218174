"""Migrations: one line of history, and at its end exactly the tables of the code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gateway.store.database import open_database
from gateway.store.tables import metadata
from tests.support.repository import ROOT

FOLDER = ROOT / "migrations"


def history() -> ScriptDirectory:
    assert (FOLDER / "env.py").is_file(), "migrations/env.py is missing"
    return ScriptDirectory(FOLDER)


def test_there_is_one_head() -> None:
    heads = history().get_heads()
    assert len(heads) == 1, f"heads: {heads}"


def test_there_is_one_start_and_every_step_says_what_it_does() -> None:
    revisions = list(history().walk_revisions())
    assert [revision.is_base for revision in revisions].count(True) == 1
    assert all(revision.doc for revision in revisions)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def test_migrated_database_has_the_tables_of_the_code(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'gatepass.sqlite3'}"
    if kind == "postgresql":
        server = request.getfixturevalue("postgres_server")
        url = await server.create()
    for _ in range(2):  # the second run finds nothing to do
        migrate(url, tmp_path)
    database = open_database(url)
    try:
        async with database.engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await database.close()
        if kind == "postgresql":
            await server.drop(url)


def migrate(url: str, folder: Path) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GATEPASS_")}
    settings = {"GATEPASS_DATA_DIR": str(folder), "GATEPASS_DATABASE_URL": url}
    for name in ("master", "signing"):
        key = folder / f"{name}.key"
        if not key.exists():
            key.write_bytes(os.urandom(32))
            key.chmod(0o600)
        settings[f"GATEPASS_{name.upper()}_KEY_FILE"] = str(key)
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "migrate"],
        env=inherited | settings,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return compare_metadata(context, metadata)


def test_the_draft_of_the_next_migration_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, folder / "draft.py", "add nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    number = len(list(history().walk_revisions())) + 1
    drafted = folder / "versions" / f"{number:04}_add_nothing.py"
    assert drafted.is_file(), done.stdout
    assert "op." not in drafted.read_text()
