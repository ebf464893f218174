"""Opening secrets from every store, and storing them in the sealed one, on real databases."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import sqlite3
import urllib.parse
from pathlib import Path

import pytest
import sqlalchemy
from prometheus_client import REGISTRY
from sqlmodel import SQLModel, select

from gateway.config import Settings
from gateway.errors import Refused, Unavailable
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.references import SecretRef
from gateway.store.tables import SealedSecret
from gateway.telemetry import utc_now
from gateway.vault import Secret, Vault, open_vault, opening, sealed
from gateway.vault.opening import remote_stores
from tests.support.clock import FakeClock
from tests.support.credentials import bound

HERE = bound("sealed:crm")
VALUE = "canary-7f3a-9e21"


@pytest.fixture
def envelope() -> Envelope:
    return Envelope(bytes(range(32)))


def vault(db: Database, envelope: Envelope, *keep_out: Path, **environment: str) -> Vault:
    return open_vault(db, envelope, environment, keep_out)


async def store(db: Database, envelope: Envelope, value: str, clock: FakeClock) -> int:
    async with db.transaction() as session:
        return await sealed.write(session, envelope, HERE, value, clock())


async def test_a_sealed_value_comes_back(
    db: Database, envelope: Envelope, clock: FakeClock
) -> None:
    assert await store(db, envelope, VALUE, clock) == 1
    opened = await vault(db, envelope).open(HERE)
    assert opened.reveal() == VALUE
    assert repr(opened) == "<secret sealed:crm>"
    await vault(db, envelope).ping()


async def test_the_newest_version_counts_at_once(
    db: Database, envelope: Envelope, clock: FakeClock
) -> None:
    opener = vault(db, envelope)
    for number in range(1, 5):
        assert await store(db, envelope, f"value-{number}", clock) == number
        assert (await opener.open(HERE)).reveal() == f"value-{number}"
    async with db.reading() as session:
        kept = [row.version for row in await session.exec(select(SealedSecret))]
    assert sorted(kept) == [3, 4]


async def test_nothing_in_the_table_is_readable(
    db: Database, envelope: Envelope, clock: FakeClock
) -> None:
    await store(db, envelope, VALUE, clock)
    async with db.reading() as session:
        row = (await session.exec(select(SealedSecret))).one()
    assert VALUE.encode() not in row.value + row.data_key
    assert "canary" not in row.name


@pytest.mark.parametrize(
    "scope",
    [
        "srv_1 https://evil.example/mcp",
        "srv_2 https://crm.example/mcp",
        "srv_1 https://crm.example/",
    ],
)
async def test_S_17_a_value_opens_for_its_server_and_address_alone(
    db: Database, envelope: Envelope, clock: FakeClock, scope: str
) -> None:
    await store(db, envelope, VALUE, clock)
    with pytest.raises(Unavailable) as caught:
        await vault(db, envelope).open(bound("sealed:crm", *scope.split()))
    assert caught.value.code in {"secret_missing", "sealed_value_broken"}
    assert "canary" not in str(caught.value)


async def test_S_17_a_row_moved_to_another_server_does_not_open(
    db: Database, envelope: Envelope, clock: FakeClock
) -> None:
    await store(db, envelope, VALUE, clock)
    other = bound("sealed:crm", "srv_2")
    async with db.transaction() as session:
        row = (await session.exec(select(SealedSecret))).one()
        session.add(SealedSecret(**{**row.model_dump(), "name": other.stored_as}))
    with pytest.raises(Unavailable, match="does not open"):
        await vault(db, envelope).open(other)


async def test_an_old_version_put_back_does_not_open(
    db: Database, envelope: Envelope, clock: FakeClock
) -> None:
    await store(db, envelope, "old-value", clock)
    await store(db, envelope, "new-value", clock)
    async with db.transaction() as session:
        rows = {row.version: row for row in await session.exec(select(SealedSecret))}
        rows[2].value, rows[2].data_key = rows[1].value, rows[1].data_key
        session.add(rows[2])
    with pytest.raises(Unavailable, match="does not open"):
        await vault(db, envelope).open(HERE)


async def test_another_master_key_opens_nothing(
    db: Database, envelope: Envelope, clock: FakeClock
) -> None:
    await store(db, envelope, VALUE, clock)
    with pytest.raises(Unavailable, match="the master key is another one"):
        await vault(db, Envelope(bytes(32))).open(HERE)


async def test_a_value_that_was_never_stored(db: Database, envelope: Envelope) -> None:
    with pytest.raises(Unavailable, match="No value has been stored for sealed:crm") as caught:
        await vault(db, envelope).open(HERE)
    assert caught.value.code == "secret_missing"


async def test_H_05_a_line_break_is_not_stored(
    db: Database, envelope: Envelope, clock: FakeClock
) -> None:
    for value in ("a\r\nX-Evil: 1", ""):
        with pytest.raises(Refused):
            await store(db, envelope, value, clock)


async def test_a_broken_database_fails_closed(tmp_path: Path, envelope: Envelope) -> None:
    from gateway.store.database import open_database

    empty = open_database(f"sqlite+aiosqlite:///{tmp_path / 'empty.sqlite3'}")
    for attempt in (vault(empty, envelope).open(HERE), vault(empty, envelope).ping()):
        with pytest.raises(Unavailable, match="OperationalError") as caught:
            await attempt
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
    await empty.close()


def spelt(value: str) -> list[bytes]:
    """The value as it could stand somewhere."""
    raw = value.encode()
    encoded = [base64.b64encode(b"x" * offset + raw)[4:-4] for offset in range(3)]
    return [
        raw, raw[::-1], raw.upper(), raw.hex().encode(), raw.hex().upper().encode(),
        value.encode("utf-16-le"), urllib.parse.quote(value, safe="").encode(),
        b"".join(b"%%%02X" % byte for byte in raw), *encoded,
    ]  # fmt: skip


async def everything(db: Database) -> bytes:
    """Every row of every table, as a dump would hold it; of SQLite the files as well."""
    found = b""
    async with db.connection() as connection:
        for table in SQLModel.metadata.sorted_tables:
            for row in await connection.execute(sqlalchemy.select(table)):
                found += b"\n".join(
                    value if isinstance(value, bytes) else str(value).encode() for value in row
                )
    if db.dialect == "sqlite":
        file = Path(str(db.engine.url.database))
        written = [path for path in file.parent.glob(f"{file.name}*") if path.is_file()]
        assert any(path.name.endswith("-wal") for path in written)
        with contextlib.closing(sqlite3.connect(file)) as beside:
            beside.execute("VACUUM INTO ?", (f"{file}.backup",))
        written.append(Path(f"{file}.backup"))
        found += b"".join(path.read_bytes() for path in written)
    return found


async def test_S_15_a_dump_the_log_and_a_backup_hold_wrapped_keys_alone(
    db: Database, clock: FakeClock
) -> None:
    master = os.urandom(32)
    envelope = Envelope(master)
    await store(db, envelope, "an older " + VALUE, clock)
    await store(db, envelope, VALUE, clock)
    stolen = await everything(db)
    async with db.reading() as session:
        rows = list(await session.exec(select(SealedSecret)))
    assert rows
    assert all(row.value in stolen and row.data_key in stolen for row in rows)
    for secret in (*spelt(VALUE), *spelt("an older " + VALUE), master, master.hex().encode()):
        assert secret not in stolen
    with pytest.raises(Unavailable):
        await vault(db, Envelope(os.urandom(32))).open(HERE)
    assert (await vault(db, envelope).open(HERE)).reveal() == VALUE


async def test_environment_variables(sqlite: Database, envelope: Envelope) -> None:
    opener = vault(
        sqlite, envelope, WIKI_TOKEN=VALUE, EMPTY="", BROKEN="a\nb", GATEPASS_MASTER_KEY=VALUE
    )
    assert (await opener.open(bound("env:WIKI_TOKEN"))).reveal() == VALUE
    for text, message in (
        ("env:MISSING", "The environment variable MISSING is not set"),
        ("env:EMPTY", "env:EMPTY is empty"),
        ("env:BROKEN", "holds a line break"),
        ("env:GATEPASS_MASTER_KEY", "a variable of the gateway itself"),
        ("env:gatepass_master_key", "a variable of the gateway itself"),
    ):
        with pytest.raises(Unavailable, match=message) as caught:
            await opener.open(bound(text))
        assert "canary" not in str(caught.value)


async def test_files_are_read_anew_when_they_change(
    sqlite: Database, envelope: Envelope, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    ref = bound(f"file:{file}")
    opener = vault(sqlite, envelope)
    with pytest.raises(Unavailable, match="No such file or directory"):
        await opener.open(ref)
    file.write_text("first\n")
    assert (await opener.open(ref)).reveal() == "first"
    file.write_text("second\r\n")
    os.utime(file, (1, 1))
    assert (await opener.open(ref)).reveal() == "second"
    replacement = tmp_path / "new"
    replacement.write_text("third!\n")
    os.utime(replacement, (1, 1))
    replacement.replace(file)  # as orchestrators do
    assert (await opener.open(ref)).reveal() == "third!"
    file.unlink()
    with pytest.raises(Unavailable, match="No such file or directory"):
        await opener.open(ref)


async def test_files_are_followed_when_an_orchestrator_swaps_their_folder(
    sqlite: Database, envelope: Envelope, tmp_path: Path
) -> None:
    """As Kubernetes mounts a secret: token → ..data/token, ..data → ..2026_11_27."""

    def publish(name: str, value: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(value)
        os.utime(tmp_path / name / "token", (1, 1))
        (tmp_path / "..tmp").symlink_to(name)
        (tmp_path / "..tmp").replace(tmp_path / "..data")

    publish("..1", "first!\n")
    (tmp_path / "token").symlink_to("..data/token")
    ref, opener = bound(f"file:{tmp_path}/token"), vault(sqlite, envelope)
    assert (await opener.open(ref)).reveal() == "first!"
    publish("..2", "second\n")
    shutil.rmtree(tmp_path / "..1")
    found = await opener.open(ref)
    assert (found.reveal(), found.version) == ("second", "1970-01-01T00:00:01.000Z")


async def test_a_file_that_is_swapped_while_it_is_looked_up_is_found(
    sqlite: Database, envelope: Envelope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, resolve, gone = tmp_path / "token", Path.resolve, []
    file.write_text(VALUE)

    def late(self: Path, strict: bool = False) -> Path:
        if self == file and not gone:
            gone.append(self)
            return tmp_path / "..1" / "token"  # its folder is removed a moment later
        return resolve(self, strict)

    monkeypatch.setattr(Path, "resolve", late)
    opener = vault(sqlite, envelope)
    assert (await opener.open(bound(f"file:{file}"))).reveal() == VALUE
    assert gone


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"a\nb\n", "holds a line break"),
        (b"\xff\xfe", "not ASCII text"),
        (b"a" * 20_000, "is longer than"),
    ],
)
async def test_files_that_hold_no_value(
    sqlite: Database, envelope: Envelope, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(Unavailable, match=message):
        await vault(sqlite, envelope).open(bound(f"file:{file}"))


async def test_the_gateways_own_files_are_no_credentials(
    sqlite: Database, envelope: Envelope, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "signing.key").write_text("secret\n")
    link = tmp_path / "link"
    link.symlink_to(data / "signing.key")
    opener = vault(sqlite, envelope, data)
    for path in (data / "signing.key", link, tmp_path / "x" / ".." / "data" / "signing.key"):
        with pytest.raises(Unavailable, match="a file of the gateway itself"):
            await opener.open(bound(f"file:{path}"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("vault:kv/mcp/crm#token", "'vault:' is not set up here: set GATEPASS_VAULT_ADDR."),
        ("oauth:crm", "'oauth:' is not part of this version; this installation opens sealed:, "
         "env:, file:, keyvault:."),
    ],
)  # fmt: skip
async def test_other_stores_are_refused_and_say_what_there_is(
    sqlite: Database, envelope: Envelope, text: str, sentence: str
) -> None:
    opener = open_vault(sqlite, envelope, {}, (), remote_stores(Settings(), utc_now))
    ref = bound(text)
    with pytest.raises(Unavailable) as caught:
        await opener.open(ref)
    assert caught.value.message == f"The secret store {sentence}"
    assert opener.problem_with(ref.store) == caught.value.message
    assert opener.problem_with("sealed") is None
    await opener.close()


class Silent:
    """A store elsewhere that does not answer."""

    async def open(self, ref: SecretRef, purpose: object) -> Secret:
        raise Unavailable("It is sealed.", code="vault_sealed")

    async def ping(self) -> None:
        raise Unavailable("It is sealed.", code="vault_sealed")

    async def close(self) -> None:
        """Nothing is open."""


async def test_readiness_does_not_depend_on_a_vault_elsewhere(
    sqlite: Database, envelope: Envelope
) -> None:
    opener = open_vault(sqlite, envelope, {}, (), {"vault": Silent()})
    await opener.ping()
    with pytest.raises(Unavailable, match="It is sealed"):
        await opener.ping("vault")


async def test_the_state_of_a_vault_elsewhere_is_a_metric_and_told_when_it_changes(
    sqlite: Database, envelope: Envelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr(opening.log, "warning", lambda event, **fields: told.append(fields))
    opener = open_vault(sqlite, envelope, {}, (), {"vault": Silent()})
    monkeypatch.setattr(opening, "_PAUSE", 0)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(opener.run())
        while not told:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        running.cancel()
    assert told == [{"store": "vault", "problem": "It is sealed."}]
    assert REGISTRY.get_sample_value("gatepass_vault_up", {"store": "vault"}) == 0


async def test_an_unknown_store_is_refused(sqlite: Database, envelope: Envelope) -> None:
    with pytest.raises(Unavailable, match="'aws:' is unknown"):
        await vault(sqlite, envelope).open(SecretRef("aws", "x", None, HERE.scope, HERE.bound))
