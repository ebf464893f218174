"""Faults and quirks that the scripted upstream produces on request, seen from the client's side."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2
import openai
import pytest

from tests.support.demo import KEY, TRANSFER, World, collect, kinds, open_world, refused

pytestmark = pytest.mark.e2e


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("rate-limit", 429, "too_many_requests"),
        ("server-error", 500, "server_error"),
        ("content-filter", 400, "content_filter"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refused_before_anything_runs(
    world: World, fault: str, status: int, code: str, stream: bool
) -> None:
    problem = await refused(world.ask(f"{TRANSFER} fail: {fault}", stream=stream))
    assert (problem.status_code, problem.code) == (status, code)
    first = await world.ask(f"{TRANSFER} fail: {fault} on resume")
    assert kinds(first)[-1] == "mcp_approval_request"
    problem = await refused(world.resume(first, stream=stream))
    assert (problem.status_code, problem.code) == (status, code)
    assert await world.effects() == []
    if fault == "content-filter":
        assert problem.body["innererror"]["code"] == "ResponsibleAIPolicyViolation"
        assert await refused(world.resume(first))
    else:
        # It happens once, and the refusal has not used up the approval.
        assert kinds(await world.resume(first))[0] == "mcp_call"
        assert len(await world.effects()) == 1


async def test_rate_limit_says_when_to_come_back(world: World) -> None:
    problem = await refused(world.ask("Hi fail: rate-limit"))
    assert problem.response.headers["retry-after-ms"] == "200"


async def test_a_number_of_times_and_always(world: World) -> None:
    for _ in range(3):
        await refused(world.ask("Hi fail: server-error 3 times"))
    assert await world.ask("Hi fail: server-error 3 times")
    for _ in range(4):
        await refused(world.ask("Ho fail: server-error always"))


async def test_previous_not_found_twice(world: World) -> None:
    first = await world.ask(f"{TRANSFER} fail: previous-not-found-twice on resume")
    for _ in range(2):
        assert (await refused(world.resume(first))).code == "previous_response_not_found"
    assert kinds(await world.resume(first)) == ["mcp_call", "message"]
    assert len(await world.effects()) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_lost_answer_was_executed(world: World, stream: bool) -> None:
    first = await world.ask(f"{TRANSFER} fail: drop-before-bytes on resume")
    with pytest.raises(openai.APIConnectionError):
        await world.resume(first, stream=stream)
    assert len(await world.effects()) == 1


async def until_cut(stream) -> list:
    """The events until the connection breaks; it must break."""
    seen = []

    async def read() -> None:
        async for event in stream:
            seen.append(event)

    with pytest.raises(openai.APIConnectionError):
        await read()
    return seen


async def test_a_stream_is_cut_after_the_call(world: World) -> None:
    first = await world.ask(f"{TRANSFER} fail: drop-stream on resume")
    seen = await until_cut(await world.resume(first, stream=True))
    assert seen[-1].type == "response.mcp_call.completed"
    assert len(await world.effects()) == 1


async def test_a_stream_is_cut_in_the_first_round(world: World) -> None:
    for text, last in ((TRANSFER, "output_item.added"), ("Tell me more", "output_text.delta")):
        seen = await until_cut(await world.ask(f"{text} fail: drop-stream", stream=True))
        assert seen[-1].type == f"response.{last}"
        with pytest.raises(openai.NotFoundError):
            await world.client.responses.retrieve(seen[0].response.id)


async def test_a_plain_body_is_cut(world: World) -> None:
    with pytest.raises(openai.APIConnectionError):
        await world.ask("Hi fail: drop-stream")


async def test_an_error_in_the_middle(world: World) -> None:
    async with httpx2.AsyncClient(headers={"api-key": KEY}) as http:
        body = {"model": "m", "input": "Hi fail: mid-stream-error", "stream": True}
        text = (await http.post(f"{world.url}/v1/responses", json=body)).text
    names = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
    assert names == ["response.created", "response.in_progress", "error", "response.failed"]
    assert '"error":{"message":"The server had an error' in text
    assert (await refused(world.ask("Ho fail: mid-stream-error"))).status_code == 500


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("incomplete", "max_output_tokens"), ("output-filter", "content_filter")],
)
async def test_incomplete(world: World, fault: str, reason: str) -> None:
    answer = await world.ask(f"{TRANSFER} fail: {fault}")
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == reason
    events = await collect(await world.ask(f"Hi fail: {fault}", stream=True))
    assert events[-1].type == "response.incomplete"


async def test_slow(world: World) -> None:
    start = time.monotonic()
    await world.ask("Hi fail: slow 0.3s")
    assert time.monotonic() - start > 0.3
    stream = await world.ask("Hi fail: slow 60s", stream=True)
    assert (await anext(aiter(stream))).type == "response.created"
    await stream.close()


async def test_quirks(world: World) -> None:
    text = f"{TRANSFER} quirk: keepalive quirk: unknown-event quirk: object-arguments"
    async with httpx2.AsyncClient(headers={"api-key": KEY}) as http:
        body = {"model": "m", "input": text, "stream": True, "tools": [world.tool()]}
        raw = (await http.post(f"{world.url}/v1/responses", json=body)).text
    assert 'event: keepalive\ndata: {"type":"keepalive","sequence_number":2}\n\n' in raw
    assert "event: response.from_the_future" in raw
    assert '"arguments":{"amount":250' in raw

    first = await world.ask(f"{TRANSFER} quirk: relist on resume", model="gpt-4.1")
    assert kinds(first) == ["mcp_list_tools", "mcp_approval_request"]
    second = await world.resume(first)
    assert kinds(second) == ["mcp_list_tools", "mcp_call", "message"]


async def test_object_arguments_are_called_as_they_were_meant(world: World) -> None:
    first = await world.ask(f"{TRANSFER} quirk: object-arguments", model="gpt-4.1")
    raw = await world.get(f"/v1/responses/{first.id}")
    request = raw.json()["output"][-1]
    assert request["arguments"] == {"amount": 250, "currency": "EUR", "to_account": "0815"}
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": True,
    }
    second = await world.resume(first, answer)
    assert second.output[0].status == "completed"
