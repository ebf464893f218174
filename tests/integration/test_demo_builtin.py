"""Tools of the scripted upstream that need no MCP server: image generation and computer use."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.support.demo import TRANSFER, World, approve, collect, kinds, open_world, refused

pytestmark = pytest.mark.e2e

DEPLOYMENT = {"x-ms-oai-image-generation-deployment": "gpt-image-1"}
DRAW = "Draw a gorgeous image of a river made of white owl feathers"
SCREEN = {
    "type": "computer_use_preview",
    "display_width": 1024,
    "display_height": 768,
    "environment": "browser",
}
SHOT = {"type": "computer_screenshot", "image_url": "data:image/png;base64,aW1n"}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack)


async def draw(world: World, text: object = DRAW, **tool: object):
    return await world.ask(
        text,
        model="gpt-4.1",
        tools=[{"type": "image_generation", **tool}],
        extra_headers=DEPLOYMENT,
    )


# --- images ----------------------------------------------------------------------------------


async def test_an_image_is_a_real_picture_and_the_same_every_time(world: World) -> None:
    for text in (DRAW, "Generate an image of a cat", "Generate a photorealistic image of a cat"):
        answer = await draw(world, text, size="1536x1024")
        assert kinds(answer) == ["image_generation_call", "message"]
        call = answer.output[0].to_dict()
        png = base64.b64decode(call["result"])
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", png[16:24]) == (8, 8)
        assert call["revised_prompt"] == text
        assert (call["status"], call["size"], call["quality"], call["background"]) == (
            "completed",
            "1536x1024",
            "medium",
            "opaque",
        )
        assert call["output_format"] == "png"
        assert (await draw(world, text)).output[0].result == call["result"]
        assert answer.to_dict()["tools"][0]["moderation"] == "auto"
    noted = (await world.get("/_demo/requests")).json()["requests"]
    assert noted[0]["headers"]["x-ms-oai-image-generation-deployment"] == "gpt-image-1"


async def test_without_the_tool_the_words_are_only_words(world: World) -> None:
    assert kinds(await world.ask(DRAW, model="m", tools=[])) == ["message"]
    answer = await world.ask(f"Draw a line and {TRANSFER.lower()}", model="gpt-4.1")
    assert kinds(answer) == ["mcp_list_tools", "mcp_approval_request"]


async def test_partial_images_come_before_the_whole_one(world: World) -> None:
    stream = await world.ask(
        DRAW,
        model="gpt-4.1",
        tools=[{"type": "image_generation", "partial_images": 2}],
        extra_headers=DEPLOYMENT,
        stream=True,
    )
    events = await collect(stream)
    assert [event.type for event in events[:10]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.image_generation_call.in_progress",
        "response.image_generation_call.generating",
        "response.image_generation_call.partial_image",
        "response.image_generation_call.partial_image",
        "response.image_generation_call.completed",
        "response.output_item.done",
        "response.output_item.added",
    ]
    added, done = events[2].item, events[8].item
    assert (added.status, added.result) == ("in_progress", None)
    assert [event.partial_image_index for event in events[5:7]] == [0, 1]
    assert base64.b64decode(events[5].partial_image_b64).startswith(b"\x89PNG")
    assert events[-1].response.output[0] == done
    assert done.result


async def test_an_image_and_an_approval_in_one_response(world: World) -> None:
    tools = [world.tool(), {"type": "image_generation"}]
    extra = {"tools": tools, "extra_headers": DEPLOYMENT}
    first = await world.ask(f"Draw the bill, and {TRANSFER.lower()}", **extra)
    assert kinds(first)[1:] == ["reasoning", "image_generation_call", "mcp_approval_request"]
    second = await world.resume(first, **extra)
    assert kinds(second) == ["mcp_call", "message"]
    assert "Here is the image" in second.output_text
    assert len(await world.effects()) == 1
    other = await world.ask('call get_balance {"account":"4711"} then draw it', **extra)
    assert kinds(other)[-1] == "mcp_approval_request"
    drawn = await world.resume(other, **extra)
    assert kinds(drawn) == ["mcp_call", "reasoning", "image_generation_call", "message"]


async def test_image_generation_refusals(world: World) -> None:
    tools = [{"type": "image_generation"}]
    problem = await refused(world.ask(DRAW, tools=tools))
    assert problem.status_code == 400
    assert "x-ms-oai-image-generation-deployment" in problem.message
    assert (await refused(draw(world, partial_images=4))).param == "tools"
    mask = {"input_image_mask": {"file_id": "assistant-none"}}
    assert "assistant-none" in (await refused(draw(world, **mask))).message
    file = await world.client.files.create(file=("m.png", b"m"), purpose="vision")
    assert await draw(world, input_image_mask={"file_id": file.id})
    chosen = await world.ask(
        "Hello", tools=tools, extra_headers=DEPLOYMENT, tool_choice={"type": "image_generation"}
    )
    assert "image_generation_call" in kinds(chosen)


# --- the computer ----------------------------------------------------------------------------


async def use(world: World, text: object, **changes: object):
    common = {"model": "computer-use-preview", "truncation": "auto", "tools": [SCREEN]}
    return await world.ask(text, **{**common, **changes})


async def test_the_computer_is_used_step_by_step(world: World) -> None:
    first = await use(world, "Use the computer to look up the weather")
    assert kinds(first) == ["computer_call"]
    call = first.output[0]
    assert (call.status, call.action.type) == ("completed", "screenshot")
    assert call.pending_safety_checks == []
    for missing in ("And now?", []):
        problem = await refused(use(world, missing, previous_response_id=first.id))
        assert problem.status_code == 400
        assert problem.body["message"] == f"No tool output found for computer call {call.call_id}."
    output = {"type": "computer_call_output", "call_id": call.call_id, "output": SHOT}
    second = await use(world, [output], previous_response_id=first.id)
    assert second.output_text == "The computer showed a screenshot."
    orphan = await refused(use(world, [output | {"call_id": "call_x"}]))
    assert "No tool call found for computer call output" in orphan.message
    broken = output | {"output": SHOT | {"image_url": "data:image/png;base64,#"}}
    assert (await refused(use(world, [broken], previous_response_id=first.id))).status_code == 400


async def test_the_action_can_be_given_and_asked_for_in_either_dialect(world: World) -> None:
    text = 'Use the computer {"type":"click","button":"left","x":10,"y":20}'
    stream = await use(world, text, stream=True)
    call = (await collect(stream))[-1].response.output[0]
    assert (call.action.type, call.action.x, call.action.y) == ("click", 10, 20)
    newer = await use(world, text, tools=[{"type": "computer"}], truncation="disabled")
    assert newer.output[0].actions[0].type == "click"
    plain = await use(world, "Hi", tool_choice={"type": "computer_use_preview"})
    assert kinds(plain) == ["computer_call"]


async def test_safety_checks_have_to_be_acknowledged(world: World) -> None:
    first = await use(world, "Use the computer quirk: safety-check")
    call = first.output[0]
    checks = [check.to_dict() for check in call.pending_safety_checks]
    output = {"type": "computer_call_output", "call_id": call.call_id, "output": SHOT}
    problem = await refused(use(world, [output], previous_response_id=first.id))
    assert checks[0]["id"] in problem.message
    output["acknowledged_safety_checks"] = checks
    assert (await use(world, [output], previous_response_id=first.id)).output_text


async def test_the_preview_model_insists_on_truncation(world: World) -> None:
    problem = await refused(use(world, "Hi", truncation="disabled"))
    assert (problem.status_code, problem.param) == (400, "truncation")
    assert kinds(await world.ask("Use the computer", model="m", tools=[])) == ["message"]


async def test_a_screen_and_an_approval_in_one_response(world: World) -> None:
    tools = [world.tool(), {"type": "computer"}]
    text = 'use the computer and call get_balance {"account":"4711"}'
    first = await world.ask(text, tools=tools)
    assert kinds(first)[-2:] == ["computer_call", "mcp_approval_request"]
    call_id = first.output[-2].call_id
    assert call_id in (await refused(world.resume(first, tools=tools))).message
    output = {"type": "computer_call_output", "call_id": call_id, "output": SHOT}
    second = await world.resume(first, output, approve(first), tools=tools)
    assert "12500.0" in second.output_text
