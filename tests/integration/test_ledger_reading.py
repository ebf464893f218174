"""Looking at the ledger, its proofs, and verifying it where it lives, on both databases."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from gateway.audit import reading, tree
from gateway.audit.checkpoint import Proof, open_note
from gateway.audit.ledger import Ledger
from gateway.audit.live import verify_live
from gateway.audit.reading import Query
from gateway.audit.signing import Signer, load_signer
from gateway.audit.verification import Layer
from gateway.errors import NotFound, Refused, Unavailable
from gateway.store.database import Database
from gateway.store.tables import metadata
from tests.support.clock import FakeClock
from tests.support.evidence import Teller
from tests.support.ledger import a_record, check_ledger, make_ledger, running, signer

RECORDS = metadata.tables["audit_records"]
HEADS = metadata.tables["audit_checkpoints"]
TILES = metadata.tables["audit_tiles"]
KEY = signer().verifier


@pytest.fixture
async def ledger(db: Database, clock: FakeClock) -> Ledger:
    """Five stories, sealed in five batches: 25 records."""
    made = make_ledger(db, clock)
    teller = Teller(clock)
    for number in range(5):
        teller.whole(str(number))
        await made.append_all(teller.records[-5:])
        await made.settle()
    return made


async def change(db: Database, index: int, **values: object) -> None:
    async with db.connection() as connection:
        await connection.execute(update(RECORDS).where(RECORDS.c.index == index).values(values))


async def body_of(db: Database, index: int) -> bytes:
    return (await reading.record(db, index)).body


async def test_a_record_by_index_and_by_id(ledger: Ledger) -> None:
    entry = await reading.record(ledger.db, 2)
    assert entry.kind == "approval.decided"
    assert entry.sentence == "send_email on crm was decided: approve, by reviewers."
    assert (await reading.record(ledger.db, entry.id)) == entry
    assert tree.leaf_hash(entry.body) == entry.leaf_hash
    for missing in (25, -1, "nothing"):
        with pytest.raises(NotFound):
            await reading.record(ledger.db, missing)


async def test_pages_newest_first_without_gap_or_repeat(ledger: Ledger) -> None:
    seen, after = [], None
    while True:
        page = await reading.search(ledger.db, Query(limit=4, after=after))
        seen += [entry.index for entry in page.items]
        after = page.next
        if after is None:
            break
    assert seen == list(range(24, -1, -1))
    with pytest.raises(Refused):
        await reading.search(ledger.db, Query(after="x"))


@pytest.mark.parametrize(
    ("query", "indexes"),
    [
        (Query(kind="approval.decided"), [22, 17, 12, 7, 2]),
        (Query(kind="release.*"), [23, 18, 13, 8, 3]),
        (Query(approval="apr_3"), [19, 18, 17, 16, 15]),
        (Query(exchange="exc_3", actor="usr_ann"), [17, 16]),
        (Query(app="app_1", server="crm", tool="send_email", limit=1), [24]),
        (Query(app="app_2"), []),
    ],
)
async def test_filters(ledger: Ledger, query: Query, indexes: list[int]) -> None:
    page = await reading.search(ledger.db, query)
    assert [entry.index for entry in page.items] == indexes


async def test_filter_by_time(ledger: Ledger) -> None:
    middle = await reading.record(ledger.db, 10)
    last = await reading.record(ledger.db, 12)
    page = await reading.search(ledger.db, Query(since=middle.ts, until=last.ts))
    assert [entry.index for entry in page.items] == [11, 10]


async def test_facets(ledger: Ledger) -> None:
    found = await reading.facets(ledger.db, Query(approval="apr_3"))
    assert found.kinds == dict.fromkeys(
        [
            "approval.requested",
            "approval.reviewed",
            "approval.decided",
            "release.sending",
            "execution.observed",
        ],
        1,
    )
    assert not found.bounded


async def test_every_proof_verifies(ledger: Ledger, clock: FakeClock) -> None:
    await ledger.append_all([a_record(clock, str(number)) for number in range(600)])
    await ledger.settle()
    head = await reading.latest(ledger.db)
    assert head is not None
    signed = open_note(head.note, [KEY])
    assert (signed.size, signed.root) == (625, head.root)
    for index in (0, 1, 255, 256, 300, 511, 512, 623, 624):
        proof = await reading.proof(ledger.db, index)
        leaf = tree.leaf_hash(await body_of(ledger.db, index))
        assert tree.verify_inclusion(leaf, index, 625, proof.hashes, head.root)
        assert Proof.parse(proof.text()) == proof
    for index in (-1, 625):
        with pytest.raises(NotFound):
            await reading.proof(ledger.db, index)
    old = await reading.head_at(ledger.db, 10)
    path = await reading.consistency(ledger.db, 10, 625)
    assert tree.verify_consistency((10, old.root), (625, head.root), path)
    with pytest.raises(NotFound):
        await reading.consistency(ledger.db, 0, 625)
    with pytest.raises(NotFound):
        await reading.head_at(ledger.db, 11)


async def test_the_four_states_of_a_record(ledger: Ledger, clock: FakeClock) -> None:
    db = ledger.db
    verdict = await reading.verify_record(db, KEY, 7)
    assert (verdict.state, verdict.index, verdict.size) == ("verified", 7, 25)
    assert (await reading.verify_record(db, KEY, 25)).state == "not_yet_sealed"
    stranger = Signer("elsewhere", bytes(32)).verifier
    assert (await reading.verify_record(db, stranger, 7)).state == "cannot_verify"
    await change(db, 7, body=(await body_of(db, 7)).replace(b"usr_ann", b"usr_bob"))
    verdict = await reading.verify_record(db, KEY, 7)
    assert verdict.state == "failed"
    assert "record 7" in verdict.reason
    assert "approval.decided" in verdict.reason


async def test_a_missing_record_and_altered_columns_fail(ledger: Ledger) -> None:
    db = ledger.db
    await change(db, 8, kind="approval.reviewed")
    assert (await reading.verify_record(db, KEY, 8)).state == "failed"
    async with db.connection() as connection:
        await connection.execute(delete(RECORDS).where(RECORDS.c.index == 24))
    assert (await reading.verify_record(db, KEY, 24)).state == "failed"


async def test_an_honest_ledger_is_sound_where_it_lives(ledger: Ledger, clock: FakeClock) -> None:
    pin = (await reading.head_at(ledger.db, 10)).note
    await ledger.append_all([a_record(clock, str(number)) for number in range(1200)])
    await ledger.settle()
    await ledger.append_all([a_record(clock, "later")])  # not sealed yet: nothing is said of it
    report = await verify_live(ledger.db, KEY, pins=[pin])
    assert [str(finding) for finding in report.findings] == []
    assert report.size == 1225
    await ledger.settle()
    assert await check_ledger(ledger.db) == 1226


async def test_an_empty_ledger_is_sound(db: Database) -> None:
    report = await verify_live(db, KEY)
    assert (report.valid, report.size) == (True, 0)
    assert await reading.latest(db) is None
    assert (await reading.search(db, Query())).items == []


async def test_A_01_A_43_a_row_changed_in_the_database(ledger: Ledger) -> None:
    await change(ledger.db, 7, body=(await body_of(ledger.db, 7)).replace(b"usr_ann", b"usr_bob"))
    report = await verify_live(ledger.db, KEY)
    assert (report.exit_code, report.findings[0].index) == (Layer.TREE, 7)
    assert "approval.decided" in report.findings[0].sentence


async def test_A_02_A_43_a_row_changed_together_with_its_hash(ledger: Ledger) -> None:
    body = (await body_of(ledger.db, 7)).replace(b"usr_ann", b"usr_bob")
    await change(ledger.db, 7, body=body, leaf_hash=tree.leaf_hash(body))
    report = await verify_live(ledger.db, KEY)
    assert report.exit_code == Layer.TREE
    texts = " ".join(finding.sentence for finding in report.findings)
    assert "the head at 10 was signed for other records" in texts
    assert "the head at 5 " not in texts


async def test_columns_that_tell_something_else(ledger: Ledger) -> None:
    await change(ledger.db, 7, tool="harmless")
    report = await verify_live(ledger.db, KEY)
    assert (report.exit_code, report.findings[0].index) == (Layer.TREE, 7)
    assert report.findings[0].damage == "columns altered"


async def test_rows_removed_or_heads_changed(ledger: Ledger) -> None:
    db = ledger.db
    note = (await reading.head_at(db, 10)).note
    async with db.connection() as connection:
        await connection.execute(
            update(HEADS).where(HEADS.c.size == 15).values(note=note, root=bytes(32))
        )
    assert (await verify_live(db, KEY)).exit_code == Layer.NOTES
    async with db.connection() as connection:
        await connection.execute(delete(RECORDS).where(RECORDS.c.index == 3))
    report = await verify_live(db, KEY)
    assert any(finding.index == 3 for finding in report.findings)


async def test_A_08_the_end_was_cut_off(ledger: Ledger) -> None:
    db = ledger.db
    head = await reading.latest(db)
    assert head is not None
    async with db.connection() as connection:
        await connection.execute(delete(RECORDS).where(RECORDS.c.index >= 20))
        await connection.execute(delete(HEADS).where(HEADS.c.size > 20))
    assert (await verify_live(db, KEY)).valid  # nobody can tell without an older head
    report = await verify_live(db, KEY, pins=[head.note])
    assert (report.exit_code, report.findings[0].damage) == (
        Layer.CONSISTENCY,
        "records are missing",
    )


async def test_a_stored_tile_was_changed(ledger: Ledger, clock: FakeClock) -> None:
    await ledger.append_all([a_record(clock, str(number)) for number in range(600)])
    await ledger.settle()
    async with ledger.db.connection() as connection:
        hashes = await connection.scalar(select(TILES.c.hashes))
        await connection.execute(update(TILES).values(hashes=hashes[:-1] + b"\0"))
    report = await verify_live(ledger.db, KEY)
    assert (report.exit_code, report.findings[0].damage) == (Layer.TREE, "tile hash mismatch")


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb"])
def test_an_origin_must_be_a_key_name(origin: str) -> None:
    with pytest.raises(Unavailable, match="cannot be named"):
        Signer(origin, bytes(32))


async def test_signer_files(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    made = load_signer(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_signer(path).verifier == made.verifier
    assert made.last() is None
    made.remember(made.sign(1, bytes(32)))
    assert made.last() == open_note(made.sign(1, bytes(32)), [made.verifier])
    assert load_signer(path).last() is None
    made.save()
    assert (tmp_path / "signing.key.head").stat().st_mode & 0o777 == 0o600
    assert load_signer(path).last() == open_note(made.sign(1, bytes(32)), [made.verifier])
    (tmp_path / "signing.key.head").write_text("nonsense")
    with pytest.raises(Unavailable, match="cannot be used"):
        load_signer(path).last()
    made.save()
    (tmp_path / "signing.key.head").unlink()
    assert made.last() == open_note(made.sign(1, bytes(32)), [made.verifier])
    other = load_signer(path)
    other.remember(other.sign(7, bytes(32)))
    other.save()
    assert made.last().size == 7
    made.remember(made.sign(9, bytes(32)))
    assert made.last().size == 9  # not saved yet, and not forgotten
    (tmp_path / "signing.key.head").chmod(0o644)
    (tmp_path / "signing.key.head.new").write_text("of a crash")
    made.remember(made.sign(2, bytes(32)))
    made.save()
    assert (tmp_path / "signing.key.head").stat().st_mode & 0o777 == 0o600
    made.save()  # nothing new
    path.chmod(0o644)
    with pytest.raises(Unavailable, match="chmod"):
        load_signer(path)


async def test_the_signed_head_is_kept_in_a_folder_of_our_own(
    sqlite: Database, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "data").mkdir()
    key = tmp_path / "keys" / "signing.key"
    made = load_signer(key, folder=tmp_path / "data")
    ledger = Ledger(sqlite, made, clock)
    await ledger.append_all([a_record(clock)])
    await ledger.settle()
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["signing.key"]
    assert load_signer(key, folder=tmp_path / "data").last() == made.last()
    assert made.last().size == 1


async def test_a_running_ledger_keeps_its_head_every_second(
    sqlite: Database, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.audit.ledger._MEMORY", 0.02)
    path = tmp_path / "signing.key"
    async with running(Ledger(sqlite, load_signer(path), clock, poll=0.05)) as ledger:
        async with ledger.transaction() as tx:
            tx.record(a_record(clock))
        await tx.sealed()
        async with asyncio.timeout(5):
            while load_signer(path).last() is None:
                await asyncio.sleep(0.01)


async def test_a_head_that_cannot_be_kept_is_no_outage(
    sqlite: Database, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    ledger = Ledger(sqlite, load_signer(tmp_path / "key", folder=tmp_path / "data"), clock)
    (tmp_path / "data").rmdir()
    await ledger.append_all([a_record(clock)])
    await ledger.settle()
    assert (await reading.latest(sqlite)).size == 1
