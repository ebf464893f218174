"""Hundreds of holds in one real process: their clients vanish, or the process is stopped.

HOLDS says how many; docs/operations.md tells what was seen with 500.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from gateway import config
from gateway.app import create_services
from gateway.audit.live import verify_live
from gateway.store import migration
from tests.support.attempts import RESPONSES
from tests.support.demo import open_world
from tests.support.gateway import MODEL, Gateway, Process, environment, furnish, http
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
HOLDS = int(os.environ.get("HOLDS", "100"))
GRACE = 15 + HOLDS // 20  # seconds: longer than it takes to look at all of them
DECIDED = 10  # of those whose clients have vanished
SLACK = 5  # connections of pools, and tasks that come and go
FILES = 3 * 40 + 30  # of the pools to the database and to Azure, once they are full
AT_ONCE = 24  # requests on their way to be held
PATIENCE = 120 + HOLDS / 5  # seconds for anything that all of them do


@dataclass(frozen=True)
class Load:
    """What the process holds on to."""

    clients: int  # connections that were made to it
    files: int
    tasks: int
    megabytes: float

    def __str__(self) -> str:
        counts = f"{self.clients} clients, {self.files} files, {self.tasks} tasks"
        return f"{counts}, {self.megabytes:.0f} MB"


@dataclass
class House:
    """A gateway in a process of its own, and everything around it."""

    gateway: Gateway
    process: Process
    settings: config.Settings
    api: httpx2.AsyncClient

    async def load(self) -> Load:
        """Counted from outside, but for the tasks."""
        tasks = (await self.api.get("/_test/counts")).json()["tasks"]
        proc = Path(f"/proc/{self.process.pid}")
        files = sum(1 for _ in (proc / "fd").iterdir())
        pages = int((proc / "statm").read_text().split()[1])
        return Load(self._connections(), files, tasks, pages * os.sysconf("SC_PAGESIZE") / 2**20)

    def _connections(self) -> int:
        """Those at its port that its side has not closed."""
        port = f":{int(self.gateway.url.rpartition(':')[2]):04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(line[1].endswith(port) and line[3] in {"01", "08"} for line in lines)

    async def holds(self) -> int:
        """How many exchanges wait for people in the process, as it says itself."""
        text = (await self.api.get("/metrics")).text
        found = re.search(r"^gatepass_holds_open (\S+)", text, re.MULTILINE)
        return int(float(found[1])) if found else 0

    async def requests(self, **query: str) -> list[dict[str, Any]]:
        """All approval requests, page by page."""
        found: list[dict[str, Any]] = []
        query |= {"limit": "200"}
        while True:
            answer = await self.api.get("/api/v1/approval-requests", params=query)
            page = answer.json()
            found += page["items"]
            if page["next"] is None:
                return found
            query["after"] = page["next"]

    async def review(self, request: dict[str, Any]) -> int:
        """Approve it; the status of the answer."""
        body = {"verdict": "approve", "digest": request["digest"]}
        path = f"/api/v1/approval-requests/{request['id']}/reviews"
        return (await self.api.post(path, json=body)).status_code

    async def until_over(self) -> list[dict[str, Any]]:
        """All of them, once nothing is undecided or on its way."""
        async with asyncio.timeout(PATIENCE):
            while True:
                requests = await self.requests()
                if not any(map(_open, requests)):
                    return requests
                await asyncio.sleep(0.5)

    async def effects(self) -> Counter[float]:
        """How often the bank was told to move which amount."""
        return Counter(effect["arguments"]["amount"] for effect in await self.gateway.effects())

    async def verify(self) -> None:
        """The process has ended; what it has left is sound."""
        services = create_services(self.settings)
        try:
            await services.ledger.settle()
            report = await verify_live(services.db, services.ledger.signer.verifier)
            assert report.valid, list(map(str, report.findings))
        finally:
            await services.db.close()


def _open(request: dict[str, Any]) -> bool:
    """Whether something of it is still to come."""
    if request["state"] == "approved":
        return request["execution"] in {"not_sent", "sending"} and not request["given_up"]
    return bool(request["state"] == "pending")


class Client:
    """One app that streams, over a bare socket; each has an amount of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def asks(cls, gateway: Gateway, number: int) -> Client:
        """A new one, whose call waits for people when this returns, or nearly."""
        text = f"Transfer {number / 100:.2f} EUR to account 0815"
        asked = {"model": MODEL, "input": text, "tools": [gateway.tool()], "stream": True}
        body = orjson.dumps(asked)
        host = gateway.url.removeprefix("http://")
        head = (
            f"POST {RESPONSES} HTTP/1.1\r\nhost: {host}\r\napi-key: {gateway.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        made = cls(*await asyncio.open_connection(*host.split(":"), limit=2**20))
        made.writer.write(head.encode() + body)
        await made.reader.readuntil(b"response.mcp_list_tools.completed")
        return made

    def vanish(self, *, politely: bool) -> None:
        """Close the connection, or have it reset."""
        self.writer.close() if politely else self.writer.transport.abort()


@asynccontextmanager
async def opened(folder: Path, url: str | None, **changes: str) -> AsyncIterator[House]:
    """A house whose gateway keeps its data on PostgreSQL at `url`, else on SQLite."""
    async with AsyncExitStack() as stack:
        world = await open_world(stack, keep=100_000)
        if url is not None:
            changes |= {
                "GATEPASS_DATABASE_URL": url,
                "GATEPASS_MASTER_KEY_FILE": str(folder / "master.key"),
                "GATEPASS_SIGNING_KEY_FILE": str(folder / "signing.key"),
            }
        environ = environment(folder, world, free_port(), **changes)
        settings = config.load({name: environ[name] for name in environ if "GATEPASS" in name})
        await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
        services = create_services(settings)
        key, token = await furnish(services, world.bank)
        await services.ledger.settle()
        await services.db.close()
        process = Process(environ, folder, ("tests.support.serving",))
        stack.callback(process.kill)
        await process.start()
        api = await stack.enter_async_context(
            http(process.url, {"authorization": f"Bearer {token}"})
        )
        yield House(Gateway(world, process.url, key, token, folder), process, settings, api)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def url(request: pytest.FixtureRequest) -> str | None:
    """Nothing for SQLite."""
    if request.param == "sqlite":
        return None
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return await server.create()


async def hold(house: House, first: int, count: int) -> list[Client]:
    """That many clients, all of them held."""
    before = await house.holds()
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int) -> Client:
        async with gate:
            return await Client.asks(house.gateway, number)

    async with asyncio.timeout(PATIENCE):
        clients = await asyncio.gather(*(ask(first + number) for number in range(count)))
        while await house.holds() < before + count:
            await asyncio.sleep(0.1)
    return clients


