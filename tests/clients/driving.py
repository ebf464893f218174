"""Runs the programs of all clients at once against one gateway, with one person deciding.

Every case is played once: first those that are decided at once, then, when the machine is quiet,
those that wait, all of them at the same time, so that the long waits are paid for once. Nothing
is judged here: what the programs and the other sides report goes to the tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.audit.ledger import Transaction
from gateway.errors import Unavailable
from gateway.telemetry import utc_now
from tests.clients.environments import bring_programs, command
from tests.support.attempts import add_app
from tests.support.clients import Case, Client
from tests.support.gateway import Gateway, open_gateway

WAIT = 20.0
#: Seconds of thought, by capability; what is not named is decided at once.
THOUGHT = {"wait": WAIT, "retry": 7.0}
LONGEST = 300.0
#: Early header, comments and typed events all happen well within the wait.
SETTINGS = {
    "GATEPASS_EARLY_HEADER": "2s",
    "GATEPASS_HEARTBEAT": "1s",
    "GATEPASS_KEEPALIVE": "4s",
}
SERVERS = """
  - {label: silent, url: "http://127.0.0.1:9/mcp", allow_private_network: true}
  - label: keyless
    url: http://127.0.0.1:9/keyless
    allow_private_network: true
    credential: {header: Authorization, scheme: Bearer, from: "env:NOBODY_SET_THIS"}
"""
#: The other gateway's own bank is another one.
BRANCH = """
  - {label: branch, url: "%s/mcp", allow_private_network: true}
"""


@dataclass
class Played:
    """What came of one run: each program's report, and what all the others saw."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    upstream: list[dict[str, Any]] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)
    approvals: list[str] = field(default_factory=list)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The JSON that Azure was sent; an uploaded form is kept as text."""
        return [entry["body"] for entry in self.upstream if isinstance(entry["body"], dict)]

    def first_rounds(self, case: Case) -> int:
        """How often Azure was asked what `case` asks, resumes not counted."""
        return sum(case.name in json.dumps(body.get("input")) for body in self.bodies)

    def executed(self, case: Case) -> int:
        """How often the bank did what `case` asks for."""
        done = [effect["arguments"].get("reference") for effect in self.effects]
        return done.count(case.name)

    def people_asked(self, case: Case) -> int:
        """How many requests for approval `case` caused."""
        return self.approvals.count(case.name)


@dataclass(frozen=True)
class Stage:
    """Where the programs are sent: a gateway, and one that can record nothing."""

    gateway: Gateway
    mute: Gateway


def silence_ledger(gateway: Gateway) -> None:
    """From now on nothing can be recorded in it."""

    @asynccontextmanager
    async def transaction() -> AsyncIterator[Transaction]:
        raise Unavailable("The audit ledger cannot be written.", code="ledger_unavailable")
        yield

    assert gateway.services is not None
    gateway.services.ledger.transaction = transaction  # type: ignore[method-assign]


async def play(cases: Iterable[Case], folder: Path) -> Played:
    """Play `cases` against a gateway that keeps its data in `folder`."""
    played = Played()
    waves: tuple[list[Case], list[Case]] = ([], [])
    for case in cases:
        waves[case.capability.name in THOUGHT].append(case)
    bring_programs()
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, folder / "sound", declare=SERVERS, **SETTINGS)
        mute = await open_gateway(stack, folder / "mute", declare=BRANCH % gateway.world.bank)
        silence_ledger(mute)
        stage = Stage(gateway, mute)
        async with asyncio.timeout(LONGEST), asyncio.TaskGroup() as group:
            reviewer = group.create_task(_review(gateway, played))
            for wave in waves:
                await _run_all(stage, wave, played)
            reviewer.cancel()
        played.upstream = await gateway.upstream_requests()
        played.effects = await gateway.effects()
        await gateway.verify()
    return played


async def _run_all(stage: Stage, cases: list[Case], played: Played) -> None:
    by_client: dict[Client, list[Case]] = {}
    for case in cases:
        by_client.setdefault(case.client, []).append(case)
    async with asyncio.TaskGroup() as group:
        for client, own in by_client.items():
            group.create_task(_run(stage, client, own, played))


async def _run(stage: Stage, client: Client, cases: list[Case], played: Played) -> None:
    """One program with all its cases; what it does not report is reported as its last words."""
    app = f"{client.name}-{cases[0].capability.name}"
    key = await add_app(stage.gateway, app)
    strict = await add_app(stage.gateway, f"{app}-strict", plain="strict")
    bank = stage.gateway.world.bank
    process = await asyncio.create_subprocess_exec(
        *command(client),
        *(stage.gateway.url, key, strict, bank, stage.mute.url, stage.mute.key),
        *(case.name for case in cases),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    for line in out.decode().splitlines():
        report = json.loads(line)
        played.reports[report["case"]] = report
    for case in cases:
        silent = {"ok": False, "error": f"no report: {err.decode()[-2000:]}"}
        played.reports.setdefault(case.name, silent)


async def _review(gateway: Gateway, played: Played) -> None:
    """Decide everything that is asked, some of it late, until cancelled."""
    seen: set[str] = set()
    async with asyncio.TaskGroup() as group:
        while True:
            query = {"state": "pending", "limit": "200"}
            answer = await gateway.api("GET", "/approval-requests", params=query)
            for request in answer.json()["items"]:
                if request["id"] not in seen:
                    seen.add(request["id"])
                    group.create_task(_decide(gateway, request, played))
            await asyncio.sleep(0.1)


async def _decide(gateway: Gateway, request: dict[str, Any], played: Played) -> None:
    asked: str = json.loads(request["arguments"])["reference"]
    played.approvals.append(asked)
    capability = asked.partition("/")[2].partition(":")[0]
    if capability == "cancel":
        return
    age = (utc_now() - datetime.fromisoformat(request["created_at"])).total_seconds()
    await asyncio.sleep(max(0.0, THOUGHT.get(capability, 0.0) - age))
    await gateway.review(request, "deny" if capability == "denied" else "approve")
