"""Approval requests over the API: fields, reviews, conflicts, waiting, exchanges."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.clock import FakeClock
from tests.support.house import CallWanted, Somebody, held_call, somebody

BASE = "/api/v1/approval-requests"
FIELDS = {
    "id", "state", "exchange_id", "app", "end_user", "server", "tool", "arguments", "digest",
    "risk_signals", "rule", "quorum", "created_at", "deadline", "reviews", "decision", "execution",
}  # fmt: skip


@pytest.fixture
async def held(approvals, clock: FakeClock) -> str:
    return await held_call(approvals, clock, CallWanted())


async def _review(client, who: Somebody, held: str, **body: str):
    shown = (await client.get(f"{BASE}/{held}", headers=who.bearer)).json()
    sent = {"verdict": "approve", "digest": shown["digest"], "reason": "checked", **body}
    return await client.post(f"{BASE}/{held}/reviews", headers=who.bearer, json=sent)


async def test_a_request_carries_its_fields(client, ann: Somebody, held: str) -> None:
    one = (await client.get(f"{BASE}/{held}", headers=ann.bearer)).json()
    assert set(one) >= FIELDS
    assert one["id"] == held
    assert one["state"] == "pending"
    assert one["arguments"] == '{"q": "x"}'
    assert one["server"] == {"label": "wiki", "url": "https://mcp.example/mcp"}
    assert one["quorum"] == {"needed": 1, "given": 0}
    assert one["decision"] is None
    assert one["execution"] == "not_sent"
    assert one["created_at"].endswith("Z")


async def test_lists_filter_and_page(client, ann: Somebody, approvals, clock: FakeClock) -> None:
    ids = []
    for number in range(3):
        clock.advance(60)
        ids.append(await held_call(approvals, clock, CallWanted(tool=f"t{number}")))
    first = (await client.get(f"{BASE}?state=pending&limit=2", headers=ann.bearer)).json()
    assert [item["id"] for item in first["items"]] == ids[:2]  # soonest deadline first
    rest = await client.get(
        f"{BASE}?state=pending&limit=2&after={first['next']}", headers=ann.bearer
    )
    assert [item["id"] for item in rest.json()["items"]] == ids[2:]
    assert rest.json()["next"] is None
    for query, count in (
        ("tool=t1", 1),
        ("server=wiki", 3),
        ("server=crm", 0),
        ("app=check", 3),
        ("app=other", 0),
        ("state=approved", 0),
    ):
        answer = (await client.get(f"{BASE}?{query}", headers=ann.bearer)).json()
        assert len(answer["items"]) == count, query


@pytest.mark.parametrize("query", ["state=open", "limit=0", "limit=201", "colour=red", "limit=x"])
async def test_an_unknown_filter_is_refused(client, ann: Somebody, query: str) -> None:
    assert (await client.get(f"{BASE}?{query}", headers=ann.bearer)).status_code == 422


async def test_a_review_decides(client, ann: Somebody, held: str) -> None:
    answer = await _review(client, ann, held, note="internal")
    assert answer.status_code == 201
    decided = answer.json()
    assert decided["state"] == "approved"
    assert decided["quorum"] == {"needed": 1, "given": 1}
    assert decided["decision"]["by"] == "reviewers"
    [review] = decided["reviews"]
    assert (review["reviewer"], review["verdict"]) == ("ann@example.org", "approve")
    assert (review["channel"], review["note"]) == ("api", "internal")


async def test_the_same_review_again_is_taken_as_the_same(client, ann, held: str) -> None:
    first = await _review(client, ann, held)
    again = await _review(client, ann, held)
    assert again.status_code in {200, 201}
    assert again.json() == first.json()


async def test_an_opposite_review_says_who_and_when(
    client, ann: Somebody, held: str, services, clock: FakeClock
) -> None:
    bo = await somebody(services, clock, "bo@example.org", ["reviewer"])
    await _review(client, ann, held)
    for person in (ann, bo):
        late = await _review(client, person, held, verdict="deny")
        assert late.status_code == 409
        assert late.headers["content-type"] == "application/problem+json"
        assert "ann@example.org" in late.json()["detail"]
        assert "2026-01-05 09:00:00 UTC" in late.json()["detail"]


async def test_a_stale_digest_decides_nothing(client, ann: Somebody, held: str) -> None:
    late = await _review(client, ann, held, digest="sha256:" + "0" * 64)
    assert (late.status_code, late.json()["code"]) == (409, "digest_stale")
    assert (await client.get(f"{BASE}/{held}", headers=ann.bearer)).json()["state"] == "pending"


async def test_a_denial_needs_a_reason(client, ann: Somebody, held: str) -> None:
    shown = (await client.get(f"{BASE}/{held}", headers=ann.bearer)).json()
    body = {"verdict": "deny", "digest": shown["digest"]}
    answer = await client.post(f"{BASE}/{held}/reviews", headers=ann.bearer, json=body)
    assert (answer.status_code, answer.json()["param"]) == (400, "reason")


@pytest.mark.parametrize(
    "extra",
    [
        {"state": "approved"},
        {"decided_by": "reviewers"},
        {"reviewer": "boss@example.org"},
        {"user_id": "usr_boss"},
        {"roles": ["reviewer"]},
        {"quorum": 0},
        {"channel": "web"},
        {"id": "apr_other"},
    ],
)
async def test_nothing_more_can_be_assigned(client, ann: Somebody, held: str, extra) -> None:
    answer = await _review(client, ann, held, **extra)
    assert answer.status_code == 422
    assert (await client.get(f"{BASE}/{held}", headers=ann.bearer)).json()["state"] == "pending"


@pytest.mark.parametrize("roles", [["viewer"], ["auditor"], ["admin"], []])
async def test_only_reviewers_review(
    client, ann: Somebody, held: str, services, clock, roles
) -> None:
    shown = (await client.get(f"{BASE}/{held}", headers=ann.bearer)).json()
    other = await somebody(services, clock, "other@example.org", roles)
    body = {"verdict": "approve", "digest": shown["digest"], "reason": "x"}
    answer = await client.post(f"{BASE}/{held}/reviews", headers=other.bearer, json=body)
    assert answer.status_code == 403
    assert (await client.get(f"{BASE}/{held}", headers=ann.bearer)).json()["state"] == "pending"


async def test_fifty_at_once_make_one_decision(client, ann: Somebody, held: str, services) -> None:
    answers = await asyncio.gather(*(_review(client, ann, held) for _ in range(50)))
    assert {answer.status_code for answer in answers} <= {200, 201, 409}
    shown = (await client.get(f"{BASE}/{held}", headers=ann.bearer)).json()
    assert len(shown["reviews"]) == 1


async def test_an_unknown_request_is_not_found(client, ann: Somebody) -> None:
    for path in (f"{BASE}/apr_none", f"{BASE}/apr_none/wait?timeout=0"):
        answer = await client.get(path, headers=ann.bearer)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_waiting_ends_with_the_decision_or_the_time(client, ann, held: str) -> None:
    still = await client.get(f"{BASE}/{held}/wait?timeout=0.05", headers=ann.bearer)
    assert still.json()["state"] == "pending"
    waiting = asyncio.ensure_future(
        client.get(f"{BASE}/{held}/wait?timeout=20", headers=ann.bearer)
    )
    await asyncio.sleep(0.1)
    await _review(client, ann, held)
    async with asyncio.timeout(5):
        assert (await waiting).json()["state"] == "approved"
    for seconds in ("-1", "61", "x"):
        answer = await client.get(f"{BASE}/{held}/wait?timeout={seconds}", headers=ann.bearer)
        assert answer.status_code == 422


async def test_exchanges_are_listed_and_read(client, ann: Somebody, held: str) -> None:
    listed = (await client.get("/api/v1/exchanges", headers=ann.bearer)).json()
    [exchange] = listed["items"]
    one = (await client.get(f"/api/v1/exchanges/{exchange['id']}", headers=ann.bearer)).json()
    assert [call["id"] for call in one["approval_requests"]] == [held]
    assert (await client.get("/api/v1/exchanges/exc_x", headers=ann.bearer)).status_code == 404
