"""The scripted upstream's older APIs: chat completions, embeddings and the list of models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import openai
import pytest

from tests.support.demo import World, collect, open_world, refused

pytestmark = pytest.mark.e2e

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASK = 'function weather {"city":"Oslo"}'


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack)


async def chat(world: World, *messages: object, **changes: object):
    said = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return await world.client.chat.completions.create(model="gpt-4o", messages=said, **changes)


async def test_a_completion_answers_and_counts(world: World) -> None:
    answer = await chat(world, {"role": "system", "content": "Be kind."}, "Hello there")
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("You said: Hello there", "stop")
    assert answer.object == "chat.completion"
    assert answer.model == "gpt-4o"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.to_dict()["prompt_filter_results"][0]["prompt_index"] == 0
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aW1n"}}
    seen = await chat(
        world, {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}
    )
    assert seen.choices[0].message.content == "You said: What is it? You showed 1 image."


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_streamed_completion(world: World, include_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = await collect(await chat(world, "Tell me more", stream=True, **options))
    assert chunks[0].choices == []
    assert chunks[0].to_dict()["prompt_filter_results"]
    told = [c for chunk in chunks for c in chunk.choices]
    assert told[0].delta.role == "assistant"
    assert "".join(c.delta.content or "" for c in told) == "You said: Tell me more"
    assert len(told) > 4
    assert told[-1].finish_reason == "stop"
    used = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(used) == include_usage
    assert not include_usage or (chunks[-1].choices == [] and used[0].total_tokens)
    raw = await world.post(
        "/v1/chat/completions",
        json={"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    )
    assert raw.text.startswith("data: {")
    assert raw.text.endswith("\n\ndata: [DONE]\n\n")


async def test_functions_are_called_and_their_outputs_told(world: World) -> None:
    first = await chat(world, ASK, tools=[WEATHER])
    [choice] = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    [call] = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Oslo"}')
    output = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    said = choice.message.model_dump(exclude_none=True)
    second = await chat(world, ASK, said, output, tools=[WEATHER])
    assert second.choices[0].message.content == "The function returned: rain."
    assert "did not have response" in (await refused(chat(world, ASK, said))).message
    assert "role 'tool'" in (await refused(chat(world, ASK, output))).message

    async with world.client.chat.completions.stream(
        model="gpt-4o", messages=[{"role": "user", "content": ASK}], tools=[WEATHER]
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"city":"Oslo"}'


async def test_tool_choice_of_a_completion(world: World) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, calls in (("none", False), ("required", True), (named, True)):
        text = ASK if choice == "none" else "Hello"
        answer = await chat(world, text, tools=[WEATHER], tool_choice=choice)
        assert bool(answer.choices[0].message.tool_calls) is calls
    assert (await chat(world, ASK)).choices[0].message.tool_calls is None


async def test_mcp_is_no_tool_of_a_completion(world: World) -> None:
    problem = await refused(chat(world, "Hi", tools=[WEATHER, world.tool()]))
    assert problem.status_code == 400
    assert problem.body["message"] == (
        "Invalid value: 'mcp'. Supported values are: 'function' and 'custom'."
    )
    assert problem.param == "tools[1].type"
    assert (await refused(chat(world))).param == "messages"
    limited = await refused(chat(world, "Hi fail: rate-limit"))
    assert limited.status_code == 429
    assert await chat(world, "Hi fail: rate-limit")


async def test_embeddings_follow_from_the_text(world: World) -> None:
    embed = world.client.embeddings.create
    packed = await embed(model="text-embedding-3-small", input=["one", "two"])
    plain = await embed(model="text-embedding-3-small", input="one", encoding_format="float")
    assert [len(one.embedding) for one in packed.data] == [1536, 1536]
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert sum(number**2 for number in plain.data[0].embedding) == pytest.approx(1)
    assert plain.usage.total_tokens > 0
    raw = await world.post(
        "/v1/embeddings", json={"model": "m", "input": [1, 2], "encoding_format": "base64"}
    )
    assert isinstance(raw.json()["data"][0]["embedding"], str)
    assert len((await embed(model="m-large", input="x", dimensions=8)).data[0].embedding) == 8
    for changes in ({"dimensions": 9999}, {"input": ""}, {"input": [{}]}, {"model": ""}):
        assert (await refused(embed(**{"model": "m", "input": "x", **changes}))).status_code == 400
    wrong = await world.post(
        "/v1/embeddings", json={"model": "m", "input": "x", "encoding_format": "hex"}
    )
    assert wrong.json()["error"]["param"] == "encoding_format"


async def test_models_are_listed_and_looked_up(world: World) -> None:
    names = [model.id async for model in world.client.models.list()]
    assert {"gpt-4.1", "gpt-image-1", "o3"} <= set(names)
    model = (await world.client.models.retrieve("text-embedding-3-small")).to_dict()
    assert model["capabilities"]["embeddings"] is True
    with pytest.raises(openai.NotFoundError):
        await world.client.models.retrieve("nobody")
