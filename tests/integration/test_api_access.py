"""The door of /api: who gets in, by what credential, and what every error looks like."""

from __future__ import annotations

import re

import httpx2
import pytest

from gateway import api
from gateway.api.access import May
from gateway.api.guard import MAX_BODY_BYTES
from gateway.audit import reading
from gateway.errors import Unavailable
from gateway.identity import login, people
from gateway.identity.roles import ROLES, Permission, allowed
from gateway.registry import apps
from gateway.registry.settings import AppSettings
from tests.support.clock import FakeClock
from tests.support.house import HOST, Somebody, somebody

PROBLEM = {"type", "title", "status", "detail", "code"}


def _routes() -> list[tuple[str, str, Permission]]:
    found = []
    for router in api.routers():
        for route in router.routes:
            checks = [d.call for d in route.dependant.dependencies if isinstance(d.call, May)]
            assert len(checks) == 1, f"{route.path} must name exactly one permission"
            path = "/api/v1" + re.sub(r"\{[^}]+\}", "x", route.path)
            found += [(method, path, checks[0].permission) for method in sorted(route.methods)]
    return found


ROUTES = _routes()
IDS = [f"{method} {path}" for method, path, _ in ROUTES]


def _is_problem(response: httpx2.Response, status: int, code: str | None = None) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) >= PROBLEM
    assert body["status"] == status
    assert code is None or body["code"] == code
    return body


# --- without credentials (B-07) -------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "_permission"), ROUTES, ids=IDS)
async def test_every_route_needs_a_credential(client, method, path, _permission) -> None:
    for content in (None, b"{", b"{}"):
        headers = {"content-type": "application/json"} if content else {}
        response = await client.request(method, path, content=content, headers=headers)
        _is_problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/api/v1/openapi.json", "/api/v1/none", "/api/", "/api/v2/x"])
async def test_paths_beside_the_routes_need_one_too(client, path) -> None:
    _is_problem(await client.get(path), 401, "unauthenticated")


BAD = [
    "",
    "Bearer",
    "Bearer ",
    "Bearer x",
    "Basic Z3A6cGF0",
    "Bearer gp_pat_aaaaaaaa_" + "x" * 43,
    "Bearer ' OR '1'='1",
    'Bearer "; DROP TABLE users; --',
    "gp_pat_aaaaaaaa_" + "x" * 43,
    "Bearer " + "x" * 5000,
]


@pytest.mark.parametrize("header", BAD)
async def test_a_wrong_credential_is_nobody(client, header) -> None:
    response = await client.get("/api/v1/me", headers={"authorization": header})
    _is_problem(response, 401, "unauthenticated")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer gp_app_abcdefgh_" + "x" * 43},
        {"api-key": "gp_app_abcdefgh_" + "x" * 43},
        {"x-api-key": "gp_app_abcdefgh_" + "x" * 43},
    ],
)
async def test_an_app_key_opens_nothing(client, headers) -> None:
    for method, path, _permission in ROUTES:
        _is_problem(await client.request(method, path, headers=headers), 401, "app_key")


async def test_a_token_elsewhere_than_in_its_header_is_nothing(client, ann: Somebody) -> None:
    _is_problem(await client.get(f"/api/v1/me?access_token={ann.token}"), 401)
    _is_problem(await client.get("/api/v1/me", headers={"x-token": ann.token}), 401)
    _is_problem(await client.get("/api/v1/me", headers={"cookie": f"gatepass={ann.token}"}), 401)
    _is_problem(
        await client.get("/api/v1/me", headers={"authorization": f"Bearer {ann.cookie}"}), 401
    )


async def test_two_credentials_are_one_too_many(client, ann: Somebody) -> None:
    for more in (ann.browser, {"api-key": "x"}, {"x-api-key": ann.token}):
        response = await client.get("/api/v1/me", headers={**ann.bearer, **more})
        _is_problem(response, 400, "several_credentials")
    twice = [("authorization", f"Bearer {ann.token}"), ("authorization", "Bearer x")]
    _is_problem(await client.get("/api/v1/me", headers=twice), 400, "several_credentials")


