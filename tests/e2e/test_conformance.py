"""Rows of the conformance list that no other test asserts: one test each, its number in its name.

Most are played on one gateway. Every test marks what it asks for, and finds its own traces by that
mark: at Azure, at the bank, in the ledger.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
from sqlmodel import select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.approvals import decisions, exchanges, holding
from gateway.approvals.exchanges import Opening
from gateway.approvals.holding import Rules
from gateway.approvals.kept import Kept
from gateway.audit.live import verify_live
from gateway.config import Settings
from gateway.demo.runner import cut_connection, serve
from gateway.errors import Conflict, Refused
from gateway.exchange.messages import Call, ServerFacts
from gateway.policy.rules import parse
from gateway.store.database import open_database
from gateway.store.tables import ApprovalRequest, metadata
from tests.support.attempts import RESPONSES, House, add_app, error_of, open_house
from tests.support.clock import FakeClock
from tests.support.demo import KEY, TOKEN
from tests.support.gateway import MODEL, Gateway, http, open_gateway
from tests.support.rounds import Round, call, listing, message
from tests.support.rounds import request as approval_request
from tests.support.stage import BANK, Stage, Wish, stage

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
HIDDEN = ("mcp_approval_request", "mcp_approval_response")
EXECUTED = "bank.transfer returned:"
COMMENT = ": waiting\n\n"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
_marks = itertools.count(1)


@dataclass
class Row:
    """One row on the shared gateway; `mark` is what its transfers refer to."""

    house: House
    mark: str
    before: int

    @property
    def gateway(self) -> Gateway:
        return self.house.gateway

    def call(self, amount: int = 5, *more: str) -> str:
        """Words that make the model transfer money, and more words."""
        arguments = {"amount": amount, "currency": "EUR", "to_account": "0815"}
        text = json.dumps({**arguments, "reference": self.mark})
        return " ".join([f"call transfer {text}", *more])

    async def held(self, text: str, verdict: str = "approve", **changes: Any) -> httpx2.Response:
        """Ask, decide, and hear the answer."""
        asking = asyncio.ensure_future(self.house.post(self.house.body(input=text, **changes)))
        await self.gateway.decide(verdict)
        return await asking

    async def streamed(
        self, text: str, verdict: str | None = "approve", **changes: Any
    ) -> list[dict[str, Any]]:
        """The same as a stream: its events."""
        body = self.house.body(input=text, stream=True, **changes)
        asking = asyncio.ensure_future(self.house.post(body))
        if verdict:
            await self.gateway.decide(verdict)
        return events(await asking)

    async def rounds(self) -> list[dict[str, Any]]:
        """The rounds that Azure was sent since the test began."""
        requests = (await self.gateway.upstream_requests())[self.before :]
        return [entry["body"] for entry in requests if entry["path"].endswith("/responses")]

    async def done(self) -> list[dict[str, Any]]:
        """The arguments of what the bank carried out for this row."""
        effects = [effect["arguments"] for effect in await self.gateway.effects()]
        return [arguments for arguments in effects if arguments.get("reference") == self.mark]

    async def rounds_at_azure(self, exchange_id: str) -> list[dict[str, Any]]:
        """Every round of an exchange as Azure itself keeps it."""
        shown = (await self.gateway.api("GET", f"/exchanges/{exchange_id}")).json()
        path = "/openai/v1/responses"
        found = [await self.gateway.world.get(f"{path}/{name}") for name in shown["upstream_ids"]]
        return [answer.json() for answer in found]

    async def outcomes(self, exchange_id: str) -> list[str]:
        """What the ledger says of the calls of an exchange."""
        observed = await self.gateway.records("execution.observed")
        own = [entry for entry in observed if entry["subject"]["exchange"] == exchange_id]
        return [entry["outcome"] for entry in own]


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The events of a stream, comments left out; each is named as its data is."""
    assert answer.status_code == 200, answer.text
    found = []
    for block in answer.text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def kinds(items: list[dict[str, Any]]) -> list[str]:
    return [item["type"] for item in items]


def deltas(found: list[dict[str, Any]]) -> list[str]:
    return [event["delta"] for event in found if event["type"] == "response.output_text.delta"]


