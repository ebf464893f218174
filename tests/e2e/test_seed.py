"""The Azure how-to, capability by capability: its own samples, with another base URL and key.

The client is the page's: synchronous, `AzureOpenAI` on `…/openai/v1/` with a token provider that
returns the app's key. Each test looks at what the app sees, and at what the ledger has of it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.support.demo import TOKEN, TRANSFER
from tests.support.gateway import Gateway, open_gateway
from tests.support.page import DEPLOYMENT, Page, create, kinds, page_of, streamed

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
PNG = b"\x89PNG\r\n\x1a\n"
EXECUTED = "bank.transfer returned:"
QUESTION = "Define and explain the concept of catastrophic forgetting?"
SIMPLER = "Explain this at a level that could be understood by a college freshman"
STORY = "Write me a very long story"
DRAWING = {"type": "image_generation"}
SCREEN = {
    "type": "computer_use_preview",
    "display_width": 1024,
    "display_height": 768,
    "environment": "browser",
}
SHOT = {"type": "computer_screenshot", "image_url": f"data:image/png;base64,{PIXEL}"}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather for a location",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Gateway, openai.AzureOpenAI]]:
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path_factory.mktemp("page"))
        client = openai.AzureOpenAI(
            base_url=f"{gateway.url}/openai/v1/",
            azure_ad_token_provider=lambda: gateway.key,
            api_version="preview",
        )
        with client:
            yield gateway, client
        await gateway.verify()


@pytest_asyncio.fixture(loop_scope="module")
async def page(shared: tuple[Gateway, openai.AzureOpenAI]) -> Page:
    return await page_of(*shared)


# --- text, and what is stored ---------------------------------------------------------------


async def test_text(page: Page):
    answer = await page.run(create(page, model="gpt-4.1-nano", input="This is a test"))
    assert answer.output_text == "You said: This is a test"
    assert json.loads(answer.model_dump_json(indent=2))["status"] == "completed"
    await page.passed(("POST", "/responses"))
    [entry] = await page.sent()
    assert entry["body"] == {"model": "gpt-4.1-nano", "input": "This is a test"}


async def test_a_response_is_retrieved_and_deleted(page: Page):
    answer = await page.run(create(page, input="This is a test"))
    again = await page.run(lambda: page.client.responses.retrieve(answer.id))
    assert again == answer
    assert await page.run(lambda: page.client.responses.delete(answer.id)) is None
    with pytest.raises(openai.NotFoundError):
        await page.run(lambda: page.client.responses.retrieve(answer.id))
    await page.passed(("POST", "/responses"))
    direct = await page.gateway.world.get(f"/openai/v1/responses/{answer.id}")
    assert direct.status_code == 404


async def test_chaining_by_id(page: Page):
    first = await page.run(create(page, model="gpt-4o", input=QUESTION))
    simpler = [{"role": "user", "content": SIMPLER}]
    second = await page.run(
        create(page, model="gpt-4o", previous_response_id=first.id, input=simpler)
    )
    assert second.previous_response_id == first.id
    assert second.output_text == f"You said: {SIMPLER}"
    await page.passed(("POST", "/responses"), ("POST", "/responses"))


async def test_chaining_by_hand(page: Page):
    inputs: list[Any] = [{"type": "message", "role": "user", "content": QUESTION}]
    first = await page.run(create(page, model="gpt-4o", input=inputs))
    inputs += first.output
    inputs.append({"role": "user", "type": "message", "content": SIMPLER})
    second = await page.run(create(page, model="gpt-4o", input=inputs))
    assert second.output_text == f"You said: {SIMPLER}"
    assert len((await page.sent())[-1]["body"]["input"]) == 3
    await page.passed(("POST", "/responses"), ("POST", "/responses"))


async def test_chaining_by_hand_over_a_held_call(page: Page):
    tools = [page.mcp()]
    inputs: list[Any] = [{"type": "message", "role": "user", "content": TRANSFER}]
    first = await page.held(create(page, input=inputs, tools=tools))
    inputs += first.output
    inputs.append({"role": "user", "content": "Thank you"})
    second = await page.run(create(page, input=inputs, tools=tools))
    assert second.output_text == "You said: Thank you"
    await page.decided("approve")


async def test_streaming(page: Page):
    found = await page.run(streamed(page, model="o4-mini", input="This is a test"))
    text = "".join(event.delta for event in found if event.type == "response.output_text.delta")
    assert text == "You said: This is a test"
    assert [event.sequence_number for event in found] == list(range(len(found)))
    [entry] = await page.records("request.completed")
    assert (entry["streamed"], entry["status"]) == (True, 200)


async def test_function_calling(page: Page):
    question = [{"role": "user", "content": 'function get_weather {"location": "San Francisco"}'}]
    first = await page.run(create(page, model="gpt-4o", tools=[WEATHER], input=question))
    outputs = []
    for output in first.output:
        if output.type == "function_call":
            assert output.name == "get_weather"
            told = {"type": "function_call_output", "call_id": output.call_id}
            outputs.append({**told, "output": '{"temperature": "70 degrees"}'})
    assert len(outputs) == 1
    second = await page.run(
        create(page, model="gpt-4o", previous_response_id=first.id, input=outputs)
    )
    assert "70 degrees" in second.output_text
    await page.passed(("POST", "/responses"), ("POST", "/responses"))


async def test_the_list_of_input_items(page: Page):
    answer = await page.run(create(page, input="This is a test."))
    listed = await page.run(lambda: page.client.responses.input_items.list(answer.id))
    [item] = json.loads(listed.model_dump_json(indent=2))["data"]
    assert (item["role"], item["content"][0]["text"]) == ("user", "This is a test.")
    assert listed.has_more is False
    await page.passed(("POST", "/responses"))


@pytest.mark.parametrize(
    "url", ["https://images.example/otter.jpg", f"data:image/png;base64,{PIXEL}"]
)
async def test_image_input(page: Page, url: str):
    parts = [
        {"type": "input_text", "text": "what is in this image?"},
        {"type": "input_image", "image_url": url},
    ]
    answer = await page.run(
        create(page, model="gpt-4o", input=[{"role": "user", "content": parts}])
    )
    assert "1 image" in answer.output_text
    [entry] = await page.sent()
    assert entry["body"]["input"][0]["content"] == parts
    await page.passed(("POST", "/responses"))


# --- remote MCP -----------------------------------------------------------------------------


async def test_a_remote_server_whose_app_need_not_be_asked_is_asked_all_the_same(page: Page):
    tool = page.mcp(require_approval="never")
    answer = await page.held(create(page, input=TRANSFER, tools=[tool]))
    assert answer.output_text.startswith(EXECUTED)
    assert kinds(answer) == ["mcp_list_tools", "mcp_call", "message"]
    assert all(e["body"]["tools"][0]["require_approval"] == "always" for e in await page.sent())
    [overridden] = await page.records("security.overridden")
    assert overridden["what"] == ["tools[0].require_approval"]
    await page.decided("approve")


async def test_a_person_may_say_no(page: Page):
    answer = await page.held(create(page, input=TRANSFER, tools=[page.mcp()]), "deny")
    assert "as tested" in answer.output_text
    await page.decided("deny")


def answering(page: Page, first: Any, *, approve: bool = True, request_id: str = "") -> Any:
    """The page's own sample: the app approves the call itself."""
    waiting = [item.id for item in first.output if item.type == "mcp_approval_request"]
    answer = {"type": "mcp_approval_response", "approve": approve}
    answer["approval_request_id"] = request_id or waiting[0]
    return create(page, tools=[page.mcp()], previous_response_id=first.id, input=[answer])