async def test_a_failure_while_signing_in_is_no_identity(
    client, ann: Somebody, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError(f"could not compare {ann.token}")

    monkeypatch.setattr(login, "token", broken)
    body = _is_problem(await client.get("/api/v1/me", headers=ann.bearer), 500)
    assert ann.token not in str(body)


# --- roles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(ROLES))
async def test_each_role_reaches_what_its_table_says(
    client, services, clock: FakeClock, role: str
) -> None:
    person = await somebody(services, clock, f"{role}@example.org", [role])
    for method, path, permission in ROUTES:
        if allowed([role], permission) or "export" in path:
            continue
        response = await client.request(method, path, headers=person.bearer, json={})
        body = response.json()
        assert response.status_code in {403, 422}, f"{role} {method} {path}: {response.text}"
        if response.status_code == 403:
            assert (body["code"], body["param"]) == ("missing_permission", permission.value)


async def test_somebody_without_a_role_reaches_nothing(client, services, clock) -> None:
    person = await somebody(services, clock, "none@example.org", [])
    for method, path, _permission in ROUTES:
        response = await client.request(method, path, headers=person.bearer)
        assert response.status_code in {403, 422}, f"{method} {path}: {response.text}"


async def test_losing_a_role_or_the_account_counts_at_once(client, services, clock) -> None:
    person = await somebody(services, clock, "bo@example.org", ["auditor"])
    ledger, who = services.ledger, person.user.id
    assert (await client.get("/api/v1/users", headers=person.bearer)).status_code == 200
    await people.set_roles(ledger, who, ["viewer"], actor=HOST, now=clock())
    _is_problem(await client.get("/api/v1/users", headers=person.bearer), 403)
    await people.disable(ledger, who, actor=HOST, now=clock())
    _is_problem(await client.get("/api/v1/me", headers=person.bearer), 401)
    _is_problem(await client.get("/api/v1/me", headers=person.browser), 401)


# --- cookies and other sites (H-07) ---------------------------------------------------------


async def test_a_web_session_works_from_our_own_pages(client, ann: Somebody) -> None:
    assert (await client.get("/api/v1/me", headers=ann.browser)).json()["auth"] == "session"
    made = await client.post("/api/v1/tokens", headers=ann.browser, json={})
    assert made.status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8080"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8081"},
        {"origin": "http://127.0.0.1"},
        {"origin": "https://127.0.0.1:8080"},
        {"origin": "http://127.0.0.1:8080.evil.example"},
    ],
)
async def test_another_site_cannot_act_with_our_cookie(client, ann: Somebody, headers) -> None:
    cookie = {"cookie": ann.browser["cookie"]}
    for method, path, _permission in ROUTES:
        if method == "GET":
            continue
        response = await client.request(method, path, headers={**cookie, **headers}, json={})
        _is_problem(response, 403, "cross_site")


async def test_an_old_browser_shows_its_origin(client, ann: Somebody) -> None:
    headers = {"cookie": ann.browser["cookie"], "origin": "http://127.0.0.1:8080"}
    made = await client.post("/api/v1/tokens", headers=headers, json={})
    assert made.status_code == 201


async def test_only_json_is_read(client, ann: Somebody) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {**ann.browser, "content-type": kind}
        response = await client.post("/api/v1/tokens", headers=headers, content=b"{}")
        _is_problem(response, 422, "invalid_request")


# --- what is refused is recorded (G14) -------------------------------------------------------


async def _refusals(services) -> list[dict]:
    found = await reading.search(services.db, reading.Query(kind="security.refused", limit=200))
    return [entry.document for entry in reversed(found.items)]


