"""Runs the four targets for a while and says how many inputs each took: `make fuzz SECONDS=600`.

    python -m tests.fuzz.run SECONDS [SEED]

A failure is printed with its seed and input, as small as it could be made; the exit code is 1.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz import bodies, rounds, streams, wire
from tests.support.edge import open_wall

MOST_FAILURES = 20


@dataclass
class Tally:
    """What became of the inputs of one target."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        common = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common(8))
        return (
            f"{self.name}: {self.outcomes.total()} inputs, {len(self.failures)} failures ({common})"
        )

    def failed(self, seed: int, error: Exception, show: Callable[[], object]) -> None:
        """Keep one failure of each kind, as small as it can be made."""
        self.outcomes["failed"] += 1
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        if place not in self.failures and len(self.failures) < MOST_FAILURES:
            self.failures[place] = f"seed {seed}: {error}\n  input: {str(show())[:3000]}"


def seeds(seconds: float, first: int) -> Iterator[int]:
    """Numbers until the time is over; a stuck input shows as a run that never ends."""
    end = time.monotonic() + seconds
    for number in itertools.count(first):
        if time.monotonic() >= end:
            return
        yield number


def fuzz_bodies(seconds: float, first: int = 0) -> Tally:
    """Request bodies."""
    tally = Tally("request bodies")
    for seed in seeds(seconds, first):
        raw = bodies.make(Random(seed))
        try:
            tally.outcomes[bodies.check(raw)] += 1
        except Exception as error:
            tally.failed(seed, error, lambda raw=raw: smaller(raw, bodies.check))
    return tally


def fuzz_streams(seconds: float, first: int = 0) -> Tally:
    """Event streams."""
    tally = Tally("event streams")
    for seed in seeds(seconds, first):
        random = Random(seed)
        raw = streams.make(random)
        try:
            tally.outcomes[streams.check(raw, random)] += 1
        except Exception as error:
            tally.failed(seed, error, lambda raw=raw: raw)
    return tally


def fuzz_rounds(seconds: float, first: int = 0, *, contents: bool = True) -> Tally:
    """Rounds of Azure; `contents`: what is in the frames is changed, too."""
    tally = Tally("upstream rounds")
    for seed in seeds(seconds, first):
        told = rounds.make(Random(seed), contents=contents)
        try:
            tally.outcomes[rounds.check(told, Random(seed))] += 1
        except Exception as error:
            tally.failed(
                seed, error, lambda told=told, seed=seed: rounds.shown(rounds.fewer(told, seed))
            )
    return tally


async def fuzz_wire(seconds: float, folder: Path, first: int = 0) -> Tally:
    """Raw bytes to a gateway in a process of its own."""
    tally = Tally("raw HTTP")
    async with AsyncExitStack() as stack:
        wall = await open_wall(stack, folder)
        numbers = seeds(seconds, first)

        async def some() -> None:
            for seed in numbers:
                random = Random(seed)
                raw = wire.make(random, wall.host, wall.gateway.key)
                try:
                    tally.outcomes[await wire.check(wall.port, raw, random)] += 1
                except Exception as error:
                    tally.failed(seed, error, lambda raw=raw: raw)

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(some())
        try:
            assert (await wall.send(wall.request())).statuses == [200], "it is not up any more"
            assert "Traceback" not in wall.process.log(), wall.process.log()[-3000:]
        except Exception as error:
            tally.failed(-1, error, wall.process.log)
    return tally


def smaller(raw: bytes, check: Callable[[bytes], object]) -> bytes:
    """The input with whatever can be left out of it left out, and still failing."""
    size = len(raw) // 2
    while size:
        at = 0
        while at < len(raw):
            shorter = raw[:at] + raw[at + size :]
            try:
                check(shorter)
                at += size
            except Exception:
                raw = shorter
        size //= 2
    return raw


def main(seconds: float, first: int) -> int:
    """Three quarters of the time to what needs no process."""
    part = seconds / 4
    tallies = [fuzz(part, first) for fuzz in (fuzz_bodies, fuzz_streams, fuzz_rounds)]
    with tempfile.TemporaryDirectory() as folder:
        tallies.append(asyncio.run(fuzz_wire(part, Path(folder), first)))
    for tally in tallies:
        print(tally)
        for place, shown in tally.failures.items():
            print(f"  {place}\n  {shown}")
    return 1 if any(tally.failures for tally in tallies) else 0


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:]]
    raise SystemExit(main(arguments[0], arguments[1] if len(arguments) > 1 else 0))
