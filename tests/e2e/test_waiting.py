"""What an app is sent while a person thinks, and what happens when it does not wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from gateway.approvals import decisions
from tests.support.attempts import RESPONSES, add_app, error_of
from tests.support.demo import TRANSFER
from tests.support.gateway import MODEL, Gateway, http, open_gateway

pytestmark = pytest.mark.e2e
PYTHON = {"user-agent": "AsyncOpenAI/Python 3.54.0"}
NODE = {"user-agent": "OpenAI/JS 7.57.0"}
MIXED = (
    'call transfer {"amount": 5, "currency": "EUR", "to_account": "0815"} '
    'and function weather {"city": "Riga"}'
)
FUNCTION = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object"},
    "strict": False,
}


@asynccontextmanager
async def opened(folder: Path, **settings: str) -> AsyncIterator[Gateway]:
    """A gateway with short pauses; its ledger is sound at the end."""
    async with AsyncExitStack() as stack:
        changes = {f"GATEPASS_{name.upper()}": value for name, value in settings.items()}
        gateway = await open_gateway(stack, folder, **changes)
        yield gateway
        await gateway.verify()


class Wire:
    """One request as it looks on the wire: the headers once they are there, the bytes as they
    come; `gone` closes the connection.
    """

    def __init__(self, gateway: Gateway, headers: dict[str, str], **changes: Any) -> None:
        body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()], **changes}
        headers = {"api-key": gateway.key, **headers}
        self.status: int | None = None
        self.headers = httpx2.Headers()
        self.parts: list[bytes] = []
        self._task = asyncio.ensure_future(self._read(gateway.url, headers, body))

    async def _read(self, url: str, headers: dict[str, str], body: Any) -> None:
        client = http(url, headers)
        async with client, client.stream("POST", RESPONSES, json=body) as answer:
            self.status, self.headers = answer.status_code, answer.headers
            async for part in answer.aiter_raw():
                self.parts.append(part)

    @property
    def raw(self) -> bytes:
        return b"".join(self.parts)

    async def until(self, mark: bytes, count: int = 1) -> None:
        """Until `mark` has been seen `count` times."""
        async with asyncio.timeout(10):
            while self.raw.count(mark) < count:
                assert not self._task.done(), self.raw
                await asyncio.sleep(0.01)

    async def end(self) -> bytes:
        async with asyncio.timeout(20):
            await self._task
        return self.raw

    async def gone(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


def events(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream; anything but comments, names and data is a mistake."""
    found = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        lines = block.split("\n")
        if lines == [": waiting"]:
            continue
        assert [line.partition(":")[0] for line in lines] == ["event", "data"], block
        event = json.loads(lines[1].removeprefix("data: "))
        assert lines[0] == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


# --- streams --------------------------------------------------------------------------------


async def test_a_held_stream_has_comments_and_numbered_keepalives_and_nothing_else(tmp_path):
    async with opened(tmp_path, heartbeat="100ms", keepalive="250ms") as gateway:
        wire = Wire(gateway, PYTHON, stream=True)
        await wire.until(b'"type":"keepalive"', 2)
        await wire.until(b": waiting\n\n", 3)
        assert wire.headers["x-accel-buffering"] == "no"
        assert wire.headers["cache-control"] == "no-cache"
        await gateway.decide()
        found = events(await wire.end())
    kinds = [event["type"] for event in found]
    assert kinds.count("keepalive") >= 2
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    for event in found:
        if event["type"] == "keepalive":
            assert set(event) == {"type", "sequence_number"}


async def test_clients_that_break_on_keepalives_and_apps_that_say_so_get_comments_only(tmp_path):
    async with opened(tmp_path, heartbeat="50ms", keepalive="100ms") as gateway:
        key = await add_app(gateway, "quiet-bot", heartbeat="comments")
        agents = ["OpenAI/JS 6.45.0", "OpenAI/Java 4.1.0", "openai-php/client 0.16"]
        wires = [Wire(gateway, {**PYTHON, "api-key": key}, stream=True)]
        wires += [Wire(gateway, {"user-agent": agent}, stream=True) for agent in agents]
        for wire in wires:
            await wire.until(b": waiting\n\n", 6)
        await gateway.decide(count=4)
        for wire in wires:
            assert "keepalive" not in str(events(await wire.end()))


