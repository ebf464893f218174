"""Several apps at one gateway, and what must be true of every attempt to get round it.

Three things each time: the answer the app gets, nothing at Azure or at the MCP server, and a
record in the ledger under the app's name.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from gateway.registry import apps
from gateway.registry.settings import AppSettings
from gateway.telemetry import utc_now
from tests.support.demo import TRANSFER
from tests.support.gateway import MODEL, OPERATOR, Gateway, http, open_gateway

RESPONSES = "/openai/v1/responses"
WIKI = """
  - label: wiki
    url: http://127.0.0.1:9/mcp
    allow_private_network: true
"""


async def add_app(gateway: Gateway, name: str, **settings: Any) -> str:
    """One more app; its key."""
    assert gateway.services is not None
    new = AppSettings(name, **settings)
    ledger = gateway.services.ledger
    _, key = await apps.create(ledger, new, actor=OPERATOR, now=utc_now())
    await gateway.services.directory.refresh()
    return key.text


@dataclass
class House:
    """A gateway; `other` is a second app's key, `narrow` that of one that may use the wiki only."""

    gateway: Gateway
    other: str
    narrow: str

    def body(self, **changes: Any) -> dict[str, Any]:
        """A request that would transfer money."""
        return {"model": MODEL, "input": TRANSFER, "tools": [self.gateway.tool()], **changes}

    async def post(self, body: Any, key: str | None = None) -> httpx2.Response:
        """Create, with the key of support-bot unless another is given."""
        headers = {} if key is None else {"api-key": key}
        return await self.gateway.raw("POST", RESPONSES, json=body, headers=headers)

    async def sent(self) -> dict[str, Any]:
        """The last body that Azure was sent."""
        bodies = [entry["body"] for entry in await self.gateway.upstream_requests()]
        return next(body for body in reversed(bodies) if body)

    @asynccontextmanager
    async def untouched(self) -> AsyncIterator[None]:
        """Neither Azure nor the MCP server may notice what happens inside."""
        before = await self._traces()
        yield
        assert await self._traces() == before

    async def _traces(self) -> tuple[int, int]:
        return len(await self.gateway.upstream_requests()), len(await self.gateway.effects())

    async def recorded(self, answer: httpx2.Response, code: str, app: str = "support-bot") -> None:
        """The refusal is in the ledger, under the app's name and the answer's request id."""
        name = answer.headers["x-request-id"]
        refusals = await self.gateway.records("security.refused")
        own = [entry for entry in refusals if entry.get("request") == name]
        assert len(own) == 1, answer.text
        assert (own[0]["code"], own[0]["subject"]["app"]) == (code, app)

    async def refused(
        self,
        method: str,
        path: str,
        expected: tuple[int, str],
        *,
        app: str = "support-bot",
        **options: Any,
    ) -> httpx2.Response:
        """Try it: it is refused with `expected` (status and code), has no effect, is recorded."""
        async with self.untouched(), asyncio.timeout(10):
            answer = await self.gateway.raw(method, path, **options)
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == expected, answer.text
        await self.recorded(answer, expected[1], app)
        return answer

    async def refuses(
        self, body: Any, code: str, status: int = 403, *, key: str | None = None, **more: Any
    ) -> httpx2.Response:
        """The same for a body to create a response from."""
        headers = {} if key is None else {"api-key": key}
        expected = (status, code)
        return await self.refused("POST", RESPONSES, expected, json=body, headers=headers, **more)

    async def held(self, **changes: Any) -> tuple[str, dict[str, Any]]:
        """A background request that waits for people: its response id, its approval request."""
        known = {item["id"] for item in await self.gateway.pending(0)}
        # As a stream, because Azure is asked only now and then how a plain one goes on.
        body = self.body(background=True, stream=True, **changes)
        headers = {"api-key": self.gateway.key}
        client = http(self.gateway.url, headers)
        async with client, client.stream("POST", RESPONSES, json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            lines = answer.aiter_lines()
            first = [await anext(lines) for _ in range(2)][1]
        response_id = json.loads(first.removeprefix("data: "))["response"]["id"]
        for _ in range(200):
            waiting = await self.gateway.pending(0)
            if new := [item for item in waiting if item["id"] not in known]:
                return response_id, new[0]
            await asyncio.sleep(0.02)
        raise AssertionError("nobody was asked")

    async def cancel(self, response_id: str) -> None:
        """Leave nothing waiting."""
        answer = await self.gateway.raw("POST", f"{RESPONSES}/{response_id}/cancel")
        assert answer.json()["status"] == "cancelled", answer.text


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """The error, which has the OpenAI shape."""
    assert answer.headers["content-type"] == "application/json", answer.text
    document = answer.json()
    assert list(document) == ["error"], answer.text
    assert set(document["error"]) == {"message", "type", "param", "code"}
    return document["error"]


async def open_house(
    stack: AsyncExitStack, folder: Path, *, more: str = "", **changes: str
) -> House:
    """A gateway with a bank, a wiki that is not there (and `more` servers), and three apps."""
    gateway = await open_gateway(stack, folder, declare=WIKI + more, **changes)
    other = await add_app(gateway, "other-bot")
    narrow = await add_app(gateway, "narrow-bot", servers=("wiki",))
    return House(gateway, other, narrow)