def seamless(found: list[dict[str, Any]]) -> dict[str, Any]:
    """One response without a gap in any numbering; its final object."""
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    types = [event["type"] for event in found]
    for once in ("response.created", "response.in_progress", "response.completed"):
        assert types.count(once) == 1, once
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] == "response.completed"
    final: dict[str, Any] = found[-1]["response"]
    assert {event["response"]["id"] for event in found if "response" in event} == {final["id"]}
    places = {
        step: [e["output_index"] for e in found if e["type"] == f"response.output_item.{step}"]
        for step in ("added", "done")
    }
    assert places["added"] == sorted(places["done"]) == list(range(len(final["output"])))
    ended = [event for event in found if event["type"] == "response.output_item.done"]
    assert [event["item"]["id"] for event in ended] == [item["id"] for item in final["output"]]
    assert not [word for word in HIDDEN if word in json.dumps(found)]
    return final


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        house = await open_house(stack, tmp_path_factory.mktemp("house"))
        yield house
        await house.gateway.verify()


@pytest_asyncio.fixture(loop_scope="module")
async def row(shared: House) -> Row:
    """The shared gateway, with a mark of the test's own."""
    before = len(await shared.gateway.upstream_requests())
    return Row(shared, f"row {next(_marks)}", before)


# --- plain ----------------------------------------------------------------------------------


def exactly(text: str) -> Any:
    """The document with its numbers as they were written."""
    return json.loads(text, parse_float=str, parse_int=str)


async def test_P_01_a_response_without_mcp_is_forwarded_as_azure_gave_it(row: Row):
    for text in ("Hello", "Hello quirk: big-numbers"):
        answer = await row.house.post({"model": MODEL, "input": text})
        kept = await row.gateway.world.get(f"{RESPONSES}/{answer.json()['id']}")
        assert (answer.status_code, kept.status_code) == (200, 200)
        assert exactly(answer.text) == exactly(kept.text)
        assert answer.headers["x-ms-region"] == kept.headers["x-ms-region"]
        for name in ("apim-request-id", "x-ratelimit-remaining-requests"):
            assert answer.headers[name], name
    assert await row.rounds() == [
        {"model": MODEL, "input": text} for text in ("Hello", "Hello quirk: big-numbers")
    ]


async def test_P_02_an_approved_call_is_one_response_with_the_usage_of_both(row: Row):
    answer = await row.held(row.call())
    final = answer.json()
    first, second = await row.rounds_at_azure(answer.headers["gatepass-exchange"])
    visible = [item for item in first["output"] + second["output"] if item["type"] not in HIDDEN]
    assert [item["type"] for item in first["output"]][-1] == "mcp_approval_request"
    assert (answer.status_code, final["id"]) == (200, first["id"])
    assert final["output"] == [
        {**item, "approval_request_id": None} if item["type"] == "mcp_call" else item
        for item in visible
    ]
    assert not [word for word in HIDDEN if word in answer.text]
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert final["usage"][name] == first["usage"][name] + second["usage"][name] > 0
    assert len(await row.done()) == 1


async def test_P_03_a_denial_reaches_the_model_with_its_reason(row: Row):
    answer = await row.held(row.call(), "deny")
    _, told = await row.rounds()
    [item] = told["input"]
    assert (item["type"], item["approve"]) == ("mcp_approval_response", False)
    assert item["reason"] == "as tested"
    final = answer.json()
    assert (answer.status_code, final["status"]) == (200, "completed")
    assert kinds(final["output"]) == ["mcp_list_tools", "message"]
    assert "as tested" in final["output"][1]["content"][0]["text"]
    assert await row.done() == []


async def test_P_04_two_calls_decided_at_different_times_are_resumed_once(row: Row):
    text = f"{row.call(1)} and {row.call(2)}"
    asking = asyncio.ensure_future(row.house.post(row.house.body(input=text)))
    first, second = await row.gateway.pending(2)
    await row.gateway.review(second)
    await asyncio.sleep(0.3)
    assert len(await row.rounds()) == 1
    await row.gateway.review(first)
    answer = await asking
    assert kinds(answer.json()["output"]) == [
        "mcp_list_tools", "mcp_call", "mcp_call", "message",
    ]  # fmt: skip
    asked, resumed = await row.rounds()
    assert asked["input"] != resumed["input"]
    [at_azure, _] = await row.rounds_at_azure(answer.headers["gatepass-exchange"])
    requested = [item["id"] for item in at_azure["output"] if item["type"] == HIDDEN[0]]
    assert [item["approval_request_id"] for item in resumed["input"]] == requested
    assert [item["approve"] for item in resumed["input"]] == [True, True]
    assert sorted(arguments["amount"] for arguments in await row.done()) == [1, 2]


