"""Hints between the processes that share one PostgreSQL: "look again, something was committed".

A hint, never the truth: it may come twice, late, or not at all, so that whoever reacts reads the
database, and polling stays behind it. On SQLite there is one gateway, and nothing to do.

`tell` belongs into a transaction and is sent by its commit. PostgreSQL lets transactions that
tell something commit one after another: what happens often is better sent by `Notifications.send`
after the commit, which costs nobody's commit anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.store.database import Database
from gateway.telemetry import log

#: Requests were decided, or are over: their ids and those of their exchanges, between commas.
DECIDED = "gatepass_decided"
#: Audit records were committed that wait for their place.
RECORDED = "gatepass_recorded"
#: A head was signed: its size.
SEALED = "gatepass_sealed"
#: The configuration was changed.
CONFIGURED = "gatepass_configured"
#: An exchange was changed: its id.
EXCHANGE = "gatepass_exchange"

_LONGEST = 7_900  # bytes; PostgreSQL takes less than 8,000
_MOST = 1_000  # hints that wait to be sent, before they become "look at everything"
_PING = 5.0  # seconds without a word before the connection is tried
_PATIENCE = 5.0  # seconds for PostgreSQL to answer
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next attempt to connect
_SEND = "SELECT pg_notify(said.c, said.p) FROM unnest($1::text[], $2::text[]) AS said (c, p)"

React = Callable[[str], None]


async def tell(through: AsyncSession | AsyncConnection, channel: str, payload: str = "") -> None:
    """Say something when the transaction of `through` commits; nothing on SQLite.

    A payload that is too long becomes "", which means: look at everything.
    """
    connection = await through.connection() if isinstance(through, AsyncSession) else through
    if connection.dialect.name == "postgresql":
        said = {"channel": channel, "payload": _clipped(payload)}
        await connection.execute(text("SELECT pg_notify(:channel, :payload)"), said)


class Notifications:
    """One per process: a connection of its own that listens and says, while `run` is running."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._reactions: dict[str, list[React]] = defaultdict(list)
        self._unsaid: dict[tuple[str, str], None] = {}
        self._stirred = asyncio.Event()
        self._running = False
        self._lost = False

    def on(self, channel: str, react: React) -> None:
        """Call `react` with each payload that another process sends on `channel`.

        It is called with "" after each connecting, when something may have been missed. Must be
        quick, and may be called for nothing. Say so before `run`.
        """
        self._reactions[channel].append(react)

    async def send(self, channel: str, payload: str = "") -> None:
        """Say what was committed already; not to this process. Never fails: it is a hint."""
        if self._db.dialect != "postgresql":
            return
        if self._running:
            self._queue(channel, _clipped(payload))
            return
        try:  # a command, which listens to nobody
            async with self._db.connection() as connection:
                await tell(connection, channel, payload)
        except Exception as error:
            log.warning("notification.not_sent", channel=channel, error=type(error).__name__)

    async def run(self) -> None:
        """Listen and say for ever, connecting again whenever the connection is lost."""
        if self._db.dialect != "postgresql":
            return
        failures = 0
        self._running = True
        try:
            while True:
                try:
                    async with self._connected() as driver:
                        failures = 0
                        self._look_at_everything()
                        await self._serve(driver)
                except Exception as error:
                    log.warning("notifications.lost", error=type(error).__name__)
                await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1
        finally:
            self._running = False

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        connection = await self._db.engine.connect()
        try:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            # It is nobody else's from here on, nor one of those that the pool counts.
            await connection.run_sync(lambda plain: plain.detach())
            self._lost = False
            driver.add_termination_listener(self._on_lost)
            for channel in self._reactions:
                await driver.add_listener(channel, self._on_said)
            yield driver
        finally:
            await connection.close()

    async def _serve(self, driver: Any) -> None:
        while not self._lost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING):
                    await self._stirred.wait()
            self._stirred.clear()
            unsaid, self._unsaid = list(self._unsaid), {}
            channels, payloads = [said[0] for said in unsaid], [said[1] for said in unsaid]
            # With nothing to say it still tells whether the connection lives.
            await driver.execute(_SEND, channels, payloads, timeout=_PATIENCE)

    def _queue(self, channel: str, payload: str) -> None:
        if len(self._unsaid) >= _MOST:
            self._unsaid = {(known, ""): None for known, _ in self._unsaid}
        self._unsaid[channel, payload] = None
        self._stirred.set()

    def _look_at_everything(self) -> None:
        for channel in self._reactions:
            self._react(channel, "")

    def _on_said(self, driver: Any, sender: int, channel: str, payload: object) -> None:
        if sender != driver.get_server_pid():
            self._react(channel, str(payload))

    def _on_lost(self, _driver: Any) -> None:
        self._lost = True
        self._stirred.set()

    def _react(self, channel: str, payload: str) -> None:
        for react in self._reactions[channel]:
            try:
                react(payload)
            except Exception as error:
                log.warning("notification.failed", channel=channel, error=type(error).__name__)


def _clipped(payload: str) -> str:
    return payload if len(payload.encode()) <= _LONGEST else ""
