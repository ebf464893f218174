"""Grants, withdrawal, standing in and emergencies over the API, and the commands beside it."""

from __future__ import annotations

from datetime import timedelta

import httpx2

from gateway.approvals.review import Approvals
from gateway.services import Services
from tests.support.clock import FakeClock
from tests.support.house import CallWanted, Somebody, held_call, somebody


async def held(approvals: Approvals, clock: FakeClock) -> str:
    return await held_call(approvals, clock, CallWanted())


def terms(clock: FakeClock, **changes: object) -> dict[str, object]:
    until = (clock() + timedelta(hours=1)).isoformat()
    return {"kind": "exact", "scope": "app", "until": until, "max_uses": 3, **changes}


async def approved(
    client: httpx2.AsyncClient, who: Somebody, approval_id: str, **more: object
) -> httpx2.Response:
    path = f"/api/v1/approval-requests/{approval_id}"
    digest = (await client.get(path, headers=who.bearer)).json()["digest"]
    body = {"verdict": "approve", "digest": digest, **more}
    return await client.post(f"{path}/reviews", json=body, headers=who.bearer)


async def test_remembering_reading_and_revoking(
    client: httpx2.AsyncClient, approvals: Approvals, clock: FakeClock, ann: Somebody, adm: Somebody
) -> None:
    answer = await approved(client, ann, await held(approvals, clock), remember=terms(clock))
    assert answer.status_code == 201, answer.text
    [grant] = (await client.get("/api/v1/grants?live=true", headers=ann.bearer)).json()["items"]
    assert (grant["state"], grant["exact"], grant["max_uses"]) == ("live", '{"q": "x"}', 3)
    second = await held(approvals, clock)
    view = (await client.get(f"/api/v1/approval-requests/{second}", headers=ann.bearer)).json()
    assert (view["state"], view["decision"]["by"], view["decision"]["grant"]) == (
        "approved",
        "grant",
        grant["id"],
    )
    revoke = f"/api/v1/grants/{grant['id']}/revoke"
    assert (await client.post(revoke, headers=adm.bearer)).json()["state"] == "ended"
    again = await client.post(revoke, headers=ann.bearer)
    assert (again.status_code, again.json()["code"]) == (409, "grant_over")
    one = await client.get(f"/api/v1/grants/{grant['id']}", headers=adm.bearer)
    assert (one.json()["ended_by"], one.json()["uses"]) == ("adm@example.org", 1)
    assert (await client.get("/api/v1/grants/grt_none", headers=ann.bearer)).status_code == 404
    live = await client.get("/api/v1/grants?live=true", headers=ann.bearer)
    assert live.json() == {"items": [], "next": None}


async def test_remembering_later_and_what_it_would_have_covered(
    client: httpx2.AsyncClient, approvals: Approvals, clock: FakeClock, ann: Somebody, adm: Somebody
) -> None:
    approval_id = await held(approvals, clock)
    body = terms(clock, approval_id=approval_id)
    seen = await client.post("/api/v1/grants/preview", json=body, headers=ann.bearer)
    assert seen.json() == {"covered": 1, "of": 1}
    early = await client.post("/api/v1/grants", json=body, headers=ann.bearer)
    assert (early.status_code, early.json()["code"]) == (409, "not_decided")
    await approved(client, ann, approval_id)
    assert (await client.post("/api/v1/grants", json=body, headers=adm.bearer)).status_code == 403
    made = await client.post("/api/v1/grants", json=body, headers=ann.bearer)
    assert made.status_code == 201, made.text
    for wrong in ({"kind": "all"}, {"scope": "all"}, {"until": "soon"}, {"max_uses": 0}, {"x": 1}):
        answer = await client.post("/api/v1/grants", json={**body, **wrong}, headers=ann.bearer)
        assert answer.status_code == 422
    naive = {**body, "until": "2026-01-05T10:00:00"}
    assert (await client.post("/api/v1/grants", json=naive, headers=ann.bearer)).status_code == 422


