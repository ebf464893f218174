"""Values of vaults elsewhere: fresh is fresh, many ask once, and a failure ends what was kept."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import Unavailable
from gateway.vault import Purpose, Secret, SecretRef
from gateway.vault.sharing import Shared

REF = SecretRef.parse("vault:kv/crm#token")
FRESH, AGAIN = Purpose(), Purpose(fresh=False)


class Slow:
    """A store that answers when it is told to. What it gives is its value when it was asked."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.value: str | None = "v1"
        self.asked = 0
        self.closed = False
        self.go = asyncio.Event()
        if at_once:
            self.go.set()

    async def open(self, ref: SecretRef, purpose: Purpose) -> Secret:
        self.asked += 1
        value = self.value
        await self.go.wait()
        if value is None:
            raise Unavailable("It is gone.", code="secret_missing")
        return Secret(str(ref), value)

    async def ping(self) -> None:
        """It is there."""

    async def close(self) -> None:
        self.closed = True


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    """Everybody has got as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_many_at_once_share_one_request():
    store = Slow()
    shared = Shared(store, 5, Time())
    first = asyncio.ensure_future(shared.open(REF, FRESH))
    await settled()
    store.value = "v2"
    others = [asyncio.ensure_future(shared.open(REF, FRESH)) for _ in range(20)]
    await settled()
    assert store.asked == 1
    store.go.set()
    assert (await first).reveal() == "v1"
    # The running request began before they came: what it brings may be older than they are.
    assert {secret.reveal() for secret in await asyncio.gather(*others)} == {"v2"}
    assert store.asked == 2


async def test_a_failure_is_shared_like_a_value():
    store = Slow()
    store.value = None
    shared = Shared(store, 5, Time())
    asking = [asyncio.ensure_future(shared.open(REF, FRESH)) for _ in range(5)]
    await settled()
    store.go.set()
    told = await asyncio.gather(*asking, return_exceptions=True)
    assert {str(problem) for problem in told} == {"It is gone."}
    assert store.asked == 2


async def test_whoever_gives_up_stops_nobody_else():
    store = Slow()
    shared = Shared(store, 5, Time())
    asking = [asyncio.ensure_future(shared.open(REF, FRESH)) for _ in range(3)]
    await settled()
    asking[0].cancel()
    await settled()
    store.go.set()
    told = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(told[0], asyncio.CancelledError)
    assert [secret.reveal() for secret in told[1:]] == ["v1", "v1"]


async def test_a_value_is_used_again_for_a_while_and_only_by_who_may():
    store, time = Slow(at_once=True), Time()
    shared = Shared(store, 5, time)
    for purpose, asked in ((AGAIN, 1), (AGAIN, 1), (FRESH, 2), (AGAIN, 2), (FRESH, 3)):
        await shared.open(REF, purpose)
        assert store.asked == asked
    store.value = "v2"
    time.now += 4.9
    assert (await shared.open(REF, AGAIN)).reveal() == "v1"
    time.now += 0.1
    assert (await shared.open(REF, AGAIN)).reveal() == "v2"


async def test_S_16_after_a_failure_nothing_of_before_is_used():
    store = Slow(at_once=True)
    shared = Shared(store, 3600, Time())
    await shared.open(REF, FRESH)
    store.value = None
    assert (await shared.open(REF, AGAIN)).reveal() == "v1", "nobody has noticed yet"
    for purpose in (FRESH, AGAIN, FRESH):
        with pytest.raises(Unavailable) as caught:
            await shared.open(REF, purpose)
        assert caught.value.code == "secret_missing"
    store.value = "v2"
    assert (await shared.open(REF, AGAIN)).reveal() == "v2"


async def test_nothing_is_kept_where_that_is_not_wanted():
    store = Slow(at_once=True)
    shared = Shared(store, 0, Time())
    await shared.open(REF, AGAIN)
    await shared.open(REF, AGAIN)
    assert store.asked == 2


async def test_references_are_known_apart_and_old_ones_forgotten():
    store, time = Slow(at_once=True), Time()
    shared = Shared(store, 5, time)
    await shared.open(REF, AGAIN)
    await shared.open(SecretRef.parse("vault:kv/crm#other"), AGAIN)
    await shared.open(SecretRef("vault", "kv/crm", "token", "srv_2 https://x.example/"), AGAIN)
    assert store.asked == 3
    time.now += 6
    await shared.open(REF, AGAIN)
    assert len(shared._known) == 1
    await shared.close()
    assert (shared._known, store.closed) == ({}, True)
