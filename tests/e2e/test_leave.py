"""Tools that a rule always allows, called by Azure without asking, where that is switched on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from gateway.demo.mcp_tools import McpServer
from gateway.policy import parse
from gateway.registry import policies
from gateway.store.tables import Pause
from gateway.telemetry import utc_now
from tests.support.demo import TOKEN, TRANSFER
from tests.support.gateway import OPERATOR, Gateway, open_gateway

pytestmark = pytest.mark.e2e
BALANCE = "What is the balance of account 4711?"
ALLOW = {"name": "reads", "effect": "allow", "match": {"server": "bank", "tool": "get_*"}}
LEAVE = {"never": {"tool_names": ["get_balance"]}}
RULES = """
policies:
  - {name: reads, effect: allow, match: {server: bank, tool: "get_*"}}
"""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """One that has seen the tools already: the first listing pins them."""
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, declare=RULES, GATEPASS_ALLOW_AT_AZURE="true")
        await gateway.ask(BALANCE)
        yield gateway
        await gateway.verify()


async def sent(gateway: Gateway) -> list[Any]:
    """What Azure was told about asking, round by round."""
    return [
        entry["body"]["tools"][0]["require_approval"]
        for entry in await gateway.upstream_requests()
        if entry["body"]
    ]


async def in_force(gateway: Gateway, *rules: dict[str, Any]) -> None:
    assert gateway.services is not None
    services = gateway.services
    await policies.save(services.ledger, parse(rules), actor=OPERATOR, now=utc_now())
    await services.directory.refresh()


async def test_unless_switched_on_the_gateway_answers_for_everything(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, declare=RULES)
        for _ in range(2):
            assert "bank.get_balance returned" in (await gateway.ask(BALANCE)).output_text
        assert await sent(gateway) == ["always"] * 4
        assert await gateway.records("call.preallowed") == []
        assert len(await gateway.records("release.sending")) == 2
        await gateway.verify()


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_always_allowed_takes_one_round_and_is_recorded_all_the_same(
    gateway: Gateway, stream: bool
) -> None:
    before = len(await sent(gateway))
    answer = await gateway.ask(BALANCE, stream=stream)
    if stream:
        answer = [event async for event in answer][-1].response
    assert "bank.get_balance returned" in answer.output_text
    assert [item.type for item in answer.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert (await sent(gateway))[before:] == [LEAVE]
    leave = (await gateway.records("call.preallowed"))[-1]
    assert (leave["rule"], leave["tools"]) == ("reads", ["get_balance"])
    exchange = leave["subject"]["exchange"]
    told = [
        record
        for record in await gateway.records()
        if record["subject"].get("exchange") == exchange
    ]
    assert [record["type"] for record in told] == [
        "exchange.opened",
        "security.overridden",
        "call.preallowed",
        "call.ruled",
        "approval.requested",
        "approval.decided",
        "execution.observed",
        "exchange.finished",
    ]
    assert told[3]["policy"] == leave["policy"]
    shown = (await gateway.api("GET", f"/exchanges/{exchange}")).json()
    [call] = shown["calls"]
    assert (call["tool"], call["state"], call["execution"]) == (
        "get_balance",
        "approved",
        "executed",
    )
    assert '"4711"' in call["arguments"]


async def test_a_chain_goes_on_from_a_call_that_nobody_asked_for(gateway: Gateway) -> None:
    first = await gateway.ask(BALANCE)
    again = await gateway.ask(BALANCE, previous_response_id=first.id)
    assert "bank.get_balance returned" in again.output_text
    transfer, _ = await asyncio.gather(
        gateway.ask(TRANSFER, previous_response_id=again.id), gateway.decide()
    )
    assert "bank.transfer returned" in transfer.output_text
    assert len(await gateway.effects()) == 1


async def test_everything_else_in_the_same_request_is_held(gateway: Gateway) -> None:
    text = 'call get_balance {"account": "4711"} then call transfer '
    text += '{"amount": 5, "currency": "EUR", "to_account": "0815", "reference": "x"}'
    answer, _ = await asyncio.gather(gateway.ask(text), gateway.decide())
    assert [item.type for item in answer.output].count("mcp_call") == 2
    assert len(await gateway.effects()) == 1
    executed = await gateway.records("execution.observed")
    assert [entry["subject"]["tool"] for entry in executed[-2:]] == ["get_balance", "transfer"]
    assert await gateway.records("execution.mismatch") == []


async def test_e_19_what_azure_calls_without_leave_is_an_alarm(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(McpServer, "needs_approval", lambda *_: False)
    await gateway.ask(TRANSFER)
    [alarm] = await gateway.records("execution.mismatch")
    assert alarm["subject"]["tool"] == "transfer"
    assert alarm["code"] == "executed without an approval"


@pytest.mark.parametrize(
    ("rules", "held"),
    [
        ([ALLOW, {"name": "h", "effect": "hold", "when": "false"}], False),
        ([ALLOW, {"name": "d", "effect": "deny", "when": "call.end_user == 'nobody'"}], False),
        ([{**ALLOW, "when": "args.account != '0'"}], False),
        ([], True),
    ],
)
async def test_a_rule_that_could_say_otherwise_is_asked(
    gateway: Gateway, rules: list[dict[str, Any]], held: bool
) -> None:
    await in_force(gateway, *rules)
    await asyncio.gather(gateway.ask(BALANCE), *([gateway.decide()] if held else []))
    assert (await sent(gateway))[-1] == "always"
    assert len(await gateway.records("call.preallowed")) == 1


async def test_b_11_an_app_that_wants_to_be_asked_is_asked(gateway: Gateway) -> None:
    for wish in ("always", {"always": {"tool_names": ["get_balance"]}}):
        tool = gateway.tool(require_approval=wish)
        await asyncio.gather(gateway.ask(BALANCE, tools=[tool]), gateway.decide())
        assert (await sent(gateway))[-1] == "always"


async def test_while_anything_is_paused_everything_is_asked(gateway: Gateway) -> None:
    assert gateway.services is not None
    async with gateway.services.db.transaction() as session:
        pause = Pause(id="pau_1", scope="server", target="elsewhere", reason="x", begun_by="x")
        pause.begun_at = utc_now()
        session.add(pause)
    await gateway.ask(BALANCE)
    assert (await sent(gateway))[-1] == "always"


async def describe(gateway: Gateway, text: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx2.AsyncClient(base_url=gateway.world.bank, headers=headers) as bank:
        answer = await bank.put("/tools/get_balance/description", content=text)
        assert answer.is_success, answer.text


async def test_r_12_a_tool_that_has_changed_is_asked_for_again_and_the_change_is_an_alarm(
    gateway: Gateway,
) -> None:
    await describe(gateway, "Now sends all your money away.")
    await gateway.ask(BALANCE)
    [alarm] = await gateway.records("execution.mismatch")
    assert alarm["code"] == "called without asking, and its definition has changed"
    # From here on the change is known.
    await asyncio.gather(gateway.ask(BALANCE), gateway.decide())
    assert (await sent(gateway))[-1] == "always"


async def test_a_call_made_before_the_connection_broke_is_recorded(gateway: Gateway) -> None:
    with pytest.raises(openai.APIError):
        async for _ in await gateway.ask(f"{BALANCE} fail: drop-stream", stream=True):
            pass
    for _ in range(200):
        if len(await gateway.records("execution.observed")) == 2:
            break
        await asyncio.sleep(0.05)
    observed = (await gateway.records("execution.observed"))[-1]
    assert observed["subject"]["tool"] == "get_balance"


async def test_in_the_background_and_for_apps_that_go_on_themselves_everything_is_asked(
    gateway: Gateway,
) -> None:
    before = len(await sent(gateway))
    asked = await gateway.ask(BALANCE, background=True)
    client = await gateway.app()
    for _ in range(200):
        if (await client.responses.retrieve(asked.id)).status == "completed":
            break
        await asyncio.sleep(0.05)
    await gateway.ask(BALANCE, extra_headers={"Gatepass-Wait": "return"})
    assert set(map(str, (await sent(gateway))[before:])) == {"always"}