async def test_an_approval_of_the_app_is_refused_while_the_gateway_holds(page: Page):
    first = await page.held(create(page, input=TRANSFER, tools=[page.mcp()]), "deny")
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await page.run(answering(page, first, request_id="mcpr_682bd9cd428c8198b170dc6b549d66fc"))
    assert refused.value.code == "approval_forged"
    [record] = await page.records("security.refused")
    assert record["code"] == "approval_forged"
    await page.decided("deny")


@pytest.mark.parametrize("verdict", ["approve", "deny"])
async def test_an_approval_of_an_app_that_goes_on_by_itself_is_a_wish(page: Page, verdict: str):
    page.client = page.client.with_options(default_headers={"Gatepass-Wait": "return"})
    first = await page.run(create(page, input=TRANSFER, tools=[page.mcp()]))
    assert kinds(first) == ["mcp_list_tools", "mcp_approval_request"]
    wishing = asyncio.ensure_future(page.run(answering(page, first, approve=verdict == "deny")))
    await asyncio.sleep(0.2)
    assert not wishing.done()
    await page.gateway.decide(verdict)
    second = await wishing
    assert second.output_text.startswith(EXECUTED) is (verdict == "approve")
    assert (await page.sent())[-1]["body"]["input"][0]["approve"] is (verdict == "approve")
    await page.decided(verdict)


