"""Rows of the conformance list that no other test asserts: plain calls and streams.

One test each, its number in its name, most of them on one gateway. The rest of the rows is in
test_conformance_kept.py, or stands beside what it is about.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.config import Settings
from gateway.demo.runner import cut_connection, serve
from gateway.errors import Refused
from gateway.policy.rules import parse
from tests.support.attempts import RESPONSES, House, add_app, open_house
from tests.support.demo import TOKEN
from tests.support.gateway import MODEL, http, open_gateway
from tests.support.rounds import Round, call, listing, message
from tests.support.rounds import request as approval_request
from tests.support.rows import EXECUTED, HIDDEN, Row, deltas, events, kinds, row_of, seamless

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
COMMENT = ": waiting\n\n"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        house = await open_house(stack, tmp_path_factory.mktemp("house"))
        yield house
        await house.gateway.verify()


@pytest_asyncio.fixture(loop_scope="module")
async def row(shared: House) -> Row:
    """The shared gateway, with a mark of the test's own."""
    return await row_of(shared)


# --- plain ----------------------------------------------------------------------------------


def exactly(text: str) -> Any:
    """The document with its numbers as they were written."""
    return json.loads(text, parse_float=str, parse_int=str)


async def test_P_01_a_response_without_mcp_is_forwarded_as_azure_gave_it(row: Row):
    for text in ("Hello", "Hello quirk: big-numbers"):
        answer = await row.house.post({"model": MODEL, "input": text})
        kept = await row.gateway.world.get(f"{RESPONSES}/{answer.json()['id']}")
        assert (answer.status_code, kept.status_code) == (200, 200)
        assert exactly(answer.text) == exactly(kept.text)
        assert answer.headers["x-ms-region"] == kept.headers["x-ms-region"]
        for name in ("apim-request-id", "x-ratelimit-remaining-requests"):
            assert answer.headers[name], name
    assert await row.rounds() == [
        {"model": MODEL, "input": text} for text in ("Hello", "Hello quirk: big-numbers")
    ]


async def test_P_02_an_approved_call_is_one_response_with_the_usage_of_both(row: Row):
    answer = await row.held(row.call())
    final = answer.json()
    first, second = await row.rounds_at_azure(answer.headers["gatepass-exchange"])
    visible = [item for item in first["output"] + second["output"] if item["type"] not in HIDDEN]
    assert [item["type"] for item in first["output"]][-1] == "mcp_approval_request"
    assert (answer.status_code, final["id"]) == (200, first["id"])
    assert final["output"] == [
        {**item, "approval_request_id": None} if item["type"] == "mcp_call" else item
        for item in visible
    ]
    assert not [word for word in HIDDEN if word in answer.text]
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert final["usage"][name] == first["usage"][name] + second["usage"][name] > 0
    assert len(await row.done()) == 1


async def test_P_03_a_denial_reaches_the_model_with_its_reason(row: Row):
    answer = await row.held(row.call(), "deny")
    _, told = await row.rounds()
    [item] = told["input"]
    assert (item["type"], item["approve"]) == ("mcp_approval_response", False)
    assert item["reason"] == "as tested"
    final = answer.json()
    assert (answer.status_code, final["status"]) == (200, "completed")
    assert kinds(final["output"]) == ["mcp_list_tools", "message"]
    assert "as tested" in final["output"][1]["content"][0]["text"]
    assert await row.done() == []


async def test_P_04_two_calls_decided_at_different_times_are_resumed_once(row: Row):
    text = f"{row.call(1)} and {row.call(2)}"
    asking = asyncio.ensure_future(row.house.post(row.house.body(input=text)))
    first, second = await row.gateway.pending(2)
    await row.gateway.review(second)
    await asyncio.sleep(0.3)
    assert len(await row.rounds()) == 1
    await row.gateway.review(first)
    answer = await asking
    assert kinds(answer.json()["output"]) == [
        "mcp_list_tools", "mcp_call", "mcp_call", "message",
    ]  # fmt: skip
    asked, resumed = await row.rounds()
    assert asked["input"] != resumed["input"]
    [at_azure, _] = await row.rounds_at_azure(answer.headers["gatepass-exchange"])
    requested = [item["id"] for item in at_azure["output"] if item["type"] == HIDDEN[0]]
    assert [item["approval_request_id"] for item in resumed["input"]] == requested
    assert [item["approve"] for item in resumed["input"]] == [True, True]
    assert sorted(arguments["amount"] for arguments in await row.done()) == [1, 2]


