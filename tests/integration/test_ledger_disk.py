"""What the disk does to the ledger: full, broken, and in which order it is asked to keep things."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from gateway.audit.ledger import Ledger
from gateway.errors import Unavailable
from gateway.store.database import Database, open_database
from gateway.store.tables import metadata
from tests.support.clock import FakeClock
from tests.support.ledger import a_record, check_ledger, make_ledger, running
from tests.support.repository import ROOT

pytestmark = pytest.mark.slow
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


async def made(file: Path) -> Database:
    db = open_database(f"sqlite+aiosqlite:///{file}")
    async with db.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    return db


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of a few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can only be mounted by root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_C_17_a_full_disk_fails_closed_reading_goes_on_and_it_recovers_by_itself(
    small_disk: Path, clock: FakeClock
) -> None:
    db = await made(small_disk / "gatepass.sqlite3")
    ledger = make_ledger(db, clock)
    acknowledged = 0
    async with running(ledger):
        for number in range(20):
            acknowledged += await written(ledger, clock, f"before {number}")
        assert acknowledged == 20
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        refused = 0
        for number in range(400):
            done = await written(ledger, clock, f"full {number}")
            acknowledged += done
            refused += not done
            if refused > 5:
                break
        assert refused > 5
        assert await size(db) > 0  # reading works
        filler.unlink()
        async with asyncio.timeout(30):
            while not await written(ledger, clock, f"after {os.urandom(4).hex()}"):
                await asyncio.sleep(0.1)
        await ledger.settle()
        assert ledger.healthy
    assert await check_ledger(db) > acknowledged
    await db.close()


async def written(ledger: Ledger, clock: FakeClock, key: str) -> bool:
    try:
        async with ledger.transaction() as tx:
            tx.record(a_record(clock, key))
        return await tx.sealed() is not None
    except (Unavailable, OperationalError):
        return False


async def size(db: Database) -> int:
    async with db.reading() as session:
        rows = await (await session.connection()).execute(
            metadata.tables["audit_checkpoints"].select()
        )
        return len(rows.all())


def traced(folder: Path, *options: str, seconds: float = 4) -> tuple[int | None, str, str]:
    """A replica's ledger under strace: its exit code, what it said, and the trace."""
    asyncio.run(_make(folder / "gatepass.sqlite3"))
    trace = folder / "trace"
    command = ["strace", "-f", "-y", "-o", str(trace), *options]
    command += [sys.executable, "-m", "tests.support.replica"]
    command += [f"sqlite+aiosqlite:///{folder / 'gatepass.sqlite3'}", str(folder), "one"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # strace ends without what it traces
    )
    try:
        said, complained = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, complained = process.communicate(timeout=20)
        if "ptrace" in complained and "not permitted" in complained:
            pytest.skip("strace may not trace here")
        return None, said, trace.read_text()
    return process.returncode, said, trace.read_text()


async def _make(file: Path) -> None:
    await (await made(file)).close()


@needs_strace
def test_C_18_when_the_disk_does_not_keep_it_the_process_ends_and_acknowledges_nothing(
    tmp_path: Path,
) -> None:
    broken = "inject=fdatasync,fsync:error=EIO:when=40+"
    code, said, trace = traced(
        tmp_path, "-e", "trace=fdatasync,fsync,write", "-e", broken, seconds=60
    )
    assert code not in {0, None}, said
    before, _, after = trace.partition("EIO")
    assert "sealed" in before
    assert after
    assert '"sealed' not in after
    assert len(re.findall("EIO", trace)) <= 4  # never as if it could work another time


@needs_strace
def test_C_28_nothing_is_acknowledged_before_it_is_on_the_disk(tmp_path: Path) -> None:
    _, said, trace = traced(tmp_path, "-e", "trace=fdatasync,fsync,write,pwrite64", seconds=8)
    assert said.count("sealed") > 5
    kept, acknowledged, since = True, 0, 0
    for line in _finished(trace):
        if re.search(r"pwrite64\(\d+<[^>]*-wal>", line):
            kept = False
        elif re.search(r"f(data)?sync\(\d+<[^>]*-wal>\) += 0", line):
            kept, since = True, since + 1
        elif re.search(r'write\(1<[^>]*>, "sealed', line):
            assert kept, line
            assert since >= 2, line  # its commit, and that of its head
            acknowledged, since = acknowledged + 1, 0
    assert acknowledged > 5


def _finished(trace: str) -> Iterator[str]:
    """The system calls in the order of their ends; writes in that of their beginnings."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>").strip()
            if "write" in call:
                yield call
        elif call.startswith("<..."):
            whole = begun.pop(thread, "") + call.partition("resumed>")[2]
            if "write" not in whole.partition("(")[0]:
                yield whole
        else:
            yield call
