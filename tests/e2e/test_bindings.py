"""S-17: a server that was moved gets no secret, though everything else about it is in order."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from gateway.demo.mcp_server import McpSettings, create_mcp_server
from gateway.demo.runner import serve
from gateway.registry import servers
from gateway.registry.changes import By
from gateway.telemetry import utc_now
from tests.support.demo import TOKEN, TRANSFER
from tests.support.gateway import MODEL, OPERATOR, Gateway

pytestmark = pytest.mark.e2e


async def moved(gateway: Gateway, stack: AsyncExitStack) -> str:
    """The bank is registered at another port from now on, by who may write servers alone."""
    assert gateway.services is not None
    other = await stack.enter_async_context(serve(create_mcp_server(McpSettings(TOKEN))))
    settings = (await servers.read(gateway.services.db, "bank")).settings
    settings = replace(settings, url=f"{other}/mcp")
    ledger = gateway.services.ledger
    await servers.change(ledger, settings, actor=OPERATOR, now=utc_now())
    await gateway.services.directory.refresh()
    return settings.url


async def asked(gateway: Gateway, url: str, **changes: Any) -> Any:
    body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool(server_url=url)], **changes}
    return await gateway.raw("POST", "/openai/v1/responses", json=body)


@pytest.mark.parametrize("stream", [False, True])
async def test_S_17_a_moved_server_is_sent_no_secret_until_it_is_bound_anew(
    gateway: Gateway, stream: bool
) -> None:
    async with AsyncExitStack() as stack:
        url = await moved(gateway, stack)
        answer = await asked(gateway, url, stream=stream)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "credential_unbound"
        assert await gateway.upstream_requests() == []
        assert gateway.services is not None
        by = By(OPERATOR, utc_now())
        await servers.bind(gateway.services.ledger, "bank", None, by)
        await gateway.services.directory.refresh()
        answer, _ = await asyncio.gather(asked(gateway, url), gateway.decide())
        assert answer.status_code == 200
        assert TOKEN in json.dumps(await gateway.upstream_requests())


async def test_S_17_a_call_that_waits_while_its_server_is_moved_is_not_sent(
    gateway: Gateway,
) -> None:
    async with AsyncExitStack() as stack:
        asking = asyncio.ensure_future(gateway.ask(TRANSFER))
        [request] = await gateway.pending()
        before = len(await gateway.upstream_requests())
        url = await moved(gateway, stack)
        await gateway.review(request)
        with pytest.raises(Exception, match=r"server|changed"):
            await asking
        later = (await gateway.upstream_requests())[before:]
        assert url not in json.dumps(later)
        assert TOKEN not in json.dumps(later)
        assert await gateway.effects() == []
