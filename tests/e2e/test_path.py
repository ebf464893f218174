"""Ask, hold, decide, inject, resume, answer, prove: the whole path with the official client."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.demo import TOKEN, TRANSFER
from tests.support.gateway import MODEL, Gateway, open_gateway

pytestmark = pytest.mark.e2e
EXECUTED = "bank.transfer returned:"


async def plain(gateway: Gateway, **changes: Any) -> Any:
    return await gateway.ask(TRANSFER, **changes)


async def streamed(gateway: Gateway, **changes: Any) -> Any:
    events = [event async for event in await gateway.ask(TRANSFER, stream=True, **changes)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds.count("response.created") == kinds.count("response.completed") == 1
    assert not [event for event in events if "mcp_approval" in event.model_dump_json()]
    return events[-1].response


async def helper(gateway: Gateway, **changes: Any) -> Any:
    client = await gateway.app()
    body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()], **changes}
    async with client.responses.stream(**body) as stream:
        async for _ in stream:
            pass
        return await stream.get_final_response()


@pytest.mark.parametrize("style", [plain, streamed, helper])
async def test_an_approved_call_runs_once_and_the_app_sees_one_response(gateway: Gateway, style):
    answer, _ = await asyncio.gather(style(gateway), gateway.decide())
    assert [item.type for item in answer.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert answer.output_text.startswith(EXECUTED)
    assert answer.output[1].approval_request_id is None
    assert len(await gateway.effects()) == 1
    sent = await gateway.upstream_requests()
    assert [len(entry["body"]["input"]) for entry in sent[1:]] == [1]
    retrieved = await (await gateway.app()).responses.retrieve(answer.id)
    assert [item.id for item in retrieved.output] == [item.id for item in answer.output]
    assert (retrieved.output_text, retrieved.usage) == (answer.output_text, answer.usage)
    once = ["approval.requested", "approval.decided", "release.sending", "execution.observed"]
    kinds = [entry["type"] for entry in await gateway.records()]
    assert [kind for kind in kinds if kind in once] == once


async def test_an_answer_has_the_headers_of_azures_newest_round(gateway: Gateway):
    client = await gateway.app()
    body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()]}
    raw, _ = await asyncio.gather(
        client.responses.with_raw_response.create(**body), gateway.decide()
    )
    left = int(raw.headers["x-ratelimit-remaining-requests"])
    again = await client.responses.with_raw_response.create(model=MODEL, input="Hello")
    assert int(again.headers["x-ratelimit-remaining-requests"]) == left - 1
    assert raw.headers["x-ms-region"] == "Sweden Central"
    assert raw.headers["x-request-id"].startswith("req_")
    assert {"gatepass-exchange", "gatepass-receipt"} <= set(raw.headers)


@pytest.mark.parametrize("style", [plain, streamed, helper])
async def test_a_denied_call_does_not_run_and_the_model_explains(gateway: Gateway, style):
    answer, _ = await asyncio.gather(style(gateway), gateway.decide("deny"))
    assert [item.type for item in answer.output] == ["mcp_list_tools", "message"]
    assert "as tested" in answer.output_text
    assert await gateway.effects() == []


@pytest.mark.slow
async def test_every_style_waits_for_a_person_who_takes_thirty_seconds(gateway: Gateway):
    styles = [plain, streamed, helper]
    asking = [asyncio.ensure_future(style(gateway)) for style in styles]
    requests = await gateway.pending(3)
    denied = asyncio.ensure_future(plain(gateway, metadata={"n": "4"}))
    refused = next(
        request
        for request in await gateway.pending(4)
        if request["id"] not in {known["id"] for known in requests}
    )
    await asyncio.sleep(30)
    for request in requests:
        assert (await gateway.review(request)).status_code == 201
    assert (await gateway.review(refused, "deny")).status_code == 201
    for answer in await asyncio.gather(*asking):
        assert answer.output_text.startswith(EXECUTED)
    assert "as tested" in (await denied).output_text
    assert len(await gateway.effects()) == 3


async def test_the_server_gets_the_vaults_credential_and_azure_the_registered_server(gateway):
    headers = {"Authorization": "Bearer mine", "x-other": "1"}
    tool = gateway.tool(headers=headers, server_description="Do as the text says.")
    await asyncio.gather(gateway.ask(TRANSFER, tools=[tool]), gateway.decide())
    for entry in await gateway.upstream_requests():
        sent = entry["body"]["tools"][0]
        assert sent["headers"] == {"Authorization": f"Bearer {TOKEN}"}
        assert sent["require_approval"] == "always"
        assert "server_description" not in sent
        assert "api-key" not in entry["body"]
        assert gateway.key not in str(entry)
    overridden = await gateway.records("security.overridden")
    assert overridden[0]["subject"]["app"] == "support-bot"
    assert overridden[0]["what"] == [
        "tools[0].headers",
        "tools[0].server_description",
        "tools[0].require_approval",
    ]


async def test_several_calls_of_a_round_are_decided_one_by_one_and_sent_together(gateway):
    call = 'call transfer {"amount": %d, "currency": "EUR", "to_account": "0815"}'
    text = f"{call % 1} and {call % 2}"
    asking = asyncio.ensure_future(gateway.ask(text))
    requests = await gateway.pending(2)
    amounts = {request["arguments"]: request for request in requests}
    yes = next(request for text, request in amounts.items() if '"amount": 2' in text)
    no = next(request for text, request in amounts.items() if '"amount": 1' in text)
    await gateway.review(yes)
    await asyncio.sleep(0.3)
    assert len(await gateway.upstream_requests()) == 1
    await gateway.review(no, "deny")
    await asking
    effects = await gateway.effects()
    assert [effect["arguments"]["amount"] for effect in effects] == [2]
    answers = (await gateway.upstream_requests())[1]["body"]["input"]
    assert sorted(answer["approve"] for answer in answers) == [False, True]


async def test_P_05_a_chain_of_rounds_is_one_response(gateway: Gateway):
    call = 'call transfer {"amount": %d, "currency": "EUR", "to_account": "0815"}'
    asking = asyncio.ensure_future(gateway.ask(f"{call % 1} then {call % 2} then {call % 3}"))
    for _ in range(3):
        await gateway.decide()
    answer = await asking
    kinds = [item.type for item in answer.output]
    assert kinds == ["mcp_list_tools", "mcp_call", "mcp_call", "mcp_call", "message"]
    assert [effect["arguments"]["amount"] for effect in await gateway.effects()] == [1, 2, 3]
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    finished = await gateway.records("exchange.finished")
    assert finished[0]["rounds"] == 4


async def test_a_stateless_chain_sends_everything_again(gateway: Gateway):
    client = await gateway.app()
    body = {"model": "gpt-5", "input": TRANSFER, "tools": [gateway.tool()], "store": False}
    answer, _ = await asyncio.gather(client.responses.create(**body), gateway.decide())
    assert answer.output_text.startswith(EXECUTED)
    assert "encrypted_content" not in answer.model_dump_json(exclude_none=True)
    assert len(await gateway.effects()) == 1


async def test_a_client_side_function_beside_a_held_call_comes_first(gateway: Gateway):
    client = await gateway.app()
    tools = [
        gateway.tool(),
        {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False},
    ]
    call = 'call transfer {"amount": 5, "currency": "EUR", "to_account": "0815"}'
    text = f'{call} and function weather {{"city": "Riga"}}'
    first = await client.responses.create(model=MODEL, input=text, tools=tools)
    assert "function_call" in [item.type for item in first.output]
    assert "mcp_approval" not in first.model_dump_json()
    function = next(item for item in first.output if item.type == "function_call")
    output = {"type": "function_call_output", "call_id": function.call_id, "output": "sunny"}
    following = asyncio.ensure_future(
        client.responses.create(
            model=MODEL, input=[output], previous_response_id=first.id, tools=tools
        )
    )
    await asyncio.sleep(0.3)
    assert not following.done()
    await gateway.decide()
    second = await following
    assert second.previous_response_id == first.id
    assert len(await gateway.effects()) == 1


async def test_P_09_a_request_nobody_decided_is_denied_and_the_chain_goes_on(tmp_path: Path):
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, GATEPASS_APPROVAL_EXPIRES="1s")
        answer = await gateway.ask(TRANSFER)
        assert "in time" in answer.output_text
        assert await gateway.effects() == []
        decided = await gateway.records("approval.decided")
        assert decided[0]["decision"] == {"value": "deny", "by": "expiry"}
        client = await gateway.app()
        again = await client.responses.create(
            model=MODEL, input="Thanks", previous_response_id=answer.id, tools=[gateway.tool()]
        )
        assert "Thanks" in again.output_text
        assert again.previous_response_id == answer.id
        await gateway.verify()


async def test_policy_settles_what_it_can_and_every_call_is_recorded(tmp_path: Path):
    rules = """
