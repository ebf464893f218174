"""Approvals in a storm: each is carried out once or not at all, and nothing said is taken back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer
from tests.torture.mortals import Zygote
from tests.torture.storm import weather

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.postgres]
APPROVALS = int(os.environ.get("APPROVALS", "100"))
PAUSE = float(os.environ.get("PAUSE", "0.5"))  # seconds from one break to the next


async def test_E_04_every_approval_of_a_storm_is_carried_out_at_most_once(
    ancestor: Zygote, tmp_path: Path, postgres_server: PostgresServer
):
    url = await postgres_server.create()
    toll = await weather(ancestor, tmp_path, url, count=APPROVALS, pause=PAUSE, processes=2)
    print(toll)
    assert (toll.doubled, toll.unapproved, toll.sent_twice, toll.lost) == (0, 0, 0, 0)
    assert toll.effects > APPROVALS / 2