async def test_headers_of_the_app_are_replaced_by_those_of_the_vault(page: Page):
    tool = page.mcp(headers={"Authorization": "Bearer my-own-key"})
    answer = await page.held(create(page, input=TRANSFER, tools=[tool]))
    assert answer.output_text.startswith(EXECUTED)
    for entry in await page.sent():
        assert entry["body"]["tools"][0]["headers"] == {"Authorization": f"Bearer {TOKEN}"}
        assert "my-own-key" not in json.dumps(entry)
    assert TOKEN not in answer.model_dump_json()
    [overridden] = await page.records("security.overridden")
    assert "tools[0].headers" in overridden["what"]
    await page.decided("approve")


# --- the background -------------------------------------------------------------------------


def polled(page: Page, response: Any) -> Any:
    """The page's loop, with a shorter pause."""
    while response.status in {"queued", "in_progress"}:
        time.sleep(0.1)
        response = page.client.responses.retrieve(response.id)
    return response


async def test_the_background_is_polled(page: Page):
    first = await page.run(create(page, model="o3", input=STORY, background=True))
    assert first.status in {"queued", "in_progress"}
    final = await page.run(lambda: polled(page, first))
    assert (final.status, final.output_text) == ("completed", f"You said: {STORY}")
    [record] = await page.records("request.completed")
    assert (record["route"], record["outcome"]) == ("/responses", "queued")


async def test_the_background_is_polled_while_a_person_thinks(page: Page):
    first = await page.run(
        create(page, model="o3", input=TRANSFER, background=True, tools=[page.mcp()])
    )
    await page.gateway.pending()
    waiting = await page.run(lambda: page.client.responses.retrieve(first.id))
    assert waiting.status == "in_progress"
    final = await page.held(lambda: polled(page, first))
    assert final.output_text.startswith(EXECUTED)
    await page.decided("approve")


@pytest.mark.parametrize("tools", [False, True], ids=["plain", "held"])
async def test_the_background_is_cancelled_twice(page: Page, tools: bool):
    text = f"{TRANSFER}" if tools else f"{STORY} fail: slow 20s"
    body = {"tools": [page.mcp()]} if tools else {}
    first = await page.run(create(page, model="o3", input=text, background=True, **body))
    if tools:
        await page.gateway.pending()
    for _ in range(2):
        cancelled = await page.run(lambda: page.client.responses.cancel(first.id))
        assert cancelled.status == "cancelled"
    if tools:
        [decided] = await page.records("approval.decided")
        assert decided["decision"]["by"] == "cancelled"
    assert len(await page.gateway.effects()) == page.effects
    assert await page.gateway.pending(0) == []


async def test_the_background_is_streamed_with_a_cursor(page: Page):
    found = await page.run(streamed(page, model="o3", input=STORY, background=True))
    cursor = None
    for event in found:
        cursor = event.sequence_number
    assert cursor == len(found) - 1
    assert found[-1].response.output_text == f"You said: {STORY}"


