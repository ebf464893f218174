"""Between a click and an execution: what has changed meanwhile is noticed; nothing slips through.

Effects are read from the MCP server's own record.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.approvals import evidence as looking
from gateway.identity import people, tokens
from gateway.registry import apply, apps
from gateway.registry import servers as registered
from gateway.registry.changes import By
from gateway.registry.declaration import parse
from gateway.telemetry import utc_now
from tests.support.demo import TOKEN, TRANSFER
from tests.support.gateway import DECLARATION, OPERATOR, Gateway, http, open_gateway

pytestmark = pytest.mark.e2e

FIRST = 'call transfer {"amount": 5, "currency": "EUR", "to_account": "0815"}'
SECOND = 'call transfer {"amount": 6, "currency": "EUR", "to_account": "0815"}'
TWO = f"{FIRST} and {SECOND}"


async def rules(gateway: Gateway, text: str) -> None:
    """Put these policies in force."""
    assert gateway.services is not None
    declared = DECLARATION.format(bank=gateway.world.bank) + text
    await apply.apply(
        gateway.services.ledger, parse({"test.yaml": declared}), By(OPERATOR, utc_now())
    )


async def describe(gateway: Gateway, text: str) -> None:
    """The server changes the definition of its tool, and Azure lists it."""
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        path = f"{gateway.world.bank}/tools/transfer/description"
        answer = await client.put(path, content=text)
        assert answer.status_code < 300, answer.text
    assert (await gateway.ask("Hello")).output_text


async def half_approved(gateway: Gateway, text: str = TWO) -> tuple[asyncio.Task[Any], dict, dict]:
    """Two calls of one round, the first of them approved: it waits for the other."""
    asking = asyncio.ensure_future(gateway.ask(text))
    one, two = sorted(await gateway.pending(2), key=lambda item: item["arguments"])
    assert (await gateway.review(one)).status_code == 201
    return asking, one, two


async def admin(gateway: Gateway) -> str:
    """The token of an admin."""
    assert gateway.services is not None
    ledger, now = gateway.services.ledger, utc_now()
    new = people.NewUser("adm@example.org", ("admin",))
    user = await people.create_user(ledger, new, actor=OPERATOR, now=now)
    return await tokens.create_token(ledger, user.id, actor=OPERATOR, now=now)


async def as_admin(gateway: Gateway, token: str, method: str, path: str) -> httpx2.Response:
    async with http(gateway.url, {"authorization": f"Bearer {token}"}) as client:
        return await client.request(method, f"/api/v1{path}")


async def pauses(gateway: Gateway) -> list[dict]:
    return (await gateway.api("GET", "/pauses")).json()["items"]


async def alarms(gateway: Gateway) -> list[dict]:
    return (await gateway.api("GET", "/alarms")).json()["items"]


# --- checked again --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tightened", "why"),
    [
        ("{name: two, match: {server: bank}, effect: hold, quorum: 2}", "quorum_larger"),
        ("{name: why, match: {server: bank}, effect: hold, require_reason: true}",
         "reason_required"),
    ],
)  # fmt: skip
async def test_E_13_a_stricter_rule_asks_again(gateway: Gateway, tightened: str, why: str):
    asking, one, two = await half_approved(gateway)
    await rules(gateway, f"policies: [{tightened}]")
    assert (await gateway.review(two)).status_code == 201
    again = await gateway.pending(2)
    assert await gateway.effects() == []
    assert {item["supersedes"] for item in again} == {one["id"], two["id"]}
    old = await gateway.request(one["id"])
    assert (old["state"], old["execution"]) == ("approved", "not_sent")
    assert old["superseded_by"] in {item["id"] for item in again}
    superseded = await gateway.records("approval.superseded")
    assert [entry["code"] for entry in superseded] == [why, why]
    for item in again:
        assert (await gateway.review(item, "deny")).status_code == 201
    assert "as tested" in (await asking).output_text
    assert await gateway.effects() == []


async def test_E_13_a_denying_rule_denies_what_was_approved(gateway: Gateway):
    asking, _, two = await half_approved(gateway)
    await rules(gateway, "policies: [{name: none, match: {server: bank}, effect: deny}]")
    await gateway.review(two)
    assert "policy" in (await asking).output_text
    assert await gateway.effects() == []


async def test_E_13_a_milder_rule_takes_nothing_back(gateway: Gateway):
    asking, _, two = await half_approved(gateway)
    await rules(gateway, "policies: [{name: every, match: {server: bank}, effect: allow}]")
    await gateway.review(two)
    assert "returned" in (await asking).output_text
    assert len(await gateway.effects()) == 2
    assert await gateway.records("approval.superseded") == []


async def test_E_13_what_a_rule_allowed_is_held_once_it_allows_it_no_more(tmp_path: Path):
    allows = """
