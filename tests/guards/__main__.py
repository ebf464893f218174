"""Take every guard away, one by one, and see a test turn red: `python -m tests.guards [WORD …]`.

In copies of the tree, so that processes which tests start lack the guard as well. First all the
tests run with every guard in place. Prints which test noticed what; ends with 1 when nothing did.
WORDS choose the guards whose names hold one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.guards.guard import Guard
from tests.guards.listed import GUARDS
from tests.support.repository import ROOT, files

JOBS = int(os.environ.get("JOBS", "2"))
PATIENCE = 240.0  # seconds for the tests of one guard; one that hangs has not noticed
#: How pytest tells of a test that failed, and of why.
_FAILED, _ERROR = (
    re.compile(rf"^{word} (.+?)(?: - (.*))?$", re.MULTILINE) for word in ("FAILED", "ERROR")
)
_SILENT = "nothing noticed"


@dataclass(frozen=True)
class Seen:
    """What came of one guard: the test that turned red, or why none counts."""

    guard: Guard
    red: str | None
    why: str


class Tree:
    """A copy of the repository in which one guard at a time is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._times = 0
        for path in files():
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)

    @contextlib.contextmanager
    def without(self, guard: Guard):
        """The tree without it; as it was afterwards."""
        before = {change.file: (ROOT / change.file).read_text() for change in guard.changes}
        after = dict(before)
        for change in guard.changes:
            after[change.file] = change.of(after[change.file])
        self._write(after)
        try:
            yield
        finally:
            self._write(before)

    def _write(self, texts: dict[str, str]) -> None:
        self._times += 2
        for name, text in texts.items():
            path = self.folder / name
            path.write_text(text)
            # What was compiled before is known by its time, to the second.
            os.utime(path, (self._times, self._times))

    async def run(self, *tests: str, stop: bool = True) -> tuple[int, str]:
        """Exit code and output of pytest; -1 when it took too long."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--tb=no",
            *tests,
        ]
        process = await asyncio.create_subprocess_exec(
            *command,
            *tests,
            *(["-x"] if stop else []),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "COLUMNS": "300", "CI": "true"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(PATIENCE * (1 if stop else 10)):
                out, _ = await process.communicate()
            return process.returncode or 0, out.decode(errors="replace")
        except TimeoutError:
            return -1, ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def look(tree: Tree, guard: Guard) -> Seen:
    """Which test notices that the guard is gone."""
    with tree.without(guard):
        code, out = await tree.run(*guard.tests)
    if code == 0:
        return Seen(guard, None, _SILENT)
    if code == -1:
        return Seen(guard, None, "it hangs")
    found = _FAILED.search(out) or _ERROR.search(out)  # what is cleared away fails after the test
    if code != 1 or found is None:
        return Seen(guard, None, out[-2000:] or f"pytest ended with {code}")
    return Seen(guard, found.group(1).rpartition("/")[2], found.group(2) or "")


async def main(words: list[str]) -> int:
    """The exit code."""
    chosen = [guard for guard in GUARDS if not words or any(word in guard.name for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        trees = [Tree(Path(folder) / str(number)) for number in range(max(1, JOBS))]
        tests = sorted({test for guard in chosen for test in guard.tests})
        code, out = await trees[0].run(*tests, stop=False)
        if code != 0:
            print(out, "With every guard in place these tests must pass.", sep="\n")
            return 1
        waiting = list(reversed(chosen))
        seen: list[Seen] = []

        async def work(tree: Tree) -> None:
            while waiting:
                seen.append(found := await look(tree, waiting.pop()))
                tell(found)

        await asyncio.gather(*(work(tree) for tree in trees))
    green = [one.guard.name for one in seen if one.red is None]
    print(f"{len(seen)} guards, {len(seen) - len(green)} noticed", *green, sep="\n  not: ")
    return 1 if green else 0


def tell(seen: Seen) -> None:
    """One line of the table, as soon as it is known."""
    print(f"{seen.guard.name:<72}  {seen.red or '-':<90}  {seen.why[:110]}", flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