async def test_P_06_arguments_given_as_an_object_are_shown_and_the_resume_is_the_same(row: Row):
    body = row.house.body(input=row.call(5, "quirk: object-arguments"))
    asking = asyncio.ensure_future(row.house.post(body))
    [shown] = await row.gateway.pending()
    assert isinstance(shown["arguments"], str)
    assert json.loads(shown["arguments"])["reference"] == row.mark
    await row.gateway.review(shown)
    answer = await asking
    [at_azure, _] = await row.rounds_at_azure(answer.headers["gatepass-exchange"])
    assert isinstance(at_azure["output"][-1]["arguments"], dict)
    assert answer.json()["status"] == "completed"
    assert set((await row.rounds())[1]["input"][0]) == {"type", "approval_request_id", "approve"}
    assert len(await row.done()) == 1


async def test_P_07_text_before_the_call_comes_first_and_is_kept(row: Row):
    client = await row.gateway.app()
    body = row.house.body(input=f'say "One moment." first {row.call()}')
    asking = asyncio.ensure_future(client.responses.create(**body))
    await row.gateway.decide()
    answer = await asking
    items = [item.type for item in answer.output]
    assert items == ["mcp_list_tools", "message", "mcp_call", "message"]
    texts = [item.content[0].text for item in answer.output if item.type == "message"]
    assert texts[0] == "One moment."
    assert texts[1].startswith(EXECUTED)
    assert answer.output_text == "".join(texts)


async def test_P_08_a_function_beside_a_held_call_is_asked_first_and_both_are_answered(row: Row):
    tools = [row.gateway.tool(), WEATHER]
    text = f'{row.call()} and function weather {{"city": "Riga"}}'
    first = (await row.house.post(row.house.body(input=text, tools=tools))).json()
    assert first["status"] == "completed"
    assert kinds(first["output"]) == ["mcp_list_tools", "function_call"]
    output = {
        "type": "function_call_output",
        "call_id": first["output"][-1]["call_id"],
        "output": "sunny",
    }
    body = row.house.body(input=[output], previous_response_id=first["id"], tools=tools)
    following = asyncio.ensure_future(row.house.post(body))
    await asyncio.sleep(0.3)
    assert not following.done()
    assert len(await row.rounds()) == 1
    await row.gateway.decide()
    second = (await following).json()
    sent = (await row.rounds())[1]["input"]
    assert sorted(kinds(sent)) == ["function_call_output", "mcp_approval_response"]
    assert kinds(second["output"]) == ["mcp_call", "message"]
    assert "sunny" in second["output"][-1]["content"][0]["text"]
    assert len(await row.done()) == 1


async def test_P_10_no_rule_makes_a_request_that_nobody_answers_anything_but_denied():
    """What failed instead would leave the chain with a call that nobody answered."""
    with pytest.raises(Refused, match="must be deny"):
        parse([{"name": "money", "effect": "hold", "on_expiry": "fail"}])


def embedding() -> Starlette:
    """An Azure that says what it sent to a server that failed."""

    async def create(asked: Request) -> Response:
        [tool] = (await asked.json())["tools"]
        text = f"Error retrieving tool list from MCP server: 'bank'. {json.dumps(tool)} 401"
        error = {"message": text, "type": "external_connector_error", "param": "tools", "code": "x"}
        return JSONResponse({"error": error}, 424)

    return Starlette(routes=[Route("/openai/v1/responses", create, methods=["POST"])])