async def test_refused_attempts_of_known_callers_are_recorded(
    client, services, ann: Somebody, clock: FakeClock
) -> None:
    settings = AppSettings("bot")
    app, key = await apps.create(services.ledger, settings, actor=HOST, now=clock())
    await services.directory.refresh()
    cross = {"cookie": ann.browser["cookie"], "sec-fetch-site": "cross-site"}
    for _ in range(3):
        await client.get("/api/v1/users", headers=ann.bearer)
        await client.get("/api/v1/me", headers={"authorization": f"Bearer {key.text}"})
        await client.get("/api/v1/me", headers={"api-key": key.text})
        await client.post("/api/v1/tokens", headers=cross, json={})
    found = [(r["code"], r["actor"]["ref"]) for r in await _refusals(services)]
    assert found == [
        ("missing_permission", ann.user.id),
        ("app_key", app.id),
        ("cross_site", ann.user.id),
    ]
    clock.advance(60)
    await client.get("/api/v1/users", headers=ann.bearer)
    assert len(await _refusals(services)) == 4


async def test_strangers_cannot_fill_the_ledger(client, services, ann: Somebody) -> None:
    before = await reading.search(services.db, reading.Query(limit=200))
    for number in range(20):
        await client.get("/api/v1/me", headers={"authorization": f"Bearer gp_app_x{number}"})
        await client.post("/api/v1/tokens", headers={"cookie": f"gatepass={number}"})
        await client.get("/api/v1/none")
    after = await reading.search(services.db, reading.Query(limit=200))
    assert len(after.items) == len(before.items)


async def test_a_refusal_stands_when_it_cannot_be_recorded(
    client, services, ann: Somebody, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise Unavailable("The disk is full.")

    monkeypatch.setattr(services.ledger, "append_all", broken)
    _is_problem(await client.get("/api/v1/users", headers=ann.bearer), 403, "missing_permission")


# --- problems -------------------------------------------------------------------------------


async def test_unknown_addresses_and_methods_are_problems(client, ann: Somebody) -> None:
    for path in ("/api/v1/none", "/api/v1/webhook-endpoints", "/api/x"):
        _is_problem(await client.get(path, headers=ann.bearer), 404, "not_found")
    response = await client.put("/api/v1/me", headers=ann.bearer)
    _is_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET"


async def test_a_validation_problem_names_members_and_repeats_no_value(
    client, ann: Somebody
) -> None:
    sent = {"verdict": "maybe-canary", "digest": "canary", "state": "approved-canary"}
    path = "/api/v1/approval-requests/apr_x/reviews"
    response = await client.post(path, headers=ann.bearer, json=sent)
    body = _is_problem(response, 422, "invalid_request")
    assert {fault["where"] for fault in body["errors"]} == {
        "body.verdict",
        "body.digest",
        "body.state",
    }
    assert "canary" not in response.text


async def test_what_is_not_json_is_a_problem(client, ann: Somebody) -> None:
    headers = {**ann.bearer, "content-type": "application/json"}
    for content in (b"{", b"\xff", b"[" * 2000, b'{"a":' * 2000, b""):
        response = await client.post("/api/v1/tokens", headers=headers, content=content)
        body = _is_problem(response, response.status_code, "invalid_request")
        assert body["status"] in {400, 422}


async def test_a_body_has_a_limit(client, ann: Somebody) -> None:
    headers = {**ann.bearer, "content-type": "application/json"}
    content = b'{"x": "' + b"x" * MAX_BODY_BYTES + b'"}'
    response = await client.post("/api/v1/tokens", headers=headers, content=content)
    _is_problem(response, 413, "too_large")


async def test_answers_are_not_kept_and_not_framed(client, ann: Somebody) -> None:
    for headers in ({}, ann.bearer):
        response = await client.get("/api/v1/me", headers=headers)
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]


async def test_openapi_describes_every_route_to_anybody_signed_in(client, ann: Somebody) -> None:
    document = (await client.get("/api/v1/openapi.json", headers=ann.bearer)).json()
    described = {
        (method.upper(), "/api" + re.sub(r"\{[^}]+\}", "x", path))
        for path, item in document["paths"].items()
        for method in item
    }
    assert described == {(method, path) for method, path, _permission in ROUTES}
    assert document["servers"] == [{"url": "/api"}]


async def test_an_inner_failure_is_a_problem_without_details(
    client, ann: Somebody, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(people, "tokens_of", broken)
    response = await client.get("/api/v1/tokens", headers=ann.bearer)
    _is_problem(response, 500, "internal_server_error")
    assert "canary" not in response.text
