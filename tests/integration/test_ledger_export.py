"""Exports: complete, consistent, private; every byte counts; two verifiers agree."""

from __future__ import annotations

import asyncio
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.audit import reading, verify_evidence
from gateway.audit.evidence import Folder, verify
from gateway.audit.export import Exported, export
from gateway.audit.folder import Expected, verify_folder
from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.audit.verification import Layer
from gateway.errors import Refused
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.evidence import Teller, opener
from tests.support.ledger import a_record, check_ledger, make_ledger, running, signer

WHO = Actor("user", "usr_auditor", "session")


async def told(ledger: Ledger, clock: FakeClock, stories: int = 3) -> None:
    teller = Teller(clock)
    for number in range(stories):
        teller.whole(str(number))
    await ledger.append_all(teller.records)
    await ledger.settle()


async def exported(ledger: Ledger, clock: FakeClock, path: Path) -> Exported:
    return await export(ledger, path, actor=WHO, now=clock(), open_payload=opener)


def second_opinion(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    code = verify_evidence.main([str(path), *more])
    return code, capsys.readouterr().out


async def test_an_export_is_complete_private_and_sound(
    db: Database, clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = make_ledger(db, clock)
    await told(ledger, clock)
    done = await exported(ledger, clock, tmp_path / "evidence")
    assert (done.size, done.payloads) == (16, 3)
    report = verify(done.path)
    assert [str(finding) for finding in report.findings] == []
    assert (report.size, report.root) == (16, done.root)
    assert second_opinion(done.path, capsys)[0] == 0
    names = set(Folder(done.path))
    assert {"checkpoint", "VERIFY.md", "verify_evidence.py", "payloads/apr_0.json"} <= names
    assert {"proofs/2.tlog-proof", "proofs/7.tlog-proof", "proofs/12.tlog-proof"} <= names
    for path in done.path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    last = await reading.record(db, 15)
    assert (last.kind, last.document["actor"]["ref"]) == ("export.made", "usr_auditor")


async def test_C_19_a_torn_tile_is_found_and_made_anew_from_the_leaves(
    db: Database, clock: FakeClock, tmp_path: Path
) -> None:
    """In the database a tile is written with its head or not at all; a file can be cut anywhere."""
    ledger = make_ledger(db, clock)
    await told(ledger, clock, stories=60)
    done = await exported(ledger, clock, tmp_path / "evidence")
    for number, tile in enumerate(sorted((done.path / "tile").rglob("*"))):
        if not tile.is_file():
            continue
        whole = tile.read_bytes()
        tile.write_bytes(whole[: len(whole) // 2])
        assert verify(done.path).exit_code != 0, tile
        torn = tmp_path / f"anew-{number}"
        again = await exported(ledger, clock, torn)
        assert verify(again.path).exit_code == 0
        tile.write_bytes(whole)
    assert verify(done.path).exit_code == 0


async def test_the_shipped_verifier_runs_alone(
    sqlite: Database, clock: FakeClock, tmp_path: Path
) -> None:
    ledger = make_ledger(sqlite, clock)
    await told(ledger, clock)
    done = await exported(ledger, clock, tmp_path / "evidence")
    command = [sys.executable, "-I", str(done.path / "verify_evidence.py"), str(done.path)]
    command += ["--key", str(signer().verifier)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("SOUND: 16 records")
    source = (done.path / "verify_evidence.py").read_text()
    assert "import gateway" not in source
    assert "from gateway" not in source


async def test_flipping_any_byte_fails_and_names_the_record(
    sqlite: Database, clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file, at a spread of places; entries and level-0 tiles name the record itself."""
    ledger = make_ledger(sqlite, clock)
    await told(ledger, clock)
    done = await exported(ledger, clock, tmp_path / "evidence")
    files = dict(Folder(done.path))
    chance = random.Random(7)
    starts = _starts(files["tile/entries/000.p/16"])
    for path, content in files.items():
        count = len(content) if len(content) < 200 else 25
        for at in chance.sample(range(len(content)), count):
            damaged = bytearray(content)
            damaged[at] ^= 1 << chance.randrange(8)
            report = verify_folder({**files, path: bytes(damaged)})
            assert report.exit_code, (path, at)
            said = "\n".join(str(finding) for finding in report.findings)
            named = {finding.index for finding in report.findings}
            if path == "tile/entries/000.p/16":
                index = max(n for n, start in enumerate(starts) if start <= at)
                assert report.exit_code == Layer.TREE
                assert index in named, (at, said)
                entry = await reading.record(sqlite, index)
                inside = at - starts[index] - 2
                if inside not in _span(entry.body, entry.id) | _span(entry.body, entry.kind):
                    assert f"{entry.kind} {entry.id}" in said or inside < 0, (at, said)
            elif path.startswith("tile/0/"):
                assert at // 32 in named
            elif path.startswith("proofs/"):
                assert path in said
            elif path.startswith("payloads/"):
                assert report.exit_code == Layer.PAYLOADS
                assert named & {0, 5, 10}
            else:
                assert path in said
            if chance.random() < 0.1:
                place = done.path / path
                place.write_bytes(bytes(damaged))
                assert second_opinion(done.path, capsys)[0] == report.exit_code, (path, at, said)
                place.write_bytes(content)


def _starts(bundle: bytes) -> list[int]:
    starts, at = [], 0
    while at < len(bundle):
        starts.append(at)
        at += 2 + int.from_bytes(bundle[at : at + 2], "big")
    return starts


def _span(body: bytes, value: str) -> set[int]:
    # With the member's name before it, which must be readable too.
    start = body.find(b'"' + value.encode() + b'"')
    return set(range(start - 10, start + len(value) + 2))


async def test_A_44_export_made_during_writes_is_consistent_at_its_own_head(
    db: Database, clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = make_ledger(db, clock)
    async with running(ledger):
        await told(ledger, clock)
        stop = asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                async with ledger.transaction() as tx:
                    tx.record(a_record(clock, str(number)))
                await tx.sealed()

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            for number in range(4):
                done = await exported(ledger, clock, tmp_path / str(number))
                clock.advance(1)
                assert verify(done.path).findings == []
                assert second_opinion(done.path, capsys)[0] == 0
            stop.set()
    assert await check_ledger(db) > done.size


async def test_an_export_needs_a_folder_of_its_own(
    sqlite: Database, clock: FakeClock, tmp_path: Path
) -> None:
    ledger = make_ledger(sqlite, clock)
    await told(ledger, clock)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    with pytest.raises(Refused, match="not empty"):
        await exported(ledger, clock, tmp_path / "kept")
    assert (await reading.latest(sqlite)).size == 15  # nothing was recorded either


async def test_pins_and_receipts_of_an_honest_ledger_fit_forever(
    sqlite: Database, clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = make_ledger(sqlite, clock)
    await told(ledger, clock, 1)
    pin = (await reading.latest(sqlite)).note
    receipt = (await reading.proof(sqlite, 2)).text()
    await ledger.append_all([a_record(clock, str(number)) for number in range(700)])
    done = await exported(ledger, clock, tmp_path / "evidence")
    report = verify(done.path, Expected([signer().verifier], [pin], [receipt]))
    assert report.findings == []
    (tmp_path / "pin").write_text(pin)
    (tmp_path / "receipt").write_text(receipt)
    options = ["--pin", str(tmp_path / "pin"), "--receipt", str(tmp_path / "receipt")]
    assert second_opinion(done.path, capsys, *options)[0] == 0


async def test_A_45_symbolic_links_and_foreign_files_are_refused(
    sqlite: Database, clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = make_ledger(sqlite, clock)
    await told(ledger, clock)
    done = await exported(ledger, clock, tmp_path / "evidence")
    (done.path / "extra").symlink_to("/etc/hostname")
    with pytest.raises(Refused):
        verify(done.path)
    assert second_opinion(done.path, capsys)[0] == Layer.MANIFEST
    (done.path / "extra").unlink()
    (done.path / "extra").write_text("x")
    assert verify(done.path).exit_code == Layer.MANIFEST
    assert second_opinion(done.path, capsys)[0] == Layer.MANIFEST