async def test_the_official_helper_waits_through_comments_and_keepalives(tmp_path):
    async with opened(tmp_path, heartbeat="50ms", keepalive="100ms") as gateway:
        client = await gateway.app(timeout=4)
        body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()]}
        deciding = asyncio.ensure_future(gateway.decide(after=4.5))
        async with client.responses.stream(**body) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        await deciding
        assert "keepalive" in kinds
        assert final.output_text.startswith("bank.transfer returned:")
        assert len(await gateway.effects()) == 1


async def test_a_stream_that_waits_before_its_first_frame_is_kept_alive(tmp_path):
    async with opened(tmp_path, heartbeat="50ms") as gateway:
        body = {"tools": [gateway.tool(), FUNCTION]}
        first = await gateway.ask(MIXED, **body)
        output = {
            "type": "function_call_output",
            "call_id": next(item.call_id for item in first.output if item.type == "function_call"),
            "output": "sunny",
        }
        wire = Wire(
            gateway, PYTHON, input=[output], previous_response_id=first.id, stream=True, **body
        )
        await wire.until(b": waiting\n\n", 3)
        assert (wire.status, wire.raw.replace(b": waiting\n\n", b"")) == (200, b"")
        await gateway.decide()
        found = events(await wire.end())
        assert found[0]["type"] == "response.created"
        assert found[-1]["response"]["previous_response_id"] == first.id
        assert len(await gateway.effects()) == 1


async def test_a_wait_before_the_first_frame_may_end_badly_too(tmp_path):
    async with opened(tmp_path, heartbeat="50ms", early_header="50ms") as gateway:
        text = f"{MIXED} fail: content-filter on resume"
        body = {"tools": [gateway.tool(), FUNCTION]}
        first = await gateway.ask(text, **body)
        call_id = next(item.call_id for item in first.output if item.type == "function_call")
        output = {"type": "function_call_output", "call_id": call_id, "output": "sunny"}
        body |= {"input": [output], "previous_response_id": first.id}
        streamed, plain = (
            Wire(gateway, PYTHON, stream=True, **body),
            Wire(gateway, PYTHON, **body),
        )
        await streamed.until(b": waiting\n\n", 2)
        await plain.until(b"\n")
        await gateway.decide("deny")
        error, failed = events(await streamed.end())
        assert (error["type"], failed["type"]) == ("error", "response.failed")
        assert error["code"] == error["error"]["code"] == "content_filter"
        answer = json.loads(await plain.end())
        for response in (failed["response"], answer):
            assert (response["status"], response["object"]) == ("failed", "response")
            assert response["error"]["code"] == "content_filter"
            assert response["id"].startswith("resp_")
            assert response["created_at"] > 1_700_000_000


# --- plain calls ----------------------------------------------------------------------------


async def test_a_patient_call_is_sent_nothing_then_newlines_then_the_answer(tmp_path):
    async with opened(tmp_path, early_header="400ms") as gateway:
        wire = Wire(gateway, {**PYTHON, "x-stainless-read-timeout": "0.5"})
        [request] = await gateway.pending()
        assert wire.status is None
        await wire.until(b"\n", 3)
        assert wire.status == 200
        assert wire.raw.strip() == b""
        assert wire.headers["content-type"] == "application/json"
        assert (await gateway.review(request)).status_code == 201
        answer = json.loads(await wire.end())
        assert answer["status"] == "completed"
        assert wire.headers["gatepass-exchange"] == request["exchange_id"]


async def test_P_14_a_quick_decision_keeps_the_true_status(tmp_path):
    async with opened(tmp_path) as gateway:
        text = f"{TRANSFER} fail: content-filter on resume"
        with pytest.raises(openai.BadRequestError) as failed:
            await asyncio.gather(gateway.ask(text), gateway.decide())
        assert failed.value.code == "content_filter"
        assert failed.value.body["innererror"]["code"] == "ResponsibleAIPolicyViolation"
        answer, _ = await asyncio.gather(gateway.ask(TRANSFER), gateway.decide())
        assert answer.status == "completed"


async def test_a_failure_after_the_early_header_is_a_failed_response(tmp_path):
    async with opened(tmp_path, early_header="100ms") as gateway:
        wire = Wire(gateway, PYTHON, input=f"{TRANSFER} fail: server-error on resume")
        await wire.until(b"\n")
        await gateway.decide()
        answer = json.loads(await wire.end())
        assert (wire.status, answer["status"]) == (200, "failed")
        assert answer["error"]["code"] == "server_error"
        assert "mcp_approval" not in str(answer)
        retrieved = await gateway.raw("GET", f"{RESPONSES}/{answer['id']}")
        assert retrieved.json() == answer
        assert await gateway.effects() == []