policies:
  - {name: small, match: {server: bank}, when: "args.amount < 6", effect: allow}
"""
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, declare=allows)
        asking = asyncio.ensure_future(gateway.ask(TWO))
        (two,) = await gateway.pending()
        await rules(gateway, "policies: [{name: whole, match: {server: bank}, effect: hold}]")
        await gateway.review(two)
        (again,) = await gateway.pending()
        assert (again["arguments"], await gateway.effects()) == (FIRST[14:], [])
        await gateway.review(again)
        assert "returned" in (await asking).output_text
        assert len(await gateway.effects()) == 2
        await gateway.verify()


async def test_E_14_another_tool_definition_asks_again_and_shows_it(gateway: Gateway):
    asking, one, two = await half_approved(gateway)
    await describe(gateway, "Transfers, and tells everybody.")
    await gateway.review(two)
    again = await gateway.pending(2)
    assert await gateway.effects() == []
    for item in again:
        assert item["definition_digest"] != one["definition_digest"]
        assert item["definition"]["description"] == "Transfers, and tells everybody."
        assert (await gateway.review(item)).status_code == 201
    assert "returned" in (await asking).output_text
    assert len(await gateway.effects()) == 2
    superseded = await gateway.records("approval.superseded")
    assert [entry["code"] for entry in superseded] == ["definition_changed"] * 2
    released = await gateway.records("release.sending")
    assert {entry["subject"]["approval"] for entry in released} == {item["id"] for item in again}


async def test_E_14_a_server_that_moved_is_not_called(gateway: Gateway):
    assert gateway.services is not None
    asking, one, two = await half_approved(gateway)
    moved = DECLARATION.format(bank="http://127.0.0.1:9")
    await apply.apply(gateway.services.ledger, parse({"test.yaml": moved}), By(OPERATOR, utc_now()))
    await gateway.review(two)
    failed = await asyncio.gather(asking, return_exceptions=True)
    assert failed
    assert await gateway.effects() == []
    old = await gateway.request(one["id"])
    assert (old["execution"], (await gateway.request(old["superseded_by"]))["state"]) == (
        "not_sent",
        "denied",
    )
    superseded = await gateway.records("approval.superseded")
    assert [entry["code"] for entry in superseded] == ["server_changed"] * 2


@pytest.mark.parametrize("how", ["disabled", "removed"])
async def test_E_14_an_app_that_was_shut_out_has_nothing_executed(gateway: Gateway, how: str):
    assert gateway.services is not None
    asking, one, two = await half_approved(gateway)
    ledger, now = gateway.services.ledger, utc_now()
    if how == "disabled":
        await apps.disable(ledger, "support-bot", actor=OPERATOR, now=now)
    else:
        await registered.remove(ledger, "bank", actor=OPERATOR, now=now)
    await gateway.review(two)
    await asyncio.gather(asking, return_exceptions=True)
    assert await gateway.effects() == []
    old = await gateway.request(one["id"])
    new = await gateway.request(old["superseded_by"])
    assert (old["execution"], new["state"]) == ("not_sent", "denied")
    assert "not made" in new["decision"]["reason"]


async def test_an_approval_that_is_not_used_in_time_is_asked_for_again(tmp_path: Path):
    soon = """