async def test_P_17_a_list_that_failed_is_told_without_the_credential(row: Row, tmp_path: Path):
    answer = await row.house.post(row.house.body(input="Hello fail: list-error"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (424, "http_error")
    assert "tool list from MCP server: 'bank'" in answer.json()["error"]["message"]
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(embedding()))
        there = f"{url}/openai/v1/"
        gateway = await open_gateway(stack, tmp_path, GATEPASS_UPSTREAM_URL=there)
        body = {"model": MODEL, "input": "Hello", "tools": [gateway.tool()]}
        answer = await gateway.raw("POST", RESPONSES, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (424, "x", "tools")
        assert "Error retrieving tool list from MCP server: 'bank'." in error["message"]
        assert TOKEN not in answer.text


# --- streams --------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["approve", "deny"])
async def test_P_21_a_held_stream_is_one_stream_without_a_gap(row: Row, verdict: str):
    text = f'say "One moment." first {row.call(1)} then {row.call(2)}'
    asking = asyncio.ensure_future(row.streamed(text, verdict, model="gpt-5"))
    if verdict == "approve":
        while len(await row.rounds()) < 2:
            await asyncio.sleep(0.02)
        await row.gateway.decide()
    final = seamless(await asking)
    calls = 2 if verdict == "approve" else 0
    assert kinds(final["output"]).count("mcp_call") == calls == len(await row.done())
    assert "reasoning" in kinds(final["output"])


async def test_P_22_tools_that_are_listed_again_are_shown_once(row: Row):
    client = await row.gateway.app()
    body = row.house.body(input=row.call(5, "quirk: relist on resume"))
    deciding = asyncio.ensure_future(row.gateway.decide())
    async with client.responses.stream(**body) as stream:
        added = [e.item.id async for e in stream if e.type == "response.output_item.added"]
        final = await stream.get_final_response()
    await deciding
    [shown] = (await row.gateway.api("GET", "/exchanges", params={"limit": 1})).json()["items"]
    [_, second] = await row.rounds_at_azure(shown["id"])
    assert kinds(second["output"])[0] == "mcp_list_tools"
    assert [item.type for item in final.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert len(set(added)) == len(added) == 3


async def test_P_23_only_comments_are_on_the_wire_and_none_is_late(row: Row, tmp_path: Path):
    """Ten minutes in little: what is sent every 10 s by itself is sent every 400 ms here."""
    by_itself = Settings()
    assert by_itself.heartbeat.total_seconds() <= 15
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, GATEPASS_HEARTBEAT="400ms")
        key = await add_app(gateway, "quiet-bot", heartbeat="comments")
        body = {"model": MODEL, "input": row.call(), "tools": [gateway.tool()], "stream": True}
        client = await stack.enter_async_context(http(gateway.url, {"api-key": key}))
        chunks: list[tuple[float, str]] = []
        async with client.stream("POST", RESPONSES, json=body) as answer:
            async for chunk in answer.aiter_text():
                chunks.append((time.monotonic(), chunk))
                if chunk == COMMENT and [text for _, text in chunks].count(COMMENT) == 8:
                    await gateway.decide()
        text = "".join(text for _, text in chunks)
        first = next(n for n, (_, chunk) in enumerate(chunks) if chunk == COMMENT)
        held = chunks[first : first + 8]
        assert {chunk for _, chunk in held} == {COMMENT}
        pauses = [later - sooner for (sooner, _), (later, _) in itertools.pairwise(held)]
        assert max(pauses) <= 0.4 * 15 / 10
        fields = {line.partition(":")[0] for line in text.split("\n") if line}
        assert fields == {"", "event", "data"}
        assert text.count("event: ") == text.count("\ndata: ")
        seamless(events(httpx2.Response(200, text=text)))


async def test_P_24_text_in_many_alphabets_and_any_pieces_gives_the_same_deltas(row: Row):
    for quirks in ("quirk: multibyte", "quirk: multibyte quirk: tiny-chunks"):
        body = {"model": MODEL, "input": f"Hello {quirks}", "stream": True}
        direct = await row.gateway.world.post("/openai/v1/responses", json=body)
        wanted = [
            json.loads(line.removeprefix("data: "))
            for line in direct.text.splitlines()
            if line.startswith("data: ")
        ]
        assert any(len(delta.encode()) > len(delta) for delta in deltas(wanted))
        for tools in ([], [row.gateway.tool()]):
            found = await row.streamed(body["input"], None, tools=tools)
            assert deltas(found) == deltas(wanted)
    found = await row.streamed(row.call(5, "quirk: multibyte quirk: tiny-chunks"))
    assert "".join(deltas(found)) == seamless(found)["output"][-1]["content"][0]["text"]


async def test_P_25_a_keepalive_of_azure_is_no_event_for_the_app(row: Row):
    text = f"{row.call()} quirk: keepalive quirk: keepalive on resume"
    body = {"model": MODEL, "input": text, "tools": [row.gateway.world.tool()], "stream": True}
    direct = await row.gateway.world.post("/openai/v1/responses", json=body)
    assert "event: keepalive" in direct.text
    found = await row.streamed(text)
    assert "keepalive" not in [event["type"] for event in found]
    seamless(found)


async def test_P_26_events_and_items_nobody_knows_keep_their_place_in_the_numbering(row: Row):
    quirks = "quirk: unknown-event on resume quirk: unknown-item on resume"
    found = await row.streamed(row.call(5, quirks))
    [strange] = [event for event in found if event["type"] == "response.from_the_future"]
    assert strange["note"] == "unknown to every client"
    final = seamless(found)
    assert len(set(kinds(final["output"])) - {"mcp_list_tools", "mcp_call", "message"}) == 1
    assert len(final["output"]) == 4
    assert len(await row.done()) == 1


def breaking() -> Starlette:
    """An Azure whose second round breaks off after the call, once what it said has arrived."""
    first = Round("resp_1", [listing(), approval_request()])
    second = Round("resp_2", [call(), message()])

    async def create(asked: Request) -> Response:
        frames = second.frames() if "previous_response_id" in await asked.json() else first.frames()

        async def told() -> AsyncIterator[bytes]:
            for frame in frames:
                yield f"event: {frame.type}\ndata: {json.dumps(frame.data)}\n\n".encode()
                if frame.type == "response.mcp_call.completed":
                    await asyncio.sleep(0.3)
                    await cut_connection(asked.scope)
                    return

        return StreamingResponse(told(), media_type="text/event-stream")

    return Starlette(routes=[Route("/openai/v1/responses", create, methods=["POST"])])


async def test_P_27_a_stream_that_breaks_after_the_call_fails_and_the_call_is_executed(tmp_path):
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(breaking()))
        there = f"{url}/openai/v1/"
        crm = '\n  - {label: crm, url: "http://127.0.0.1:9/mcp", allow_private_network: true}\n'
        gateway = await open_gateway(stack, tmp_path, declare=crm, GATEPASS_UPSTREAM_URL=there)
        tool = gateway.tool(server_label="crm", server_url="http://127.0.0.1:9/mcp")
        body = {"model": MODEL, "input": "Change it", "tools": [tool], "stream": True}
        asking = asyncio.ensure_future(gateway.raw("POST", RESPONSES, json=body))
        await gateway.decide()
        found = events(await asking)
        error, failed = found[-2:]
        assert (error["type"], failed["type"]) == ("error", "response.failed")
        assert error["error"]["code"] == "upstream_failed"
        assert error["error"]["message"]
        assert (failed["response"]["id"], failed["response"]["status"]) == ("resp_1", "failed")
        observed = await gateway.records("execution.observed")
        assert [entry["outcome"] for entry in observed] == ["executed"]
        await gateway.verify()


async def test_P_28_a_failure_that_azure_tells_is_forwarded_under_one_id(row: Row):
    found = await row.streamed("Hello fail: mid-stream-error", None)
    error, failed = found[-2:]
    assert (error["type"], failed["type"]) == ("error", "response.failed")
    assert error["error"]["code"] == "server_error"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["id"] == found[0]["response"]["id"]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))