async def test_P_06_arguments_given_as_an_object_are_shown_and_the_resume_is_the_same(row: Row):
    body = row.house.body(input=row.call(5, "quirk: object-arguments"))
    asking = asyncio.ensure_future(row.house.post(body))
    [shown] = await row.gateway.pending()
    assert isinstance(shown["arguments"], str)
    assert json.loads(shown["arguments"])["reference"] == row.mark
    await row.gateway.review(shown)
    answer = await asking
    [at_azure, _] = await row.rounds_at_azure(answer.headers["gatepass-exchange"])
    assert isinstance(at_azure["output"][-1]["arguments"], dict)
    assert answer.json()["status"] == "completed"
    assert set((await row.rounds())[1]["input"][0]) == {"type", "approval_request_id", "approve"}
    assert len(await row.done()) == 1


async def test_P_07_text_before_the_call_comes_first_and_is_kept(row: Row):
    client = await row.gateway.app()
    body = row.house.body(input=f'say "One moment." first {row.call()}')
    asking = asyncio.ensure_future(client.responses.create(**body))
    await row.gateway.decide()
    answer = await asking
    items = [item.type for item in answer.output]
    assert items == ["mcp_list_tools", "message", "mcp_call", "message"]
    texts = [item.content[0].text for item in answer.output if item.type == "message"]
    assert texts[0] == "One moment."
    assert texts[1].startswith(EXECUTED)
    assert answer.output_text == "".join(texts)


async def test_P_08_a_function_beside_a_held_call_is_asked_first_and_both_are_answered(row: Row):
    tools = [row.gateway.tool(), WEATHER]
    text = f'{row.call()} and function weather {{"city": "Riga"}}'
    first = (await row.house.post(row.house.body(input=text, tools=tools))).json()
    assert first["status"] == "completed"
    assert kinds(first["output"]) == ["mcp_list_tools", "function_call"]
    output = {
        "type": "function_call_output",
        "call_id": first["output"][-1]["call_id"],
        "output": "sunny",
    }
    body = row.house.body(input=[output], previous_response_id=first["id"], tools=tools)
    following = asyncio.ensure_future(row.house.post(body))
    await asyncio.sleep(0.3)
    assert not following.done()
    assert len(await row.rounds()) == 1
    await row.gateway.decide()
    second = (await following).json()
    sent = (await row.rounds())[1]["input"]
    assert sorted(kinds(sent)) == ["function_call_output", "mcp_approval_response"]
    assert kinds(second["output"]) == ["mcp_call", "message"]
    assert "sunny" in second["output"][-1]["content"][0]["text"]
    assert len(await row.done()) == 1


async def test_P_10_no_rule_makes_a_request_that_nobody_answers_anything_but_denied():
    """What failed instead would leave the chain with a call that nobody answered."""
    with pytest.raises(Refused, match="must be deny"):
        parse([{"name": "money", "effect": "hold", "on_expiry": "fail"}])


def embedding() -> Starlette:
    """An Azure that says what it sent to a server that failed."""

    async def create(asked: Request) -> Response:
        [tool] = (await asked.json())["tools"]
        text = f"Error retrieving tool list from MCP server: 'bank'. {json.dumps(tool)} 401"
        error = {"message": text, "type": "external_connector_error", "param": "tools", "code": "x"}
        return JSONResponse({"error": error}, 424)

    return Starlette(routes=[Route("/openai/v1/responses", create, methods=["POST"])])


