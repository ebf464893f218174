"""Several gateways on one PostgreSQL: what one holds, every other can decide, join and take up.

Whatever is stopped, killed or asked twice: one approval is one execution, and nobody loses an
answer that somebody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.attempts import RESPONSES
from tests.support.demo import TRANSFER
from tests.support.gateway import MODEL
from tests.support.postgres import PostgresServer
from tests.support.replicas import (
    House,
    Streaming,
    open_replicas,
    over,
    read_stream,
    until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]
RETRY = {"x-stainless-retry-count": "1"}
LEASE = {"LEASE": "4"}  # seconds; the default would only make the tests longer


@asynccontextmanager
async def opened(server: PostgresServer, folder: Path, **more: Any) -> AsyncIterator[House]:
    """A house of its own, for tests that kill."""
    async with AsyncExitStack() as stack:
        yield await open_replicas(stack, folder, await server.create(), **{**LEASE, **more})


@pytest.fixture
async def house(postgres_server: PostgresServer, tmp_path: Path) -> AsyncIterator[House]:
    async with opened(postgres_server, tmp_path) as house:
        yield house


async def one_effect(house: House, approval_id: str) -> None:
    """One approved call, done once, and a ledger that says so."""
    assert len(await house.world.effects()) == 1
    assert len(await house.records("approval.requested")) == 1
    observed = await house.records("execution.observed")
    assert [entry["outcome"] for entry in observed] == ["executed"]
    assert observed[0]["subject"]["approval"] == approval_id


# --- decided elsewhere ----------------------------------------------------------------------


async def test_a_decision_at_one_replica_resumes_what_another_holds(house: House):
    one, two = house.replicas
    plain = asyncio.ensure_future(one.ask(TRANSFER))
    await two.decide()
    assert (await plain).output_text.startswith("bank.transfer returned:")
    streaming = Streaming(one, one.body())
    await two.decide()
    assert (await streaming.ended())[-1] == "response.completed"
    numbers = [event["sequence_number"] for event in streaming.events]
    assert numbers == list(range(len(numbers)))
    assert len(await house.world.effects()) == 2
    assert len(await house.records("execution.observed")) == 2


async def test_a_response_is_readable_at_every_replica_while_one_drives_it(house: House):
    one, two = house.replicas
    streaming = Streaming(one, one.body(f"{TRANSFER} fail: slow 1s"))
    begun = (await streaming.seen("response.created"))["response"]["id"]
    first = await two.raw("GET", f"{RESPONSES}/{begun}")
    assert (first.status_code, first.json()["status"]) == (200, "in_progress")
    assert first.json()["id"] == begun
    (request,) = await two.pending()
    held = await two.raw("GET", f"{RESPONSES}/{begun}")
    assert held.json()["status"] == "in_progress"
    assert (await two.review(request)).status_code == 201
    assert (await over(two, begun))["status"] == "completed"
    assert (await streaming.ended())[-1] == "response.completed"


# --- a replica that dies --------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
async def test_what_a_killed_replica_held_is_finished_by_another(house: House, streams: bool):
    one, two = house.replicas
    asking = Streaming(one, one.body(stream=True)) if streams else None
    plain = None if streams else asyncio.ensure_future(one.raw("POST", RESPONSES, json=one.body()))
    (request,) = await two.pending()
    one.own.kill()
    assert (await two.review(request)).status_code == 201
    await until(two, request["id"], execution="executed")
    if asking is not None:
        await asking.ended()
        created = asking.events[0]["response"]["id"]
        assert (await over(two, created))["status"] == "completed"
    if plain is not None:
        with contextlib.suppress(httpx2.TransportError):
            await plain
    await one_effect(house, request["id"])


async def test_what_a_killed_replica_was_sending_is_unknown_and_never_sent_again(house: House):
    one, two = house.replicas
    asking = Streaming(one, one.body(f"{TRANSFER} fail: slow 20s on resume"))
    (request,) = await two.pending()
    assert (await two.review(request)).status_code == 201
    await until(two, request["id"], execution="sending")
    while (sent := await two.rounds()) < 2:
        await asyncio.sleep(0.05)
    one.own.kill()
    await asking.ended()
    await until(two, request["id"], execution="unknown")
    response = await over(two, asking.events[0]["response"]["id"])
    assert response["status"] == "failed"
    assert await two.rounds() == sent
    observed = await house.records("execution.observed")
    assert [entry["outcome"] for entry in observed] == ["unknown"]


async def test_C_15_a_replica_that_slept_past_its_lease_can_do_nothing_any_more(house: House):
    """It is woken when the other has taken over, and again after it has finished."""
    one, two = house.replicas
    asking = Streaming(one, one.body())
    (request,) = await two.pending()
    one.own.send(signal.SIGSTOP)
    assert (await two.review(request)).status_code == 201
    await until(two, request["id"], execution="executed")
    one.own.send(signal.SIGCONT)
    await asking.ended()  # it is cut off, for the answer is elsewhere
    assert asking.events[-1]["type"] != "response.completed"
    response_id = asking.events[0]["response"]["id"]
    assert (await over(one, response_id))["status"] == "completed"
    await one_effect(house, request["id"])
    assert "exchange.handed_over" in one.own.log()


async def test_C_15_a_replica_that_slept_while_sending_is_not_believed(house: House):
    one, two = house.replicas
    asking = Streaming(one, one.body(f"{TRANSFER} fail: slow 1s on resume"))
    (request,) = await two.pending()
    assert (await two.review(request)).status_code == 201
    await until(two, request["id"], execution="sending")
    one.own.send(signal.SIGSTOP)
    await until(two, request["id"], execution="unknown")
    one.own.send(signal.SIGCONT)
    await asking.ended()
    observed = await house.records("execution.observed")
    assert [entry["outcome"] for entry in observed] == ["unknown"]
    assert len(await house.world.effects()) <= 1
    assert (await two.request(request["id"]))["execution"] == "unknown"


async def test_E_18_a_clock_ten_minutes_off_changes_nothing_about_leases(
    postgres_server: PostgresServer, tmp_path: Path
):
    for skew in ("600", "-600"):
        folder = tmp_path / skew
        folder.mkdir()
        async with opened(postgres_server, folder, each=({}, {"SKEW": skew})) as house:
            one, two = house.replicas
            asking = [asyncio.ensure_future(each.ask(TRANSFER)) for each in (one, two)]
            await one.pending(2)
            await asyncio.sleep(5)  # longer than a lease
            await two.decide(count=2)
            for task in asking:
                assert (await task).output_text.startswith("bank.transfer returned:")
            assert "exchange.taken" not in one.own.log() + two.own.log()
            assert len(await house.world.effects()) == 2


# --- a client that comes again at another replica -------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("gone", [True, False])
async def test_E_06_a_retry_at_another_replica_joins(house: House, streams: bool, gone: bool):
    one, two = house.replicas
    first = asyncio.ensure_future(
        one.raw("POST", RESPONSES, json=one.body(stream=streams), timeout=60)
    )
    (request,) = await two.pending()
    if gone:
        first.cancel()
        await asyncio.wait([first])
    if streams:
        again = Streaming(two, two.body(), **RETRY)
        await again.seen("response.mcp_list_tools.completed")
        await told_to_come_again(first, gone=gone)
        await two.decide()
        assert (await again.ended())[-1] == "response.completed"
        numbers = [event["sequence_number"] for event in again.events]
        assert numbers == list(range(len(numbers)))
    else:
        retry = asyncio.ensure_future(
            two.raw("POST", RESPONSES, json=two.body(stream=False), headers=RETRY)
        )
        await told_to_come_again(first, gone=gone)
        await two.decide(after=1)
        assert (await retry).json()["status"] == "completed"
    await one_effect(house, request["id"])


async def told_to_come_again(first: asyncio.Task[httpx2.Response], *, gone: bool) -> None:
    """Who still waits where the exchange was, before anybody has decided."""
    if gone:
        return
    async with asyncio.timeout(20):
        try:
            answer = await first
        except httpx2.RemoteProtocolError:
            return  # a stream, cut off
    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "true")
    assert answer.json()["error"]["code"] == "exchange_moved"


async def test_E_06_the_official_client_finds_its_exchange_at_the_replica_that_is_left(
    house: House,
):
    """One address for both, as behind a load balancer; the first is killed while it holds."""
    one, two = house.replicas
    client = await one.app(max_retries=4)
    posted = client.responses.create(model=MODEL, input=TRANSFER, tools=[one.tool()], stream=False)
    asking = asyncio.ensure_future(posted)
    (request,) = await two.pending()
    client.base_url = httpx2.URL(f"{two.url}/openai/v1/")  # read anew for each attempt
    one.own.kill()
    await asyncio.sleep(1)
    assert (await two.review(request)).status_code == 201
    assert (await asking).output_text.startswith("bank.transfer returned:")
    await one_effect(house, request["id"])


async def test_a_repeat_that_does_not_say_so_joins_what_nobody_waits_for_any_more(house: House):
    one, two = house.replicas
    first = Streaming(one, one.body())
    (request,) = await two.pending()
    await first.seen("response.created")
    twin = Streaming(two, two.body())
    await two.pending(2)  # somebody waits for the first one: two honest twins
    await twin.cut()
    await first.cut()
    await asyncio.sleep(0.5)
    for _ in range(2):
        again = Streaming(two, two.body())
        await again.seen("response.created")
        await again.cut()
        await asyncio.sleep(0.3)
    assert len(await two.pending()) == 2
    assert request["id"] in {item["id"] for item in await two.pending()}


async def test_an_idempotency_key_makes_requests_at_two_replicas_one(house: House):
    one, two = house.replicas
    key = {"idempotency-key": "order 4711"}
    asking = [
        asyncio.ensure_future(each.raw("POST", RESPONSES, json=each.body(), headers=key))
        for each in (one, two, one, two)
    ]
    (request,) = await two.pending()
    await asyncio.sleep(1)
    await one.decide()
    bodies = [(await task).json() for task in asking]
    answered = [body for body in bodies if body.get("status") == "completed"]
    moved = [body for body in bodies if "exchange_moved" in str(body.get("error"))]
    assert answered
    assert len(answered) + len(moved) == 4
    later = await two.raw("POST", RESPONSES, json=two.body(), headers=key)
    assert later.json()["id"] == answered[0]["id"]
    other = await two.raw("POST", RESPONSES, json=two.body("Something else"), headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    await one_effect(house, request["id"])


@pytest.mark.parametrize("streams", [True, False])
async def test_a_retry_after_the_end_hears_the_same_answer_at_another_replica(
    house: House, streams: bool
):
    one, two = house.replicas
    first = Streaming(one, one.body())
    if not streams:
        await first.cut()
        first.task = asyncio.ensure_future(one.raw("POST", RESPONSES, json=one.body(stream=False)))
    (request,) = (await two.pending())[-1:]
    first.task.cancel()
    await asyncio.wait([first.task])
    await asyncio.sleep(0.3)
    assert (await two.review(request)).status_code == 201
    await until(two, request["id"], execution="executed")
    for replica in (two, one):
        body = replica.body(stream=streams)
        answer = await replica.raw("POST", RESPONSES, json=body, headers=RETRY)
        assert "completed" in answer.text
    assert len(await house.world.effects()) == 1


async def test_a_retry_while_the_call_is_being_sent_waits_for_its_end(house: House):
    one, two = house.replicas
    first = Streaming(one, one.body(f"{TRANSFER} fail: slow 3s on resume"))
    (request,) = await two.pending()
    assert (await two.review(request)).status_code == 201
    await until(two, request["id"], execution="sending")
    await first.cut()
    again = Streaming(two, two.body(f"{TRANSFER} fail: slow 3s on resume"), **RETRY)
    assert (await again.ended())[-1] == "response.completed"
    numbers = [event["sequence_number"] for event in again.events]
    assert numbers == list(range(len(numbers)))
    await one_effect(house, request["id"])


# --- in the background ----------------------------------------------------------------------


async def test_cancelling_at_another_replica_withdraws_what_is_held(house: House):
    one, two = house.replicas
    streaming = Streaming(one, one.body(background=True))
    (request,) = await two.pending()
    response_id = streaming.events[0]["response"]["id"]
    answer = await two.raw("POST", f"{RESPONSES}/{response_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert (await two.request(request["id"]))["state"] == "cancelled"
    await streaming.ended()
    assert await house.world.effects() == []
    finished = await house.records("exchange.finished")
    assert [entry["outcome"] for entry in finished] == ["cancelled"]


async def test_cancelling_at_another_replica_stops_a_round_at_azure(house: House):
    one, two = house.replicas
    streaming = Streaming(one, one.body(f"{TRANSFER} fail: slow 20s", background=True))
    response_id = (await streaming.seen("response.created"))["response"]["id"]
    answer = await two.raw("POST", f"{RESPONSES}/{response_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    await streaming.ended()


async def test_what_was_withdrawn_is_cancelled_by_whoever_takes_it_up(house: House):
    one, two = house.replicas
    streaming = Streaming(one, one.body(background=True))
    (request,) = await two.pending()
    response_id = streaming.events[0]["response"]["id"]
    one.own.send(signal.SIGSTOP)
    answer = await two.raw("POST", f"{RESPONSES}/{response_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert (await two.request(request["id"]))["state"] == "cancelled"
    one.own.send(signal.SIGCONT)
    await streaming.ended()
    assert await house.world.effects() == []


@pytest.mark.parametrize("moment", ["first round", "held", "over"])
async def test_P_32_a_background_stream_is_taken_up_at_another_replica(house: House, moment: str):
    one, two = house.replicas
    slow = " fail: slow 2s" if moment == "first round" else ""
    streaming = Streaming(one, one.body(TRANSFER + slow, background=True))
    response_id = (await streaming.seen("response.created"))["response"]["id"]
    if moment != "first round":
        await streaming.seen("keepalive")
    seen = list(streaming.events)
    await streaming.cut()
    if moment == "over":
        await one.decide()
        await over(one, response_id)
    rest = asyncio.ensure_future(read_stream(two, response_id, after=len(seen) - 1))
    if moment != "over":
        await two.decide(after=0.5)
    whole = [*seen, *await rest]
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert whole[-1]["type"] == "response.completed"
    assert await read_stream(two, response_id) == whole == await read_stream(one, response_id)
    assert len(await house.world.effects()) == 1


# --- stopping -------------------------------------------------------------------------------


async def test_a_clean_stop_hands_over_at_once(house: House):
    one, two = house.replicas
    asking = Streaming(one, one.body())
    (request,) = await two.pending()
    await asking.seen("response.mcp_list_tools.completed")
    stopping = asyncio.ensure_future(asyncio.to_thread(one.own.stop))
    await asking.ended()
    again = Streaming(two, two.body(), **RETRY)
    await again.seen("response.mcp_list_tools.completed", seconds=10)
    assert (await two.review(request)).status_code == 201
    assert (await again.ended())[-1] == "response.completed"
    assert await stopping == 0
    await one_effect(house, request["id"])


async def test_the_stop_of_the_only_replica_tells_who_waits_to_come_again(
    postgres_server: PostgresServer, tmp_path: Path
):
    async with opened(postgres_server, tmp_path, count=1) as house:
        (one,) = house.replicas
        plain = asyncio.ensure_future(one.raw("POST", RESPONSES, json=one.body()))
        streaming = Streaming(one, one.body(f"{TRANSFER}!"))
        await one.pending(2)
        await streaming.seen("response.mcp_list_tools.completed")
        assert await asyncio.to_thread(one.own.stop) == 0
        answer = await plain
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "true")
        assert answer.json()["error"]["code"] == "gateway_stopping"
        with pytest.raises(httpx2.RemoteProtocolError):  # no end that looks like one
            await streaming.task
        assert "Traceback" not in one.own.log()


async def test_a_round_that_is_being_sent_is_finished_before_the_stop(
    postgres_server: PostgresServer, tmp_path: Path
):
    async with opened(postgres_server, tmp_path, GATEPASS_DRAIN="10s") as house:
        one, two = house.replicas
        asking = Streaming(one, one.body(f"{TRANSFER} fail: slow 1s on resume"))
        (request,) = await two.pending()
        assert (await two.review(request)).status_code == 201
        await until(two, request["id"], execution="sending")
        assert await asyncio.to_thread(one.own.stop) == 0
        assert (await asking.ended())[-1] == "response.completed"
        await one_effect(house, request["id"])


async def test_three_replicas_share_what_a_fourth_of_the_work_left(
    postgres_server: PostgresServer, tmp_path: Path
):
    async with opened(postgres_server, tmp_path, count=3) as house:
        first, second, third = house.replicas
        asking = [
            asyncio.ensure_future(first.raw("POST", RESPONSES, json=first.body(f"{TRANSFER}, {n}")))
            for n in range(10)
        ]
        requests = await third.pending(10)
        first.own.kill()
        await asyncio.gather(*asking, return_exceptions=True)
        for number, request in enumerate(requests):
            replica = (second, third)[number % 2]
            assert (await replica.review(request)).status_code == 201
        for request in requests:
            await until(second, request["id"], execution="executed")
        assert len(await house.world.effects()) == 10
        assert len(await house.records("execution.observed")) == 10


@pytest.mark.slow
async def test_C_25_a_stop_with_a_hundred_holds_loses_none(
    postgres_server: PostgresServer, tmp_path: Path
):
    count, small = 100, TRANSFER.replace("250", "5")
    async with opened(postgres_server, tmp_path) as house:
        one, two = house.replicas
        async with httpx2.AsyncClient(
            base_url=one.url,
            headers={"api-key": one.key},
            timeout=120,
            verify=False,
            limits=httpx2.Limits(max_connections=None),
        ) as client:
            asking = [
                asyncio.ensure_future(client.post(RESPONSES, json=one.body(f"{small}, {n}")))
                for n in range(count)
            ]
            async with asyncio.timeout(120):
                while len(requests := await _pending(two)) < count:
                    await asyncio.sleep(0.2)
            reviewing = [asyncio.ensure_future(two.review(each)) for each in requests[::4]]
            await asyncio.sleep(0.05)
            assert await asyncio.to_thread(one.own.stop) == 0
            await asyncio.gather(*reviewing)
            await asyncio.gather(*asking, return_exceptions=True)
        for request in await _pending(two):
            assert (await two.review(request)).status_code == 201
        executed = [await until(two, each["id"], state="approved") for each in requests]
        async with asyncio.timeout(120):
            while not {each["execution"] for each in executed} <= {"executed", "unknown"}:
                await asyncio.sleep(0.5)
                executed = [await two.request(each["id"]) for each in requests]
        unknown = sum(each["execution"] == "unknown" for each in executed)
        effects = len(await house.world.effects())
        assert count - unknown <= effects <= count
        assert len(await house.records("release.sending")) == count


async def _pending(replica: Any) -> list[dict[str, Any]]:
    query = {"state": "pending", "limit": "200"}
    answer = await replica.api("GET", "/approval-requests", params=query)
    found: list[dict[str, Any]] = answer.json()["items"]
    return found
