"""What a stateless client sends again: encrypted thoughts, and items that may not come alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.support.demo import TRANSFER, World, approve, kinds, open_world, refused

pytestmark = pytest.mark.e2e

STATELESS = {"store": False, "include": ["reasoning.encrypted_content"]}
START = {"role": "user", "content": TRANSFER}
AND_THEN = {"role": "user", "content": "And then?"}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack)


def sent_again(response) -> list[dict]:
    return [item.model_dump(exclude_none=True, mode="json") for item in response.output]


def without(items: list[dict], kind: str) -> list[dict]:
    return [item for item in items if item["type"] != kind]


async def test_thoughts_are_encrypted_only_when_asked_for(world: World) -> None:
    for store in (True, False):
        bare = await world.ask("Hi", store=store)
        assert "encrypted_content" not in bare.output[1].to_dict()
        asked = await world.ask("Hi", store=store, include=STATELESS["include"])
        assert asked.output[1].encrypted_content


@pytest.mark.parametrize("store", [True, False])
async def test_a_request_or_a_call_without_its_thought_is_refused(
    world: World, store: bool
) -> None:
    common = STATELESS | {"store": store}
    first = await world.ask([START], **common)
    items = sent_again(first)
    problem = await refused(
        world.ask([START, *without(items, "reasoning"), approve(first)], **common)
    )
    thought, request = first.output[1].id, first.output[2].id
    assert problem.status_code == 400
    assert problem.body["message"] == (
        f"Item '{request}' of type 'mcp_approval_request' was provided without its required "
        f"'reasoning' item: '{thought}'."
    )
    for text, approval in (('function f {"q":1}', "always"), (TRANSFER, "never")):
        tools = [world.tool(require_approval=approval)]
        begin = {"role": "user", "content": text}
        answer = await world.ask([begin], tools=tools, **common)
        call = answer.output[2]
        rest = without(sent_again(answer), "reasoning")
        if call.type == "function_call":
            rest += [{"type": "function_call_output", "call_id": call.call_id, "output": "1"}]
        problem = await refused(world.ask([begin, *rest, AND_THEN], tools=tools, **common))
        assert f"Item '{call.id}' of type '{call.type}' was provided" in problem.message
        assert f"'reasoning' item: '{answer.output[1].id}'" in problem.message


async def test_a_thought_without_what_followed_it_is_refused(world: World) -> None:
    first = await world.ask([START], **STATELESS)
    rest = without(sent_again(first), "mcp_approval_request")
    problem = await refused(world.ask([START, *rest, AND_THEN], **STATELESS))
    assert problem.status_code == 400
    assert problem.body["message"] == (
        f"Item '{first.output[1].id}' of type 'reasoning' was provided without its required "
        "following item."
    )


async def test_an_approved_call_comes_with_its_approval(world: World) -> None:
    first = await world.ask([START], **STATELESS)
    yes = approve(first)
    asked = sent_again(first)
    second = await world.ask([START, *asked, yes], **STATELESS)
    call, said = sent_again(second)
    bare = {name: value for name, value in call.items() if name != "approval_request_id"}

    shown = await refused(world.ask([START, asked[0], bare, said, AND_THEN], **STATELESS))
    assert shown.status_code == 400
    assert f"Item '{call['id']}' of type 'mcp_call' was provided without its required" in (
        shown.message
    )
    assert f"'approval_request_id': '{asked[2]['id']}'" in shown.message
    alone = await refused(world.ask([START, asked[0], call, said, AND_THEN], **STATELESS))
    assert f"'mcp_approval_request' item: '{asked[2]['id']}'" in alone.message
    unanswered = await refused(world.ask([START, *asked, call, said, AND_THEN], **STATELESS))
    assert f"'mcp_approval_response' item for: '{asked[2]['id']}'" in unanswered.message

    whole = await world.ask([START, *asked, yes, call, said, AND_THEN], **STATELESS)
    assert "And then?" in whole.output_text
    assert kinds(whole) == ["reasoning", "message"]
    assert len(await world.effects()) == 1


async def test_an_upstream_that_does_not_mind_can_be_had() -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(stack, strict_pairs=False)
        first = await world.ask(TRANSFER, model="gpt-4.1")
        call, said = sent_again(await world.resume(first, model="gpt-4.1"))
        del call["approval_request_id"]
        again = [START, sent_again(first)[0], call, said, AND_THEN]
        assert (await world.ask(again, model="gpt-4.1")).status == "completed"


async def test_pairs_are_known_of_streams_and_background_responses_too(world: World) -> None:
    async with world.client.responses.stream(
        model="gpt-5", input=[START], tools=[world.tool()], **STATELESS
    ) as stream:
        streamed = await stream.get_final_response()
    queued = await world.ask([START], background=True)
    while queued.status in ("queued", "in_progress"):
        queued = await world.client.responses.retrieve(queued.id)
    for first in (streamed, queued):
        rest = without(sent_again(first), "reasoning")
        problem = await refused(world.ask([START, *rest, approve(first)], **STATELESS))
        assert "without its required 'reasoning' item" in problem.message