async def test_a_stream_is_resumed_at_any_point_of_a_hold(page: Page):
    body = {"input": TRANSFER, "tools": [page.mcp()], "model": "o3", "background": True}

    def leave() -> list[Any]:
        with create(page, stream=True, **body)() as stream:
            return [next(stream) for _ in range(3)]

    def resumed(after: int, count: int | None = None) -> list[Any]:
        name, more = seen[0].response.id, {"starting_after": after}
        with page.client.responses.retrieve(name, stream=True, **more) as stream:
            return [next(stream) for _ in range(count)] if count else list(stream)

    seen = await page.run(leave)
    await page.gateway.pending()
    before = await page.run(lambda: resumed(0, 4))
    during = await page.run(lambda: resumed(2, 3))
    assert before[0].sequence_number == 1
    assert [event.sequence_number for event in during] == [3, 4, 5]
    through = await page.held(lambda: resumed(4))
    whole = await page.run(lambda: resumed(-1))
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert whole[:3] == seen
    assert whole[1:5] == before
    assert whole[3:6] == during
    assert whole[5:] == through
    for after in range(0, len(whole), 3):
        assert await page.run(lambda after=after: resumed(after)) == whole[after + 1 :]
    assert whole[-1].response.output_text.startswith(EXECUTED)
    await page.decided("approve")


# --- reasoning ------------------------------------------------------------------------------


