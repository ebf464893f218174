"""Clients that ask again, an Azure that fails, and an app that goes on by itself.

What was approved once happens at most once, and people are asked once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from gateway.approvals.lease import Lease
from gateway.proxy import retrying
from gateway.store.tables import ResponseId
from tests.support.attempts import RESPONSES, add_app, error_of
from tests.support.demo import TRANSFER
from tests.support.gateway import MODEL, Gateway, http, open_gateway

pytestmark = pytest.mark.e2e
RETRY = {"x-stainless-retry-count": "1"}


async def posted(gateway: Gateway) -> list[dict[str, Any]]:
    """The rounds that Azure was sent."""
    return [entry["body"] for entry in await gateway.upstream_requests() if entry["body"]]


class Asking:
    """A plain call whose connection can be cut."""

    def __init__(self, gateway: Gateway, headers: dict[str, str], **changes: Any) -> None:
        body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()], **changes}
        headers = {"api-key": gateway.key, **headers}
        self.task = asyncio.ensure_future(self._ask(gateway.url, headers, body))

    async def _ask(self, url: str, headers: dict[str, str], body: Any) -> httpx2.Response:
        async with http(url, headers) as client:
            return await client.post(RESPONSES, json=body)

    async def cut(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        await asyncio.sleep(0.05)


# --- clients that ask again -----------------------------------------------------------------


@pytest.mark.parametrize("gone", [True, False])
async def test_a_retry_that_says_so_joins_the_exchange(gateway: Gateway, gone: bool):
    first = Asking(gateway, {})
    await gateway.pending()
    if gone:
        await first.cut()
    second = Asking(gateway, RETRY)
    await asyncio.sleep(0.1)
    await gateway.decide()
    answer = (await second.task).json()
    assert answer["status"] == "completed"
    if not gone:
        assert (await first.task).json() == answer
    assert len(await posted(gateway)) == 2
    assert len(await gateway.effects()) == 1
    assert len(await gateway.records("approval.requested")) == 1


async def test_retries_that_come_at_once_open_one_exchange(gateway: Gateway):
    asking = [Asking(gateway, RETRY) for _ in range(3)]
    await gateway.decide()
    answers = [(await each.task).json() for each in asking]
    assert len({answer["id"] for answer in answers}) == 1
    assert len(await gateway.effects()) == 1


async def test_a_retry_after_the_end_hears_the_same_answer(gateway: Gateway):
    first = Asking(gateway, {})
    await gateway.decide()
    answer = (await first.task).json()
    again = await Asking(gateway, {"x-stainless-retry-count": "2"}).task
    assert again.json() == answer
    streamed = Asking(gateway, {}, stream=True)
    await gateway.decide()
    whole = (await streamed.task).text
    assert (await Asking(gateway, RETRY, stream=True).task).text == whole
    assert len(await gateway.effects()) == 2


async def test_a_repeat_that_does_not_say_so_joins_when_nobody_listens_any_more(gateway: Gateway):
    first = Asking(gateway, {})
    await gateway.pending()
    await first.cut()
    # Another order of the members is the same request.
    body = {"tools": [gateway.tool()], "input": TRANSFER, "model": MODEL}
    second = asyncio.ensure_future(gateway.raw("POST", RESPONSES, json=body))
    await asyncio.sleep(0.1)
    await gateway.decide()
    assert (await second).json()["status"] == "completed"
    assert (len(await posted(gateway)), len(await gateway.effects())) == (2, 1)


async def test_E_07_the_same_body_after_the_end_is_a_new_request(gateway: Gateway):
    first = Asking(gateway, {})
    await gateway.decide()
    answer = (await first.task).json()
    second = Asking(gateway, {})
    await gateway.decide()
    assert (await second.task).json()["id"] != answer["id"]
    assert len(await gateway.records("approval.requested")) == 2
    assert len(await gateway.effects()) == 2


async def test_P_45_two_honest_twins_stay_two(gateway: Gateway):
    first, second = Asking(gateway, {}), Asking(gateway, {})
    await gateway.decide(count=2)
    answers = [(await asking.task).json() for asking in (first, second)]
    assert answers[0]["id"] != answers[1]["id"]
    assert (len(await posted(gateway)), len(await gateway.effects())) == (4, 2)


async def test_an_idempotency_key_of_the_app_makes_two_requests_one(gateway: Gateway):
    key = {"idempotency-key": "order 4711"}
    first, second = Asking(gateway, key), Asking(gateway, key)
    other = Asking(gateway, {**key, "api-key": await add_app(gateway, "other-bot")})
    await gateway.decide(count=2)
    answers = [(await asking.task).json() for asking in (first, second, other)]
    assert answers[0] == answers[1]
    assert answers[2]["id"] != answers[0]["id"]
    assert (await Asking(gateway, key).task).json() == answers[0]
    changed = await Asking(gateway, key, metadata={"n": "2"}).task
    assert (changed.status_code, error_of(changed)["code"]) == (422, "idempotency_key_reused")
    assert len(await gateway.effects()) == 2


async def test_nobody_joins_another_apps_exchange_or_another_request(gateway: Gateway):
    first = Asking(gateway, {})
    await gateway.pending()
    other = {"api-key": await add_app(gateway, "other-bot")}
    asked = [Asking(gateway, {**RETRY, **other}), Asking(gateway, RETRY, metadata={"n": "2"})]
    await gateway.decide("deny", count=3)
    for asking in (first, *asked):
        await asking.task
    assert len(await gateway.records("approval.requested")) == 3


async def test_the_official_client_that_gives_up_waiting_asks_people_once(tmp_path: Path):
    async with opened(tmp_path, GATEPASS_EARLY_HEADER="60s") as gateway:
        # Its timer ends before anything is sent: the client posts again, twice.
        key = await add_app(gateway, "strict-bot", plain="strict")
        client = await gateway.app(api_key=key, max_retries=2, timeout=0.5)
        headers = {"x-stainless-read-timeout": "600"}
        body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()]}
        asking = asyncio.ensure_future(client.responses.create(**body, extra_headers=headers))
        await gateway.decide(after=1.2)
        assert (await asking).output_text.startswith("bank.transfer returned:")
        assert (len(await posted(gateway)), len(await gateway.effects())) == (2, 1)
        assert len(await gateway.records("exchange.opened")) == 1


@asynccontextmanager
async def opened(folder: Path, declare: str = "", **settings: str) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, folder, declare=declare, **settings)
        yield gateway
        await gateway.verify()


# --- an Azure that fails --------------------------------------------------------------------


async def test_a_failure_of_the_first_round_is_the_clients_to_retry(gateway: Gateway):
    client = await gateway.app(max_retries=2)
    body = {"model": MODEL, "tools": [gateway.tool()]}
    for fault in ("rate-limit", "server-error"):
        text = f"{TRANSFER} fail: {fault}"
        asking = asyncio.ensure_future(client.responses.create(input=text, **body))
        await gateway.decide()
        assert (await asking).status == "completed"
    assert len(await gateway.effects()) == 2
    assert len(await gateway.records("approval.requested")) == 2


async def test_P_15_a_rate_limit_on_the_resume_is_waited_for_and_sent_once_more(gateway: Gateway):
    answer, _ = await asyncio.gather(
        gateway.ask(f"{TRANSFER} fail: rate-limit on resume"), gateway.decide()
    )
    assert answer.status == "completed"
    assert (len(await posted(gateway)), len(await gateway.effects())) == (3, 1)
    [request] = await settled(gateway)
    assert request["execution"] == "executed"


async def test_P_15_a_rate_limit_without_an_end_is_told_and_not_executed(gateway: Gateway):
    text = f"{TRANSFER} fail: rate-limit always on resume"
    asking = Asking(gateway, {}, input=text)
    await gateway.decide()
    answer = await asking.task
    assert (answer.status_code, answer.headers["x-should-retry"]) == (424, "false")
    [request] = await settled(gateway)
    assert (request["state"], request["execution"]) == ("approved", "not_sent")
    assert await gateway.effects() == []


async def test_P_12_a_parent_that_is_not_visible_yet_is_waited_for(gateway: Gateway):
    answer, _ = await asyncio.gather(
        gateway.ask(f"{TRANSFER} fail: previous-not-found-twice on resume"), gateway.decide()
    )
    assert answer.status == "completed"
    assert (len(await posted(gateway)), len(await gateway.effects())) == (4, 1)


async def test_P_12_a_follow_up_waits_for_a_parent_that_azure_has_just_streamed(tmp_path: Path):
    async with AsyncExitStack() as stack:
        world = {"propagation_delay": 2.5}
        gateway = await open_gateway(stack, tmp_path, world=world)
        for tools in ([], [gateway.tool()]):
            stream = await gateway.ask("Hello", tools=[], stream=True)
            parent = [event async for event in stream][-1].response.id
            body = {"model": MODEL, "input": "And now?", "previous_response_id": parent}
            with pytest.raises(openai.BadRequestError):
                await gateway.world.client.responses.create(**body)
            answer = await gateway.ask("And now?", previous_response_id=parent, tools=tools)
            assert answer.output_text == "You said: And now?"
        # What is long gone is told at once.
        direct = await gateway.ask("Hello", tools=[])
        await gateway.world.client.responses.delete(direct.id)
        assert gateway.services is not None
        async with gateway.services.db.transaction() as session:
            row = await session.get_one(ResponseId, direct.id)
            row.created_at -= timedelta(hours=1)
            session.add(row)
        async with asyncio.timeout(2):
            with pytest.raises(openai.BadRequestError, match="not found"):
                await gateway.ask("And now?", previous_response_id=direct.id, tools=[])


async def test_a_parent_that_never_becomes_visible_is_done_without(tmp_path: Path, monkeypatch):
    """Azure has refused the round unread each time, so that sending it whole is no repetition."""
    monkeypatch.setattr(retrying, "PAUSES", (0.05, 0.05))
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, world={"propagation_delay": 3600})
        asking = asyncio.ensure_future(gateway.ask(TRANSFER, stream=True))
        await gateway.decide()
        events = [event async for event in await asking]
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text.startswith("bank.transfer returned")
        bodies = await posted(gateway)
        assert [body.get("previous_response_id") is None for body in bodies] == [
            True, False, False, False, True,
        ]  # fmt: skip
        assert len(await gateway.effects()) == 1
        await gateway.verify()


async def settled(gateway: Gateway) -> list[dict[str, Any]]:
    answer = await gateway.api("GET", "/approval-requests")
    return answer.json()["items"]


FAULTS = [
    # fault, status, code, execution, effects
    ("server-error", 424, "server_error", "unknown", 0),
    ("content-filter", 400, "content_filter", "unknown", 0),
    ("drop-before-bytes", 424, "upstream_failed", "unknown", 1),
    ("drop-stream", 424, "upstream_failed", "unknown", 1),
]


@pytest.mark.parametrize(("fault", "status", "code", "execution", "effects"), FAULTS)
async def test_P_13_a_failed_resume_is_told_once_and_never_sent_again(
    gateway: Gateway, fault: str, status: int, code: str, execution: str, effects: int
):
    text = f"{TRANSFER} fail: {fault} on resume"
    client = await gateway.app(max_retries=2)
    body = {"model": MODEL, "tools": [gateway.tool()]}
    asking = asyncio.ensure_future(client.responses.create(input=text, **body))
    await gateway.decide()
    with pytest.raises(openai.APIStatusError) as failed:
        await asking
    assert (failed.value.status_code, failed.value.code) == (status, code)
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert len(await posted(gateway)) == 2
    assert len(await gateway.effects()) == effects
    [request] = await settled(gateway)
    assert (request["state"], request["execution"]) == ("approved", execution)
    # A retry hears the same, whatever the client makes of the header.
    again = await Asking(gateway, RETRY, input=text).task
    assert (again.status_code, error_of_any(again)) == (status, code)
    assert len(await posted(gateway)) == 2
    observed = [entry["outcome"] for entry in await gateway.records("execution.observed")]
    assert observed == [execution]


def error_of_any(answer: httpx2.Response) -> str:
    return answer.json()["error"]["code"]


async def test_a_stream_that_breaks_after_the_call_is_not_sent_again(gateway: Gateway):
    deciding = asyncio.ensure_future(gateway.decide())
    with pytest.raises(openai.APIError):
        async for _ in await gateway.ask(f"{TRANSFER} fail: drop-stream on resume", stream=True):
            pass
    await deciding
    [request] = await settled(gateway)
    # What came together with the end of the connection may be lost with it.
    assert request["execution"] in {"executed", "unknown"}
    assert (len(await posted(gateway)), len(await gateway.effects())) == (2, 1)


@pytest.mark.parametrize("fault", ["content-filter", "server-error"])
async def test_an_app_goes_on_after_a_failed_round_and_the_call_is_denied(gateway, fault: str):
    asking = gateway.ask(f"{TRANSFER} fail: {fault} on resume", stream=True)
    deciding = asyncio.ensure_future(gateway.decide())
    stream = await asking
    first = (await anext(aiter(stream))).response.id
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
    await deciding
    answer = await gateway.ask("Leave it then", previous_response_id=first)
    assert "Leave it then" in answer.output_text
    assert answer.previous_response_id == first
    denial, question = (await posted(gateway))[-1]["input"]
    assert (denial["type"], denial["approve"]) == ("mcp_approval_response", False)
    assert question["content"] == "Leave it then"
    assert await gateway.effects() == []


async def test_what_was_approved_but_never_sent_is_not_sent_by_a_later_turn(gateway: Gateway):
    text = f"{TRANSFER} fail: rate-limit always on resume"
    deciding = asyncio.ensure_future(gateway.decide())
    stream = await gateway.ask(text, stream=True)
    first = (await anext(aiter(stream))).response.id
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
    await deciding
    answer = await gateway.ask("Leave it then", previous_response_id=first)
    assert "Leave it then" in answer.output_text
    assert [item["approve"] for item in (await posted(gateway))[-1]["input"][:1]] == [False]
    assert await gateway.effects() == []


@pytest.mark.parametrize("fault", ["incomplete", "output-filter"])
async def test_P_16_a_call_of_an_incomplete_round_is_denied_in_the_next_turn(gateway, fault: str):
    answer = await gateway.ask(f"{TRANSFER} fail: {fault}")
    assert answer.status == "incomplete"
    assert "mcp_approval" not in answer.model_dump_json()
    assert await gateway.pending(0) == []
    again = await gateway.ask("Leave it then", previous_response_id=answer.id)
    assert "Leave it then" in again.output_text
    assert await gateway.effects() == []


# --- apps that go on by themselves ----------------------------------------------------------


async def returning(gateway: Gateway) -> openai.AsyncOpenAI:
    return await gateway.app(default_headers={"Gatepass-Wait": "return"})


def wish(response: Any, *, approve: bool = True) -> dict[str, Any]:
    request = next(item for item in response.output if item.type == "mcp_approval_request")
    return {
        "type": "mcp_approval_response",
        "approval_request_id": request.id,
        "approve": approve,
    }


@pytest.mark.parametrize("way", ["declared", "by header"])
@pytest.mark.parametrize(("verdict", "wished"), [("approve", False), ("deny", True)])
async def test_the_recorded_decision_counts_and_not_the_apps_wish(
    gateway: Gateway, way: str, verdict: str, wished: bool
):
    if way == "declared":
        client = await gateway.app(api_key=await add_app(gateway, "own-way", wait="return"))
    else:
        client = await returning(gateway)
    body = {"model": MODEL, "tools": [gateway.tool()]}
    first = await client.responses.create(input=TRANSFER, **body)
    assert [item.type for item in first.output] == ["mcp_list_tools", "mcp_approval_request"]
    answering = asyncio.ensure_future(
        client.responses.create(
            input=[wish(first, approve=wished)], previous_response_id=first.id, **body
        )
    )
    await asyncio.sleep(0.2)
    assert not answering.done()
    assert await gateway.effects() == []
    await gateway.decide(verdict)
    second = await answering
    approved = verdict == "approve"
    assert len(await gateway.effects()) == int(approved)
    kinds = [item.type for item in second.output]
    assert kinds == (["mcp_call", "message"] if approved else ["message"])
    if approved:
        assert second.output[0].approval_request_id == wish(first)["approval_request_id"]
    [answer] = (await posted(gateway))[-1]["input"]
    assert answer["approve"] is approved


async def test_a_decision_given_before_the_app_goes_on_counts_at_once(gateway: Gateway):
    client = await returning(gateway)
    body = {"model": MODEL, "tools": [gateway.tool()]}
    first = await client.responses.create(input=TRANSFER, **body)
    await gateway.decide()
    turn = {"input": [wish(first)], "previous_response_id": first.id, **body}
    second = await client.responses.create(**turn)
    assert second.output_text.startswith("bank.transfer returned:")
    # Going on from the same place again does not carry it out again.
    with pytest.raises(openai.APIStatusError):
        await client.responses.create(**turn)
    assert len(await gateway.effects()) == 1


async def test_a_wish_about_something_else_is_an_attempt(gateway: Gateway):
    client = await returning(gateway)
    body = {"model": MODEL, "tools": [gateway.tool()]}
    first = await client.responses.create(input=TRANSFER, **body)
    other = await client.responses.create(input=TRANSFER, **body)
    forged = {**wish(first), "approval_request_id": "mcpr_other"}
    for item in (forged, wish(other)):
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await client.responses.create(input=[item], previous_response_id=first.id, **body)
        assert refused.value.code == "approval_forged"
    with pytest.raises(openai.PermissionDeniedError):
        await client.responses.create(input=[wish(first)], **body)
    recorded = await gateway.records("security.refused")
    assert [entry["code"] for entry in recorded] == ["approval_forged"] * 3
    assert await gateway.effects() == []


async def test_another_word_for_how_to_wait_is_refused(gateway: Gateway):
    body = {"model": MODEL, "input": "Hello"}
    answer = await gateway.raw("POST", RESPONSES, json=body, headers={"gatepass-wait": "never"})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_header")


async def test_C_15_what_was_claimed_before_a_lapse_of_the_lease_is_not_sent(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
):
    asking = Asking(gateway, {})
    (request,) = await gateway.pending()
    sent = len(await posted(gateway))
    monkeypatch.setattr(Lease, "holds", lambda *_: False)
    monkeypatch.setattr(retrying, "PAUSES", (0.01,) * len(retrying.PAUSES))
    await gateway.decide()
    answer = await asking.task
    assert answer.json()["error"]["code"] in {"unavailable", "server_error"}
    assert len(await posted(gateway)) == sent
    assert await gateway.effects() == []
    assert (await gateway.request(request["id"]))["execution"] == "not_sent"
