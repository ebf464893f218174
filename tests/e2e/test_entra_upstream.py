"""Azure without a key: a managed identity, from a metadata service on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.demo.runner import serve
from tests.support.demo import KEY, TRANSFER
from tests.support.gateway import MODEL, Gateway, open_gateway

pytestmark = pytest.mark.e2e


class Metadata:
    """The metadata service of a virtual machine. What it gives is Azure's key, or is refused."""

    def __init__(self) -> None:
        self.gives = [KEY]
        self.asked: list[dict[str, str]] = []

    async def token(self, request: Request) -> Response:
        assert request.headers["metadata"] == "true"
        self.asked.append(dict(request.query_params))
        value = self.gives.pop(0) if len(self.gives) > 1 else self.gives[0]
        if not value:
            return JSONResponse({"error": "canary-no-identity"}, 400)
        ends = int(time.time()) + 3600
        return JSONResponse(
            {
                "access_token": value,
                "expires_in": "3600",
                "expires_on": str(ends),
                "resource": request.query_params["resource"],
                "token_type": "Bearer",
            }
        )


@pytest.fixture
async def metadata(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Metadata]:
    async with AsyncExitStack() as stack:
        service = Metadata()
        routes = [Route("/metadata/identity/oauth2/token", service.token)]
        url = await stack.enter_async_context(serve(Starlette(routes=routes)))
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", url)
        yield service


async def opened(stack: AsyncExitStack, folder: Path) -> Gateway:
    return await open_gateway(
        stack, folder, GATEPASS_UPSTREAM_AUTH="entra", GATEPASS_AZURE_CREDENTIAL="managed",
        GATEPASS_AZURE_CLIENT_ID="11111111-2222-3333-4444-555555555555",
    )  # fmt: skip


async def test_calls_are_held_and_sent_without_a_key(metadata: Metadata, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateway = await opened(stack, tmp_path)
        asking = asyncio.ensure_future(gateway.ask(TRANSFER))
        await gateway.decide()
        assert (await asking).status == "completed"
        assert len(await gateway.effects()) == 1
        assert len(metadata.asked) == 1
        assert metadata.asked[0]["resource"] == "https://cognitiveservices.azure.com"
        assert metadata.asked[0]["client_id"].startswith("11111111")


async def test_a_token_that_azure_refuses_is_renewed_before_the_app_hears_of_it(
    metadata: Metadata, tmp_path: Path
) -> None:
    metadata.gives = ["canary-stale-token", KEY]
    async with AsyncExitStack() as stack:
        gateway = await opened(stack, tmp_path)
        client = await gateway.app()
        answer = await client.responses.create(model=MODEL, input="Hello")
        assert answer.status == "completed"
        assert len(metadata.asked) == 2


async def test_without_an_identity_nothing_is_sent(metadata: Metadata, tmp_path: Path) -> None:
    metadata.gives = [""]
    async with AsyncExitStack() as stack:
        gateway = await opened(stack, tmp_path)
        tool = gateway.tool()
        body = {"model": MODEL, "input": TRANSFER, "tools": [tool]}
        answer = await gateway.raw("POST", "/openai/v1/responses", json=body)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "azure_identity_unavailable"
        assert "canary" not in answer.text
        assert await gateway.rounds() == 0
