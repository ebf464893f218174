"""Gateways that die where they are told to, seen from outside; `Zygote` makes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import resource
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.support.demo import TOKEN


@dataclass
class Number:
    """A number in a file that two processes see at once."""

    path: Path
    memory: mmap.mmap

    @classmethod
    def at(cls, path: Path) -> Number:
        """A new one, zero."""
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            return cls(path, mmap.mmap(file.fileno(), 8))

    @property
    def value(self) -> int:
        """As it is now."""
        found: int = struct.unpack("q", self.memory[:8])[0]
        return found

    @value.setter
    def value(self, number: int) -> None:
        self.memory[:8] = struct.pack("q", number)


class Zygote:
    """The process that forks; one for many gateways."""

    def __init__(self, log: Path) -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.torture.zygote"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._line() == "ready", log.read_text()

    def fork(self, order: dict[str, object]) -> int:
        """A new gateway; its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """It ends when nobody can order any more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@contextlib.contextmanager
def zygote(log: Path) -> Iterator[Zygote]:
    """One for the time of the block."""
    made = Zygote(log)
    try:
        yield made
    finally:
        made.close()


@dataclass
class Mortal:
    """One gateway after the other in the same place: killed, started again."""

    zygote: Zygote
    environ: dict[str, str]
    folder: Path
    name: str = "a"
    clock: Number | None = None
    deaths: list[str] = field(default_factory=list)
    _fd: int | None = None
    _pid: int = 0

    def __post_init__(self) -> None:
        self.url = self.environ["GATEPASS_PUBLIC_URL"]
        self.armed = Number.at(self.folder / f"armed-{self.name}")
        self.points = self.folder / f"points-{self.name}"
        self.log = self.folder / f"serve-{self.name}.log"

    async def start(self, *, points: bool = True) -> None:
        """Start it and wait until it is ready."""
        self.armed.value = 0
        self.points.write_bytes(b"")
        order: dict[str, object] = {
            "environ": {**self.environ, "BANK_TOKEN": TOKEN},
            "log": str(self.log),
            "points": str(self.points) if points else None,
            "shared": str(self.armed.path),
            "clock": str(self.clock.path) if self.clock else None,
        }
        self._pid = self.zygote.fork(order)
        self._fd = os.pidfd_open(self._pid)
        async with httpx2.AsyncClient(base_url=self.url, verify=False) as client:
            for _ in range(2000):
                with contextlib.suppress(httpx2.TransportError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                assert self.alive, self.log.read_text()
                await asyncio.sleep(0.02)
        raise AssertionError(f"the gateway is not ready: {self.log.read_text()}")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._fd is not None and not select.select([self._fd], [], [], 0)[0]

    def arm(self, number: int) -> None:
        """From now on the `number`th point kills; a negative number only counts."""
        self.armed.value = number

    def passed(self) -> list[str]:
        """The points it came by since it was armed."""
        return self.points.read_text().splitlines() if self.points.exists() else []

    def send(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self._fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def squeeze(self, spare: int | None) -> None:
        """From now on it gets `spare` bytes of memory more than it has, and no more; None: as
        much as it wants.
        """
        with contextlib.suppress(OSError):  # it may have ended
            limit = resource.RLIM_INFINITY
            if spare is not None:
                pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + spare
            resource.prlimit(self._pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    async def end(self, number: int = signal.SIGKILL) -> None:
        """End it, and wait until it is gone."""
        self.send(number)
        await self.gone()

    async def gone(self, seconds: float = 30) -> None:
        """Wait for its end."""
        async with asyncio.timeout(seconds):
            while self.alive:
                await asyncio.sleep(0.005)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