async def test_the_clients_own_timer_brings_the_newlines_forward(tmp_path):
    async with opened(tmp_path, early_header="10s") as gateway:
        client = await gateway.app(timeout=openai.Timeout(20, read=2))
        body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()]}
        asking = asyncio.ensure_future(client.responses.create(**body))
        await gateway.decide(after=3.5)
        assert (await asking).status == "completed"
        posted = [entry for entry in await gateway.upstream_requests() if entry["body"]]
        assert len(posted) == 2


@pytest.mark.parametrize("header", [None, {"x-stainless-timeout": "1"}])
async def test_when_the_limit_comes_first_the_response_is_to_be_polled(tmp_path, header):
    limit = "10s" if header else "300ms"
    async with opened(tmp_path, plain_limit=limit, early_header="10s") as gateway:
        wire = Wire(gateway, {**NODE, **(header or {})})
        interim = json.loads(await wire.end())
        assert (wire.status, interim["status"]) == (200, "in_progress")
        assert [item["type"] for item in interim["output"]] == ["mcp_list_tools"]
        client = await gateway.app()
        assert (await client.responses.retrieve(interim["id"])).status == "in_progress"
        await gateway.decide()
        final = await polled(client, interim["id"])
        assert final.status == "completed"
        assert final.output_text.startswith("bank.transfer returned:")
        assert len(await gateway.effects()) == 1


async def polled(client: openai.AsyncOpenAI, response_id: str) -> Any:
    async with asyncio.timeout(10):
        while True:
            response = await client.responses.retrieve(response_id)
            if response.status not in {"queued", "in_progress"}:
                return response
            await asyncio.sleep(0.05)


async def test_a_limit_after_the_early_header_ends_in_the_same_object(tmp_path):
    async with opened(tmp_path, plain_limit="400ms", early_header="100ms") as gateway:
        wire = Wire(gateway, NODE)
        raw = await wire.end()
        assert raw.startswith(b"\n")
        interim = json.loads(raw)
        assert interim["status"] == "in_progress"
        await gateway.decide("deny")
        final = await polled(await gateway.app(), interim["id"])
        assert "as tested" in final.output_text


async def test_a_strict_app_gets_no_early_header(tmp_path):
    async with opened(tmp_path, strict_limit="500ms", early_header="50ms") as gateway:
        key = await add_app(gateway, "strict-bot", plain="strict")
        wire = Wire(gateway, {**PYTHON, "api-key": key})
        await gateway.pending()
        await asyncio.sleep(0.2)
        assert wire.status is None
        raw = await wire.end()
        assert raw.startswith(b"{")
        assert json.loads(raw)["status"] == "in_progress"
        assert int(wire.headers["content-length"]) == len(raw)
        await gateway.decide()
        client = await gateway.app(api_key=key)
        assert (await polled(client, json.loads(raw)["id"])).status == "completed"


