"""Responses in the background: polled, streamed again, cancelled, and continued too early."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.support.attempts import RESPONSES, error_of
from tests.support.demo import TRANSFER
from tests.support.gateway import MODEL, Gateway

pytestmark = pytest.mark.e2e
BODY = {"model": MODEL, "input": TRANSFER, "background": True}


async def started(gateway: Gateway, **changes: Any) -> Any:
    return await gateway.ask(TRANSFER, background=True, **changes)


async def polled(client: openai.AsyncOpenAI, response_id: str) -> Any:
    async with asyncio.timeout(10):
        while True:
            response = await client.responses.retrieve(response_id)
            if response.status not in {"queued", "in_progress"}:
                return response
            await asyncio.sleep(0.05)


async def posted(gateway: Gateway) -> list[dict[str, Any]]:
    """The rounds that Azure was sent."""
    requests = await gateway.upstream_requests()
    return [entry["body"] for entry in requests if entry["path"].endswith("/responses")]


def numbered(raw: str) -> list[dict[str, Any]]:
    lines = [line for line in raw.split("\n") if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_P_31_a_held_response_is_in_progress_until_it_is_decided(gateway: Gateway):
    first = await started(gateway)
    assert first.status == "in_progress"
    client = await gateway.app()
    [request] = await gateway.pending()
    polling = await client.responses.retrieve(first.id)
    assert (polling.id, polling.status, polling.usage) == (first.id, "in_progress", None)
    assert "mcp_approval" not in polling.model_dump_json()
    assert (await gateway.review(request)).status_code == 201
    final = await polled(client, first.id)
    assert [item.type for item in final.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert len(await gateway.effects()) == 1
    assert await client.responses.cancel(first.id) == final
    assert [body["background"] for body in await posted(gateway)] == [True, True]


async def test_a_denied_response_completes_with_an_explanation(gateway: Gateway):
    first = await started(gateway)
    await gateway.decide("deny")
    final = await polled(await gateway.app(), first.id)
    assert (final.status, "as tested" in final.output_text) == ("completed", True)
    assert await gateway.effects() == []


async def test_P_33_cancelling_twice_is_cancelling_once_and_a_late_approval_changes_nothing(
    gateway,
):
    first = await started(gateway)
    [request] = await gateway.pending()
    client = await gateway.app()
    cancelled = await client.responses.cancel(first.id)
    assert cancelled.status == "cancelled"
    assert await client.responses.cancel(first.id) == cancelled
    assert await client.responses.retrieve(first.id) == cancelled
    late = await gateway.review(request)
    assert late.status_code == 409
    assert "cancelled" in late.json()["detail"]
    shown = await gateway.request(request["id"])
    assert (shown["state"], shown["execution"]) == ("cancelled", "not_sent")
    assert len(await posted(gateway)) == 1
    assert await gateway.effects() == []
    [finished] = await gateway.records("exchange.finished")
    assert finished["outcome"] == "cancelled"
    [decided] = await gateway.records("approval.decided")
    assert (decided["decision"]["by"], decided["actor"]["kind"]) == ("cancelled", "app")


async def test_P_11_a_cancelled_response_can_be_continued_and_its_call_is_denied(gateway: Gateway):
    first = await started(gateway)
    await gateway.pending()
    client = await gateway.app()
    await client.responses.cancel(first.id)
    again = await gateway.ask("Never mind", previous_response_id=first.id)
    assert "Never mind" in again.output_text
    [answer, _] = (await posted(gateway))[-1]["input"]
    assert (answer["type"], answer["approve"]) == ("mcp_approval_response", False)
    assert await gateway.effects() == []


async def test_cancel_and_approval_race_and_exactly_one_wins(gateway: Gateway):
    client = await gateway.app()
    for _ in range(6):
        effects = len(await gateway.effects())
        first = await started(gateway)
        [request] = await gateway.pending()
        cancelled, reviewed = await asyncio.gather(
            client.responses.cancel(first.id), gateway.review(request)
        )
        shown = await gateway.request(request["id"])
        done = len(await gateway.effects()) - effects
        if cancelled.status == "cancelled":
            assert (done, shown["execution"]) == (0, "not_sent")
        else:
            assert (cancelled.status, shown["state"]) == ("completed", "approved")
            assert (done, shown["execution"]) == (1, "executed")
        assert reviewed.status_code == (201 if shown["state"] == "approved" else 409)
        assert (await client.responses.retrieve(first.id)).status == cancelled.status


async def test_a_round_that_runs_at_azure_is_cancelled_there(gateway: Gateway):
    first = await gateway.ask(f"{TRANSFER} fail: slow 30s", background=True)
    client = await gateway.app()
    async with asyncio.timeout(10):
        cancelled = await client.responses.cancel(first.id)
    assert cancelled.status == "cancelled"
    assert await gateway.pending(0) == []
    world = await gateway.world.get(f"/openai/v1/responses/{first.id}")
    assert world.json()["status"] == "cancelled"


async def test_a_streamed_round_that_runs_at_azure_is_cancelled_there(gateway: Gateway):
    stream = await gateway.ask(f"{TRANSFER} fail: slow 30s", background=True, stream=True)
    first = await anext(aiter(stream))
    client = await gateway.app()
    async with asyncio.timeout(10):
        cancelled = await client.responses.cancel(first.response.id)
    assert cancelled.status == "cancelled"
    await stream.close()


async def test_only_background_responses_are_cancelled(gateway: Gateway):
    answer, _ = await asyncio.gather(gateway.ask(TRANSFER), gateway.decide())
    with pytest.raises(openai.BadRequestError):
        await (await gateway.app()).responses.cancel(answer.id)


async def test_P_32_a_stream_is_taken_up_again_where_it_was_left(gateway: Gateway):
    client = await gateway.app()
    stream = await started(gateway, stream=True)
    seen = [await anext(aiter(stream)) for _ in range(4)]
    await stream.close()
    response_id = seen[0].response.id
    await gateway.pending()
    # During the hold …
    rest = await client.responses.retrieve(response_id, stream=True, starting_after=3)
    following = aiter(rest)
    held = [(await anext(following)).sequence_number for _ in range(2)]
    assert held == [4, 5]
    await gateway.decide()
    numbers = held + [event.sequence_number async for event in rest]
    assert numbers == list(range(4, len(numbers) + 4))
    # … and afterwards, from any place.
    path = f"{RESPONSES}/{response_id}?stream=true"
    whole = numbered((await gateway.raw("GET", path)).text)
    assert [event["sequence_number"] for event in whole] == list(range(len(numbers) + 4))
    assert (whole[0]["type"], whole[-1]["type"]) == ("response.created", "response.completed")
    for after in (-1, 0, 7, len(whole) - 2, len(whole) - 1, len(whole) + 5):
        part = (await gateway.raw("GET", f"{path}&starting_after={after}")).text
        assert numbered(part) == whole[after + 1 :]
    async with client.responses.stream(response_id=response_id, starting_after=7) as helper:
        events = [event async for event in helper]
    assert events[-1].type == "response.completed"
    assert len(await gateway.effects()) == 1


async def test_a_place_that_is_no_number_is_refused(gateway: Gateway):
    first = await started(gateway, stream=True)
    event = await anext(aiter(first))
    await first.close()
    path = f"{RESPONSES}/{event.response.id}"
    for after in ("x", "", "--5", "-7", "1.5", "²", "9999999999999999999999"):
        answer = await gateway.raw("GET", path, params={"stream": "true", "starting_after": after})
        assert (answer.status_code, error_of(answer)["param"]) == (400, "starting_after"), after


async def test_what_was_not_streamed_cannot_be_streamed_later(gateway: Gateway):
    first = await started(gateway)
    answer = await gateway.raw("GET", f"{RESPONSES}/{first.id}?stream=true")
    assert (answer.status_code, error_of(answer)["code"]) == (400, "stream_not_available")


async def test_a_background_stream_without_tools_has_a_log_of_ours_too(gateway: Gateway):
    client = await gateway.app()
    body = {"model": MODEL, "input": "Hello again", "background": True, "stream": True}
    stream = await client.responses.create(**body)
    whole = [event async for event in stream]
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    response_id = whole[0].response.id
    # Azure forgets; the log does not.
    direct = gateway.world.client.responses
    await direct.delete(response_id)
    for after in range(-1, len(whole)):
        rest = await client.responses.retrieve(response_id, stream=True, starting_after=after)
        assert [event async for event in rest] == whole[after + 1 :]
    assert (await client.responses.retrieve(response_id)).output_text == "You said: Hello again"


async def test_an_unfinished_response_cannot_be_continued_yet(gateway: Gateway):
    first = await started(gateway)
    await gateway.pending()
    with pytest.raises(openai.BadRequestError) as early:
        await gateway.ask("And then?", previous_response_id=first.id)
    assert early.value.code == "response_not_ready"
    await gateway.decide()
    final = await polled(await gateway.app(), first.id)
    again = await gateway.ask("And then?", previous_response_id=final.id)
    assert again.previous_response_id == first.id
    assert (await posted(gateway))[-1]["previous_response_id"] != first.id


async def test_a_streaming_app_may_go_on_the_moment_it_has_the_end(gateway: Gateway):
    deciding = asyncio.ensure_future(gateway.decide())
    async for event in await gateway.ask(TRANSFER, stream=True):
        if event.type == "response.completed":
            again = await gateway.ask("Thanks", previous_response_id=event.response.id)
            assert "Thanks" in again.output_text
    await deciding


async def test_the_input_is_listed_without_what_only_azure_and_the_gateway_know(gateway: Gateway):
    client = await gateway.app()
    first, _ = await asyncio.gather(gateway.ask(TRANSFER), gateway.decide())
    second = await gateway.ask("Thanks", previous_response_id=first.id)
    for answer in (first, second):
        listing = await client.responses.input_items.list(answer.id, order="asc")
        kinds = [item.type for item in listing.data]
        assert kinds[0] == "message"
        assert "mcp_approval" not in listing.model_dump_json(exclude_none=True)
        assert "approval_request_id" not in listing.model_dump_json(exclude_none=True)
    assert "mcp_call" in kinds


async def test_deleting_a_held_response_ends_it(gateway: Gateway):
    first = await started(gateway)
    [request] = await gateway.pending()
    client = await gateway.app()
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    assert (await gateway.review(request)).status_code == 409
    assert len(await posted(gateway)) == 1
    assert await gateway.effects() == []
