"""Several gateways on one PostgreSQL, each a process of its own that can be stopped or killed.

async with AsyncExitStack() as stack:
    house = await open_replicas(stack, folder, await postgres_server.create())
    one, two = house.replicas
    asking = asyncio.ensure_future(one.ask(TRANSFER))
    await two.decide()
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway import config
from gateway.app import create_services
from gateway.audit import reading
from gateway.audit.live import verify_live
from gateway.services import Services
from gateway.store import migration
from tests.support.attempts import RESPONSES
from tests.support.demo import TRANSFER, World, open_world
from tests.support.gateway import MODEL, Gateway, Process, environment, furnish, http
from tests.support.ports import free_port


@dataclass
class Replica(Gateway):
    """A gateway, and the process that it runs in."""

    process: Process | None = None

    @property
    def own(self) -> Process:
        """The process."""
        assert self.process is not None
        return self.process

    def body(self, text: str = TRANSFER, **changes: Any) -> dict[str, Any]:
        """A request that would transfer money."""
        return {"model": MODEL, "input": text, "tools": [self.tool()], **changes}


@dataclass
class House:
    """All of them, and what they share."""

    replicas: list[Replica]
    world: World
    services: Services

    async def records(self, kind: str) -> list[dict[str, Any]]:
        """Bodies of the records of a kind, oldest first; the whole ledger must be sound."""
        await self.services.ledger.settle()
        report = await verify_live(self.services.db, self.services.ledger.signer.verifier)
        assert report.valid, list(map(str, report.findings))
        found = await reading.search(self.services.db, reading.Query(kind=kind, limit=200))
        return [entry.document for entry in reversed(found.items)]


async def open_replicas(
    stack: AsyncExitStack,
    folder: Path,
    database: str,
    *,
    count: int = 2,
    each: tuple[dict[str, str], ...] = ({}, {}),
    **changes: str,
) -> House:
    """`count` gateways, ready; `each` are settings of single ones."""
    world = await open_world(stack)
    shared = {
        "GATEPASS_DATABASE_URL": database,
        "GATEPASS_MASTER_KEY_FILE": str(folder / "master.key"),
        "GATEPASS_SIGNING_KEY_FILE": str(folder / "signing.key"),
        "GATEPASS_KEEPALIVE": "1s",
        **changes,
    }
    settings = config.load(
        {name: value for name, value in environment(folder, world, 1, **shared).items()
         if name.startswith("GATEPASS_")}
    )  # fmt: skip
    await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
    services = create_services(settings)
    key, token = await furnish(services, world.bank)
    stack.push_async_callback(services.db.close)
    replicas = []
    for number in range(count):
        own = folder / f"replica-{number}"
        own.mkdir()
        more = each[number] if number < len(each) else {}
        environ = environment(own, world, free_port(), **{**shared, **more})
        process = Process(environ, own, ("tests.support.serving",))
        stack.callback(process.kill)
        replica = Replica(world, process.url, key, token, own, process=process)
        replicas.append(await stack.enter_async_context(_clients(replica)))
    await asyncio.gather(*(replica.own.start() for replica in replicas))
    return House(replicas, world, services)


@contextlib.asynccontextmanager
async def _clients(replica: Replica) -> AsyncIterator[Replica]:
    async with replica.clients:
        yield replica


class Streaming:
    """A streamed request whose events are noted as they come, to its end or the connection's."""

    def __init__(self, replica: Replica, body: dict[str, Any], **headers: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.status = 0
        self._arrived = asyncio.Event()
        self.task = asyncio.ensure_future(self._read(replica, body, headers))

    async def _read(self, replica: Replica, body: dict[str, Any], headers: dict[str, str]) -> None:
        client = http(replica.url, {"api-key": replica.key, **headers})
        whole = {**body, "stream": True}
        async with client, client.stream("POST", RESPONSES, json=whole) as answer:
            self.status = answer.status_code
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    self.events.append(orjson.loads(line[6:]))
                    self._arrived.set()

    async def seen(self, kind: str, seconds: float = 30) -> dict[str, Any]:
        """The first event of that kind, once it is there."""
        async with asyncio.timeout(seconds):
            while True:
                self._arrived.clear()
                for event in self.events:
                    if event["type"] == kind:
                        return event
                waiting = asyncio.ensure_future(self._arrived.wait())
                await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self.task.done() and not any(e["type"] == kind for e in self.events):
                    await self.task
                    raise AssertionError(f"the stream has ended without {kind}")

    async def cut(self) -> None:
        """Go away."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def ended(self) -> list[str]:
        """Wait for the end, however it comes; the types of all events."""
        await asyncio.wait([self.task])
        return [event["type"] for event in self.events]


async def read_stream(replica: Replica, response_id: str, after: int = -1) -> list[dict[str, Any]]:
    """The frames of a background stream past `after`, to its end."""
    query = {"stream": "true", "starting_after": str(after)}
    answer = await replica.raw("GET", f"{RESPONSES}/{response_id}", params=query)
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    return [orjson.loads(line[6:]) for line in lines if line.startswith("data: ")]


async def until(replica: Replica, approval_id: str, **wanted: str) -> dict[str, Any]:
    """The approval request, once its members have these values."""
    found: dict[str, Any] = {}
    for _ in range(600):
        found = await replica.request(approval_id)
        if all(found.get(name) == value for name, value in wanted.items()):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{approval_id} is {found}, not {wanted}")


async def over(replica: Replica, response_id: str) -> dict[str, Any]:
    """The response, once it is finished."""
    found: dict[str, Any] = {}
    for _ in range(600):
        answer = await replica.raw("GET", f"{RESPONSES}/{response_id}")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        if found["status"] not in {"queued", "in_progress"}:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"the response is not finished: {found}")
