"""Conversations of the scripted upstream: their items, and approvals inside them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import openai
import pytest

from tests.support.demo import TRANSFER, World, approve, collect, kinds, open_world, refused

pytestmark = pytest.mark.e2e


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack)


def said(text: str) -> dict:
    return {"type": "message", "role": "user", "content": text}


async def types(world: World, conversation_id: str) -> list[str]:
    items = world.client.conversations.items.list(conversation_id, order="asc")
    return [item.type async for item in items]


async def test_a_conversation_is_made_changed_and_deleted(world: World) -> None:
    conversations = world.client.conversations
    made = await conversations.create(items=[said("one")], metadata={"ticket": "7"})
    assert made.id.startswith("conv_")
    assert (made.object, made.metadata) == ("conversation", {"ticket": "7"})
    assert await conversations.retrieve(made.id) == made
    changed = await conversations.update(made.id, metadata={"ticket": "8"})
    assert (changed.id, changed.metadata) == (made.id, {"ticket": "8"})
    deleted = await conversations.delete(made.id)
    assert (deleted.deleted, deleted.object) == (True, "conversation.deleted")
    for call in (
        conversations.retrieve(made.id),
        conversations.delete(made.id),
        conversations.items.create(made.id, items=[said("x")]),
        world.ask("Hi", conversation=made.id),
    ):
        problem = await refused(call)
        assert problem.status_code == 404
        assert made.id in problem.message
    assert (await world.post("/v1/conversations")).json()["metadata"] == {}


async def test_items_are_added_paged_and_removed(world: World) -> None:
    items = world.client.conversations.items
    made = await world.client.conversations.create(items=[said("one"), said("two")])
    added = await items.create(made.id, items=[said("three")])
    assert [item.content[0].text for item in added.data] == ["three"]
    assert added.has_more is False
    page = await items.list(made.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["three", "two"]
    assert (page.has_more, page.last_id) == (True, page.data[-1].id)
    rest = await items.list(made.id, after=page.last_id)
    assert [item.content[0].text for item in rest.data] == ["one"]
    last = added.data[0]
    assert (await items.retrieve(last.id, conversation_id=made.id)).id == last.id
    assert (await items.delete(last.id, conversation_id=made.id)).id == made.id
    for call in (items.retrieve, items.delete):
        assert (await refused(call(last.id, conversation_id=made.id))).status_code == 404
    twice = await refused(items.create(made.id, items=[page.data[-1].to_dict()]))
    assert "Duplicate item" in twice.message
    many = [said(str(number)) for number in range(21)]
    for call in (
        items.create(made.id, items=many),
        world.client.conversations.create(items=many),
    ):
        assert (await refused(call)).code == "array_above_max_length"


@pytest.mark.parametrize("way", ["plain", "stream", "background"])
async def test_a_response_reads_and_extends_its_conversation(world: World, way: str) -> None:
    made = await world.client.conversations.create(items=[said("Earlier")])
    changes = {} if way == "plain" else {way: True}
    answer = await world.ask("Hello", conversation=made.id, tools=[], **changes)
    if way == "stream":
        answer = (await collect(answer))[-1].response
    while answer.status in ("queued", "in_progress"):
        answer = await world.client.responses.retrieve(answer.id)
    assert answer.conversation.id == made.id
    assert answer.to_dict()["conversation"] == {"id": made.id}
    assert await types(world, made.id) == ["message", "message", "reasoning", "message"]
    listed = await world.client.responses.input_items.list(answer.id, order="asc")
    assert [item.content[0].text for item in listed.data] == ["Earlier", "Hello"]
    again = await world.ask([], conversation={"id": made.id}, tools=[])
    assert again.usage.input_tokens > answer.usage.input_tokens
    both = await refused(world.ask("Hi", conversation=made.id, previous_response_id=answer.id))
    assert both.code == "mutually_exclusive_parameters"


async def test_what_failed_does_not_join_the_conversation(world: World) -> None:
    made = await world.client.conversations.create()
    await refused(world.ask("Hi fail: mid-stream-error", conversation=made.id))
    assert await types(world, made.id) == []


async def test_an_approval_is_answered_with_its_request_repeated(world: World) -> None:
    made = await world.client.conversations.create()
    first = await world.ask(TRANSFER, conversation=made.id)
    request = first.output[-1].to_dict()
    blocked = await refused(world.ask("And now?", conversation=made.id))
    assert blocked.status_code == 400
    assert blocked.body["message"] == (
        f"The following MCP approval requests do not have an approval: {request['id']}"
    )
    alone = await refused(world.ask([approve(first)], conversation=made.id))
    assert alone.status_code == 400
    assert "weren't passed as input" in alone.message
    assert request["id"] in alone.message
    second = await world.ask([request, approve(first)], conversation=made.id)
    assert kinds(second) == ["mcp_call", "message"]
    assert len(await world.effects()) == 1
    expected = ["message", "mcp_list_tools", "reasoning", "mcp_approval_request"]
    expected += ["mcp_approval_response", "mcp_call", "message"]
    assert await types(world, made.id) == expected
    assert kinds(await world.ask("Thanks", conversation=made.id)) == ["reasoning", "message"]


async def test_or_alone_where_the_resource_wants_it_so() -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(stack, conversation_resume="plain")
        made = await world.client.conversations.create()
        first = await world.ask(TRANSFER, conversation=made.id)
        repeated = [first.output[-1].to_dict(), approve(first)]
        assert "Duplicate" in (await refused(world.ask(repeated, conversation=made.id))).message
        second = await world.ask([approve(first)], conversation=made.id)
        assert kinds(second) == ["mcp_call", "message"]


async def test_a_resume_by_response_leaves_the_conversation_as_it_was(world: World) -> None:
    made = await world.client.conversations.create()
    first = await world.ask(TRANSFER, conversation=made.id)
    before = await types(world, made.id)
    second = await world.resume(first)
    assert kinds(second) == ["mcp_call", "message"]
    assert "conversation" not in second.to_dict()
    assert await types(world, made.id) == before
    assert (await refused(world.ask("And now?", conversation=made.id))).status_code == 400
    # Whoever resumed it that way has to write down what happened.
    happened = [approve(first), *(item.to_dict() for item in second.output)]
    await world.client.conversations.items.create(made.id, items=happened)
    assert (await world.ask("And now?", conversation=made.id)).status == "completed"
    assert len(await world.effects()) == 1


async def test_resources_without_conversations_can_be_had() -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(stack, conversations=False)
        with pytest.raises(openai.NotFoundError):
            await world.client.conversations.create()
        assert (await refused(world.ask("Hi", conversation="conv_1"))).status_code == 404
