"""What passes through beside /responses: chat completions, embeddings and models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.demo.runner import serve
from tests.support.attempts import House, error_of, open_house
from tests.support.demo import KEY
from tests.support.gateway import MODEL, Gateway, http, open_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/openai/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        folder = tmp_path_factory.mktemp("house")
        yield await open_house(stack, folder, GATEPASS_MAX_BODY_BYTES="100000")


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: House) -> AsyncIterator[House]:
    """The ledger must be sound after every test."""
    yield shared
    await shared.gateway.verify()


async def newest(gateway: Gateway) -> dict[str, Any]:
    """The last request that passed through, as it is recorded."""
    return (await gateway.records("request.completed"))[-1]


async def ended(gateway: Gateway, outcome: str) -> dict[str, Any]:
    """The same, once it says how a stream ended: that is recorded after its last line."""
    for _ in range(100):
        found = await gateway.records("request.completed")
        if found and (found[-1]["outcome"], found[-1]["streamed"]) == (outcome, True):
            return found[-1]
        await asyncio.sleep(0.05)
    raise AssertionError(f"no stream ended {outcome}")


async def sent(gateway: Gateway) -> dict[str, Any]:
    """The last request that Azure saw."""
    return (await gateway.upstream_requests())[-1]


# --- what works -----------------------------------------------------------------------------


async def test_a_chat_completion_passes_through_and_is_recorded(house: House):
    client = await house.gateway.app()
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content == "You said: Hello"
    assert raw.headers["x-ms-region"]
    asked = await sent(house.gateway)
    assert (asked["path"], asked["body"]) == (CHAT, {"model": MODEL, "messages": HELLO})
    assert asked["headers"]["api-key"] == KEY
    assert "authorization" not in asked["headers"]
    record = await newest(house.gateway)
    assert record["subject"]["app"] == "support-bot"
    assert record["actor"]["auth"] == "key"
    told = {name: record[name] for name in ("route", "method", "model", "status", "outcome")}
    assert told == {
        "route": "/chat/completions",
        "method": "POST",
        "model": MODEL,
        "status": 200,
        "outcome": "completed",
    }
    assert record["input_tokens"] == answer.usage.prompt_tokens
    assert record["output_tokens"] == answer.usage.completion_tokens


async def test_a_chat_stream_passes_through_with_its_usage(house: House):
    client = await house.gateway.app()
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "You said: Hello"
    usage = chunks[-1].usage
    assert usage is not None
    record = await ended(house.gateway, "completed")
    assert record["input_tokens"] == usage.prompt_tokens
    assert record["output_tokens"] == usage.completion_tokens


async def test_functions_of_a_chat_pass_through(house: House):
    client = await house.gateway.app()
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


async def test_embeddings_pass_through_and_are_recorded(house: House):
    client = await house.gateway.app()
    answer = await client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert [len(item.embedding) for item in answer.data] == [1536, 1536]
    record = await newest(house.gateway)
    assert (record["route"], record["model"]) == ("/embeddings", "text-embedding-3-small")
    assert record["input_tokens"] == answer.usage.prompt_tokens


async def test_models_are_listed_and_shown(house: House):
    client = await house.gateway.app()
    assert MODEL in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    assert (await newest(house.gateway))["route"] == f"/models/{MODEL}"


@pytest.mark.parametrize(
    ("root", "options"),
    [
        ("/openai/v1/", {"api_version": "preview"}),
        ("/openai/deployments/gpt-4o", {"api_version": "2024-10-21"}),
    ],
)
async def test_the_azure_client_reaches_chat_and_embeddings(house: House, root: str, options: Any):
    """With its own idea of paths: a deployment stands before the route."""
    gateway = house.gateway
    async with openai.AsyncAzureOpenAI(
        base_url=f"{gateway.url}{root}", api_key=gateway.key, max_retries=0, **options
    ) as client:
        answer = await client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert answer.model == "gpt-4o"
        assert (await sent(gateway))["path"] == CHAT
        await client.embeddings.create(model="text-embedding-3-small", input="one")
        assert (await sent(gateway))["path"] == "/openai/v1/embeddings"


async def test_the_deployment_of_a_legacy_path_is_the_model_where_none_is_named(house: House):
    legacy = "/openai/deployments/my-gpt/chat/completions"
    answer = await house.gateway.raw(
        "POST", legacy, json={"messages": HELLO}, params={"api-version": "2024-10-21"}
    )
    assert answer.status_code == 200, answer.text
    asked = await sent(house.gateway)
    assert (asked["path"], asked["query"]) == (CHAT, "")
    assert asked["body"] == {"messages": HELLO, "model": "my-gpt"}


async def test_an_error_of_azure_keeps_its_status_body_and_headers(house: House):
    client = await house.gateway.app()
    content = "Hello, fail: content-filter"
    with pytest.raises(openai.BadRequestError) as problem:
        await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": content}]
        )
    assert problem.value.body["code"] == "content_filter"
    assert problem.value.body["innererror"]
    record = await newest(house.gateway)
    assert (record["status"], record["outcome"]) == (400, "rejected")
    with pytest.raises(openai.RateLimitError) as problem:
        await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello, fail: rate-limit"}]
        )
    assert problem.value.response.headers["retry-after-ms"]


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tools": [{"type": "mcp", "server_label": "bank"}]}, "tool_refused"),
        ({"tools": [{"type": "tool_search"}]}, "tool_refused"),
        ({"tools": [{"type": "MCP"}]}, "tool_type_unknown"),
        ({"tools": [{"type": "web_search"}]}, "tool_type_unknown"),
        ({"tools": [{"type": ["function"]}]}, "tool_type_unknown"),
        ({"tools": [{}]}, "tool_type_unknown"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt_refused"),
        ({"agent": {"name": "x"}}, "agent_refused"),
        ({"agent_reference": {"name": "x"}}, "agent_refused"),
        ({"mcp_servers": [{"url": "http://evil.example"}]}, "mcp_refused"),
        ({"MCP-servers": [{"url": "http://evil.example"}]}, "mcp_refused"),
        ({"Prompt": {"id": "pmpt_1"}}, "prompt_refused"),
        ({"Tools": [{"type": "mcp"}]}, "member_misspelt"),
        ({"ｔools": [{"type": "mcp"}]}, "member_misspelt"),
        ({"_messages": []}, "member_misspelt"),
    ],
    ids=str,
)
async def test_B_40_tools_of_other_kinds_are_refused_in_a_chat(
    house: House, changes: dict[str, Any], code: str
):
    body = {"model": MODEL, "messages": HELLO, **changes}
    await house.refused("POST", CHAT, (403, code), json=body)
    deployed = "/openai/deployments/gpt-4o/chat/completions"
    await house.refused("POST", deployed, (403, code), json=body)
    await house.refused("POST", "/v1/embeddings", (403, code), json=body)


@pytest.mark.parametrize("tools", ["mcp", {"type": "function"}, ["function"]], ids=str)
async def test_tools_of_another_form_are_refused_in_a_chat(house: House, tools: Any):
    body = {"model": MODEL, "messages": HELLO, "tools": tools}
    await house.refused("POST", CHAT, (400, "invalid_type"), json=body)


async def test_members_that_only_look_alike_pass(house: House):
    answer = await house.gateway.raw(
        "POST",
        CHAT,
        json={"model": MODEL, "messages": HELLO, "prompt_cache_key": "x", "agent": None},
    )
    assert answer.status_code == 200


async def test_B_30_a_body_that_two_parsers_read_differently_is_refused(house: House):
    twice = '{"model": "m", "tools": [], "messages": [], "tools": [{"type": "mcp"}]}'
    headers = {"content-type": "application/json"}
    await house.refused("POST", CHAT, (400, "duplicate_member"), content=twice, headers=headers)
    long = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 100_000}]}
    await house.refused("POST", CHAT, (413, "body_too_large"), json=long)


async def test_a_chat_needs_a_key_and_the_right_method(house: House):
    async with house.untouched(), http(house.gateway.url, {}) as client:
        answer = await client.post(CHAT, json={"model": MODEL, "messages": HELLO})
        assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
    await house.refused("GET", CHAT, (405, "method_not_allowed"))
    await house.refused("POST", "/openai/v1/models", (405, "method_not_allowed"), json={})
    await house.refused("DELETE", "/openai/v1/models/gpt-4o", (405, "method_not_allowed"))


# --- an Azure that misbehaves ---------------------------------------------------------------


class Odd:
    """An Azure that repeats its key, breaks off, or never comes to an end."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        if not body.get("stream"):
            return JSONResponse({"object": "chat.completion", "choices": [], "note": KEY})
        return StreamingResponse(self._stream(body["model"]), media_type="text/event-stream")

    async def _stream(self, model: str) -> AsyncIterator[bytes]:
        yield b'data: {"choices": [], "note": "' + KEY[:5].encode()
        await asyncio.sleep(0.05)
        yield KEY[5:].encode() + b'"}\n\n'
        if model == "breaks":
            raise RuntimeError("as if the machine had gone away")
        try:
            await asyncio.sleep(30)
        finally:
            self.closed.set()