async def test_P_30_padding_that_was_switched_off_stays_off_in_the_resume(row: Row):
    padded = await row.streamed(row.call())
    assert any("obfuscation" in event for event in padded)
    options = {"include_obfuscation": False}
    found = await row.streamed(row.call(), stream_options=options)
    assert not any("obfuscation" in event for event in found)
    assert len(deltas(found)) > 1
    assert [body.get("stream_options") for body in await row.rounds()][-2:] == [options, options]


# --- the background, and what is kept -------------------------------------------------------


async def test_P_34_of_cancel_and_approval_exactly_one_wins(row: Row):
    """Three dozen at once; a thousand are played against the database itself."""
    client = await row.gateway.app()
    body = row.house.body(background=True)
    for batch in range(3):
        started = [
            client.responses.create(**{**body, "input": row.call(batch * 12 + number)})
            for number in range(12)
        ]
        ids = {}
        for response in await asyncio.gather(*started):
            ids[response.id] = response
        waiting = await row.gateway.pending(12)
        races = []
        for number, asked in enumerate(waiting):
            exchange = (await row.gateway.api("GET", f"/exchanges/{asked['exchange_id']}")).json()
            pair = [
                client.responses.cancel(exchange["response_id"]),
                row.gateway.review(asked),
            ]
            races += pair if number % 2 else pair[::-1]
        results = await asyncio.gather(*races)
        for number, asked in enumerate(waiting):
            pair = results[2 * number : 2 * number + 2]
            cancelled, reviewed = pair if number % 2 else pair[::-1]
            amount = json.loads(asked["arguments"])["amount"]
            await _one_won(row, asked["id"], cancelled.status, reviewed.status_code, amount)


