"""Habits of other servers that the scripted upstream takes on when asked: bytes, items, echoes."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2
import pytest

from tests.support.demo import (
    KEY,
    TOKEN,
    TRANSFER,
    World,
    approve,
    collect,
    kinds,
    open_world,
    refused,
)

pytestmark = pytest.mark.e2e


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack)


async def raw(world: World, text: str, **changes: object) -> tuple[str, list[bytes]]:
    """A stream as it came: the whole text, and the pieces in which it was written."""
    body = {"model": "m", "input": text, "stream": True, **changes}
    async with (
        httpx2.AsyncClient(headers={"api-key": KEY}) as http,
        http.stream("POST", f"{world.url}/v1/responses", json=body) as answer,
    ):
        pieces = [piece async for piece in answer.aiter_raw()]
    return b"".join(pieces).decode(), pieces


async def told(world: World, text: str) -> str:
    events = await collect(await world.ask(text, stream=True, tools=[], model="gpt-4.1"))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events[-1].response.output_text


@pytest.mark.parametrize(
    "quirk", ["sse-crlf", "tiny-chunks", "no-event-lines", "done-marker", "multibyte"]
)
async def test_the_official_client_reads_every_way_of_writing(world: World, quirk: str) -> None:
    assert (await told(world, f"Hello quirk: {quirk}")).startswith("You said: Hello")


async def test_how_events_are_written(world: World) -> None:
    text, pieces = await raw(world, "Hi quirk: sse-crlf quirk: done-marker")
    assert "\n" not in text.replace("\r\n", "")
    assert text.endswith("}\r\n\r\ndata: [DONE]\r\n\r\n")
    text, _ = await raw(world, "Hi quirk: no-event-lines")
    assert "event:" not in text
    text, pieces = await raw(world, "Hi quirk: tiny-chunks quirk: multibyte")
    assert len(pieces) > 20
    assert "Привет" in text
    assert "👋🏽" in text
    cut = [piece for piece in pieces if len(piece) <= 7]
    assert any(not _is_text(piece) for piece in cut)
    plain, _ = await raw(world, "Hi")
    assert plain.startswith("event: response.created\ndata: {")
    assert "[DONE]" not in plain


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


async def test_numbers_that_python_would_write_differently(world: World) -> None:
    written = '"x_unknown":{"zulu":12345678901234567890123,"alpha":1.10,"mike":1e-7}'
    plain = await world.post("/v1/responses", json={"model": "m", "input": "Hi quirk: big-numbers"})
    assert written in plain.text
    assert plain.text.startswith('{"x_unknown"')
    response = plain.json()
    assert list(response).index("metadata") < list(response).index("id")
    assert written in (await world.get(f"/v1/responses/{response['id']}")).text
    stream, _ = await raw(world, "Hi quirk: big-numbers")
    assert stream.count(written) == 3


async def test_an_item_of_an_unknown_type_comes_before_the_message(world: World) -> None:
    body = {"model": "m", "input": "Hi quirk: unknown-item"}
    answer = (await world.post("/v1/responses", json=body)).json()
    assert [item["type"] for item in answer["output"]] == ["item_from_the_future", "message"]
    stream, _ = await raw(world, body["input"])
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    added = [e for e in events if e["type"] == "response.output_item.added"]
    assert [(e["output_index"], e["item"]["type"]) for e in added] == [
        (0, "item_from_the_future"),
        (1, "message"),
    ]


async def test_credentials_come_back_only_from_a_careless_service(world: World) -> None:
    tool = world.tool()
    careless, _ = await raw(world, "Hi quirk: echo-headers", tools=[tool])
    assert careless.count(f"Bearer {TOKEN}") == 3
    del tool["headers"]
    answer = await world.ask("Hi quirk: echo-headers", tools=[tool | {"authorization": TOKEN}])
    assert answer.to_dict()["tools"][0]["authorization"] == TOKEN
    careful, _ = await raw(world, "Hi", tools=[world.tool()])
    assert TOKEN not in careful
    first = await world.ask(f"{TRANSFER} quirk: echo-headers on resume")
    assert TOKEN not in first.to_json()
    assert TOKEN in (await world.resume(first)).to_json()


async def test_errors_in_the_flat_shape(world: World) -> None:
    stream, _ = await raw(world, "Hi fail: mid-stream-error quirk: flat-error")
    [error] = re.findall(r"event: error\ndata: (.+)", stream)
    assert json.loads(error) == {
        "message": "The server had an error while processing your request. Sorry about that!",
        "type": "error",
        "param": None,
        "code": "server_error",
        "sequence_number": 2,
    }


async def test_a_stream_without_an_ending(world: World) -> None:
    stream, _ = await raw(world, "Hi fail: no-ending")
    assert "event: response.output_item.done" in stream
    assert "response.completed" not in stream


async def test_listings_that_fail_without_the_server_having_a_part(world: World) -> None:
    problem = await refused(world.ask(f"{TRANSFER} fail: list-error"))
    assert (problem.status_code, problem.type) == (424, "external_connector_error")
    assert "503 (Service Unavailable)" in problem.message
    item = (await world.ask(f"{TRANSFER} fail: list-item")).output[0]
    assert (item.type, item.tools) == ("mcp_list_tools", [])
    assert "503" in item.error


@pytest.mark.parametrize(
    ("fault", "code", "effects"), [("call-error", 503, 0), ("call-lost", 504, 1)]
)
async def test_calls_that_are_reported_as_failed(
    world: World, fault: str, code: int, effects: int
) -> None:
    first = await world.ask(f"{TRANSFER} fail: {fault} on resume")
    second = await world.resume(first)
    assert kinds(second) == ["mcp_call", "message"]
    assert second.output[0].status == "failed"
    assert second.output[0].to_dict()["error"]["code"] == code
    assert len(await world.effects()) == effects


# --- retrieving ------------------------------------------------------------------------------


async def test_what_can_be_included_and_what_cannot(world: World) -> None:
    first = await world.ask(TRANSFER)
    retrieve = world.client.responses.retrieve
    assert await retrieve(first.id, include=["reasoning.encrypted_content"]) == first
    for call in (retrieve(first.id, include=["everything"]), world.ask("Hi", include=["all"])):
        problem = await refused(call)
        assert (problem.status_code, problem.param) == (400, "include")
    assert kinds(await world.resume(first, approve(first), include=[]))[0] == "mcp_call"


async def test_padding_is_a_matter_of_each_stream(world: World) -> None:
    bare = {"stream_options": {"include_obfuscation": False}}
    events = await collect(await world.ask("Tell me", background=True, stream=True, **bare))
    assert "obfuscation" not in str([event.to_dict() for event in events])
    response_id = events[0].response.id

    async def again(**options: object) -> list[dict]:
        stream = await world.client.responses.retrieve(response_id, stream=True, **options)
        return [event.to_dict() for event in await collect(stream)]

    assert await again(include_obfuscation=False) == [event.to_dict() for event in events]
    padded = [e for e in await again() if e["type"] == "response.output_text.delta"]
    assert padded
    assert all(event["obfuscation"] for event in padded)