@asynccontextmanager
async def odd_azure(folder: Path) -> AsyncIterator[tuple[Gateway, Odd]]:
    async with AsyncExitStack() as stack:
        odd = Odd()
        routes = [Route("/openai/v1/chat/completions", odd.answer, methods=["POST"])]
        url = await stack.enter_async_context(serve(Starlette(routes=routes)))
        gateway = await open_gateway(stack, folder, GATEPASS_UPSTREAM_URL=f"{url}/openai/v1/")
        yield gateway, odd
        await gateway.verify()


async def test_our_key_never_comes_back_not_even_in_pieces(tmp_path: Path):
    async with odd_azure(tmp_path) as (gateway, odd):
        plain = await gateway.raw("POST", CHAT, json={"model": "m", "messages": HELLO})
        assert plain.json()["note"] == "[redacted]"
        body = {"model": "endless", "messages": HELLO, "stream": True}
        async with chatting(gateway, body) as lines:
            assert "[redacted]" in await anext(lines)
        # The app has gone; so must the request to Azure.
        await asyncio.wait_for(odd.closed.wait(), 5)
        await ended(gateway, "abandoned")


async def test_a_stream_that_breaks_off_ends_with_an_error_that_clients_raise(tmp_path: Path):
    async with odd_azure(tmp_path) as (gateway, _):
        client = await gateway.app()
        stream = await client.chat.completions.create(model="breaks", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="connection to Azure broke"):
            async for _chunk in stream:
                pass
        await ended(gateway, "broken")


async def test_an_azure_that_is_not_there_is_told_and_recorded(tmp_path: Path):
    async with AsyncExitStack() as stack:
        nobody = "http://127.0.0.1:9/openai/v1/"
        gateway = await open_gateway(stack, tmp_path, GATEPASS_UPSTREAM_URL=nobody)
        answer = await gateway.raw("GET", "/openai/v1/models")
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_unreachable")
        record = await newest(gateway)
        assert (record["status"], record["outcome"]) == (502, "unreachable")
        await gateway.verify()


@asynccontextmanager
async def chatting(gateway: Gateway, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[str]]:
    async with (
        http(gateway.url, {"api-key": gateway.key}) as client,
        client.stream("POST", CHAT, json=body) as answer,
    ):
        assert answer.status_code == 200
        yield answer.aiter_lines()