async def _one_won(row: Row, approval_id: str, status: str, reviewed: int, amount: int) -> None:
    shown = await row.gateway.request(approval_id)
    done = [arguments["amount"] for arguments in await row.done()].count(amount)
    if shown["state"] == "cancelled":
        assert (status, reviewed, done) == ("cancelled", 409, 0)
        assert shown["execution"] == "not_sent"
    else:
        assert (shown["state"], reviewed) == ("approved", 201)
        # Approved and cancelled before it was sent: not carried out, and never will be.
        assert (status, done, shown["execution"]) in {
            ("completed", 1, "executed"),
            ("cancelled", 0, "not_sent"),
            ("cancelled", done, "unknown"),
        }
    decided = [
        entry
        for entry in await row.gateway.records("approval.decided")
        if entry["subject"]["approval"] == approval_id
    ]
    assert len(decided) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "races"),
    [("sqlite", 1000), pytest.param("postgresql", 200, marks=pytest.mark.postgres)],
)
async def test_P_34_in_a_thousand_races_nothing_is_both_cancelled_and_released(
    kind: str, races: int, tmp_path: Path, request: pytest.FixtureRequest
):
    url = f"sqlite+aiosqlite:///{tmp_path / 'race.sqlite3'}"
    if kind == "postgresql":
        url = await request.getfixturevalue("postgres_server").create()
    database = open_database(url)
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    async with stage(database, FakeClock()) as played:
        template = await played.ask(Wish(definition=None))
        won: Counter[str] = Counter()
        for _ in range(races // 20):
            held = await asyncio.gather(*(_held(played, template) for _ in range(20)))
            won.update(await asyncio.gather(*(_raced(played, *pair) for pair in held)))
        assert won.total() == races
        assert min(won["approved"], won["cancelled"]) > 0, won
        async with database.reading() as session:
            rows = (
                await session.exec(select(ApprovalRequest.state, ApprovalRequest.execution))
            ).all()
        assert Counter(rows) == {
            ("approved", "sending"): won["approved"],
            ("cancelled", "not_sent"): won["cancelled"],
            ("pending", "not_sent"): 1,
        }
        await played.ledger.settle()
        report = await verify_live(database, played.ledger.signer.verifier)
        assert report.valid, list(map(str, report.findings))
    await database.close()


async def _held(played: Stage, template: str) -> tuple[Kept, str]:
    """An exchange of its own with one call to decide."""
    now, rules = played.clock(), Rules(parse([]), "sha256:" + "1" * 64, {}, timedelta(hours=1))
    like = played.kept[template]
    opening = Opening(like.app_id, like.app_name, MODEL, None, True, False, True, ("bank",), (), "")
    kept = await exchanges.open_exchange(played.approvals, opening, now=now)
    asked = Call("mcpr_1", "bank", "transfer", "{}", 0)
    server = ServerFacts("srv_bank", "bank", BANK)
    ended = holding.Round(
        kept, [asked], {"bank": server}, {}, {"machine": {"stitcher": {"round": 0}}}
    )
    opened, _ = await holding.open_hold(played.approvals, ended, rules, now=now)
    return kept, opened[0].approval_id


async def _raced(played: Stage, kept: Kept, name: str) -> str:
    """Approve and cancel at once, then try to send: who won."""
    now = played.clock()
    contestants = [
        decisions.cancel(played.approvals, kept.id, now=now),
        played.decide(name, "approve"),
    ]
    random.shuffle(contestants)
    results = await asyncio.gather(*contestants, return_exceptions=True)
    failed = [result for result in results if isinstance(result, Exception)]
    assert all(isinstance(problem, Conflict) for problem in failed), failed
    try:
        await exchanges.begin_sending(played.approvals, kept, [name], [], now=now)
    except Conflict:
        assert len(failed) == 1, "an approval that was taken is sent"
        return "cancelled"
    assert failed == []
    return "approved"


STYLES = (
    "/openai/v1/responses/{}",
    "/openai/responses/{}?api-version=2025-04-01-preview",
    "/openai/deployments/gpt-4.1/responses/{}?api-version=preview",
)


@pytest.mark.parametrize("style", STYLES)
async def test_P_36_a_merged_response_is_read_listed_and_deleted_by_every_path(
    row: Row, style: str
):
    answer = await row.held(row.call())
    name = answer.json()["id"]
    rounds = [
        response["id"]
        for response in await row.rounds_at_azure(answer.headers["gatepass-exchange"])
    ]
    for other in STYLES:
        got = await row.gateway.raw("GET", other.format(name))
        assert got.json() == answer.json()
        listed = (await row.gateway.raw("GET", other.format(f"{name}/input_items"))).json()
        assert [item["content"][0]["text"] for item in listed["data"]] == [row.call()]
        assert (listed["object"], listed["has_more"]) == ("list", False)
        assert listed["first_id"] == listed["last_id"] == listed["data"][0]["id"]
    gone = await row.gateway.raw("DELETE", style.format(name))
    assert (gone.status_code, gone.json()["id"], gone.json()["deleted"]) == (200, name, True)
    for other in STYLES:
        assert (await row.gateway.raw("GET", other.format(name))).status_code == 404
        listed = await row.gateway.raw("GET", other.format(f"{name}/input_items"))
        assert listed.status_code == 404
    assert len(rounds) == 2
    for upstream in rounds:
        assert (await row.gateway.world.get(f"{RESPONSES}/{upstream}")).status_code == 404


async def test_P_37_a_follow_up_goes_on_from_the_last_round_and_shows_the_first(row: Row):
    answer = await row.held(row.call())
    name = answer.json()["id"]
    first, last = await row.rounds_at_azure(answer.headers["gatepass-exchange"])
    body = row.house.body(input="Thank you", previous_response_id=name)
    second = (await row.house.post(body)).json()
    assert (await row.rounds())[-1]["previous_response_id"] == last["id"] != first["id"] == name
    assert second["previous_response_id"] == name
    kept = await row.gateway.raw("GET", f"{RESPONSES}/{second['id']}")
    assert kept.json()["previous_response_id"] == name


# --- security -------------------------------------------------------------------------------


async def test_P_38_what_an_app_declares_of_a_server_is_replaced_or_refused(row: Row):
    own = {"Authorization": "Bearer mine", "x-own": "1"}
    tool = row.gateway.tool(headers=own, require_approval="never")
    await row.held(row.call(), tools=[tool])
    for body in await row.rounds():
        [sent] = body["tools"]
        assert sent["server_url"] == f"{row.gateway.world.bank}/mcp"
        assert sent["headers"] == {"Authorization": f"Bearer {TOKEN}"}
        assert sent["require_approval"] == "always"
    foreign = row.gateway.tool(server_url="https://foreign.example/mcp")
    await row.house.refuses(row.house.body(tools=[foreign]), "mcp_server_not_allowed")
    twice = [row.gateway.tool(), row.gateway.tool(server_url="https://foreign.example/mcp")]
    for tools in (twice, twice[::-1], [row.gateway.tool()] * 2):
        await row.house.refuses(row.house.body(tools=tools), "mcp_label_duplicate")


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "prompt": ({"prompt": {"id": "pmpt_1"}}, {}, "prompt_refused"),
    "agent_reference": ({"agent_reference": {"name": "a"}}, {}, "agent_reference_refused"),
    "multi_agent": ({"multi_agent": {"enabled": True}}, {}, "multi_agent_refused"),
    "programmatic_tool_calling": ({}, {"type": "programmatic_tool_calling"}, "tool_refused"),
    "connector_id": ({}, {"connector_id": "connector_gmail"}, "mcp_member_refused"),
    "tunnel_id": ({}, {"tunnel_id": "tunnel_" + "a" * 32}, "mcp_member_refused"),
    "project_connection_id": ({}, {"project_connection_id": "c"}, "mcp_member_refused"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_P_40_what_brings_tools_of_its_own_is_refused(row: Row, what: str):
    members, changes, code = REFUSED[what]
    body = row.house.body(tools=[row.gateway.tool(**changes)], **members)
    answer = await row.house.refuses(body, code)
    assert error_of(answer)["message"]


async def test_P_43_no_credential_of_the_app_reaches_azure_by_any_route(row: Row):
    key = row.gateway.key
    made = await row.house.post({"model": MODEL, "input": "Hello"})
    name = made.json()["id"]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    image = {"file": ("a.png", b"x", "image/png")}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "responses", {"json": {"model": MODEL, "input": "Hello"}}),
        ("GET", f"responses/{name}", {}),
        ("GET", f"responses/{name}/input_items", {}),
        ("DELETE", f"responses/{name}", {}),
        ("POST", "chat/completions", {"json": chat}),
        ("POST", "embeddings", {"json": {"model": "e", "input": "Hello"}}),
        ("GET", "models", {}),
        ("POST", "files", {"files": image, "data": {"purpose": "assistants"}}),
        ("POST", "conversations", {"json": {}}),
    ]
    for method, path, options in asked:
        headers = {"authorization": f"Bearer {key}"}
        answer = await row.gateway.raw(method, f"/openai/v1/{path}", headers=headers, **options)
        assert answer.status_code == 200, (path, answer.text)
    await row.held(row.call())
    sent = (await row.gateway.upstream_requests())[row.before :]
    assert len(sent) == len(asked) + 3
    for entry in sent:
        assert entry["headers"]["api-key"] == KEY
        assert "authorization" not in entry["headers"]
        assert key not in json.dumps(entry)


