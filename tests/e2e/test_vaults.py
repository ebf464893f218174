"""Credentials in a real OpenBao, from the app's request to the MCP server: rotated, gone, back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.exchange.messages import Forward
from gateway.proxy.injection import Injection, Prepared
from gateway.registry import apply, servers
from gateway.registry.changes import By
from gateway.registry.declaration import parse
from gateway.registry.servers import CredentialValue
from gateway.telemetry import utc_now
from gateway.vault import Purpose
from tests.support.demo import TOKEN
from tests.support.gateway import DECLARATION, OPERATOR, Gateway, open_gateway
from tests.support.openbao import OpenBao, running_openbao

pytestmark = pytest.mark.e2e

TRANSFER = 'call transfer {"amount": 5, "currency": "EUR", "to_account": "0815"}'
REF = "vault:secret/mcp/bank#token"
OTHER = """
  - label: quiet
    url: https://quiet.example/mcp
    credential: {header: Authorization, from: "vault:secret/mcp/none#token"}
"""


class House:
    """A gateway whose bank has its token in a vault."""

    def __init__(self, gateway: Gateway, bao: OpenBao) -> None:
        self.gateway, self.bao = gateway, bao

    async def credential(self, ref: str) -> None:
        """The bank's credential is to be found there."""
        services = self.gateway.services
        assert services is not None
        text = DECLARATION.format(bank=self.gateway.world.bank).replace("env:BANK_TOKEN", ref)
        declared = parse({"test.yaml": text + OTHER})
        await apply.apply(services.ledger, declared, By(OPERATOR, utc_now()))
        await services.directory.refresh()

    async def held(self, text: str = TRANSFER) -> tuple[asyncio.Task[Any], dict[str, Any]]:
        """A call that waits for people."""
        asking = asyncio.ensure_future(self.gateway.ask(text))
        (request,) = await self.gateway.pending()
        return asking, request

    async def sent(self) -> list[str]:
        """The credentials that went to Azure, in order."""
        rounds = [one for one in await self.gateway.upstream_requests() if one["method"] == "POST"]
        return [one["body"]["tools"][0]["headers"]["Authorization"] for one in rounds]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        bao = stack.enter_context(running_openbao(tmp_path))
        file = tmp_path / "token"
        file.write_text(await bao.token())
        settings = {"GATEPASS_VAULT_ADDR": bao.url, "GATEPASS_VAULT_TOKEN_FILE": str(file)}
        gateway = await open_gateway(stack, tmp_path, **settings)
        await bao.put("mcp/bank", token=TOKEN)
        house = House(gateway, bao)
        await house.credential(REF)
        yield house
        await gateway.verify()


async def test_E_15_a_secret_rotated_while_a_hold_waits_goes_along_and_is_recorded(house: House):
    asking, request = await house.held()
    # The bank knows one token alone; which one is sent shows at Azure.
    assert await house.bao.put("mcp/bank", token="rotated-canary") == "2"
    await house.gateway.review(request)
    final = await asking
    assert await house.sent() == [f"Bearer {TOKEN}", "Bearer rotated-canary"]
    (sending,) = await house.gateway.records("release.sending")
    assert sending["credential"] == f"{REF}@2"
    assert (await house.gateway.request(request["id"]))["credential"] == f"{REF}@2"
    assert "canary" not in final.model_dump_json()
    assert await house.gateway.effects() == []


async def test_E_15_a_secret_rotated_between_opening_and_claiming_is_opened_anew(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    services = house.gateway.services
    assert services is not None

    async def rotate(value: str) -> None:
        given = CredentialValue(value, "Authorization", "Bearer")
        by = By(OPERATOR, utc_now())
        await servers.set_credential(services.ledger, services.envelope, "bank", given, by)
        await services.directory.refresh()

    await house.credential("sealed:bank")
    await rotate(TOKEN)
    asking, request = await house.held()
    prepare, prepared = Injection.prepare, []

    async def prepare_and_rotate(self: Injection, turn: Forward, purpose: Purpose) -> Prepared:
        found = await prepare(self, turn, purpose)
        prepared.append(found.opened)
        if len(prepared) == 1:
            await rotate("rotated-canary")
        return found

    monkeypatch.setattr(Injection, "prepare", prepare_and_rotate)
    await house.gateway.review(request)
    await asking
    assert len(prepared) == 2
    assert await house.sent() == [f"Bearer {TOKEN}", "Bearer rotated-canary"]
    (sending,) = await house.gateway.records("release.sending")
    assert sending["credential"] == "sealed:bank@2"


async def test_a_secret_that_nobody_changed_goes_along_and_the_call_is_made(house: House):
    asking, request = await house.held()
    await house.gateway.review(request)
    assert "returned" in (await asking).output_text
    assert len(await house.gateway.effects()) == 1
    (sending,) = await house.gateway.records("release.sending")
    assert sending["credential"] == f"{REF}@1"


async def fails(asking: asyncio.Task[Any]) -> dict[str, Any]:
    with pytest.raises(openai.APIStatusError) as caught:
        await asking
    assert caught.value.status_code == 424, "after a hold no client repeats it by itself"
    assert TOKEN not in caught.value.response.text
    body: Any = caught.value.body
    return body


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("deleted", "secret_missing"),
        ("limited", "vault_busy"),
        ("sealed", "vault_sealed"),
        ("killed", "vault_unreachable"),
    ],
)
async def test_S_16_a_vault_that_does_not_tell_the_secret_stops_the_release(
    house: House, what: str, code: str
):
    asking, request = await house.held()
    bao = house.bao
    if what == "deleted":
        await bao.ask("DELETE", "secret/data/mcp/bank")
    elif what == "limited":
        quota = "sys/quotas/rate-limit/slow"
        await bao.ask("POST", quota, path="secret/", rate=0.001, interval="1h")
        await bao.ask("GET", "secret/data/mcp/bank")
    elif what == "sealed":
        await bao.ask("PUT", "sys/seal")
    else:
        bao.kill()
    await house.gateway.review(request)
    assert (await fails(asking))["code"] == code
    assert len(await house.sent()) == 1, "the first round alone"
    assert await house.gateway.records("release.sending") == []
    assert (await house.gateway.request(request["id"]))["execution"] == "not_sent"
    assert await house.gateway.effects() == []
    ready = await house.gateway.raw("GET", "/readyz")
    assert ready.status_code == 200, "what needs no vault goes on"


async def test_S_16_a_server_of_another_store_goes_on_while_the_vault_is_away(house: House):
    house.bao.kill()
    await house.credential("env:BANK_TOKEN")
    asking, request = await house.held()
    await house.gateway.review(request)
    assert "returned" in (await asking).output_text


async def test_S_14_a_number_as_a_secret_is_masked_where_azure_shows_it(house: House):
    asking, request = await house.held(f"{TRANSFER} quirk: echo-headers on resume")
    await house.bao.put("mcp/bank", token=4711081547110815)
    await house.gateway.review(request)
    final = await asking
    assert await house.sent() == [f"Bearer {TOKEN}", "Bearer 4711081547110815"]
    assert final.status == "completed"
    assert "4711081547110815" not in final.model_dump_json()
