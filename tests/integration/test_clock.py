"""Every replica goes by the database's time, however wrong its own clock is."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from gateway.store.clock import DatabaseClock
from gateway.store.database import Database
from gateway.telemetry import utc_now

GENEROUS = timedelta(seconds=20)


@pytest.mark.parametrize("skew", [timedelta(hours=-3), timedelta(0), timedelta(days=2)])
async def test_E_03_a_wrong_clock_tells_the_databases_time(db: Database, skew: timedelta) -> None:
    def own() -> datetime:
        return utc_now() + skew

    clock = DatabaseClock(db, own)
    assert abs(clock() - own()) < GENEROUS
    await clock.adjust()
    if db.dialect == "sqlite":  # whose clock is the machine's
        assert abs(clock() - own()) < GENEROUS
    else:
        assert abs(clock() - utc_now()) < GENEROUS