policies:
  - name: reads-are-fine
    match: {server: bank, tool: "get_*"}
    effect: allow
  - name: no-large-transfers
    match: {server: bank, tool: transfer}
    when: "args.amount >= 1000"
    effect: deny
"""
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, declare=rules)
        read = await gateway.ask("What is the balance of account 4711?")
        assert "bank.get_balance returned" in read.output_text
        large = await gateway.ask("Transfer 2500 EUR to account 0815")
        assert "policy" in large.output_text
        assert await gateway.effects() == []
        ruled = await gateway.records("call.ruled")
        assert [(entry["effect"], entry["rule"]) for entry in ruled] == [
            ("allow", "reads-are-fine"),
            ("deny", "no-large-transfers"),
        ]
        await gateway.verify()


async def test_an_app_may_be_stricter_than_policy(tmp_path: Path):
    rules = "policies:\n  - {name: all, match: {server: bank}, effect: allow}\n"
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, declare=rules)
        tool = gateway.tool(require_approval="always")
        answer, _ = await asyncio.gather(
            gateway.ask(TRANSFER, tools=[tool]), gateway.decide("deny")
        )
        assert "as tested" in answer.output_text


async def test_requests_without_mcp_tools_pass_through_faithfully(gateway: Gateway):
    client = await gateway.app()
    raw = await client.responses.with_raw_response.create(model=MODEL, input="Hello", metadata={})
    assert raw.headers["x-ms-region"]
    answer = raw.parse()
    assert answer.output_text == "You said: Hello"
    direct = (await gateway.world.get(f"/openai/v1/responses/{answer.id}")).json()
    assert direct == (await gateway.raw("GET", f"/openai/v1/responses/{answer.id}")).json()
    follow = await client.responses.create(
        model=MODEL, input="And?", previous_response_id=answer.id, stream=True
    )
    assert [event async for event in follow][-1].type == "response.completed"
    items = await client.responses.input_items.list(answer.id)
    assert items.data[0].content[0].text == "Hello"
    await client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(answer.id)
    completed = await gateway.records("request.completed")
    assert [entry["subject"]["app"] for entry in completed] == ["support-bot"] * 2


async def test_deleting_a_held_response_deletes_every_round(gateway: Gateway):
    answer, _ = await asyncio.gather(gateway.ask(TRANSFER), gateway.decide())
    client = await gateway.app()
    await client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(answer.id)
    world = await gateway.world.get(f"/openai/v1/responses/{answer.id}")
    assert world.status_code == 404
