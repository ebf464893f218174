"""C-26: memory ends under load. Python raises `MemoryError` anywhere, or the kernel kills."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer
from tests.torture.mortals import Zygote
from tests.torture.storm import weather

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.postgres]
APPROVALS = int(os.environ.get("APPROVALS", "100"))
#: More than half of the time it has to go on with the memory that it has, and then gets more.
WEIGHTS = {"memory ends": 3, "out of memory": 2}


async def test_C_26_memory_that_ends_under_load_loses_nothing_and_doubles_nothing(
    ancestor: Zygote, tmp_path: Path, postgres_server: PostgresServer
):
    url = await postgres_server.create()
    toll = await weather(
        ancestor,
        tmp_path,
        url,
        count=APPROVALS,
        pause=0.3,
        processes=2,
        weights=WEIGHTS,
        padding=100_000,
    )
    logs = "".join(path.read_text(errors="replace") for path in tmp_path.glob("serve-*.log"))
    errors = logs.count("MemoryError")
    print(f"{errors} times MemoryError; {toll}")
    assert errors > 0, "memory never ended"
    assert toll.done["out of memory"] > 0
    assert (toll.doubled, toll.unapproved, toll.sent_twice, toll.lost) == (0, 0, 0, 0)
    assert toll.effects > APPROVALS / 2
