"""Servers that are called with tokens: while people think, for whom, and never for another."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway import config
from gateway.app import create_services
from gateway.store import migration
from gateway.telemetry import utc_now
from tests.support.demo import TRANSFER, open_world
from tests.support.gateway import MODEL, Gateway, Process, environment, furnish, http, open_gateway
from tests.support.issuer import Issuer
from tests.support.oauth import CLIENT, SECRET, TokenServer, open_bank, user_token
from tests.support.ports import free_port

pytestmark = pytest.mark.e2e
DECLARE = """
  - label: crm
    url: {crm}/mcp
    allow_private_network: true
    credential: {{header: Authorization, scheme: Bearer, from: "oauth:crm"}}
oauth_clients:
  - name: crm
    grant: {grant}
    token_url: {tokens}/token
    allow_private_network: true
    client_id: {client}
    client_secret: {{from: "env:CRM_SECRET"}}
"""


class Shifted:
    """The real clock, and some more."""

    def __init__(self) -> None:
        self.by = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.by

    def stamp(self) -> float:
        return self().timestamp()


@dataclass
class House:
    gateway: Gateway
    tokens: TokenServer
    crm: str
    seen: list[str]  # the tokens that the MCP server was sent
    clock: Shifted

    def ask(self, user: str | None = None, **changes: Any) -> asyncio.Task[httpx2.Response]:
        tool = self.gateway.tool(server_label="crm", server_url=f"{self.crm}/mcp")
        body = {"model": MODEL, "input": TRANSFER, "tools": [tool], **changes}
        headers = {"api-key": self.gateway.key}
        if user is not None:
            headers["gatepass-user-token"] = user
        return asyncio.ensure_future(post(self.gateway.url, headers, body))

    async def effects(self) -> list[dict[str, Any]]:
        newest = list(self.tokens.given)[-1]
        async with http(self.crm, {"authorization": f"Bearer {newest}"}) as client:
            return (await client.get("/effects")).json()["effects"]


async def post(url: str, headers: dict[str, str], body: Any) -> httpx2.Response:
    async with http(url, headers) as client:
        return await client.post("/openai/v1/responses", json=body)


async def open_house(
    stack: AsyncExitStack, folder: Path, grant: str, apps: str = "", **world: object
) -> House:
    clock = Shifted()
    tokens = TokenServer(clock.stamp)
    await tokens.open(stack)
    crm, seen = await open_bank(stack, tokens)
    os.environ["CRM_SECRET"] = SECRET
    declare = DECLARE.format(crm=crm, grant=grant, tokens=tokens.url, client=CLIENT)
    gateway = await open_gateway(
        stack, folder, declare=declare + apps, world=world, clock=clock,
        GATEPASS_APPROVAL_EXPIRES="8h",
    )  # fmt: skip
    return House(gateway, tokens, crm, seen, clock)


@pytest.fixture
async def acting(tmp_path: Path) -> AsyncIterator[House]:
    """A house whose server is called on behalf of end users."""
    async with AsyncExitStack() as stack:
        yield await open_house(stack, tmp_path, "token_exchange")


def user(house: House, name: str, seconds: float = 7200) -> str:
    token = user_token(name, house.clock.stamp() + seconds)
    house.tokens.users[token] = name
    return token


def text_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["output"])


async def test_a_hold_that_outlives_the_token_goes_on_with_a_new_one(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        house = await open_house(stack, tmp_path, "client_credentials")
        asking = house.ask()
        (request,) = await house.gateway.pending()
        (first,) = house.tokens.given
        assert set(house.seen) == {first}
        house.clock.by = timedelta(seconds=4000)
        assert not house.tokens.accepts(first)
        await house.gateway.review(request)
        assert "canary" not in text_of(await asking)
        assert list(house.tokens.given)[-1] != first
        assert house.seen[-1] == list(house.tokens.given)[-1]
        assert len(await house.effects()) == 1
        await house.gateway.verify()


async def test_without_the_user_s_token_nothing_is_sent(acting: House) -> None:
    answer = await acting.ask()
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "user_token_required"
    assert "Gatepass-User-Token" in answer.json()["error"]["message"]
    assert await acting.gateway.rounds() == 0
    assert acting.tokens.asked == []
    wrong = await acting.ask("two words")
    assert wrong.json()["error"]["code"] == "user_token_invalid"


async def test_a_call_is_made_as_the_user_and_their_token_stays_here(
    acting: House, tmp_path: Path
) -> None:
    ann = user(acting, "ann")
    asking = acting.ask(ann)
    (request,) = await acting.gateway.pending()
    kept = sqlite3.connect(tmp_path / "data" / "gatepass.sqlite3")
    (sealed,) = kept.execute("SELECT user_token FROM exchanges").fetchone()
    assert sealed is not None
    assert ann.encode() not in sealed
    shown = await acting.gateway.api("GET", f"/approval-requests/{request['id']}")
    await acting.gateway.review(request)
    answer = await asking
    assert {token.rpartition("-")[2] for token in acting.seen} == {"ann"}
    assert len(await acting.effects()) == 1
    assert kept.execute("SELECT user_token FROM exchanges").fetchone() == (None,)
    kept.close()
    sent = str(await acting.gateway.upstream_requests())
    records = str(await acting.gateway.records())
    secrets = (ann, SECRET, ann.split(".")[1])
    for text in (text_of(answer), shown.text, records, sent):
        assert not any(secret in text for secret in secrets)
    for file in (tmp_path / "data").glob("gatepass.sqlite3*"):
        assert not any(secret.encode() in file.read_bytes() for secret in secrets), file
    await acting.gateway.verify()


async def test_a_user_whose_token_has_expired_meanwhile_is_not_acted_for(acting: House) -> None:
    asking = acting.ask(user(acting, "ann", 3000))
    (request,) = await acting.gateway.pending()
    rounds = await acting.gateway.rounds()
    acting.clock.by = timedelta(seconds=3100)  # the exchanged one would be good for 500 s more
    await acting.gateway.review(request)
    answer = await asking
    assert "user_token_expired" in answer.text
    assert "has expired" in answer.text
    assert await acting.gateway.rounds() == rounds
    assert await acting.effects() == []
    shown = await acting.gateway.request(request["id"])
    assert shown["execution"] == "not_sent"
    await acting.gateway.verify()


async def test_nobody_joins_what_goes_on_for_another(acting: House) -> None:
    """Word for word the same request, said to be a retry: but another user's."""
    hers = acting.ask(user(acting, "ann"))
    await acting.gateway.pending(1)
    tool = acting.gateway.tool(server_label="crm", server_url=f"{acting.crm}/mcp")
    body = {"model": MODEL, "input": TRANSFER, "tools": [tool]}
    headers = {"api-key": acting.gateway.key, "x-stainless-retry-count": "1"}
    his = {**headers, "gatepass-user-token": user(acting, "bo")}
    his_asking = asyncio.ensure_future(post(acting.gateway.url, his, body))
    await acting.gateway.decide(count=2)
    await asyncio.gather(hers, his_asking)
    assert {token.rpartition("-")[2] for token in acting.seen} == {"ann", "bo"}
    assert len(await acting.effects()) == 2


