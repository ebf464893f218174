"""Many approvals at once while everything breaks: kills, stops, resets, silence, jumping clocks.

Gateways on PostgreSQL behind a way that breaks; Azure behind another one. When the storm is over,
what the MCP server has done is compared with what the gateways say, call by call.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
from sqlalchemy import text

from gateway import config
from gateway.app import create_services
from gateway.approvals import reading
from gateway.store import migration
from gateway.store.database import open_database
from tests.support.demo import TOKEN, open_world
from tests.support.gateway import MODEL, environment, furnish
from tests.support.ports import free_port
from tests.torture.lives import CUT, verify
from tests.torture.mortals import Mortal, Number, Zygote
from tests.torture.proxying import Way, way_to

UNIT = 10_000
MODES = ("background", "plain", "background", "stream")
LANES = 8
#: What breaks, and how often in comparison.
WEATHER = {"kills": 3, "stops": 3, "reset": 5, "silence": 2, "jumps": 2}


@dataclass
class Toll:
    """What the storm did, and what was left of it."""

    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    lost: int = 0
    approvals: int = 0
    executions: Counter[str] = field(default_factory=Counter)
    effects: int = 0
    doubled: int = 0
    unapproved: int = 0
    sent_twice: int = 0
    unknown_unsent: int = 0

    def __str__(self) -> str:
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.done.items()))
        ends = ", ".join(f"{count} {name}" for name, count in sorted(self.executions.items()))
        return (
            f"{self.seconds:.0f} s: {done}; {self.approvals} approvals ({ends}), "
            f"{self.acknowledged} acknowledged decisions ({self.lost} lost), "
            f"{self.effects} effects ({self.doubled} double, {self.unapproved} unapproved, "
            f"{self.sent_twice} sent twice), "
            f"{self.unknown_unsent} unknown that Azure never saw"
        )


class Storm:
    """Everybody who asks, decides and breaks things."""

    def __init__(
        self,
        mortals: list[Mortal],
        ways: list[Way],
        key: str,
        token: str,
        tool: dict[str, Any],
        seed: random.Random,
    ) -> None:
        self.mortals, self.ways, self.seed = mortals, ways, seed
        self.weights: Mapping[str, int] = WEATHER
        self.padding = 0  # characters that every request has more than it needs
        self._key, self._token, self._tool = key, token, tool
        self.toll = Toll()
        self.acknowledged: dict[str, str] = {}
        self.answers: Counter[int] = Counter()
        self._numbers = itertools.count(1)
        self._there = asyncio.Event()
        limits = httpx2.Limits(max_connections=400)
        self._http = httpx2.AsyncClient(timeout=20, verify=False, limits=limits)

    async def run(self, count: int, pause: float) -> None:
        """Ask `count` times; something breaks every `pause` seconds or so."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(self._decide()) for _ in range(2)]
            chaos = group.create_task(self._break(pause))
            await asyncio.gather(*(self._lane(count) for _ in range(LANES * 6)))
            chaos.cancel()
            await asyncio.wait([chaos])
            await self.calm()
            for task in others:
                task.cancel()
        self.toll.seconds = time.monotonic() - began
        self.toll.done["resets"] = sum(way.resets for way in self.ways)
        self.toll.done["silences"] = sum(way.silences for way in self.ways)

    async def close(self) -> None:
        """The client's connections."""
        await self._http.aclose()

    # --- who asks ---------------------------------------------------------------------------

    async def _lane(self, count: int) -> None:
        while (number := next(self._numbers)) <= count:
            await self._ask(number)

    async def _ask(self, number: int) -> None:
        mode = MODES[number % len(MODES)]
        body: dict[str, Any] = {
            "model": MODEL,
            "input": f"Transfer {number / UNIT:.4f} EUR to account 0815",
            "tools": [self._tool],
        }
        if mode != "plain":
            body["background" if mode == "background" else "stream"] = True
        if self.padding:
            body["instructions"] = "x" * self.padding
        for attempt in range(100):
            await self._there.wait()
            if await self._asked(body, attempt):
                return
            await asyncio.sleep(0.25)

    async def _asked(self, body: dict[str, Any], attempt: int) -> bool:
        headers = {"api-key": self._key, "x-stainless-retry-count": str(attempt)}
        url = f"{self.seed.choice(self.mortals).url}/openai/v1/responses"
        try:
            answer = await self._http.post(url, json=body, headers=headers)
        except CUT:
            return False
        self.answers[answer.status_code] += 1
        return answer.status_code < 500

    # --- who decides ------------------------------------------------------------------------

    async def _decide(self) -> None:
        headers = {"authorization": f"Bearer {self._token}"}
        while True:
            await asyncio.sleep(0.02)
            await self._there.wait()
            url = f"{self.seed.choice(self.mortals).url}/api/v1/approval-requests"
            try:
                query = {"state": "pending", "limit": "100"}
                answer = await self._http.get(url, params=query, headers=headers)
                found = answer.json()["items"] if answer.status_code == 200 else []
                self.seed.shuffle(found)
                await asyncio.gather(*(self._review(url, item, headers) for item in found[:24]))
            except CUT:
                pass

    async def _review(self, url: str, request: dict[str, Any], headers: dict[str, str]) -> None:
        number = round(orjson.loads(request["arguments"])["amount"] * UNIT)
        verdict = "deny" if number % 7 == 0 else "approve"
        body = {"verdict": verdict, "reason": "storm", "digest": request["digest"]}
        path = f"{url}/{request['id']}/reviews"
        answer = await self._http.post(path, json=body, headers=headers)
        if answer.status_code == 201:
            self.acknowledged[request["id"]] = verdict

    # --- what breaks ------------------------------------------------------------------------

    async def _break(self, pause: float) -> None:
        while True:
            await asyncio.sleep(self.seed.uniform(pause / 2, pause * 1.5))
            [what] = self.seed.choices(list(self.weights), list(self.weights.values()))
            mortal, way = self.seed.choice(self.mortals), self.seed.choice(self.ways)
            match what:
                case "kills":
                    await mortal.end(signal.SIGKILL)
                    self.toll.done["kills"] += 1
                case "stops":
                    mortal.send(signal.SIGSTOP)
                    await asyncio.sleep(self.seed.uniform(0.1, 0.6))
                    mortal.send(signal.SIGCONT)
                    self.toll.done["stops"] += 1
                case "reset":
                    for _ in range(3):
                        way.reset()
                case "silence":
                    await way.silence(self.seed.uniform(0.2, 1.0))
                case "memory ends" | "out of memory":
                    mortal.squeeze(self.seed.choice([0, 2**20, 2**22]))
                    await asyncio.sleep(self.seed.uniform(0.3, 1.5))
                    if what == "out of memory":  # the kernel's way
                        await mortal.end(signal.SIGKILL)
                    mortal.squeeze(None)
                    self.toll.done[what] += 1
                case "jumps" if mortal.clock is not None:
                    mortal.clock.value = self.seed.randint(-600, 600)
                    self.toll.done["jumps"] += 1
            await self.up()

    async def up(self) -> None:
        """Whoever watches over processes starts those that ended."""
        for mortal in self.mortals:
            for _ in range(20):
                if mortal.alive:
                    self._there.set()
                    break
                if len(self.mortals) == 1:
                    self._there.clear()  # nobody asks into the void
                with contextlib.suppress(AssertionError):
                    await mortal.gone()
                    await mortal.start(points=False)
                    self.toll.done["starts"] += 1

    async def calm(self) -> None:
        """Nothing breaks any more: everything comes to its end."""
        for mortal in self.mortals:
            await mortal.end(signal.SIGKILL)
        await self.up()


