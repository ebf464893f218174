"""The pages' edges: who comes in, from where, what every answer carries, how errors look."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

import web
from gateway.app import create_app
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.store.database import Database
from gateway.store.tables import metadata
from tests.support.clock import FakeClock
from tests.support.stage import URL, Stage, stage
from web.live import events
from web.security import CONTENT_SECURITY_POLICY


@pytest.fixture
async def played(sqlite: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(sqlite, clock) as played:
        yield played


# --- signing in -----------------------------------------------------------------------------


async def test_opening_a_link_does_not_use_it_up(played: Stage) -> None:
    code = await played.person("ann@example.org", "reviewer")
    client = played.client()
    for _ in range(3):
        for path in ("/sign-in/link", "/sign-in"):
            answer = await client.get(path, params={"code": code})
            assert answer.status_code == 200
            assert "set-cookie" not in answer.headers
    answer = await client.post("/sign-in/link", data={"code": code, "next": "/requests"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/requests")
    cookie = answer.headers["set-cookie"]
    for attribute in ("HttpOnly", "SameSite=lax", "Path=/"):
        assert attribute in cookie
    assert (await client.get("/inbox")).status_code == 200
    again = await played.client().post("/sign-in/link", data={"code": code})
    assert again.status_code == 401
    assert "link_invalid" in again.text


async def test_signing_in_gives_a_fresh_session_and_ends_the_old_one(played: Stage) -> None:
    planted = await played.signed_in("eve@example.org", "viewer")
    code = await played.person("ann@example.org", "reviewer")
    before = dict(planted.cookies)
    await planted.post("/sign-in/link", data={"code": code})
    assert dict(planted.cookies) != before
    old = played.client()
    old.cookies.update(before)
    assert (await old.get("/inbox")).status_code == 303


async def test_signing_out_ends_the_session_on_the_server(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    kept = dict(ann.cookies)
    assert (await ann.post("/sign-out")).headers["location"] == "/sign-in"
    thief = played.client()
    thief.cookies.update(kept)
    assert (await thief.get("/inbox")).headers["location"] == "/sign-in?next=%2Finbox"


async def test_nothing_is_seen_without_signing_in(played: Stage) -> None:
    approval = await played.ask()
    stranger = played.client()
    paths = ("/", "/inbox", "/requests", f"/requests/{approval}", "/audit", "/audit/0", "/live")
    for path in (*paths, f"/requests/{approval}/approve"):
        answer = await stranger.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/sign-in")
    answer = await stranger.post(f"/requests/{approval}/reviews", data={"verdict": "approve"})
    assert answer.status_code == 303
    assert (await played.read(approval)).state == "pending"


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example", "/\\evil", "x", "/a\n"]
)
async def test_signing_in_leads_to_our_own_pages_only(played: Stage, where: str) -> None:
    code = await played.person("ann@example.org", "reviewer")
    answer = await played.client().post("/sign-in/link", data={"code": code, "next": where})
    assert answer.headers["location"] == "/"


async def test_over_https_the_cookie_is_bound_to_host_and_tls(
    sqlite: Database, clock: FakeClock
) -> None:
    async with stage(sqlite, clock, "https://gate.example") as played:
        code = await played.person("ann@example.org", "reviewer")
        answer = await played.client().post("/sign-in/link", data={"code": code})
        assert answer.headers["set-cookie"].startswith("__Host-")
        assert "Secure" in answer.headers["set-cookie"]
        assert "max-age=" in answer.headers["strict-transport-security"]


# --- where requests come from ---------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:8080"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {},
    ],
)
async def test_no_other_site_can_decide(played: Stage, headers: dict[str, str]) -> None:
    approval = await played.ask()
    digest = (await played.read(approval)).digest
    ann = await played.signed_in("ann@example.org", "reviewer")
    for name in ("Origin", "Sec-Fetch-Site"):
        del ann.headers[name]
    form = {"verdict": "approve", "digest": digest}
    for path in (f"/requests/{approval}/reviews", "/sign-out", "/preferences", "/sign-in/link"):
        answer = await ann.post(path, data=form, headers=headers)
        assert answer.status_code == 403, path
        assert "cross_origin" in answer.text
    assert (await played.read(approval)).state == "pending"
    assert (await ann.get("/inbox")).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 303),
        ("localhost:8080", 303),
        ("[::1]:8080", 303),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8080", 421),
        ("127.0.0.1:8080@evil.example", 400),
        ("evil.example/127.0.0.1", 400),
        ("a b", 400),
        ("", 400),
    ],
)
async def test_only_known_hosts_are_answered(played: Stage, host: str, status: int) -> None:
    answer = await played.client().get("/inbox", headers={"Host": host})
    assert answer.status_code == status


async def test_probes_and_apps_need_no_known_host() -> None:
    app = FastAPI(openapi_url=None)
    app.add_middleware(web.security.Guard, site=web.security.site(URL, "0.0.0.0:8080"))
    app.add_api_route("/healthz", lambda: "ok")
    app.add_api_route("/v1/models", lambda: "ok", methods=["POST"])
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://10.0.0.7")
    assert (await client.get("/healthz")).status_code == 200
    answer = await client.post("/v1/models", headers={"Origin": "https://other.example"})
    assert answer.status_code == 200
    assert "content-security-policy" not in answer.headers


# --- what every answer carries --------------------------------------------------------------


async def test_every_answer_carries_the_safety_headers(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    page = await ann.get("/inbox")
    style = await ann.get(re.findall(r'href="(/static/app[^"]+css)"', page.text)[0])
    for answer in (page, style, await ann.get("/nowhere"), await ann.get("/sign-in")):
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["x-request-id"].startswith("req_")
        assert "strict-transport-security" not in answer.headers
    assert page.headers["cache-control"] == "no-store"
    assert style.headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_pages_need_nothing_inline(played: Stage) -> None:
    approval = await played.ask()
    ann = await played.signed_in("ann@example.org", "reviewer", "auditor")
    for path in ("/", "/inbox", f"/requests/{approval}", "/audit/0", "/preferences"):
        text = (await ann.get(path)).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?! src=)", text)


async def test_the_first_page_is_small(played: Stage) -> None:
    await played.ask()
    ann = await played.signed_in("ann@example.org", "reviewer")
    page = await ann.get("/inbox")
    files = [await ann.get(url) for url in set(re.findall(r'"(/static/[^"]+)"', page.text))]
    assert len(files) == 3
    assert len(page.content) + sum(len(file.content) for file in files) < 100_000


async def test_unknown_files_are_not_served(played: Stage) -> None:
    for name in ("app.css", "..%2frendering.py", "app.000000000000.css"):
        assert (await played.client().get(f"/static/{name}")).status_code == 404


# --- errors ---------------------------------------------------------------------------------


async def test_errors_are_pages_with_code_and_request_id(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    for path, status, code in (
        ("/nowhere", 404, "not_found"),
        ("/requests/apr_nothing", 404, "not_found"),
        ("/inbox?after=apr_nothing", 400, "invalid_request"),
        ("/requests/apr_nothing/explode", 400, "invalid_request"),
    ):
        answer = await ann.get(path)
        assert answer.status_code == status, path
        assert answer.headers["content-type"].startswith("text/html")
        assert code in answer.text
        assert answer.headers["x-request-id"] in answer.text
    assert (await ann.delete("/inbox")).status_code == 405


async def test_an_unexpected_failure_shows_no_inside(played: Stage, monkeypatch, capsys) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret-payload")

    monkeypatch.setattr("gateway.approvals.reading.listing", broken)
    transport = httpx2.ASGITransport(played.app, raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url=URL, cookies=ann.cookies) as strict:
        answer = await strict.get("/inbox")
    assert answer.status_code == 500
    assert "internal_error" in answer.text
    assert "secret-payload" not in answer.text
    assert answer.headers["x-request-id"] in answer.text
    printed = capsys.readouterr()
    assert "secret-payload" not in printed.out + printed.err
    assert "RuntimeError" in printed.out + printed.err


async def test_a_part_that_cannot_answer_is_said_plainly(played: Stage, monkeypatch) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")

    async def unavailable(*_: object, **__: object) -> None:
        raise Unavailable("The database does not answer.")

    monkeypatch.setattr("gateway.approvals.reading.listing", unavailable)
    answer = await ann.get("/inbox")
    assert answer.status_code == 503
    assert "Nothing is released meanwhile." in answer.text


# --- readers --------------------------------------------------------------------------------


async def test_language_and_zone_and_theme_are_the_readers(played: Stage) -> None:
    await played.ask()
    ann = await played.signed_in("ann@example.org", "reviewer")
    russian = await ann.get("/inbox", headers={"Accept-Language": "de, ru;q=0.8, en;q=0.5"})
    assert '<html lang="ru"' in russian.text
    assert "1 признак риска" in russian.text
    assert "13:00 UTC+03:00" not in russian.text
    said = {"language": "ru", "zone": "Europe/Moscow", "theme": "dark", "keys": "off"}
    await ann.post("/preferences", data=said)
    text = (await ann.get("/inbox", headers={"Accept-Language": "en"})).text
    assert '<html lang="ru" data-theme="dark" data-keys="off">' in text
    assert "13:00 UTC+03:00" in text
    await ann.post("/preferences", data={"theme": "<script>", "zone": "../../etc/passwd"})
    text = (await ann.get("/inbox")).text
    assert '<html lang="ru" data-keys="off" data-zone="">' in text


class Browser:
    """As much of a request as the stream asks for."""

    def __init__(self, extensions: dict | None = None) -> None:
        self.scope = {"extensions": extensions or {}}

    async def is_disconnected(self) -> bool:
        return False


async def test_the_stream_says_that_something_changed_and_not_what(played: Stage) -> None:
    told = events(Browser(), played.wakeups)
    assert "retry" in await anext(told)
    asking = asyncio.ensure_future(played.ask())
    said = await asyncio.wait_for(anext(told), 5)
    approval = await asking
    assert said.startswith("event: requests\ndata: ")
    assert approval not in said
    await told.aclose()


async def test_the_stream_does_not_keep_a_stopping_server(played: Stage) -> None:
    stopping = False
    told = events(Browser({"gatepass.stopping": lambda: stopping}), played.wakeups)
    assert "retry" in await anext(told)
    stopping = True
    assert [said async for said in told] == []


async def test_the_composed_application_serves_pages_beside_the_api(tmp_path: Path) -> None:
    database_url = f"sqlite+aiosqlite:///{tmp_path / 'whole.sqlite3'}"
    app = create_app(Settings(data_dir=tmp_path, database_url=database_url))
    db = app.state.services.db
    async with db.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url=URL) as client:
        page = await client.get("/sign-in")
        assert "Sign in" in page.text
        assert page.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert (await client.get("/inbox")).headers["location"].startswith("/sign-in")
        missing = await client.get("/api/v1/approval-requests")
        assert missing.status_code == 401
        assert missing.headers["content-type"].startswith("application/problem+json")
        assert (await client.get("/healthz", headers={"Host": "10.0.0.7"})).status_code == 200
        refused = await client.get("/api/v1/approval-requests", headers={"Host": "evil.example"})
        assert refused.status_code == 421
    await db.close()