async def test_P_10_a_wait_without_an_id_yet_is_asked_for_again(tmp_path):
    async with opened(tmp_path, plain_limit="300ms", early_header="10s") as gateway:
        body = {"tools": [gateway.tool(), FUNCTION]}
        first = await gateway.ask(MIXED, **body)
        call_id = next(item.call_id for item in first.output if item.type == "function_call")
        output = {"type": "function_call_output", "call_id": call_id, "output": "sunny"}
        body |= {"model": MODEL, "input": [output], "previous_response_id": first.id}
        headers = NODE
        answer = await gateway.raw("POST", RESPONSES, json=body, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (424, "approval_pending")
        assert answer.headers["x-should-retry"] == "false"
        again = asyncio.ensure_future(gateway.raw("POST", RESPONSES, json=body, headers=headers))
        await asyncio.sleep(0.1)
        await gateway.decide()
        assert (await again).json()["status"] == "completed"
        assert len(await gateway.effects()) == 1
        assert len(await gateway.records("exchange.opened")) == 2


# --- not waiting ----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_P_29_a_lost_connection_cancels_the_hold_after_a_while(tmp_path, stream: bool):
    async with opened(tmp_path, disconnect_grace="300ms") as gateway:
        wire = Wire(gateway, PYTHON, stream=stream)
        [request] = await gateway.pending()
        await wire.gone()
        assert (await gateway.request(request["id"]))["state"] == "pending"
        await state(gateway, request["id"], "cancelled")
        late = await gateway.review(request)
        assert late.status_code == 409
        assert "cancelled" in late.json()["detail"]
        assert await gateway.effects() == []
        assert len(await gateway.upstream_requests()) == 1
        async with asyncio.timeout(5):
            while not (finished := await gateway.records("exchange.finished")):
                await asyncio.sleep(0.05)
        assert [entry["outcome"] for entry in finished] == ["cancelled"]


async def test_P_29_an_approval_in_the_last_moment_of_the_grace_is_carried_out_not_lost(
    tmp_path, monkeypatch: pytest.MonkeyPatch
):
    """It is acknowledged after the gateway has looked, and before it withdraws what is held."""
    cancel, acknowledged = decisions.cancel, asyncio.Event()

    async with opened(tmp_path, disconnect_grace="300ms") as gateway:
        wire = Wire(gateway, PYTHON)
        [request] = await gateway.pending()

        async def late(*args: Any, **named: Any) -> int:
            if not acknowledged.is_set():
                assert (await gateway.review(request)).status_code == 201
                acknowledged.set()
            return await cancel(*args, **named)

        monkeypatch.setattr(decisions, "cancel", late)
        await wire.gone()
        async with asyncio.timeout(20):
            await acknowledged.wait()
            while not (finished := await gateway.records("exchange.finished")):
                await asyncio.sleep(0.05)
        assert [entry["outcome"] for entry in finished] == ["completed"]
        assert (await gateway.request(request["id"]))["execution"] == "executed"
        assert len(await gateway.effects()) == 1


async def test_P_29_what_was_approved_for_a_round_that_is_given_up_is_said_not_to_be_sent(tmp_path):
    two = " and ".join(
        f'call transfer {{"amount": {amount}, "currency": "EUR", "to_account": "0815"}}'
        for amount in (5, 6)
    )
    async with opened(tmp_path, disconnect_grace="2s") as gateway:
        wire = Wire(gateway, PYTHON, input=two)
        first, second = await gateway.pending(2)
        assert (await gateway.review(first)).status_code == 201
        waiting = await gateway.request(first["id"])
        assert (waiting["execution"], waiting["given_up"]) == ("not_sent", False)
        await wire.gone()
        await state(gateway, second["id"], "cancelled")
        async with asyncio.timeout(20):
            while not await gateway.records("exchange.finished"):
                await asyncio.sleep(0.05)
        over = await gateway.request(first["id"])
        assert (over["state"], over["execution"]) == ("approved", "not_sent")
        assert over["given_up"]
        assert not (await gateway.request(second["id"]))["given_up"]
        assert await gateway.effects() == []


async def state(gateway: Gateway, approval_id: str, wanted: str) -> None:
    async with asyncio.timeout(5):
        while (await gateway.request(approval_id))["state"] != wanted:
            await asyncio.sleep(0.05)


async def test_a_lost_connection_is_forgiven_when_the_app_comes_back_in_time(tmp_path):
    async with opened(tmp_path, disconnect_grace="400ms") as gateway:
        wire = Wire(gateway, PYTHON)
        await gateway.pending()
        await wire.gone()
        again = Wire(gateway, PYTHON)
        await asyncio.sleep(0.7)
        await gateway.decide()
        assert json.loads(await again.end())["status"] == "completed"
        assert len(await gateway.effects()) == 1


# --- bad ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("server-error", "server_error"),
        ("content-filter", "content_filter"),
        ("mid-stream-error", "server_error"),
        ("drop-stream", "upstream_failed"),
        ("drop-before-bytes", "upstream_failed"),
    ],
)
async def test_a_stream_that_ends_badly_says_so_twice(tmp_path, fault: str, code: str):
    async with opened(tmp_path) as gateway:
        wire = Wire(gateway, PYTHON, stream=True, input=f"{TRANSFER} fail: {fault} on resume")
        await gateway.decide()
        found = events(await wire.end())
        assert [event["type"] for event in found[-2:]] == ["error", "response.failed"]
        error, failed = found[-2:]
        assert error["error"]["code"] == code
        # Azure's own error goes on as it came.
        assert {"code", "message", "param"} <= set(error) or fault == "mid-stream-error"
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["error"]["message"]
        assert failed["response"]["id"] == found[0]["response"]["id"]
        assert "mcp_approval" not in str(found)
        with pytest.raises(openai.APIError):
            await drained(gateway, f"{TRANSFER} fail: {fault} on resume always")


async def drained(gateway: Gateway, text: str) -> None:
    deciding = asyncio.ensure_future(gateway.decide())
    async for _ in await gateway.ask(text, stream=True):
        pass
    await deciding