async def settled(database_url: str, seconds: float) -> None:
    """Until nothing is undecided or on its way, and no exchange is open."""
    db = open_database(database_url)
    query = """SELECT e.id, e.state AS exchange, e.owner, e.fence, a.id AS approval, a.state,
        a.execution FROM exchanges e LEFT JOIN approval_requests a ON a.exchange_id = e.id
        WHERE e.state IN ('forwarding', 'holding', 'sending') OR a.state = 'pending'
        OR a.execution = 'sending'"""
    give_up = time.monotonic() + seconds
    try:
        while True:
            async with db.reading() as session:
                left = (await (await session.connection()).execute(text(query))).all()
            if not left:
                return
            assert time.monotonic() < give_up, left
            await asyncio.sleep(0.2)
    finally:
        await db.close()


async def compare(storm: Storm, settings: config.Settings, world: Any) -> Toll:
    """What was done, by the MCP server's own record, beside what is said about it: call by call.

    Every call has an amount of its own; one that was asked for twice has two requests.
    """
    toll = storm.toll
    requests = await _requests(settings)
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx2.AsyncClient(verify=False, timeout=60) as http:
        found = (await http.get(f"{world.bank}/effects", headers=headers)).json()["effects"]
    effects = Counter(round(effect["arguments"]["amount"] * UNIT) for effect in found)
    sent = await _answers(world)
    toll.approvals, toll.effects = len(requests), len(found)
    toll.executions = Counter(request.execution for request in requests)
    toll.acknowledged = len(storm.acknowledged)
    states = {request.id: request.state for request in requests}
    wanted = {"approve": "approved", "deny": "denied"}
    toll.lost = sum(
        states.get(name) != wanted[verdict] for name, verdict in storm.acknowledged.items()
    )
    toll.sent_twice = sum(count > 1 for count in sent.values())
    executed, possible = Counter[int](), Counter[int]()
    for request in requests:
        executed[request.amount] += request.execution == "executed"
        possible[request.amount] += request.execution in {"executed", "unknown"}
        told = sent[request.upstream_id]
        toll.unapproved += bool(told) and request.state != "approved"
        toll.unknown_unsent += request.execution == "unknown" and not told
        if told:
            assert request.execution in {"executed", "failed", "unknown"}, request
    toll.doubled = sum(count > possible[amount] for amount, count in effects.items())
    missing = [amount for amount, count in executed.items() if effects[amount] < count]
    assert missing == []
    return toll