async def test_P_17_a_list_that_failed_is_told_without_the_credential(row: Row, tmp_path: Path):
    answer = await row.house.post(row.house.body(input="Hello fail: list-error"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (424, "http_error")
    assert "tool list from MCP server: 'bank'" in answer.json()["error"]["message"]
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(embedding()))
        there = f"{url}/openai/v1/"
        gateway = await open_gateway(stack, tmp_path, GATEPASS_UPSTREAM_URL=there)
        body = {"model": MODEL, "input": "Hello", "tools": [gateway.tool()]}
        answer = await gateway.raw("POST", RESPONSES, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (424, "x", "tools")
        assert "Error retrieving tool list from MCP server: 'bank'." in error["message"]
        assert TOKEN not in answer.text


# --- streams --------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["approve", "deny"])
async def test_P_21_a_held_stream_is_one_stream_without_a_gap(row: Row, verdict: str):
    text = f'say "One moment." first {row.call(1)} then {row.call(2)}'
    asking = asyncio.ensure_future(row.streamed(text, verdict, model="gpt-5"))
    if verdict == "approve":
        while len(await row.rounds()) < 2:
            await asyncio.sleep(0.02)
        await row.gateway.decide()
    final = seamless(await asking)
    calls = 2 if verdict == "approve" else 0
    assert kinds(final["output"]).count("mcp_call") == calls == len(await row.done())
    assert "reasoning" in kinds(final["output"])


async def test_P_22_tools_that_are_listed_again_are_shown_once(row: Row):
    client = await row.gateway.app()
    body = row.house.body(input=row.call(5, "quirk: relist on resume"))
    deciding = asyncio.ensure_future(row.gateway.decide())
    async with client.responses.stream(**body) as stream:
        added = [e.item.id async for e in stream if e.type == "response.output_item.added"]
        final = await stream.get_final_response()
    await deciding
    [shown] = (await row.gateway.api("GET", "/exchanges", params={"limit": 1})).json()["items"]
    [_, second] = await row.rounds_at_azure(shown["id"])
    assert kinds(second["output"])[0] == "mcp_list_tools"
    assert [item.type for item in final.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert len(set(added)) == len(added) == 3


async def test_P_23_only_comments_are_on_the_wire_and_none_is_late(row: Row, tmp_path: Path):
    """Ten minutes in little: what is sent every 10 s by itself is sent every 400 ms here."""
    by_itself = Settings()
    assert by_itself.heartbeat.total_seconds() <= 15
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, GATEPASS_HEARTBEAT="400ms")
        key = await add_app(gateway, "quiet-bot", heartbeat="comments")
        body = {"model": MODEL, "input": row.call(), "tools": [gateway.tool()], "stream": True}
        client = await stack.enter_async_context(http(gateway.url, {"api-key": key}))
        chunks: list[tuple[float, str]] = []
        async with client.stream("POST", RESPONSES, json=body) as answer:
            async for chunk in answer.aiter_text():
                chunks.append((time.monotonic(), chunk))
                if chunk == COMMENT and [text for _, text in chunks].count(COMMENT) == 8:
                    await gateway.decide()
        text = "".join(text for _, text in chunks)
        first = next(n for n, (_, chunk) in enumerate(chunks) if chunk == COMMENT)
        held = chunks[first : first + 8]
        assert {chunk for _, chunk in held} == {COMMENT}
        pauses = [later - sooner for (sooner, _), (later, _) in itertools.pairwise(held)]
        assert max(pauses) <= 0.4 * 15 / 10
        fields = {line.partition(":")[0] for line in text.split("\n") if line}
        assert fields == {"", "event", "data"}
        assert text.count("event: ") == text.count("\ndata: ")
        seamless(events(httpx2.Response(200, text=text)))


async def test_P_24_text_in_many_alphabets_and_any_pieces_gives_the_same_deltas(row: Row):
    for quirks in ("quirk: multibyte", "quirk: multibyte quirk: tiny-chunks"):
        body = {"model": MODEL, "input": f"Hello {quirks}", "stream": True}
        direct = await row.gateway.world.post("/openai/v1/responses", json=body)
        wanted = [
            json.loads(line.removeprefix("data: "))
            for line in direct.text.splitlines()
            if line.startswith("data: ")
        ]
        assert any(len(delta.encode()) > len(delta) for delta in deltas(wanted))
        for tools in ([], [row.gateway.tool()]):
            found = await row.streamed(body["input"], None, tools=tools)
            assert deltas(found) == deltas(wanted)
    found = await row.streamed(row.call(5, "quirk: multibyte quirk: tiny-chunks"))
    assert "".join(deltas(found)) == seamless(found)["output"][-1]["content"][0]["text"]


async def test_P_25_a_keepalive_of_azure_is_no_event_for_the_app(row: Row):
    text = f"{row.call()} quirk: keepalive quirk: keepalive on resume"
    body = {"model": MODEL, "input": text, "tools": [row.gateway.world.tool()], "stream": True}
    direct = await row.gateway.world.post("/openai/v1/responses", json=body)
    assert "event: keepalive" in direct.text
    found = await row.streamed(text)
    assert "keepalive" not in [event["type"] for event in found]
    seamless(found)


async def test_P_26_events_and_items_nobody_knows_keep_their_place_in_the_numbering(row: Row):
    quirks = "quirk: unknown-event on resume quirk: unknown-item on resume"
    found = await row.streamed(row.call(5, quirks))
    [strange] = [event for event in found if event["type"] == "response.from_the_future"]
    assert strange["note"] == "unknown to every client"
    final = seamless(found)
    assert len(set(kinds(final["output"])) - {"mcp_list_tools", "mcp_call", "message"}) == 1
    assert len(final["output"]) == 4
    assert len(await row.done()) == 1


def breaking() -> Starlette:
    """An Azure whose second round breaks off after the call, once what it said has arrived."""
    first = Round("resp_1", [listing(), approval_request()])
    second = Round("resp_2", [call(), message()])

    async def create(asked: Request) -> Response:
        frames = second.frames() if "previous_response_id" in await asked.json() else first.frames()

        async def told() -> AsyncIterator[bytes]:
            for frame in frames:
                yield f"event: {frame.type}\ndata: {json.dumps(frame.data)}\n\n".encode()
                if frame.type == "response.mcp_call.completed":
                    await asyncio.sleep(0.3)
                    await cut_connection(asked.scope)
                    return

        return StreamingResponse(told(), media_type="text/event-stream")

    return Starlette(routes=[Route("/openai/v1/responses", create, methods=["POST"])])


async def test_P_27_a_stream_that_breaks_after_the_call_fails_and_the_call_is_executed(tmp_path):
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(breaking()))
        there = f"{url}/openai/v1/"
        crm = '\n  - {label: crm, url: "http://127.0.0.1:9/mcp", allow_private_network: true}\n'
        gateway = await open_gateway(stack, tmp_path, declare=crm, GATEPASS_UPSTREAM_URL=there)
        tool = gateway.tool(server_label="crm", server_url="http://127.0.0.1:9/mcp")
        body = {"model": MODEL, "input": "Change it", "tools": [tool], "stream": True}
        asking = asyncio.ensure_future(gateway.raw("POST", RESPONSES, json=body))
        await gateway.decide()
        found = events(await asking)
        error, failed = found[-2:]
        assert (error["type"], failed["type"]) == ("error", "response.failed")
        assert error["error"]["code"] == "upstream_failed"
        assert error["error"]["message"]
        assert (failed["response"]["id"], failed["response"]["status"]) == ("resp_1", "failed")
        observed = await gateway.records("execution.observed")
        assert [entry["outcome"] for entry in observed] == ["executed"]
        await gateway.verify()


async def test_P_28_a_failure_that_azure_tells_is_forwarded_under_one_id(row: Row):
    found = await row.streamed("Hello fail: mid-stream-error", None)
    error, failed = found[-2:]
    assert (error["type"], failed["type"]) == ("error", "response.failed")
    assert error["error"]["code"] == "server_error"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["id"] == found[0]["response"]["id"]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))


async def test_P_30_padding_that_was_switched_off_stays_off_in_the_resume(row: Row):
    padded = await row.streamed(row.call())
    assert any("obfuscation" in event for event in padded)
    options = {"include_obfuscation": False}
    found = await row.streamed(row.call(), stream_options=options)
    assert not any("obfuscation" in event for event in found)
    assert len(deltas(found)) > 1
    assert [body.get("stream_options") for body in await row.rounds()][-2:] == [options, options]
