"""A scripted upstream, a sample bank and an official client, wired up for tests.

async with AsyncExitStack() as stack:
    world = await open_world(stack)
    first = await world.ask("Transfer 250 EUR to account 0815")
    await world.resume(first)
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from gateway.demo.mcp_server import McpSettings, create_mcp_server
from gateway.demo.runner import serve
from gateway.demo.upstream import UpstreamSettings, create_upstream

KEY, TOKEN = "upstream-key", "mcp-token"
TRANSFER = "Transfer 250 EUR to account 0815"


@dataclass
class World:
    """An upstream, a bank, and a client of the upstream."""

    stack: AsyncExitStack
    url: str
    bank: str
    client: AsyncOpenAI

    def tool(self, **changes: object) -> dict:
        return {
            "type": "mcp",
            "server_label": "bank",
            "server_url": f"{self.bank}/mcp",
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "require_approval": "always",
            **changes,
        }

    async def ask(self, text: object, **changes: object):
        body = {"model": "gpt-5", "tools": [self.tool()], "input": text, **changes}
        return await self.client.responses.create(**body)

    async def resume(self, first, *answers: dict, **changes: object):
        return await self.ask(
            [*answers] or [approve(first)], previous_response_id=first.id, **changes
        )

    async def effects(self) -> list[dict]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx2.AsyncClient(headers=headers, verify=False) as http:
            return (await http.get(f"{self.bank}/effects")).json()["effects"]

    async def get(self, path: str, **kwargs: object) -> httpx2.Response:
        async with httpx2.AsyncClient(headers={"api-key": KEY}, verify=False) as http:
            return await http.get(self.url + path, **kwargs)

    async def post(self, path: str, **kwargs: object) -> httpx2.Response:
        async with httpx2.AsyncClient(headers={"api-key": KEY}, verify=False) as http:
            return await http.post(self.url + path, **kwargs)


async def open_world(stack: AsyncExitStack, **settings: object) -> World:
    bank = await stack.enter_async_context(serve(create_mcp_server(McpSettings(TOKEN))))
    app = create_upstream(UpstreamSettings(KEY, **settings))
    url = await stack.enter_async_context(serve(app))
    client = AsyncOpenAI(base_url=f"{url}/openai/v1/", api_key=KEY, max_retries=0)
    await stack.enter_async_context(client)
    return World(stack, url, bank, client)


def approve(response, index: int = -1, *, yes: bool = True, reason: str | None = None) -> dict:
    requests = [item for item in response.output if item.type == "mcp_approval_request"]
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": requests[index].id,
        "approve": yes,
    }
    return answer | ({"reason": reason} if reason else {})


def kinds(response) -> list[str]:
    return [item.type for item in response.output]


async def collect(stream) -> list:
    return [event async for event in stream]


def squeezed(events: list) -> list[str]:
    """The types in order, runs of text deltas as one."""
    types = [event.type for event in events]
    delta = "response.output_text.delta"
    return [t for i, t in enumerate(types) if not (t == delta and types[i - 1] == delta)]


async def refused(call) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as problem:
        await call
    return problem.value