@dataclass(frozen=True)
class Request:
    """A request for approval as the gateways left it."""

    id: str
    upstream_id: str
    state: str
    execution: str
    amount: int


async def _requests(settings: config.Settings) -> list[Request]:
    services = create_services(settings)
    found: list[Request] = []
    try:
        async with services.db.reading() as session:
            query = "SELECT id, upstream_id FROM approval_requests"
            rows = (await (await session.connection()).execute(text(query))).all()
        theirs = {row.id: row.upstream_id for row in rows}
        after = None
        while True:
            page = await reading.listing(
                services.db, services.envelope, query=reading.Query(after=after, limit=200)
            )
            for view in page.items:
                amount = round(orjson.loads(view.arguments)["amount"] * UNIT)
                name = theirs[view.id]
                found.append(Request(view.id, name, view.state, view.execution, amount))
            if (after := page.next) is None:
                return found
    finally:
        await services.db.close()


async def _answers(world: Any) -> Counter[str]:
    """How often Azure was told yes about each request."""
    sent: Counter[str] = Counter()
    for request in (await world.get("/_demo/requests")).json()["requests"]:
        items = (request.get("body") or {}).get("input")
        for item in items if isinstance(items, list) else []:
            if item.get("type") == "mcp_approval_response" and item["approve"]:
                sent[item["approval_request_id"]] += 1
    return sent


@contextlib.asynccontextmanager
async def open_storm(
    zygote: Zygote, folder: Path, url: str, processes: int, seed: int
) -> AsyncIterator[tuple[Storm, Any, config.Settings]]:
    """Gateways on one database, everything between them and the rest breakable."""
    async with AsyncExitStack() as stack:
        world = await open_world(stack, keep=100_000)
        generator = random.Random(seed)
        base, _, database = url.rpartition("/")
        head, _, port = base.rpartition(":")
        to_database, database_port = await stack.enter_async_context(way_to(int(port), generator))
        azure = int(world.url.rpartition(":")[2])
        to_azure, azure_port = await stack.enter_async_context(way_to(azure, generator))
        changes = {
            "GATEPASS_DATABASE_URL": f"{head}:{database_port}/{database}",
            "GATEPASS_UPSTREAM_URL": f"http://127.0.0.1:{azure_port}/openai/v1/",
            "GATEPASS_MASTER_KEY_FILE": str(folder / "master.key"),
            "GATEPASS_SIGNING_KEY_FILE": str(folder / "signing.key"),
        }
        mortals = []
        for number in range(processes):
            environ = environment(folder, world, free_port(), **changes)
            clock = Number.at(folder / f"clock-{number}")
            mortals.append(Mortal(zygote, environ, folder, str(number), clock))
        direct = {"GATEPASS_DATABASE_URL": url}
        settings = config.load({**mortals[0].environ, **direct})
        await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
        services = create_services(settings)
        key, token = await furnish(services, world.bank)
        await services.ledger.settle()
        await services.db.close()
        tool = {"type": "mcp", "server_label": "bank", "server_url": f"{world.bank}/mcp"}
        storm = Storm(mortals, [to_database, to_azure], key, token, tool, generator)
        await storm.up()
        try:
            yield storm, world, settings
        finally:
            await storm.close()
            for mortal in mortals:
                await mortal.end()


async def weather(
    zygote: Zygote,
    folder: Path,
    url: str,
    *,
    count: int,
    pause: float,
    processes: int = 1,
    weights: Mapping[str, int] = WEATHER,
    padding: int = 0,
) -> Toll:
    """One storm from its beginning to the verified ledger."""
    seed = int(os.environ.get("SEED", "1"))
    async with open_storm(zygote, folder, url, processes, seed) as (storm, world, settings):
        storm.weights, storm.padding = weights, padding
        await storm.run(count, pause)
        decide = asyncio.ensure_future(storm._decide())
        await settled(url, 120)
        decide.cancel()
        await asyncio.wait([decide])
        for mortal in storm.mortals:
            assert mortal.alive
            await mortal.end(signal.SIGKILL)
        storm.toll.done |= {f"answers {code}": n for code, n in storm.answers.items()}
        await verify(settings, folder)
        return await compare(storm, settings, world)
