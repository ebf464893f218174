"""Rows of the conformance list that no other test asserts: what is kept, security, clients.

One test each, its number in its name; see test_conformance.py.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from sqlmodel import select

from gateway.approvals import decisions, exchanges, holding, release
from gateway.approvals.exchanges import Opening
from gateway.approvals.holding import Rules
from gateway.approvals.kept import Kept
from gateway.audit.live import verify_live
from gateway.errors import Conflict
from gateway.exchange.messages import Call, ServerFacts
from gateway.policy.rules import parse
from gateway.store.database import open_database
from gateway.store.tables import ApprovalRequest, metadata
from tests.support.attempts import RESPONSES, House, error_of, open_house
from tests.support.clock import FakeClock
from tests.support.demo import KEY, TOKEN
from tests.support.gateway import MODEL
from tests.support.rows import Row, row_of
from tests.support.stage import BANK, Stage, Wish, stage

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        house = await open_house(stack, tmp_path_factory.mktemp("house"))
        yield house
        await house.gateway.verify()


@pytest_asyncio.fixture(loop_scope="module")
async def row(shared: House) -> Row:
    """The shared gateway, with a mark of the test's own."""
    return await row_of(shared)


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
    try:
        async with database.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with stage(database, FakeClock()) as played:
            await _race(played, races)
    finally:
        await database.close()


AHEAD = (None, "cancel", None, "approve")


async def _race(played: Stage, races: int) -> None:
    """Half of the pairs start at one instant; of the others one is well ahead, each way."""
    template = await played.ask(Wish(definition=None))
    won: Counter[str] = Counter()
    for _ in range(races // 20):
        held = await asyncio.gather(*(_held(played, template) for _ in range(20)))
        won.update(
            await asyncio.gather(
                *(
                    _raced(played, *pair, ahead=AHEAD[number % len(AHEAD)])
                    for number, pair in enumerate(held)
                )
            )
        )
    assert won.total() == races
    assert won["approved"] >= races // 4, won
    assert won["cancelled"] >= races // 4, won
    async with played.db.reading() as session:
        rows = (await session.exec(select(ApprovalRequest.state, ApprovalRequest.execution))).all()
    assert Counter(rows) == {
        ("approved", "sending"): won["approved"],
        ("cancelled", "not_sent"): won["cancelled"],
        ("pending", "not_sent"): 1,
    }
    await played.ledger.settle()
    report = await verify_live(played.db, played.ledger.signer.verifier)
    assert report.valid, list(map(str, report.findings))


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


async def _raced(played: Stage, kept: Kept, name: str, *, ahead: str | None) -> str:
    """Approve and cancel, at once or one after the other, then try to send: who won."""
    now = played.clock()
    contestants = {
        "cancel": decisions.cancel(played.approvals, kept.id, now=now),
        "approve": played.decide(name, "approve"),
    }
    results: list[object] = []
    if ahead is not None:
        results += await asyncio.gather(contestants.pop(ahead))
    results += await asyncio.gather(*contestants.values(), return_exceptions=True)
    failed = [result for result in results if isinstance(result, Exception)]
    assert all(isinstance(problem, Conflict) for problem in failed), failed
    try:
        sending = played.sending(name)
        claim = await release.begin_sending(
            played.approvals, kept, sending, played.directory, now=now
        )
    except Conflict:
        assert len(failed) == 1, "an approval that was taken is sent"
        return "cancelled"
    assert isinstance(claim, release.Claimed)
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