policies:
  - {name: fresh, match: {server: bank}, effect: hold, execution_expires: 1s}
"""
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, declare=soon)
        asking, one, two = await half_approved(gateway)
        await asyncio.sleep(1.2)
        await gateway.review(two)
        (again,) = await gateway.pending()
        assert (again["supersedes"], await gateway.effects()) == (one["id"], [])
        await gateway.review(again, "deny")
        await asking
        done = [effect["arguments"]["amount"] for effect in await gateway.effects()]
        assert json.loads(one["arguments"])["amount"] not in done
        superseded = await gateway.records("approval.superseded")
        assert superseded[0]["code"] == "execution_expired"
        await gateway.verify()


async def test_E_08_an_approval_is_used_up_by_its_execution(gateway: Gateway):
    asking = asyncio.ensure_future(gateway.ask(TRANSFER))
    (request,) = await gateway.pending()
    await gateway.review(request)
    answer = await asking
    late = await gateway.review(request, "deny")
    assert (late.status_code, late.json()["code"]) == (409, "already_decided")
    wish = {
        "type": "mcp_approval_response",
        "approval_request_id": "mcpr_1",
        "approve": True,
    }
    body = {
        "model": "gpt-4.1",
        "input": [wish],
        "previous_response_id": answer.id,
        "tools": [gateway.tool()],
    }
    replayed = await gateway.raw("POST", "/openai/v1/responses", json=body)
    assert replayed.status_code == 403
    refused = await gateway.records("security.refused")
    assert refused[-1]["code"] == "approval_forged"
    assert len(await gateway.effects()) == 1


# --- pauses ---------------------------------------------------------------------------------


async def test_E_17_while_paused_nothing_is_released_and_afterwards_it_is(gateway: Gateway):
    token = await admin(gateway)
    asking = asyncio.ensure_future(gateway.ask(TRANSFER))
    (request,) = await gateway.pending()
    body = {"scope": "app", "target": "support-bot", "reason": "looks odd"}
    begun = await gateway.api("POST", "/pauses", json=body)
    assert begun.status_code == 201, begun.text
    await gateway.review(request)
    await asyncio.sleep(1.5)
    assert (await gateway.effects(), asking.done()) == ([], False)
    path = f"/pauses/{begun.json()['id']}/end"
    assert (await gateway.api("POST", path)).status_code == 403
    assert (await as_admin(gateway, token, "POST", path)).status_code == 204
    assert "returned" in (await asking).output_text
    assert len(await gateway.effects()) == 1
    kinds = [entry["type"] for entry in await gateway.records()]
    assert kinds.index("pause.ended") < kinds.index("release.sending")


async def test_E_17_what_azure_did_not_begin_is_not_sent_again_while_paused(gateway: Gateway):
    text = f"{TRANSFER} fail: previous-not-found-twice on resume"
    body = {"model": "gpt-4.1", "input": text, "tools": [gateway.tool()]}
    asking = asyncio.ensure_future(gateway.raw("POST", "/openai/v1/responses", json=body))
    (request,) = await gateway.pending()
    await gateway.review(request)
    while len(await posted(gateway)) < 2:
        await asyncio.sleep(0.02)
    wanted = {"scope": "server", "target": "bank", "reason": "looks odd"}
    assert (await gateway.api("POST", "/pauses", json=wanted)).status_code == 201
    assert gateway.services is not None
    await gateway.services.directory.refresh()
    assert (await asking).status_code == 400
    assert (len(await posted(gateway)), await gateway.effects()) == (2, [])
    assert (await gateway.request(request["id"]))["execution"] == "not_sent"


async def posted(gateway: Gateway) -> list[dict]:
    """The rounds that Azure was sent."""
    return [item for item in await gateway.upstream_requests() if item["method"] == "POST"]


async def test_a_paused_app_is_refused_what_may_call_a_server(gateway: Gateway):
    body = {"scope": "app", "target": "support-bot", "reason": "looks odd"}
    await gateway.api("POST", "/pauses", json=body)
    assert gateway.services is not None
    await gateway.services.directory.refresh()
    asked = {"model": "gpt-4.1", "input": TRANSFER, "tools": [gateway.tool()]}
    answer = await gateway.raw("POST", "/openai/v1/responses", json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "app_paused")
    assert answer.headers["x-should-retry"] == "false"
    refused = await gateway.records("security.refused")
    assert [entry["code"] for entry in refused] == ["app_paused"]
    plain = await gateway.raw(
        "POST", "/openai/v1/responses", json={"model": "gpt-4.1", "input": "Hello"}
    )
    assert plain.status_code == 200


async def test_calls_of_a_paused_server_are_held_though_a_rule_allows_them(tmp_path: Path):
    allow = "policies: [{name: whole, match: {server: bank}, effect: allow}]\n"
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, declare=allow)
        token = await admin(gateway)
        body = {"scope": "server", "target": "bank", "reason": "maintenance"}
        begun = (await gateway.api("POST", "/pauses", json=body)).json()
        assert gateway.services is not None
        await gateway.services.directory.refresh()
        asking = asyncio.ensure_future(gateway.ask(TRANSFER))
        (request,) = await gateway.pending()
        await gateway.review(request)
        await asyncio.sleep(0.3)
        assert await gateway.effects() == []
        await as_admin(gateway, token, "POST", f"/pauses/{begun['id']}/end")
        assert "returned" in (await asking).output_text
        await gateway.verify()


# --- what was executed otherwise ------------------------------------------------------------


@pytest.mark.parametrize(
    ("quirk", "code"),
    [
        ("twice", "not_released_or_twice"),
        ("other-arguments", "arguments_differ"),
        ("no-approval", "executed_without_approval"),
        ("other-approval", "not_released_or_twice"),
    ],
)
async def test_E_19_another_execution_than_approved_stops_its_app(
    gateway: Gateway, quirk: str, code: str
):
    then = f"{FIRST} then {SECOND} quirk: {quirk} on resume"
    asking = asyncio.ensure_future(gateway.ask(then))
    await gateway.decide()
    while not await alarms(gateway):
        await asyncio.sleep(0.05)
    done = len(await gateway.effects())
    (alarm,) = await alarms(gateway)
    assert (alarm["kind"], alarm["code"], alarm["app"]) == ("mismatch", code, "support-bot")
    (pause,) = await pauses(gateway)
    assert (pause["scope"], pause["target"], pause["begun_by"]) == ("app", "support-bot", "gateway")
    if quirk != "no-approval":  # the model goes on after what it takes for its own
        await gateway.decide()
        assert "nothing further" in (await asking).output_text
    await asking
    assert len(await gateway.effects()) == done
    records = await gateway.records()
    kinds = [entry["type"] for entry in records]
    assert kinds.count("execution.mismatch") == 1
    after = records[kinds.index("pause.begun") :]
    assert not [entry for entry in after if entry.get("approve")]
    closed = await gateway.api("POST", f"/alarms/{alarm['id']}/close", json={"note": "Azure's bug"})
    assert closed.status_code == 200
    assert await alarms(gateway) == []


async def test_E_20_further_requests_of_a_resume_are_held_too_and_counted(tmp_path: Path):
    chain = " then ".join([FIRST, SECOND, FIRST])
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, GATEPASS_MAX_ROUNDS="2")
        body = {"model": "gpt-4.1", "input": chain, "tools": [gateway.tool()]}
        asking = asyncio.ensure_future(gateway.raw("POST", "/openai/v1/responses", json=body))
        await gateway.decide()
        answer = await asking
        assert answer.json()["error"]["code"] == "too_many_rounds"
        assert len(await gateway.effects()) == 1
        await gateway.verify()


# --- outcomes nobody knows ------------------------------------------------------------------


async def unknown(gateway: Gateway, text: str) -> dict:
    """A call that was sent and whose outcome is not known."""
    asking = asyncio.ensure_future(asyncio.gather(streamed(gateway, text), return_exceptions=True))
    await gateway.decide()
    await asking
    listed = await gateway.api("GET", "/approval-requests", params={"execution": "unknown"})
    (request,) = listed.json()["items"]
    return request


async def streamed(gateway: Gateway, text: str) -> None:
    async for _ in await gateway.ask(text, stream=True):
        pass


async def evidence(gateway: Gateway, approval_id: str, finding: str) -> list[dict]:
    """The evidence, once something was found."""
    for _ in range(200):
        found = (await gateway.request(approval_id))["evidence"]
        if any(entry["finding"] == finding for entry in found):
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"not {finding}: {found}")


@pytest.fixture
async def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A gateway that does not wait long for Azure, and looks after it often."""
    looks = tuple(timedelta(seconds=number * 0.7) for number in range(1, 40))
    monkeypatch.setattr(looking, "LOOKS", looks)
    async with AsyncExitStack() as stack:
        opened = await open_gateway(stack, tmp_path, GATEPASS_UPSTREAM_TIMEOUT="3s")
        yield opened
        await opened.verify()


