"""Signing in through an identity provider: who comes in, who does not, and what stands of it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import httpx2
import orjson
import pytest
from joserfc.jwk import RSAKey
from sqlmodel import select

from gateway.audit.records import SYSTEM
from gateway.errors import Conflict
from gateway.identity import login, people
from gateway.identity.claims import SignInRefused
from gateway.openid import flow
from gateway.store.database import Database
from gateway.store.tables import AuditRecord, User, WebSession
from gateway.telemetry import utc_now
from tests.support.issuer import with_public_key_as_secret
from tests.support.provider import ANN, Idp
from tests.support.stage import Stage, Wish, stage


@pytest.fixture
async def idp() -> AsyncIterator[Idp]:
    async with AsyncExitStack() as stack:
        idp = Idp()
        await idp.open(stack)
        yield idp


@pytest.fixture
async def played(sqlite: Database, idp: Idp) -> AsyncIterator[Stage]:
    async with stage(sqlite, utc_now) as played:
        idp.join(played)
        yield played


@pytest.fixture
async def both(db: Database, idp: Idp) -> AsyncIterator[Stage]:
    """The same on each kind of database."""
    async with stage(db, utc_now) as played:
        idp.join(played)
        yield played


async def records(db: Database, kind: str) -> list[dict[str, Any]]:
    async with db.reading() as session:
        rows = await session.exec(select(AuditRecord).order_by(AuditRecord.position))
        return [body for row in rows if (body := orjson.loads(row.body))["type"] == kind]


async def users(db: Database) -> list[User]:
    async with db.reading() as session:
        return list(await session.exec(select(User).order_by(User.id)))


async def ended(db: Database) -> list[bool]:
    async with db.reading() as session:
        rows = await session.exec(select(WebSession))
        return sorted(row.ended_at is not None for row in rows)


async def refused(played: Stage, idp: Idp, code: str, status: int = 403, **answer: Any) -> None:
    """One more attempt, which is refused with this code: on the page, and in the ledger."""
    browser = played.client()
    before = len(await records(played.db, "sign_in.refused"))
    response = await idp.walk(browser, **answer)
    assert (response.status_code, code in response.text) == (status, True), response.text
    assert "gatepass" not in browser.cookies
    told = await records(played.db, "sign_in.refused")
    assert [record["code"] for record in told[before:]] == [code]
    assert "ann" not in json.dumps(told)


# --- in -------------------------------------------------------------------------------------


async def test_somebody_new_is_made_with_the_roles_that_the_provider_gives(
    both: Stage, idp: Idp
) -> None:
    browser = both.client()
    idp.claims["groups"] = ["g-desk", "g-other"]
    answer = await idp.walk(browser, "?next=/requests")
    assert (answer.status_code, answer.headers["location"]) == (303, "/requests")
    [user] = await users(both.db)
    assert (user.issuer, user.subject, user.email) == (idp.url, "ann-1", "ann@example.org")
    assert (user.roles, user.groups) == (["reviewer"], ["desk"])
    page = await browser.get("/account")
    assert "single sign-on" in page.text
    assert "desk" in page.text
    [made] = await records(both.db, "user.created")
    assert (made["source"], made["actor"]["auth"]) == ("provider", "oidc")
    [entered] = await records(both.db, "user.signed_in")
    assert (entered["method"], entered["actor"]["auth"]) == ("oidc", "oidc")
    # The second time nothing changes, and the person is the same.
    await idp.walk(both.client())
    assert len(await users(both.db)) == 1
    assert await records(both.db, "user.changed") == []


async def test_the_request_is_the_code_flow_with_its_three_bindings(
    played: Stage, idp: Idp
) -> None:
    await idp.walk(played.client())
    asked, redeemed = idp.asked
    assert asked["response_type"] == "code"
    assert asked["redirect_uri"] == f"{played.url}/sign-in/callback" == redeemed["redirect_uri"]
    assert (asked["code_challenge_method"], asked["scope"]) == ("S256", "openid email profile")
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    assert redeemed["code_verifier"] not in (asked["code_challenge"], asked["state"])
    secret = base64.b64encode(b"gatepass:s3cret").decode()
    assert redeemed["authorization"] == f"Basic {secret}"
    idp.join(played, secret=None)
    await idp.walk(played.client())
    assert (idp.asked[-1]["client_id"], idp.asked[-1]["authorization"]) == ("gatepass", "")


async def test_what_the_provider_says_now_replaces_what_it_said(both: Stage, idp: Idp) -> None:
    await idp.walk(both.client())
    idp.claims |= {"roles": ["look", "run"], "email": "Ann.B@Example.org", "groups": ["g-desk"]}
    await idp.walk(both.client())
    [user] = await users(both.db)
    assert (user.roles, user.email) == (["viewer", "admin"], "ann.b@example.org")
    changes = await records(both.db, "user.changed")
    assert [(record["changes"], record["source"]) for record in changes] == [
        (["email"], "provider"),
        (["roles"], "provider"),
        (["groups"], "provider"),
    ]


async def test_who_has_lost_every_role_is_out_on_every_browser_at_once(
    both: Stage, idp: Idp
) -> None:
    browser = both.client()
    await idp.walk(browser)
    assert (await browser.get("/inbox")).status_code == 200
    idp.claims["roles"] = ["something else"]
    await refused(both, idp, "no_role")
    assert (await browser.get("/inbox")).status_code == 303
    [user] = await users(both.db)
    assert user.roles == []


async def test_claims_that_the_token_lacks_are_asked_for(played: Stage, idp: Idp) -> None:
    idp.claims = {"sub": "ann-1", "roles": ["review"]}
    idp.elsewhere = {**ANN, "roles": ["run"]}
    answer = await idp.walk(played.client())
    assert answer.status_code == 303
    [user] = await users(played.db)
    assert (user.email, user.roles) == ("ann@example.org", ["reviewer"])  # the token wins
    idp.elsewhere = {**ANN, "sub": "somebody-else"}
    await refused(played, idp, "subject_wrong")


async def test_a_new_key_is_fetched_once_and_used(played: Stage, idp: Idp) -> None:
    await idp.walk(played.client())
    idp.key = RSAKey.generate_key(2048, {"kid": "k2", "use": "sig"})
    idp.keys = [idp.key]
    await refused(played, idp, "key_unknown")  # fetched a moment ago: not again yet
    idp.join(played)
    assert (await idp.walk(played.client())).status_code == 303


# --- not in ---------------------------------------------------------------------------------


async def test_H_10_tokens_that_do_not_hold_are_refused_and_recorded(
    played: Stage, idp: Idp
) -> None:
    for code, claims in (
        ("issuer_wrong", {"iss": "https://evil.example"}),
        ("issuer_wrong", {"iss": None}),
        ("audience_wrong", {"aud": "another"}),
        ("audience_wrong", {"aud": "another", "azp": "gatepass"}),
        ("audience_wrong", {"aud": ["another", "third"]}),
        ("audience_wrong", {"aud": ["gatepass", "another"], "azp": "another"}),
        ("audience_wrong", {"aud": ["gatepass", "another"]}),
        ("nonce_wrong", {"nonce": "of-another-browser"}),
        ("nonce_wrong", {"nonce": None}),
        ("token_expired", {"exp": 1}),
        ("claim_wrong", {"exp": None}),
        ("claim_wrong", {"auth_time": 1e12}),
        ("claim_wrong", {"at_hash": "AAAA"}),
    ):
        idp.claims = {**ANN, **claims}
        await _refused_page(played, idp, code)
    assert await users(played.db) == []
    codes = {record["code"] for record in await records(played.db, "sign_in.refused")}
    assert codes == {"issuer_wrong", "audience_wrong", "nonce_wrong", "token_expired",
                     "claim_wrong"}  # fmt: skip


async def test_H_10_signatures_that_prove_nothing_are_refused(played: Stage, idp: Idp) -> None:
    other = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"})
    for code, make in (
        ("algorithm_refused", lambda: _none(idp)),
        ("algorithm_refused", lambda: with_public_key_as_secret(idp.sign(**ANN), idp.key)),
        ("signature_wrong", lambda: idp.sign(**ANN)[:-8] + "AAAAAAAA"),
        ("signature_wrong", lambda: _with(idp, key=other)),
        ("key_unknown", lambda: _with(idp, header={"kid": "../../keys"})),
        ("key_unknown", lambda: _with(idp, header={"kid": None})),
        ("token_wrong", lambda: _with(idp, header={"typ": "at+jwt"})),
        ("token_unreadable", lambda: "not.a"),
        ("token_unreadable", lambda: "x" * 70_000),
    ):
        await _refused_page(played, idp, code, make)
    jku = {"jku": "https://evil.example/keys"}
    await _refused_page(played, idp, "signature_wrong", lambda: _with(idp, key=other, header=jku))
    assert await users(played.db) == []


def _none(idp: Idp) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"k1"}').rstrip(b"=").decode()
    return f"{head}.{idp.sign(**ANN).split('.')[1]}."


def _with(idp: Idp, key: Any = None, header: Any = None) -> str:
    own, idp.key, idp.header = idp.key, key or idp.key, header or {}
    token = idp.sign(**ANN)
    idp.key, idp.header = own, {}
    return token


async def _refused_page(played: Stage, idp: Idp, code: str, make: Any = None) -> None:
    browser = played.client()
    leaving = await browser.get("/sign-in/provider")
    query = dict(httpx2.URL(leaving.headers["location"]).params)
    idp.nonce, idp.token = query["nonce"], None
    if make is not None:
        idp.token = make()
    answer = await browser.get(f"/sign-in/callback?code={idp.code}&state={query['state']}")
    idp.token = None
    told = re.findall(r"<dd><code>(\w+)</code>", answer.text)[:1]
    assert (answer.status_code, told) == (403, [code])
    assert "gatepass" not in browser.cookies


async def test_H_10_answers_of_others_are_refused(played: Stage, idp: Idp) -> None:
    await refused(played, idp, "state_wrong", state="of-another-browser")
    await refused(played, idp, "mix_up", iss="https://evil.example")
    assert (await idp.walk(played.client(), iss=idp.url)).status_code == 303
    idp.document["authorization_response_iss_parameter_supported"] = True
    idp.join(played)
    answer = await idp.walk(played.client())
    assert "mix_up" in answer.text  # promised, and not there
    await refused(played, idp, "provider_refused", iss=idp.url, error="access_denied")
    own, idp.code = idp.code, "of-somebody-else"
    leaving = await (browser := played.client()).get("/sign-in/provider")
    state = httpx2.URL(leaving.headers["location"]).params["state"]
    answer = await browser.get(f"/sign-in/callback?code={own}&state={state}&iss={idp.url}")
    assert (answer.status_code, "code_refused" in answer.text) == (403, True)


async def test_a_callback_counts_once_in_the_browser_that_asked(played: Stage, idp: Idp) -> None:
    stranger = await played.client().get("/sign-in/callback?code=code-1&state=x")
    assert (stranger.status_code, "no_attempt" in stranger.text) == (403, True)
    browser = played.client()
    leaving = await browser.get("/sign-in/provider")
    query = dict(httpx2.URL(leaving.headers["location"]).params)
    idp.nonce = query["nonce"]
    cookie = browser.cookies["gatepass-sign-in"]
    back = f"/sign-in/callback?code=code-1&state={query['state']}"
    assert (await browser.get(back)).status_code == 303
    assert "gatepass-sign-in" not in browser.cookies
    again = played.client()
    again.cookies.set("gatepass-sign-in", cookie)
    answer = await again.get(back)
    assert (answer.status_code, "used_before" in answer.text) == (403, True)
    broken = played.client()
    broken.cookies.set("gatepass-sign-in", cookie[:-4] + "AAAA")
    assert "no_attempt" in (await broken.get(back)).text


async def test_a_way_in_that_is_taken_twice_at_once_lets_one_in(both: Stage, idp: Idp) -> None:
    sign_in, now = both.services.sign_in, both.clock()
    for _ in range(2):  # somebody new, and somebody known
        address, cookie = await sign_in.begin(flow.Wish(), now=now)
        asked = httpx2.URL(address).params
        idp.nonce = asked["nonce"]
        said = {"code": idp.code, "state": asked["state"]}
        results = await asyncio.gather(
            *(sign_in.finish(said, cookie, now=now) for _ in range(4)), return_exceptions=True
        )
        refusals = [result for result in results if isinstance(result, SignInRefused)]
        assert [refusal.code for refusal in refusals] == ["used_before"] * 3
    assert len(await users(both.db)) == 1
    assert await ended(both.db) == [False, False]


async def test_a_way_in_ends_after_ten_minutes(played: Stage, idp: Idp) -> None:
    sign_in, now = played.services.sign_in, played.clock()
    address, cookie = await sign_in.begin(flow.Wish(), now=now)
    asked = httpx2.URL(address).params
    idp.nonce = asked["nonce"]
    said = {"code": idp.code, "state": asked["state"]}
    for wrong in (now + timedelta(minutes=10, seconds=1), now - timedelta(minutes=1)):
        with pytest.raises(SignInRefused) as refusal:
            await sign_in.finish(said, cookie, now=wrong)
        assert refusal.value.code == "attempt_expired"
    session, _ = await sign_in.finish(said, cookie, now=now + timedelta(minutes=9))
    assert await login.session(played.db, session, now) is not None


async def test_nobody_is_led_elsewhere_afterwards(played: Stage, idp: Idp) -> None:
    for next_ in ("https://evil.example", "//evil.example", "/\\evil.example", "javascript:x"):
        browser = played.client()
        answer = await idp.walk(browser, f"?next={next_}")
        assert answer.headers["location"] in ("/", "/inbox")


async def test_without_a_role_the_page_says_whom_to_ask(played: Stage, idp: Idp) -> None:
    await played.person("boss@example.org", "admin")
    idp.claims["roles"] = []
    answer = await idp.walk(played.client(**{"Accept-Language": "ru"}))
    assert "boss@example.org" in answer.text
    assert "no_role" in answer.text
    assert "Вход не выполнен" in answer.text


@pytest.mark.parametrize(
    ("code", "claims"),
    [
        ("email_unverified", {"email_verified": False}),
        ("no_email", {"email": None}),
        ("groups_overage", {"_claim_names": {"groups": "src1"}}),
    ],
)
async def test_claims_that_do_not_suffice_say_what_is_missing(
    played: Stage, idp: Idp, code: str, claims: dict[str, Any]
) -> None:
    idp.claims |= claims
    idp.elsewhere = {"sub": "ann-1"}
    await refused(played, idp, code)


async def test_a_provider_that_is_away_is_said_to_be(played: Stage, idp: Idp) -> None:
    idp.document["issuer"] = "https://another.example"
    idp.join(played)
    answer = await played.client().get("/sign-in/provider")
    assert (answer.status_code, "issuer_unavailable" in answer.text) == (503, True)
    assert (await played.client().get("/sign-in")).status_code == 200


# --- those who were here before -------------------------------------------------------------


async def test_an_address_alone_joins_nobody_and_a_link_does(both: Stage, idp: Idp) -> None:
    code = await both.person("ann@example.org", "viewer")
    await refused(both, idp, "address_taken")
    [user] = await users(both.db)
    assert (user.issuer, user.roles) == (None, ["viewer"])
    page = await both.client().get(f"/sign-in/link?code={code}")
    assert "/sign-in/provider?code=" in page.text
    answer = await idp.walk(both.client(), f"?code={code}")
    assert answer.status_code == 303, answer.text
    [user] = await users(both.db)
    assert (user.subject, user.roles) == ("ann-1", ["reviewer"])
    changes = [record["changes"] for record in await records(both.db, "user.changed")]
    assert changes[:2] == [["identity"], ["roles"]]
    again = await idp.walk(both.client(), f"?code={code}")
    assert "link_invalid" in again.text


async def test_a_link_for_another_address_or_of_another_identity_joins_nobody(
    played: Stage, idp: Idp
) -> None:
    code = await played.person("bo@example.org", "viewer")
    answer = await idp.walk(played.client(), f"?code={code}")
    assert "other_address" in answer.text
    await idp.walk(played.client())
    answer = await idp.walk(played.client(), f"?code={code}")
    assert "identity_taken" in answer.text
    assert [user.issuer is None for user in await users(played.db)].count(True) == 1


async def test_the_last_admin_does_not_lose_the_role_by_being_joined(
    played: Stage, idp: Idp
) -> None:
    code = await played.person("ann@example.org", "admin")
    answer = await idp.walk(played.client(), f"?code={code}")
    assert (answer.status_code, "last_admin" in answer.text) == (409, True)
    [user] = await users(played.db)
    assert (user.issuer, user.roles) == (None, ["admin"])


async def test_links_are_for_those_whom_the_provider_does_not_know(both: Stage, idp: Idp) -> None:
    await idp.walk(both.client())
    [ann] = await users(both.db)
    code = await login.create_link(both.ledger, ann.id, actor=SYSTEM, now=both.clock())
    answer = await both.client().post("/sign-in/link", data={"code": code})
    assert (answer.status_code, "link_not_enough" in answer.text) == (403, True)
    await both.signed_in("root@example.org", "admin")  # break-glass: no identity there
    entered = await records(both.db, "user.signed_in")
    assert [record["method"] for record in entered] == ["oidc", "link"]
    both.services.sign_in = None  # without a provider links are the only way
    assert (await both.client().post("/sign-in/link", data={"code": code})).status_code == 303


async def test_links_can_be_switched_off(played: Stage, idp: Idp) -> None:
    code = await played.person("root@example.org", "admin")
    settings = played.services.settings.model_copy(update={"local_sign_in": False})
    played.services.settings = settings
    answer = await played.client().post("/sign-in/link", data={"code": code})
    assert (answer.status_code, "links_off" in answer.text) == (403, True)
    assert 'name="code"' not in (await played.client().get("/sign-in")).text


async def test_roles_of_the_provider_are_not_changed_here(played: Stage, idp: Idp) -> None:
    await idp.walk(played.client())
    with pytest.raises(Conflict) as conflict:
        await people.set_roles(
            played.ledger, "ann@example.org", ["admin"], actor=SYSTEM, now=played.clock()
        )
    assert conflict.value.code == "roles_from_provider"
    assert (await people.read(played.db, "ann@example.org")).source == "provider"


async def test_who_is_disabled_is_out_at_once_and_does_not_come_back(both: Stage, idp: Idp) -> None:
    browser = both.client()
    await idp.walk(browser)
    await people.disable(both.ledger, "ann@example.org", actor=SYSTEM, now=both.clock())
    assert (await browser.get("/inbox")).status_code == 303
    await refused(both, idp, "user_disabled")
    [record] = await records(both.db, "sign_in.refused")
    assert record["subject"] == {"user": (await users(both.db))[0].id}


# --- sessions and out -----------------------------------------------------------------------


async def test_H_09_a_session_is_new_at_every_sign_in_and_its_cookie_is_bound(
    sqlite: Database, idp: Idp
) -> None:
    async with stage(sqlite, utc_now, "https://127.0.0.1:8443") as played:
        idp.join(played)
        browser = played.client()
        browser.cookies.set("__Host-gatepass", "planted", domain="127.0.0.1")
        answer = await idp.walk(browser)
        [first] = [c for c in answer.headers.get_list("set-cookie") if "__Host-gatepass=" in c]
        assert "planted" not in first
        for attribute in ("HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age=86400"):
            assert attribute in first
        old = browser.cookies["__Host-gatepass"]
        await idp.walk(browser)
        assert browser.cookies["__Host-gatepass"] != old
        assert await login.session(sqlite, old, played.clock()) is None
        assert await ended(sqlite) == [False, True]
        new = browser.cookies["__Host-gatepass"]
        later = played.clock() + login.IDLE + timedelta(seconds=1)
        assert await login.session(sqlite, new, later) is None


async def test_H_09_signing_out_ends_the_session_here_and_at_the_provider(
    both: Stage, idp: Idp
) -> None:
    browser, other = both.client(), both.client()
    await idp.walk(browser)
    await idp.walk(other)
    answer = await browser.post("/sign-out")
    assert answer.status_code == 200
    assert f"{idp.url}/end?client_id=gatepass" in answer.text
    assert "id_token_hint=" in answer.text
    assert (await browser.get("/inbox")).status_code == 303
    assert (await other.get("/inbox")).status_code == 200
    third = both.client()
    await idp.walk(third)
    assert (await third.post("/account/sign-out-everywhere")).status_code == 303
    assert (await other.get("/inbox")).status_code == 303
    assert await ended(both.db) == [True, True, True]
    async with both.db.reading() as session:
        row = (await session.exec(select(WebSession))).first()
        assert row is not None
        assert b"eyJ" not in (row.id_token or b"")


async def test_the_provider_ends_sessions_by_a_notice_that_counts_once(
    both: Stage, idp: Idp
) -> None:
    path = "/sign-in/backchannel-logout"
    plain = httpx2.AsyncClient(transport=httpx2.ASGITransport(both.app), base_url=both.url)
    one, two = both.client(), both.client()
    idp.claims["sid"] = "session-1"
    await idp.walk(one)
    idp.claims["sid"] = "session-2"
    await idp.walk(two)
    for wrong in (
        {"aud": "another"}, {"iss": "https://evil.example"}, {"events": {}}, {"nonce": "n"},
        {"jti": None}, {"sub": None}, {"iat": 1000}, {"exp": 1000},
    ):  # fmt: skip
        answer = await plain.post(path, data={"logout_token": idp.notice(**wrong)})
        assert answer.status_code == 400, wrong
    assert await ended(both.db) == [False, False]
    notice = idp.notice(sid="session-1", sub=None)
    assert (await plain.post(path, data={"logout_token": notice})).status_code == 200
    assert (await one.get("/inbox")).status_code == 303
    assert (await two.get("/inbox")).status_code == 200
    assert (await plain.post(path, data={"logout_token": notice})).status_code == 400
    everything = idp.notice(jti="j-2")
    assert (await plain.post(path, data={"logout_token": everything})).status_code == 200
    assert (await two.get("/inbox")).status_code == 303
    told = await records(both.db, "user.signed_out")
    assert [(record["source"], record["method"]) for record in told] == [("provider", "oidc")] * 2
    assert (await plain.post(path, content=b"x" * 200_000)).status_code == 400


# --- a fresh sign-in ------------------------------------------------------------------------


async def test_a_rule_may_ask_for_a_fresh_sign_in(both: Stage, idp: Idp) -> None:
    approval_id = await both.ask(Wish(rule={"step_up": True}))
    digest = (await both.read(approval_id)).digest
    form = {"verdict": "approve", "digest": digest}
    browser = both.client()
    idp.claims["auth_time"] = int(both.clock().timestamp()) - 3600
    await idp.walk(browser)
    page = await browser.get(f"/requests/{approval_id}")
    assert "/sign-in/provider?again=true" in page.text
    assert "data-opens" not in page.text
    answer = await browser.post(f"/requests/{approval_id}/reviews", data=form)
    assert (answer.status_code, "Sign in again" in answer.text) == (403, True)
    assert (await both.read(approval_id)).reviews == ()
    query = f"?again=true&next=/requests/{approval_id}"
    stale = await idp.walk(browser, query)
    assert "not_fresh" in stale.text
    assert (idp.asked[-2]["prompt"], idp.asked[-2]["max_age"]) == ("login", "300")
    del idp.claims["auth_time"]
    answer = await idp.walk(browser, query)
    assert answer.headers["location"] == f"/requests/{approval_id}"
    await browser.post(f"/requests/{approval_id}/reviews", data=form)
    assert (await both.read(approval_id)).state == "approved"
    [record] = await records(both.db, "approval.reviewed")
    assert record["actor"]["auth"] == "oidc"
    assert "authenticated" in record
    [asked] = await records(both.db, "approval.requested")
    assert asked["step_up"] is True


async def test_a_fresh_sign_in_without_a_time_is_none(played: Stage, idp: Idp) -> None:
    idp.claims["auth_time"] = None
    answer = await idp.walk(played.client(), "?again=true")
    assert "not_fresh" in answer.text
    assert (await idp.walk(played.client())).status_code == 303  # where nobody asked for one


async def test_a_token_cannot_stand_for_a_fresh_sign_in(played: Stage) -> None:
    approval_id = await played.ask(Wish(rule={"step_up": True}))
    with pytest.raises(Exception, match="fresh sign-in") as error:
        await played.decide(approval_id, "approve")
    assert error.value.code == "step_up_needed"
    assert (await played.read(approval_id)).state == "pending"


async def test_a_link_is_a_fresh_sign_in_for_a_while(sqlite: Database, clock: Any) -> None:
    async with stage(sqlite, clock) as played:
        first = await played.ask(Wish(rule={"step_up": True}))
        second = await played.ask(Wish(rule={"step_up": True}))
        ann = await played.signed_in("ann@example.org", "reviewer")
        for approval_id, state in ((first, "approved"), (second, "pending")):
            digest = (await played.read(approval_id)).digest
            form = {"verdict": "approve", "digest": digest}
            await ann.post(f"/requests/{approval_id}/reviews", data=form)
            assert (await played.read(approval_id)).state == state
            clock.advance(301)
        assert "one-time link" in (await ann.get(f"/requests/{second}")).text