async def down_to(house: House, most: Load) -> Load:
    """The load, once it is no more than `most`, whatever its memory."""
    load = await house.load()
    try:
        async with asyncio.timeout(PATIENCE):
            while (
                load.clients > most.clients
                or load.files > most.files + SLACK
                or load.tasks > most.tasks + SLACK
            ):
                await asyncio.sleep(0.25)
                load = await house.load()
    except TimeoutError:
        raise AssertionError(f"{load}, and not {most}") from None
    return load


async def heard(house: House, first: int, count: int) -> Load:
    """Clients that wait until they have their answer; what is left afterwards."""
    base = await house.load()
    clients = await hold(house, first, count)
    await all_approved(house, await house.requests(state="pending"))
    await house.until_over()
    for client in clients:
        client.vanish(politely=True)
    return await down_to(house, Load(base.clients, base.files + FILES, base.tasks, 0))


async def vanished(house: House, first: int, count: int) -> Load:
    """Clients that vanish; `DECIDED` calls are approved nevertheless. What is left afterwards."""
    base = await house.load()
    clients = await hold(house, first, count)
    full = await house.load()
    assert full.clients >= base.clients + count
    for number, client in enumerate(clients):
        client.vanish(politely=number % 2 == 0)
    # Each hold keeps the task that waits for people; of its connection nothing stays.
    most = Load(base.clients, full.files - count, base.tasks + count, 0)
    gone = await down_to(house, most)
    pending = await house.requests(state="pending")
    assert len(pending) == count, "GRACE is too short for this machine"
    await all_approved(house, pending[:DECIDED])
    await house.until_over()
    assert await house.holds() == 0
    assert await house.review(pending[-1]) == 409
    over = await down_to(house, Load(base.clients, gone.files, base.tasks, 0))
    print(f"before: {base}; {count} held: {full}; clients gone: {gone}; all over: {over}")
    return over


