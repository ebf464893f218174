"""The gateway dies with -9 and comes back: what waited goes on, what was sent is never resent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai
import pytest

from gateway import config
from gateway.app import create_services
from gateway.approvals import replicas
from gateway.audit import reading
from gateway.audit.live import verify_live
from gateway.audit.records import Actor
from gateway.registry import pauses
from gateway.store import migration
from gateway.telemetry import utc_now
from tests.support.demo import KEY, TRANSFER, open_world
from tests.support.gateway import MODEL, Gateway, Process, environment, furnish
from tests.support.ports import free_port

pytestmark = pytest.mark.e2e


@dataclass
class Mortal:
    """A gateway in a process of its own, and what it left behind."""

    gateway: Gateway
    process: Process
    settings: config.Settings
    environ: dict[str, str]

    async def records(self, kind: str) -> list[dict]:
        """Bodies of the records of a kind, read while nobody else has the database."""
        services = create_services(self.settings)
        try:
            await services.ledger.settle()
            report = await verify_live(services.db, services.ledger.signer.verifier)
            assert report.valid, list(map(str, report.findings))
            found = await reading.search(services.db, reading.Query(kind=kind, limit=200))
            return [entry.document for entry in found.items]
        finally:
            await services.db.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mortal]:
    async with AsyncExitStack() as stack:
        world = await open_world(stack)
        changes = {}
        if request.param == "postgresql":
            server = request.getfixturevalue("postgres_server")
            changes = {
                "GATEPASS_DATABASE_URL": await server.create(),
                "GATEPASS_MASTER_KEY_FILE": str(tmp_path / "master.key"),
                "GATEPASS_SIGNING_KEY_FILE": str(tmp_path / "signing.key"),
            }
        changes["GATEPASS_KEEPALIVE"] = "1s"
        environ = environment(tmp_path, world, free_port(), **changes)
        settings = config.load(environ)
        await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
        services = create_services(settings)
        key, token = await furnish(services, world.bank)
        await services.ledger.settle()
        await services.db.close()
        process = Process(environ, tmp_path)
        stack.callback(process.kill)
        await process.start()
        gateway = Gateway(world, process.url, key, token, tmp_path)
        await stack.enter_async_context(gateway.clients)
        yield Mortal(gateway, process, settings, environ)


async def ask_and_lose(gateway: Gateway, text: str) -> asyncio.Task:
    """A streamed request whose connection will not survive; the id it was given so far."""
    client = await gateway.app()

    async def read() -> str:
        name = ""
        with contextlib.suppress(openai.APIError, httpx2.TransportError):
            stream = await client.responses.create(
                model=MODEL, input=text, tools=[gateway.tool()], stream=True
            )
            async for event in stream:
                name = getattr(getattr(event, "response", None), "id", name)
        return name

    return asyncio.ensure_future(read())


async def finished(gateway: Gateway, response_id: str) -> dict:
    for _ in range(200):
        found = (await gateway.raw("GET", f"/openai/v1/responses/{response_id}")).json()
        if found["status"] not in {"queued", "in_progress"}:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("the response is not finished")


async def test_P_35_a_hold_survives_the_death_of_the_process(mortal: Mortal):
    gateway = mortal.gateway
    asking = await ask_and_lose(gateway, TRANSFER)
    before = (await gateway.pending())[0]
    mortal.process.kill()
    response_id = await asking
    assert response_id
    await mortal.process.start()
    assert (await gateway.raw("GET", f"/openai/v1/responses/{response_id}")).json()[
        "status"
    ] == "in_progress"
    after = (await gateway.pending())[0]
    assert after == before
    assert (await gateway.review(after)).status_code == 201
    response = await finished(gateway, response_id)
    assert response["id"] == response_id
    assert [item["type"] for item in response["output"]] == [
        "mcp_list_tools",
        "mcp_call",
        "message",
    ]
    assert len(await gateway.effects()) == 1
    assert (await gateway.request(after["id"]))["execution"] == "executed"
    assert mortal.process.stop() == 0
    assert len(await mortal.records("execution.observed")) == 1


async def numbered(gateway: Gateway, response_id: str, after: int = -1) -> list[dict]:
    """The frames of a background stream past `after`, to its end."""
    query = {"stream": "true", "starting_after": str(after)}
    answer = await gateway.raw("GET", f"/openai/v1/responses/{response_id}", params=query)
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


@pytest.mark.parametrize("moment", ["held", "first round"])
async def test_P_32_a_stream_is_taken_up_again_after_the_death_of_the_process(
    mortal: Mortal, moment: str
):
    gateway = mortal.gateway
    slow = " fail: slow 3s" if moment == "first round" else ""
    client = await gateway.app()
    seen: list[dict] = []
    with contextlib.suppress(openai.APIError, httpx2.TransportError):
        stream = await client.responses.create(
            model=MODEL,
            input=TRANSFER + slow,
            tools=[gateway.tool()],
            stream=True,
            background=True,
        )
        async for event in stream:
            seen.append(event.model_dump(exclude_unset=True))
            if len(seen) == 3 and moment == "first round":
                mortal.process.kill()
            if event.type == "keepalive":
                mortal.process.kill()
    response_id = seen[0]["response"]["id"]
    await mortal.process.start()
    await gateway.decide()
    await finished(gateway, response_id)
    rest = await numbered(gateway, response_id, after=len(seen) - 1)
    whole = [*seen, *rest]
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert await numbered(gateway, response_id) == whole
    assert whole[-1]["type"] == "response.completed"
    assert len(await gateway.effects()) == 1


async def test_P_35_a_client_that_asks_again_after_the_death_joins_its_own_hold(mortal: Mortal):
    """Some clients say that it is a retry, others just send the same bytes once more."""
    gateway = mortal.gateway
    body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()]}
    asking = asyncio.ensure_future(gateway.raw("POST", "/openai/v1/responses", json=body))
    before = await gateway.pending()
    mortal.process.kill()
    with contextlib.suppress(httpx2.TransportError):
        await asking
    await mortal.process.start()
    again, _ = await asyncio.gather(
        gateway.raw("POST", "/openai/v1/responses", json=body), gateway.decide(after=0.5)
    )
    assert again.json()["status"] == "completed"
    assert len(await gateway.effects()) == 1
    request = await gateway.request(before[0]["id"])
    assert (request["state"], request["execution"]) == ("approved", "executed")


async def test_a_decision_taken_by_another_process_resumes_the_hold(mortal: Mortal):
    gateway = mortal.gateway
    asking = asyncio.ensure_future(gateway.ask(TRANSFER))
    request = (await gateway.pending())[0]
    services = create_services(mortal.settings)
    from gateway.approvals import review
    from gateway.audit.records import SYSTEM
    from gateway.identity import people

    new = people.NewUser("else@example.org", ("reviewer",))
    user = await people.create_user(services.ledger, new, actor=SYSTEM, now=utc_now())
    reviewer = review.Reviewer(
        user.id, user.email, frozenset({"reviewer"}), frozenset(), "cli", "host"
    )
    submission = review.Submission(request["id"], "approve", request["digest"])
    await review.review(services.approvals, reviewer, submission, now=utc_now())
    await services.db.close()
    assert "bank.transfer returned" in (await asking).output_text


async def test_a_death_while_a_call_is_being_sent_leaves_its_outcome_unknown(mortal: Mortal):
    gateway = mortal.gateway
    asking = await ask_and_lose(gateway, f"{TRANSFER} fail: slow 20s on resume")
    request = (await gateway.pending())[0]
    reviewing = asyncio.ensure_future(gateway.review(request))
    for _ in range(200):
        if (await gateway.request(request["id"]))["execution"] == "sending":
            break
        await asyncio.sleep(0.02)
    await reviewing
    mortal.process.kill()
    response_id = await asking
    sent = await gateway.rounds()
    await mortal.process.start()
    response = await finished(gateway, response_id)
    assert response["status"] == "failed"
    assert (await gateway.request(request["id"]))["execution"] == "unknown"
    await asyncio.sleep(1)
    assert await gateway.rounds() == sent
    assert mortal.process.stop() == 0
    observed = await mortal.records("execution.observed")
    assert [entry["outcome"] for entry in observed] == ["unknown"]


@pytest.mark.parametrize("moment", ["C-11: before the answer", "C-12: before it is recorded"])
async def test_C_11_C_12_a_lost_outcome_is_found_at_azure_and_settled(mortal: Mortal, moment: str):
    gateway = mortal.gateway
    lost = f"{TRANSFER} fail: slow 2s on resume quirk: goes-on on resume"
    asking = await ask_and_lose(gateway, lost)
    request = (await gateway.pending())[0]
    assert (await gateway.review(request)).status_code == 201
    path = f"/exchanges/{request['exchange_id']}"
    for _ in range(400):  # until Azure has named the round
        if len((await gateway.api("GET", path)).json()["upstream_ids"]) == 2:
            break
        await asyncio.sleep(0.02)
    if moment.startswith("C-12"):
        mortal.process.freeze()
        while not await gateway.effects():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # the whole answer has arrived, and nobody has read it
    mortal.process.kill()
    await asking
    sent = await gateway.rounds()
    await mortal.process.start()
    found: list[dict] = []
    for _ in range(400):
        shown = await gateway.request(request["id"])
        found = [entry for entry in shown["evidence"] if entry["finding"] == "executed"]
        if found:
            break
        await asyncio.sleep(0.1)
    assert found[0]["arguments_match"] is True
    assert shown["execution"] == "unknown"
    body = {"outcome": "executed", "reason": "Azure shows it."}
    settled = await gateway.api("POST", f"/approval-requests/{request['id']}/settlement", json=body)
    assert settled.json()["execution"] == "executed"
    assert await gateway.rounds() == sent
    assert len(await gateway.effects()) == 1
    assert mortal.process.stop() == 0
    observed = await mortal.records("execution.observed")
    assert [entry["outcome"] for entry in observed] == ["executed", "unknown"]


async def test_C_08_a_death_while_all_is_paused_leaves_the_call_to_be_sent_later(mortal: Mortal):
    gateway = mortal.gateway
    asking = await ask_and_lose(gateway, TRANSFER)
    request = (await gateway.pending())[0]
    body = {"scope": "all", "reason": "looks odd"}
    begun = (await gateway.api("POST", "/pauses", json=body)).json()
    assert (await gateway.review(request)).status_code == 201
    await asyncio.sleep(0.5)
    mortal.process.kill()
    response_id = await asking
    await mortal.process.start()
    await asyncio.sleep(1)
    assert (await gateway.request(request["id"]))["execution"] == "not_sent"
    assert await gateway.effects() == []
    services = create_services(mortal.settings)
    operator = Actor("operator", "test", "host")
    await pauses.end(services.ledger, begun["id"], "operator", actor=operator, now=utc_now())
    await services.db.close()
    assert (await finished(gateway, response_id))["status"] == "completed"
    assert len(await gateway.effects()) == 1


async def test_C_08_a_death_while_what_an_app_goes_on_with_is_paused(mortal: Mortal):
    """All of it was decided before the exchange began: it is saved ready to be sent."""
    gateway = mortal.gateway
    returns = {"gatepass-wait": "return"}
    body: dict = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()]}
    first = await gateway.raw("POST", "/openai/v1/responses", json=body, headers=returns)
    asked = first.json()["output"][-1]
    assert (await gateway.review((await gateway.pending())[0])).status_code == 201
    pause = {"scope": "server", "target": "bank", "reason": "looks odd"}
    begun = (await gateway.api("POST", "/pauses", json=pause)).json()
    wish = {
        "type": "mcp_approval_response",
        "approval_request_id": asked["id"],
        "approve": True,
    }
    body |= {"input": [wish], "previous_response_id": first.json()["id"]}
    going_on = asyncio.ensure_future(
        gateway.raw("POST", "/openai/v1/responses", json=body, headers=returns)
    )
    for _ in range(200):
        held = (await gateway.api("GET", "/exchanges")).json()["items"]
        if held[0]["state"] == "holding":
            break
        await asyncio.sleep(0.05)
    mortal.process.kill()
    with contextlib.suppress(httpx2.TransportError):
        await going_on
    await mortal.process.start()
    assert await gateway.effects() == []
    services = create_services(mortal.settings)
    operator = Actor("operator", "test", "host")
    await pauses.end(services.ledger, begun["id"], "operator", actor=operator, now=utc_now())
    await services.db.close()
    for _ in range(200):
        if await gateway.effects():
            break
        await asyncio.sleep(0.1)
    assert len(await gateway.effects()) == 1
    assert mortal.process.stop() == 0
    assert len(await mortal.records("release.sending")) == 1


@pytest.mark.parametrize("mortal", ["sqlite"], indirect=True)
async def test_what_its_app_withdrew_before_the_death_is_cancelled_after_it(mortal: Mortal):
    gateway = mortal.gateway
    client = await gateway.app()
    asked = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()], "background": True}
    response = await client.responses.create(**asked)
    request = (await gateway.pending())[0]
    mortal.process.kill()
    services = create_services(mortal.settings)
    await replicas.withdraw(services.db, request["exchange_id"], "No more of it.")
    await services.db.close()
    await mortal.process.start()
    assert (await finished(gateway, response.id))["status"] == "cancelled"
    assert (await gateway.request(request["id"]))["state"] == "cancelled"


async def test_E_09_nothing_runs_that_nobody_approved_before_the_restart(mortal: Mortal):
    gateway = mortal.gateway
    asking = await ask_and_lose(gateway, TRANSFER)
    await gateway.pending()
    for _ in range(3):
        mortal.process.kill()
        await mortal.process.start()
    await asking
    request = (await gateway.pending())[0]
    assert (await gateway.review(request, "deny")).status_code == 201
    await asyncio.sleep(0.5)
    assert await gateway.effects() == []


async def test_a_polite_end_keeps_what_is_held(mortal: Mortal):
    gateway = mortal.gateway
    asking = await ask_and_lose(gateway, TRANSFER)
    request = (await gateway.pending())[0]
    assert await asyncio.to_thread(mortal.process.stop) == 0
    response_id = await asking
    await mortal.process.start()
    assert (await gateway.review(request)).status_code == 201
    assert (await finished(gateway, response_id))["status"] == "completed"
    assert len(await gateway.effects()) == 1


@pytest.mark.slow
async def test_killing_at_many_moments_never_runs_a_call_twice(mortal: Mortal):
    """Thirty deaths spread over the life of a call: from before the request to after the end."""
    gateway = mortal.gateway
    approved = 0
    for number in range(15):
        # Each its own: the same one again would join what the death before has left.
        asking = await ask_and_lose(gateway, f"{TRANSFER}, for the {number}th time")
        if number % 3:
            request = (await gateway.pending())[0]
            reviewing = asyncio.ensure_future(gateway.review(request))
            await asyncio.sleep(0.004 * number)
        else:
            reviewing = None
            await asyncio.sleep(0.02 * number)
        mortal.process.kill()
        await asking
        if reviewing is not None:
            with contextlib.suppress(httpx2.TransportError):
                await reviewing
        await mortal.process.start()
        for request in (await gateway.api("GET", "/approval-requests?state=pending")).json()[
            "items"
        ]:
            assert (await gateway.review(request)).status_code == 201
        listed = await gateway.api("GET", "/approval-requests", params={"limit": 200})
        approved = sum(item["state"] == "approved" for item in listed.json()["items"])
    for _ in range(100):
        listed = (await gateway.api("GET", "/approval-requests", params={"limit": 200})).json()
        states = [item["execution"] for item in listed["items"]]
        if not {"not_sent", "sending"} & set(states):
            break
        await asyncio.sleep(0.1)
    assert not {"not_sent", "sending"} & set(states)
    effects = len(await gateway.effects())
    assert states.count("executed") <= effects <= approved
    assert mortal.process.stop() == 0
    await mortal.records("approval.decided")


@pytest.mark.parametrize("mortal", ["sqlite"], indirect=True)
async def test_C_27_a_second_gateway_on_the_same_file_is_refused(mortal: Mortal):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    again = {"GATEPASS_LISTEN": f"127.0.0.1:{port}", "GATEPASS_PUBLIC_URL": url}
    other = Process({**mortal.environ, **again}, mortal.gateway.folder / "data")
    try:
        with pytest.raises(AssertionError):
            await other.start()
    finally:
        other.kill()
    assert "Another gateway is running" in other.log()


async def test_the_secret_is_in_no_file_and_no_log(mortal: Mortal, tmp_path: Path):
    await asyncio.gather(mortal.gateway.ask(TRANSFER), mortal.gateway.decide())
    assert mortal.process.stop() == 0
    secrets = (b"mcp-token", KEY.encode(), mortal.gateway.key.encode())
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert not [secret for secret in secrets if secret in content], file
