"""One replica's ledger as a process of its own, to be killed and paused.

python -m tests.support.replica URL FOLDER NAME — writes one record after the other, each awaited
until it is in the signed head, and says on standard output what happens: `elected EPOCH`,
`deposed EPOCH`, `sealed ID INDEX`, `failed ERROR`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from gateway.audit.ledger import Ledger
from gateway.audit.signing import Signer
from gateway.errors import GatepassError
from gateway.store.database import open_database
from gateway.store.notifications import Notifications
from gateway.telemetry import configure_logging, utc_now
from tests.support.ledger import SEED, a_record
from tests.support.repository import ROOT


async def _main(url: str, folder: str, name: str) -> None:
    db = open_database(url)
    notifications = Notifications(db)
    signer = Signer("gatepass.test", SEED, Path(folder) / f"{name}.head")
    ledger = Ledger(db, signer, utc_now, notifications=notifications)
    async with asyncio.TaskGroup() as group:
        group.create_task(notifications.run())
        group.create_task(ledger.run())
        group.create_task(_report(ledger))
        await ledger.ready.wait()
        print("ready", flush=True)
        for number in itertools.count():
            await _write(ledger, f"{name}:{os.getpid()}:{number}")
            await asyncio.sleep(0.01)


async def _write(ledger: Ledger, key: str) -> None:
    record = a_record(utc_now, key)
    try:
        async with ledger.transaction() as tx:
            tx.record(record)
        receipt = await tx.sealed()
    except (GatepassError, DBAPIError) as error:
        print("failed", type(error).__name__, flush=True)
    else:
        assert receipt is not None
        print("sealed", record.id, receipt.index, flush=True)


async def _report(ledger: Ledger) -> None:
    was = False
    while True:
        if ledger.elected != was:
            was = ledger.elected
            print("elected" if was else "deposed", ledger._sequencer.epoch, flush=True)
        await asyncio.sleep(0.005)


class Replica:
    """The process as a test sees it."""

    def __init__(self, url: str, folder: Path, name: str) -> None:
        self._out = folder / f"{name}.out"
        self._out.touch()
        with self._out.open("ab") as out, (folder / f"{name}.err").open("ab") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.replica", url, str(folder), name],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                stdout=out,
                stderr=err,
            )
        self.name = name

    @property
    def said(self) -> list[list[str]]:
        """What it has said, in order; a line that it could not finish is left out."""
        text = self._out.read_text()
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def elected(self) -> bool:
        """Whether it believes to be the sequencer."""
        standing = [line[0] for line in self.said if line[0] in {"elected", "deposed"}]
        return standing[-1:] == ["elected"]

    @property
    def sealed(self) -> dict[str, int]:
        """The records that it was told are sealed, and where."""
        return {line[1]: int(line[2]) for line in self.said if line[0] == "sealed"}

    async def until(self, true: object, seconds: float = 30) -> None:
        """Wait until `true(self)`."""
        async with asyncio.timeout(seconds):
            while not true(self):
                assert self._process.poll() is None, "it has ended"
                await asyncio.sleep(0.02)

    def pause(self) -> None:
        """SIGSTOP: its locks stay, and so do its connections."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        configure_logging("info")
        asyncio.run(_main(*sys.argv[1:]))
