"""Users, links and tokens over the API."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from gateway.identity import login, people
from tests.support.clock import FakeClock
from tests.support.house import Somebody, somebody

USERS = "/api/v1/users"


async def test_a_user_from_invitation_to_farewell(client, adm, services, clock) -> None:
    body = {"email": "Bo@Example.org", "name": "Bo", "roles": ["reviewer"]}
    made = await client.post(USERS, headers=adm.bearer, json=body)
    assert made.status_code == 201
    user = made.json()
    assert (user["email"], user["roles"]) == ("bo@example.org", ["reviewer"])
    assert (await client.post(USERS, headers=adm.bearer, json=body)).status_code == 409
    one = f"{USERS}/{user['id']}"
    link = (await client.post(f"{one}/link", headers=adm.bearer)).json()
    assert link["url"].startswith("http://127.0.0.1:8080/")
    [code] = parse_qs(urlsplit(link["url"]).query)["code"]
    session = await login.redeem(services.ledger, code, now=clock())
    browser = {"cookie": f"gatepass={session}"}
    assert (await client.get("/api/v1/me", headers=browser)).json()["email"] == "bo@example.org"
    changed = await client.patch(one, headers=adm.bearer, json={"roles": ["viewer"]})
    assert changed.json()["roles"] == ["viewer"]
    off = await client.patch(one, headers=adm.bearer, json={"disabled": True})
    assert off.json()["disabled_at"] is not None
    assert (await client.get("/api/v1/me", headers=browser)).status_code == 401
    on = await client.patch(one, headers=adm.bearer, json={"disabled": False})
    assert on.json()["disabled_at"] is None


async def test_a_change_is_one_change(client, adm: Somebody) -> None:
    one = f"{USERS}/{adm.user.id}"
    for body in ({}, {"roles": [], "disabled": True}, {"email": "x@y.z"}, {"roles": ["admin", 1]}):
        assert (await client.patch(one, headers=adm.bearer, json=body)).status_code == 422


async def test_the_last_admin_stays(client, adm: Somebody) -> None:
    for body in ({"roles": []}, {"disabled": True}):
        answer = await client.patch(f"{USERS}/{adm.user.id}", headers=adm.bearer, json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "last_admin")


async def test_users_are_paged(client, adm, services, clock: FakeClock) -> None:
    for number in range(3):
        clock.advance(1)
        await somebody(services, clock, f"u{number}@example.org", ["viewer"])
    emails, after = [], ""
    while after is not None:
        query = f"?limit=2&after={after}" if after else "?limit=2"
        page = (await client.get(USERS + query, headers=adm.bearer)).json()
        emails += [item["email"] for item in page["items"]]
        after = page["next"]
    assert emails == ["adm@example.org", *(f"u{n}@example.org" for n in range(3))]


async def test_tokens_are_ones_own(client, ann: Somebody, adm: Somebody) -> None:
    made = await client.post("/api/v1/tokens", headers=ann.bearer, json={"expires_in_days": 7})
    assert made.status_code == 201
    token = made.json()
    fresh = {"authorization": f"Bearer {token['token']}"}
    assert (await client.get("/api/v1/me", headers=fresh)).json()["user_id"] == ann.user.id
    listed = await client.get("/api/v1/tokens", headers=ann.bearer)
    assert token["id"] in [item["id"] for item in listed.json()["items"]]
    assert token["token"] not in listed.text
    one = f"/api/v1/tokens/{token['id']}"
    assert (await client.delete(one, headers=adm.bearer)).status_code == 404
    assert (await client.get("/api/v1/me", headers=fresh)).status_code == 200
    assert (await client.delete(one, headers=ann.bearer)).status_code == 204
    assert (await client.get("/api/v1/me", headers=fresh)).status_code == 401


async def test_tokens_have_limits(client, ann: Somebody) -> None:
    for days in (0, 367, "7", 1.5):
        answer = await client.post(
            "/api/v1/tokens", headers=ann.bearer, json={"expires_in_days": days}
        )
        assert answer.status_code == 422


async def test_a_token_may_be_narrower_than_its_owner(
    client, ann: Somebody, adm: Somebody, services, clock
) -> None:
    asked = {"scopes": ["requests.read", "tokens.own"]}
    made = await client.post("/api/v1/tokens", headers=ann.bearer, json=asked)
    assert made.status_code == 201, made.text
    narrow = {"authorization": f"Bearer {made.json()['token']}"}
    assert (await client.get("/api/v1/approval-requests", headers=narrow)).status_code == 200
    me = (await client.get("/api/v1/me", headers=narrow)).json()
    assert sorted(me["scopes"]) == sorted(asked["scopes"])
    for path in ("/api/v1/servers", "/api/v1/apps", "/api/v1/exchanges"):
        answer = await client.get(path, headers=narrow)
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_permission"), path
    for wider in (None, ["requests.review"], ["tokens.own", "servers.read"]):
        answer = await client.post("/api/v1/tokens", headers=narrow, json={"scopes": wider})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    same = await client.post("/api/v1/tokens", headers=narrow, json={"scopes": ["tokens.own"]})
    assert same.status_code == 201
    for foreign in (["users.write"], [], ["everything"]):
        answer = await client.post("/api/v1/tokens", headers=ann.bearer, json={"scopes": foreign})
        assert answer.status_code in (400, 422)
    [shown] = [
        item
        for item in (await client.get("/api/v1/tokens", headers=ann.bearer)).json()["items"]
        if item["id"] == made.json()["id"]
    ]
    assert (shown["scopes"], shown["used_at"]) == (sorted(asked["scopes"]), "2026-01-05T09:00:00Z")
    clock.advance(59)
    await client.get("/api/v1/me", headers=narrow)
    assert (await people.tokens_of(services.db, ann.user.id))[0].used_at is not None


async def test_a_narrow_token_of_an_admin_speaks_for_the_admin_alone(
    client, ann: Somebody, adm: Somebody, services, clock
) -> None:
    bo = await somebody(services, clock, "bo@example.org", ["reviewer"])
    asked = {"scopes": ["delegations.write"]}
    made = await client.post("/api/v1/tokens", headers=adm.bearer, json=asked)
    narrow = {"authorization": f"Bearer {made.json()['token']}"}
    body = {"from_email": ann.user.email, "to_email": bo.user.email,
            "ends_at": "2026-01-06T00:00:00Z"}  # fmt: skip
    assert (await client.post("/api/v1/delegations", headers=narrow, json=body)).status_code == 403
    assert (
        await client.post("/api/v1/delegations", headers=adm.bearer, json=body)
    ).status_code == 201


async def test_no_token_lives_longer_than_this_installation_allows(
    client, ann: Somebody, services
) -> None:
    object.__setattr__(services.settings, "token_days", 30)
    long = await client.post("/api/v1/tokens", headers=ann.bearer, json={"expires_in_days": 31})
    assert (long.status_code, long.json()["param"]) == (400, "expires_in_days")
    made = await client.post("/api/v1/tokens", headers=ann.bearer, json={"expires_in_days": None})
    [view] = [t for t in await people.tokens_of(services.db, ann.user.id)
              if t.id == made.json()["id"]]  # fmt: skip
    assert view.expires_at is not None
    assert (view.expires_at - view.created_at).days == 30