# --- clients --------------------------------------------------------------------------------

FORCED = (
    "required",
    {"type": "mcp", "server_label": "bank", "name": "transfer"},
    {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "mcp", "server_label": "bank"}],
    },
)


@pytest.mark.parametrize("choice", FORCED, ids=str)
async def test_P_49_a_forced_tool_is_forced_once_and_people_are_asked_once(row: Row, choice: Any):
    answer = await row.held(row.call(), tool_choice=choice)
    final = answer.json()
    assert (final["status"], final["tool_choice"]) == ("completed", choice)
    asked, resumed = [body["tool_choice"] for body in await row.rounds()]
    assert asked == choice
    assert (resumed["mode"] if isinstance(resumed, dict) else resumed) == "auto"
    assert await row.gateway.pending(0) == []
    assert len(await row.done()) == 1


async def test_P_50_a_credential_is_opened_anew_for_the_resume(
    row: Row, monkeypatch: pytest.MonkeyPatch
):
    asking = asyncio.ensure_future(row.house.post(row.house.body(input=row.call())))
    [asked] = await row.gateway.pending()
    # It is another one by now, and the bank has not heard of it.
    monkeypatch.setenv("BANK_TOKEN", "renewed")
    await row.gateway.review(asked)
    answer = await asking
    headers = [body["tools"][0]["headers"]["Authorization"] for body in await row.rounds()]
    assert headers == [f"Bearer {TOKEN}", "Bearer renewed"]
    final = answer.json()
    assert (answer.status_code, final["status"]) == (200, "completed")
    called, told = final["output"][1:]
    assert (called["type"], called["status"]) == ("mcp_call", "failed")
    assert called["error"]["code"] == 401
    assert told["type"] == "message"
    assert await row.outcomes(answer.headers["gatepass-exchange"]) == ["failed"]
    assert await row.done() == []
    assert "renewed" not in answer.text


async def test_P_46_an_official_client_posts_a_refusal_once(row: Row):
    client = await row.gateway.app(max_retries=2)
    body = row.house.body(tools=[row.gateway.tool(server_url="https://foreign.example/mcp")])
    with pytest.raises(openai.PermissionDeniedError):
        await client.responses.create(**body)
    assert await row.rounds() == []