async def test_a_registered_issuer_s_tokens_are_checked_before_they_are_exchanged(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        issuer = Issuer()
        await issuer.open(stack)
        apps = (
            "apps:\n  - name: agent\n    identity:\n"
            f"      issuer: {issuer.url}\n      audience: api://gatepass\n      subject: agent\n"
        )
        house = await open_house(stack, tmp_path, "token_exchange", apps)
        house.gateway.key = issuer.token(sub="agent", azp=None)
        for wrong in (
            issuer.token(sub="ann", azp=None, aud="api://other"),
            issuer.token(sub="ann", azp=None, exp=1),
            user(house, "ann"),
            issuer.token(sub="ann", azp=None)[:-4] + "AAAA",
        ):
            answer = await house.ask(wrong)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                400,
                "user_token_invalid",
            )
            assert wrong not in answer.text
        assert house.tokens.asked == []
        refused = await house.gateway.records("security.refused")
        assert [record["code"] for record in refused] == ["user_token_invalid"] * 4
        good = issuer.token(sub="ann", azp=None)
        house.tokens.users[good] = "ann"
        asking = house.ask(good)
        await house.gateway.decide()
        text_of(await asking)
        assert house.seen[-1].endswith("of-ann")


async def test_the_next_process_goes_on_for_the_same_user(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        clock = Shifted()
        tokens = TokenServer(clock.stamp)
        await tokens.open(stack)
        crm, seen = await open_bank(stack, tokens)
        world = await open_world(stack)
        environ = environment(tmp_path, world, free_port(), CRM_SECRET=SECRET)
        settings = config.load(environ)
        await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
        services = create_services(settings)
        declare = DECLARE.format(crm=crm, grant="token_exchange", tokens=tokens.url, client=CLIENT)
        key, token = await furnish(services, world.bank, declare)
        await services.ledger.settle()
        await services.db.close()
        process = Process(environ, tmp_path)
        stack.callback(process.kill)
        await process.start()
        gateway = Gateway(world, process.url, key, token, tmp_path)
        house = House(gateway, tokens, crm, seen, clock)
        asking = house.ask(user(house, "ann"), background=True)
        answer = await asking
        (request,) = await gateway.pending()
        process.kill()
        await process.start()
        before = len(tokens.given)
        await gateway.review(request)
        name = answer.json()["id"]
        for _ in range(200):
            shown = await gateway.raw("GET", f"/openai/v1/responses/{name}")
            if shown.json()["status"] != "in_progress":
                break
            await asyncio.sleep(0.05)
        assert shown.json()["status"] == "completed"
        assert len(tokens.given) > before  # what was in memory went with the old process
        assert seen[-1].endswith("of-ann")
        assert len(await house.effects()) == 1
        assert "canary" not in process.log()