async def test_encrypted_reasoning_without_anything_stored(page: Page):
    body = {
        "model": "o4-mini",
        "reasoning": {"effort": "medium"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "tools": [WEATHER, page.mcp()],
    }
    inputs: list[Any] = [{"role": "user", "content": TRANSFER}]
    first = await page.held(create(page, input=inputs, **body))
    thoughts = [item for item in first.output if item.type == "reasoning"]
    assert thoughts
    assert all(item.encrypted_content for item in thoughts)
    inputs += first.output
    inputs.append({"role": "user", "content": "What is the weather like today?"})
    second = await page.run(create(page, input=inputs, **body))
    assert "What is the weather like today?" in second.output_text
    assert {entry["body"]["store"] for entry in await page.sent()} == {False}
    direct = await page.gateway.world.get(f"/openai/v1/responses/{first.id}")
    assert direct.status_code == 404
    opened = await page.records("exchange.opened")
    assert [entry["stored"] for entry in opened] == [False, False]
    await page.decided("approve")


# --- images ---------------------------------------------------------------------------------


async def test_an_image_is_generated_and_saved(page: Page, tmp_path: Path):
    page.client = page.painter
    text = "Generate an image of gray tabby cat hugging an otter with an orange scarf"
    answer = await page.run(create(page, model="o3", input=text, tools=[DRAWING]))
    images = [item.result for item in answer.output if item.type == "image_generation_call"]
    saved = tmp_path / "otter.png"
    saved.write_bytes(base64.b64decode(images[0]))
    assert saved.read_bytes().startswith(PNG)
    [entry] = await page.sent()
    assert entry["headers"][DEPLOYMENT] == "my-image-deployment"
    await page.passed(("POST", "/responses"))


async def test_partial_images_are_streamed(page: Page):
    page.client = page.painter
    text = "Draw a gorgeous image of a river made of white owl feathers"
    tool = {**DRAWING, "partial_images": 2}
    found = await page.run(streamed(page, input=text, tools=[tool]))
    partial = [e for e in found if e.type == "response.image_generation_call.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1]
    for event in partial:
        assert base64.b64decode(event.partial_image_b64).startswith(PNG)
    assert found[-1].type == "response.completed"
    [record] = await page.records("request.completed")
    assert record["streamed"] is True


async def test_images_are_edited_from_uploads_and_base64_together(page: Page, tmp_path: Path):
    page.client = page.painter

    def create_file(name: str) -> str:
        path = tmp_path / name
        path.write_bytes(base64.b64decode(PIXEL))
        with path.open("rb") as content:
            return page.client.files.create(file=content, purpose="vision").id

    ids = [await page.run(lambda name=name: create_file(name)) for name in ("a.png", "b.png")]
    inline = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}
    prompt = "Generate a photorealistic image of a gift basket on a white background"
    parts = [
        {"type": "input_text", "text": prompt},
        inline,
        inline,
        *({"type": "input_image", "file_id": name} for name in ids),
    ]
    answer = await page.run(
        create(page, input=[{"role": "user", "content": parts}], tools=[DRAWING])
    )
    [drawn] = [item for item in answer.output if item.type == "image_generation_call"]
    assert base64.b64decode(drawn.result).startswith(PNG)
    assert (await page.sent())[0]["body"]["input"][0]["content"] == parts
    await page.passed(("POST", "/files"), ("POST", "/files"), ("POST", "/responses"))


async def test_an_image_beside_a_held_call_has_its_deployment_on_the_resume_too(page: Page):
    page.client = page.painter
    text = f"{TRANSFER} then draw an image of it. Draw an image of a receipt."
    answer = await page.held(create(page, input=text, tools=[page.mcp(), DRAWING]))
    assert {"mcp_call", "image_generation_call"} <= set(kinds(answer))
    sent = await page.sent()
    assert [entry["headers"][DEPLOYMENT] for entry in sent] == ["my-image-deployment"] * 2
    await page.decided("approve")


# --- the computer ---------------------------------------------------------------------------


async def test_the_computer_is_used(page: Page):
    body = {"model": "computer-use-preview", "truncation": "auto", "tools": [SCREEN]}
    first = await page.run(create(page, input="Use the computer to look up the weather", **body))
    [called] = [item for item in first.output if item.type == "computer_call"]
    assert called.action.type == "screenshot"
    shown = {"type": "computer_call_output", "call_id": called.call_id, "output": SHOT}
    second = await page.run(create(page, previous_response_id=first.id, input=[shown], **body))
    assert second.output_text == "The computer showed a screenshot."
    await page.passed(("POST", "/responses"), ("POST", "/responses"))


async def test_the_computer_is_used_beside_a_held_call(page: Page):
    body = {"model": "computer-use-preview", "truncation": "auto", "tools": [SCREEN, page.mcp()]}
    transfer = 'call transfer {"amount": 5, "currency": "EUR", "to_account": "0815"}'
    first = await page.run(create(page, input=f"Use the computer and {transfer}", **body))
    assert kinds(first)[-1] == "computer_call"
    assert "mcp_approval" not in first.model_dump_json()
    shown = {
        "type": "computer_call_output",
        "call_id": first.output[-1].call_id,
        "output": SHOT,
    }
    second = await page.held(create(page, previous_response_id=first.id, input=[shown], **body))
    assert "mcp_call" in kinds(second)
    assert "screenshot" in second.output_text
    await page.decided("approve")


# --- beside the responses -------------------------------------------------------------------


async def test_chat_completions(page: Page):
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "This is a test"}]}
    answer = await page.run(lambda: page.client.chat.completions.create(**body))
    assert answer.choices[0].message.content == "You said: This is a test"
    chunks = await page.run(lambda: list(page.client.chat.completions.create(**body, stream=True)))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "You said: This is a test"
    await page.passed(("POST", "/chat/completions"), ("POST", "/chat/completions"))


async def test_embeddings_and_models(page: Page):
    body = {"model": "text-embedding-3-small", "input": ["This is a test", "Another"]}
    vectors = await page.run(lambda: page.client.embeddings.create(**body))
    assert len(vectors.data) == 2
    assert vectors.data[0].embedding != vectors.data[1].embedding
    models = await page.run(lambda: [model.id for model in page.client.models.list()])
    one = await page.run(lambda: page.client.models.retrieve(models[0]))
    assert one.id == models[0]
    recorded = await page.records("request.completed")
    assert [entry["route"] for entry in recorded][:2] == ["/embeddings", "/models"]
    assert len(recorded) == 3