async def test_a_review_is_taken_back_only_while_it_is_one(
    client: httpx2.AsyncClient, approvals: Approvals, clock: FakeClock, ann: Somebody
) -> None:
    approval_id = await held(approvals, clock)
    path = f"/api/v1/approval-requests/{approval_id}/reviews/withdraw"
    assert (await client.post(path, headers=ann.bearer)).status_code == 404
    await approved(client, ann, approval_id)
    answer = await client.post(path, headers=ann.bearer)
    assert (answer.status_code, answer.json()["code"]) == (409, "already_decided")


async def test_breaking_the_glass_over_the_api(
    client: httpx2.AsyncClient,
    services: Services,
    approvals: Approvals,
    clock: FakeClock,
    ann: Somebody,
) -> None:
    approval_id = await held(approvals, clock)
    path = f"/api/v1/approval-requests/{approval_id}"
    digest = (await client.get(path, headers=ann.bearer)).json()["digest"]
    body = {"digest": digest, "reason": "The pumps have stopped"}
    refused = await client.post(f"{path}/break-glass", json=body, headers=ann.bearer)
    assert (refused.status_code, refused.json()["code"]) == (403, "missing_permission")
    eve = await somebody(services, clock, "eve@example.org", ["break_glass"])
    assert (
        await client.post(f"{path}/break-glass", json={"digest": digest}, headers=eve.bearer)
    ).status_code == 422
    answer = await client.post(f"{path}/break-glass", json=body, headers=eve.bearer)
    assert answer.status_code == 201, answer.text
    [given] = answer.json()["reviews"]
    assert (answer.json()["state"], given["emergency"]) == ("approved", True)


async def test_B_10_a_token_of_who_may_not_review_decides_nothing(
    client: httpx2.AsyncClient, approvals: Approvals, clock: FakeClock, adm: Somebody
) -> None:
    approval_id = await held(approvals, clock)
    for path, body in (
        ("reviews", {"verdict": "approve", "digest": "sha256:" + "0" * 64}),
        ("reviews/withdraw", None),
        ("break-glass", {"digest": "sha256:" + "0" * 64, "reason": "now"}),
    ):
        answer = await client.post(
            f"/api/v1/approval-requests/{approval_id}/{path}", json=body, headers=adm.bearer
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_permission")


async def test_B_22_a_disabled_reviewer_is_refused_at_once_with_session_and_token(
    client: httpx2.AsyncClient, approvals: Approvals, clock: FakeClock, ann: Somebody, adm: Somebody
) -> None:
    await held(approvals, clock)
    assert (await client.get("/api/v1/grants", headers=ann.browser)).status_code == 200
    await client.patch(f"/api/v1/users/{ann.user.id}", json={"disabled": True}, headers=adm.bearer)
    for way in (ann.bearer, ann.browser):
        assert (await client.get("/api/v1/approval-requests", headers=way)).status_code == 401


async def test_standing_in_over_the_api(
    client: httpx2.AsyncClient, services: Services, clock: FakeClock, ann: Somebody, adm: Somebody
) -> None:
    bo = await somebody(services, clock, "bo@example.org", ["reviewer"])
    body = {"to_email": "bo@example.org", "ends_at": (clock() + timedelta(days=2)).isoformat()}
    made = await client.post("/api/v1/delegations", json=body, headers=ann.bearer)
    assert made.status_code == 201, made.text
    assert (made.json()["from_email"], made.json()["state"]) == ("ann@example.org", "active")
    other = {**body, "from_email": "ann@example.org"}
    assert (
        await client.post("/api/v1/delegations", json=other, headers=bo.bearer)
    ).status_code == 403
    for who, count in ((bo, 1), (adm, 1)):
        listed = await client.get("/api/v1/delegations", headers=who.bearer)
        assert len(listed.json()["items"]) == count
    path = f"/api/v1/delegations/{made.json()['id']}/revoke"
    assert (await client.post(path, headers=bo.bearer)).json()["state"] == "revoked"
    assert (await client.post(path, headers=ann.bearer)).status_code == 409
