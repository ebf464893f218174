"""A whole gateway between a scripted Azure and a real MCP server, for end-to-end tests.

In this process (`open_gateway`) or as a process of its own that can be killed (`Process`). Apps
talk to it with official clients, people through the management API; effects are read from the
MCP server's own record.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai

from gateway import config
from gateway.app import create_app
from gateway.audit import reading
from gateway.audit.live import verify_live
from gateway.audit.records import Actor
from gateway.demo.runner import serve
from gateway.identity import people, tokens
from gateway.registry import apply, apps
from gateway.registry.changes import By
from gateway.registry.declaration import parse
from gateway.registry.settings import AppSettings
from gateway.services import Services
from gateway.store import migration
from gateway.telemetry import utc_now
from tests.support.demo import KEY, TOKEN, World, open_world
from tests.support.ports import free_port

OPERATOR = Actor("operator", "test", "host")
MODEL = "gpt-4.1"

DECLARATION = """
servers:
  - label: bank
    url: {bank}/mcp
    allow_private_network: true
    credential: {{header: Authorization, scheme: Bearer, from: "env:BANK_TOKEN"}}
"""


def http(url: str, headers: dict[str, str]) -> httpx2.AsyncClient:
    """A client for one request. Reading the certificates would take longer than the request."""
    return httpx2.AsyncClient(base_url=url, headers=headers, timeout=60, verify=False)


@dataclass
class Gateway:
    """Everything a test needs of a running gateway."""

    world: World
    url: str
    key: str
    token: str
    folder: Path
    services: Services | None = None
    clients: AsyncExitStack = field(default_factory=AsyncExitStack)

    def tool(self, **changes: object) -> dict[str, Any]:
        """What an app declares; by itself it looks for a way round."""
        return {
            "type": "mcp",
            "server_label": "bank",
            "server_url": f"{self.world.bank}/mcp",
            "require_approval": "never",
            **changes,
        }

    async def app(self, **options: Any) -> openai.AsyncOpenAI:
        """The official client, with nothing changed but its address and key."""
        options = {"max_retries": 0, "api_key": self.key, **options}
        client = openai.AsyncOpenAI(base_url=f"{self.url}/openai/v1/", **options)
        return await self.clients.enter_async_context(client)

    async def ask(self, text: object, **changes: object) -> Any:
        """One request of the app, with the bank's tools."""
        client = await self.app()
        body = {"model": MODEL, "input": text, "tools": [self.tool()], **changes}
        return await client.responses.create(**body)

    async def raw(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """A request of the app without the official client."""
        headers = {"api-key": self.key, **options.pop("headers", {})}
        async with http(self.url, headers) as client:
            return await client.request(method, path, **options)

    async def api(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """A request of the reviewer to the management API."""
        headers = {"authorization": f"Bearer {self.token}"}
        async with http(self.url, headers) as client:
            return await client.request(method, f"/api/v1{path}", **options)

    async def pending(self, count: int = 1) -> list[dict[str, Any]]:
        """The waiting requests, once there are `count` of them."""
        items: list[dict[str, Any]] = []
        for _ in range(200):
            answer = await self.api("GET", "/approval-requests", params={"state": "pending"})
            items = answer.json()["items"]
            if len(items) >= count:
                return items
            await asyncio.sleep(0.05)
        raise AssertionError(f"{len(items)} requests are pending, not {count}")

    async def review(self, request: dict[str, Any], verdict: str = "approve") -> httpx2.Response:
        """The reviewer's review of what they were shown."""
        body = {"verdict": verdict, "reason": "as tested", "digest": request["digest"]}
        return await self.api("POST", f"/approval-requests/{request['id']}/reviews", json=body)

    async def decide(self, verdict: str = "approve", count: int = 1, after: float = 0) -> None:
        """Wait for `count` requests, think for `after` seconds, review them all the same way."""
        requests = await self.pending(count)
        await asyncio.sleep(after)
        for request in requests:
            answer = await self.review(request, verdict)
            assert answer.status_code == 201, answer.text

    async def request(self, approval_id: str) -> dict[str, Any]:
        """One request as the API shows it."""
        return (await self.api("GET", f"/approval-requests/{approval_id}")).json()

    async def effects(self) -> list[dict[str, Any]]:
        """What the MCP server itself recorded."""
        return await self.world.effects()

    async def rounds(self) -> int:
        """How many rounds Azure was sent; to ask it for what became of one sends nothing."""
        return sum(entry["method"] == "POST" for entry in await self.upstream_requests())

    async def upstream_requests(self) -> list[dict[str, Any]]:
        """What Azure was sent, in order."""
        found: list[dict[str, Any]] = (await self.world.get("/_demo/requests")).json()["requests"]
        return found

    async def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The bodies of the audit records, oldest first."""
        assert self.services is not None
        await self.services.ledger.settle()
        found = await reading.search(self.services.db, reading.Query(kind=kind, limit=200))
        return [entry.document for entry in reversed(found.items)]

    async def verify(self) -> None:
        """The live ledger is sound."""
        assert self.services is not None
        await self.services.ledger.settle()
        report = await verify_live(self.services.db, self.services.ledger.signer.verifier)
        assert report.valid, list(map(str, report.findings))


def environment(folder: Path, world: World, port: int, **changes: str) -> dict[str, str]:
    """The settings of a gateway in `folder`."""
    return {
        "GATEPASS_LISTEN": f"127.0.0.1:{port}",
        "GATEPASS_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "GATEPASS_DATA_DIR": str(folder / "data"),
        "GATEPASS_UPSTREAM_URL": f"{world.url}/openai/v1/",
        "GATEPASS_UPSTREAM_API_KEY": KEY,
        "GATEPASS_DRAIN": "1s",
        **changes,
    }


async def furnish(services: Services, bank: str, more: str = "") -> tuple[str, str]:
    """Register the bank, an app and a reviewer; the app's key and the reviewer's token."""
    now = utc_now()
    declaration = parse({"test.yaml": DECLARATION.format(bank=bank) + more})
    await apply.apply(services.ledger, declaration, By(OPERATOR, now))
    _, key = await apps.create(services.ledger, AppSettings("support-bot"), actor=OPERATOR, now=now)
    new = people.NewUser("rev@example.org", ("reviewer", "auditor"))
    user = await people.create_user(services.ledger, new, actor=OPERATOR, now=now)
    token = await tokens.create_token(services.ledger, user.id, actor=OPERATOR, now=now)
    return key.text, token


async def open_gateway(
    stack: AsyncExitStack,
    folder: Path,
    *,
    declare: str = "",
    world: Mapping[str, object] | None = None,
    **changes: str,
) -> Gateway:
    """A gateway in this process, with everything it needs; `world` sets the upstream up."""
    opened = await open_world(stack, **(world or {}))
    os.environ["BANK_TOKEN"] = TOKEN
    port = free_port()
    settings = config.load(environment(folder, opened, port, **changes))
    await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
    app = create_app(settings)
    url = await stack.enter_async_context(serve(app, port=port))
    services: Services = app.state.services
    key, token = await furnish(services, opened.bank, declare)
    await services.directory.refresh()
    gateway = Gateway(opened, url, key, token, folder, services)
    await stack.enter_async_context(gateway.clients)
    return gateway


class Process:
    """`gatepass serve`, or another module, as a process of its own."""

    def __init__(
        self, environ: dict[str, str], folder: Path, run: Sequence[str] = ("gateway", "serve")
    ) -> None:
        self._run = run
        self._environ = {**os.environ, **environ, "BANK_TOKEN": TOKEN}
        self._log = folder / "serve.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = environ["GATEPASS_PUBLIC_URL"]

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._run],
                env=self._environ,
                stdout=log,
                stderr=log,
            )
        async with httpx2.AsyncClient(base_url=self.url) as client:
            for _ in range(2400):
                with contextlib.suppress(httpx2.TransportError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                assert self._process.poll() is None, self.log()
                await asyncio.sleep(0.05)
        raise AssertionError(f"the gateway is not ready: {self.log()}")

    def freeze(self) -> None:
        """Let it do nothing more, though it is there."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it politely; its exit code."""
        return self._end(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Send it a signal, and go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(30)

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text()
