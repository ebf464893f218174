"""`gatepass serve` as a process, behind a bare socket: what it answers to bytes as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway import config
from gateway.app import create_services
from gateway.store import migration
from tests.support.demo import open_world
from tests.support.gateway import MODEL, Gateway, Process, environment, furnish
from tests.support.ports import free_port
from tests.support.sockets import Reply, exchange

BODY = json.dumps({"model": MODEL, "input": "Hello"}).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
RESPONSES = "/openai/v1/responses"
LINE = f"POST {RESPONSES} HTTP/1.1"


@dataclass
class Wall:
    """The process behind its socket."""

    gateway: Gateway
    port: int
    process: Process

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def request(
        self,
        *lines: str,
        line: str = LINE,
        host: str | None = "",
        key: str | None = "",
        body: bytes = BODY,
        length: bool = True,
    ) -> bytes:
        """A good request but for what is changed."""
        head = [line]
        head += [] if host is None else [f"host: {host or self.host}"]
        head += [] if key is None else [f"api-key: {key or self.gateway.key}"]
        head += [f"content-length: {len(body)}"] if length else []
        return "\r\n".join([*head, *lines]).encode("latin-1") + b"\r\n\r\n" + body

    async def send(self, *parts: bytes, **options: Any) -> Reply:
        return await exchange(self.port, *parts, **options)

    async def recorded(self) -> list[dict[str, Any]]:
        """The refusals in the ledger, newest first."""
        found = await self.gateway.api(
            "GET", "/audit/records", params={"kind": "security.refused", "limit": 200}
        )
        return [item["record"] for item in found.json()["items"]]

    async def refuses(
        self, raw: bytes | Iterable[bytes], status: int, code: str, *, known: bool = True
    ) -> Reply:
        """One answer, the connection's end, nothing at Azure; a record when the app is `known`."""
        sent = len(await self.gateway.upstream_requests())
        before = await self.recorded() if known else []
        parts = [raw] if isinstance(raw, bytes) else raw
        reply = await self.send(*parts)
        assert (reply.statuses, reply.code, reply.closed) == ([status], code, True), reply.raw
        assert len(await self.gateway.upstream_requests()) == sent
        new = [] if not known else await self._new(before)
        assert [(entry["code"], entry["subject"]["app"]) for entry in new] == (
            [(code, "support-bot")] if known else []
        )
        return reply

    async def _new(self, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for _ in range(100):
            now = await self.recorded()
            if len(now) > len(before):
                return now[: len(now) - len(before)]
            await asyncio.sleep(0.02)
        return []


async def open_wall(stack: AsyncExitStack, folder: Path, **changes: str) -> Wall:
    """A gateway in a process of its own, with an app and a reviewer."""
    world = await open_world(stack)
    port = free_port()
    environ = environment(folder, world, port, **changes)
    settings = config.load(environ)
    await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
    services = create_services(settings)
    key, token = await furnish(services, world.bank)
    await services.ledger.settle()
    await services.db.close()
    process = Process(environ, folder)
    stack.callback(process.kill)
    await process.start()
    gateway = Gateway(world, process.url, key, token, folder)
    await stack.enter_async_context(gateway.clients)
    return Wall(gateway, port, process)