async def test_an_execution_whose_answer_was_lost_is_found_at_azure(impatient: Gateway):
    gateway = impatient
    request = await unknown(gateway, f"{TRANSFER} fail: slow 4s on resume quirk: goes-on on resume")
    found = await evidence(gateway, request["id"], "executed")
    assert found[-1]["arguments_match"] is True
    path = f"/approval-requests/{request['id']}/settlement"
    wrong = await gateway.api("POST", path, json={"outcome": "not_executed", "reason": "no"})
    assert (wrong.status_code, wrong.json()["code"]) == (409, "evidence_contradicts")
    body = {"outcome": "executed", "reason": "The bank shows it."}
    settled = await gateway.api("POST", path, json=body)
    assert settled.status_code == 200, settled.text
    assert settled.json()["execution"] == "executed"
    assert settled.json()["settlement"]["by"] == "rev@example.org"
    again = await gateway.api("POST", path, json=body)
    assert (again.status_code, again.json()["code"]) == (409, "already_settled")
    observed = await gateway.records("execution.observed")
    assert [entry.get("reconciled") for entry in observed] == [None, True]
    assert len(await gateway.effects()) == 1


async def test_a_call_that_azure_never_made_is_absent(impatient: Gateway):
    faults = "fail: slow 4s on resume fail: mid-stream-error on resume quirk: goes-on on resume"
    request = await unknown(impatient, f"{TRANSFER} {faults}")
    await evidence(impatient, request["id"], "absent")
    body = {"outcome": "not_executed", "reason": "Azure ended without it."}
    path = f"/approval-requests/{request['id']}/settlement"
    settled = await impatient.api("POST", path, json=body)
    assert settled.json()["execution"] == "failed"
    assert (await impatient.effects(), await alarms(impatient)) == ([], [])


async def test_E_12_a_late_execution_after_it_was_settled_is_an_alarm(impatient: Gateway):
    gateway = impatient
    request = await unknown(gateway, f"{TRANSFER} fail: slow 9s on resume quirk: goes-on on resume")
    body = {"outcome": "not_executed", "reason": "The bank shows nothing."}
    path = f"/approval-requests/{request['id']}/settlement"
    settled = await gateway.api("POST", path, json=body)
    assert (settled.json()["execution"], await gateway.effects()) == ("failed", [])
    await evidence(gateway, request["id"], "executed")
    (alarm,) = await alarms(gateway)
    assert (alarm["kind"], alarm["approval_id"]) == ("late_execution", request["id"])
    assert [pause["target"] for pause in await pauses(gateway)] == ["support-bot"]
    assert len(await gateway.effects()) == 1


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        opened = await open_gateway(stack, tmp_path)
        yield opened
        await opened.verify()


def test_the_calls_of_these_tests_are_what_they_seem() -> None:
    assert json.loads(FIRST[14:])["amount"] == 5