async def all_approved(house: House, requests: list[dict[str, Any]]) -> None:
    """By a person who is quick."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def approve(request: dict[str, Any]) -> None:
        async with gate:
            assert await house.review(request) == 201

    await asyncio.gather(*(approve(request) for request in requests))


async def test_D_02_when_all_clients_vanish_their_slots_are_free_and_people_may_still_decide(
    tmp_path: Path, postgres_server: PostgresServer
):
    changes = {"GATEPASS_DISCONNECT_GRACE": f"{GRACE}s", "LINGER": "0.1"}
    async with opened(tmp_path, await postgres_server.create(), **changes) as house:
        await heard(house, 1, 50)  # everything is warm now
        one = await vanished(house, 100, HOLDS)
        two = await heard(house, 100 + HOLDS, HOLDS // 4)
        # What was let go of is used again.
        assert two.megabytes < one.megabytes * 1.1 + 5
        approved = 50 + DECIDED + HOLDS // 4
        ends = Counter((each["state"], each["execution"]) for each in await house.requests())
        assert ends == {
            ("approved", "executed"): approved,
            ("cancelled", "not_sent"): HOLDS - DECIDED,
        }
        effects = await house.effects()
        assert (len(effects), set(effects.values())) == (approved, {1})
        assert house.process.stop() == 0
        await house.verify()


async def test_C_25_a_stop_with_hundreds_of_holds_loses_none_and_doubles_none(
    tmp_path: Path, url: str | None
):
    async with opened(tmp_path, url) as house:
        clients = await hold(house, 1, HOLDS)
        requests = await house.requests(state="pending")
        assert len(requests) == HOLDS
        acknowledged: Counter[int] = Counter()

        async def review(request: dict[str, Any]) -> None:
            with contextlib.suppress(httpx2.TransportError):
                acknowledged[await house.review(request)] += 1

        # Some are on their way to Azure when it is stopped, whatever their number.
        reviewing = [asyncio.ensure_future(review(each)) for each in requests[::5]]
        while acknowledged.total() < min(20, HOLDS // 10):
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(house.process.stop) == 0
        await asyncio.gather(*reviewing)
        for client in clients:
            client.vanish(politely=True)
        await house.process.start()
        found = await house.requests()
        states = Counter((each["state"], each["execution"]) for each in found)
        print(f"reviews {dict(acknowledged)}; after the stop {dict(states)}")
        assert len(found) == HOLDS
        assert {state for state, _ in states} <= {"pending", "approved"}
        decided = sum(count for (state, _), count in states.items() if state == "approved")
        assert decided >= acknowledged[201]
        waiting = [each for each in found if each["state"] == "pending"]
        await all_approved(house, waiting)
        over = await house.until_over()
        ends = Counter((each["state"], each["execution"]) for each in over)
        print(f"at the end {dict(ends)}")
        assert set(ends) <= {("approved", "executed"), ("approved", "unknown")}
        effects = await house.effects()
        assert max(effects.values()) == 1
        for each in over:
            done = effects[orjson.loads(each["arguments"])["amount"]]
            assert done == 1 or each["execution"] == "unknown"
        assert await asyncio.to_thread(house.process.stop) == 0
        await house.verify()
