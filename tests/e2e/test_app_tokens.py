"""Access tokens instead of keys: whose they are, and that nothing but a whole one counts.

The issuer is a real server on a port of its own; the catalogue's H-10 lists what must not pass.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio

from gateway.registry import access_tokens, apps
from gateway.registry.access_tokens import AccessTokens
from gateway.registry.issuers import Issuers
from gateway.registry.settings import AppSettings, IdentitySettings
from gateway.telemetry import utc_now
from tests.support.attempts import RESPONSES, House, add_app, error_of, open_house
from tests.support.gateway import MODEL, OPERATOR, http
from tests.support.issuer import AUDIENCE, Issuer, elliptic, text, with_public_key_as_secret

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


BODY = {"model": MODEL, "input": "Hello"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[House, Issuer]]:
    async with AsyncExitStack() as stack:
        issuer = Issuer()
        await issuer.open(stack)
        house = await open_house(stack, tmp_path_factory.mktemp("house"))
        identity = IdentitySettings(issuer.url, AUDIENCE, "client-1")
        await add_app(house.gateway, "token-bot", identity=identity)
        yield house, issuer


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: tuple[House, Issuer]) -> AsyncIterator[House]:
    yield shared[0]
    await shared[0].gateway.verify()


@pytest.fixture
def issuer(shared: tuple[House, Issuer]) -> Issuer:
    return shared[1]


async def ask(house: House, token: str, header: str = "authorization") -> httpx2.Response:
    """One request with nothing but this token."""
    value = f"Bearer {token}" if header == "authorization" else token
    async with http(house.gateway.url, {header: value}) as client:
        return await client.post(RESPONSES, json=BODY)


async def refused(house: House, token: str, *, status: int = 401, code: str = "invalid_token"):
    async with house.untouched():
        answer = await ask(house, token)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text
    assert token not in answer.text
    return error_of(answer)["message"]


# --- what works -----------------------------------------------------------------------------


async def test_the_azure_client_signs_in_with_a_token_provider(house: House, issuer: Issuer):
    async def provider() -> str:
        return issuer.token()

    async with openai.AsyncAzureOpenAI(
        base_url=f"{house.gateway.url}/openai/v1/",
        api_version="preview",
        azure_ad_token_provider=provider,
        max_retries=0,
    ) as client:
        answer = await client.responses.create(model=MODEL, input="Hello")
        assert answer.output_text == "You said: Hello"
        chat = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}]
        )
        assert chat.choices[0].message.content == "You said: Hello"
    last = (await house.gateway.upstream_requests())[-1]
    assert "authorization" not in last["headers"]
    for record in (await house.gateway.records("request.completed"))[-2:]:
        assert record["subject"]["app"] == "token-bot"
        assert (record["actor"]["kind"], record["actor"]["auth"]) == ("app", "token")


async def test_a_token_counts_in_either_header_and_two_must_be_equal(house: House, issuer: Issuer):
    token = issuer.token()
    for header in ("authorization", "api-key"):
        assert (await ask(house, token, header)).status_code == 200
    both = {"authorization": f"Bearer {token}", "api-key": token}
    async with http(house.gateway.url, both) as client:
        assert (await client.post(RESPONSES, json=BODY)).status_code == 200
    both["api-key"] = house.gateway.key
    async with house.untouched(), http(house.gateway.url, both) as client:
        answer = await client.post(RESPONSES, json=BODY)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "credentials_differ")


@pytest.mark.parametrize(
    "claims",
    [
        {"azp": None, "sub": "client-1"},
        {"azp": None, "appid": "client-1"},
        {"aud": [AUDIENCE, "api://other"]},
    ],
    ids=str,
)
async def test_the_subject_may_stand_where_issuers_put_it(
    house: House, issuer: Issuer, claims: dict[str, Any]
):
    assert (await ask(house, issuer.token(**claims))).status_code == 200


async def test_a_refusal_of_a_known_app_is_recorded_with_how_it_signed_in(
    house: House, issuer: Issuer
):
    tools = [{"type": "mcp", "server_label": "x", "server_url": "http://evil.example/mcp"}]
    async with http(house.gateway.url, {"api-key": issuer.token()}) as client:
        answer = await client.post(RESPONSES, json={**BODY, "tools": tools})
    assert answer.status_code == 403
    record = (await house.gateway.records("security.refused"))[-1]
    assert (record["subject"]["app"], record["actor"]["auth"]) == ("token-bot", "token")


async def test_a_good_token_is_checked_once(
    house: House, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
):
    token = issuer.token(sub="checked once")
    assert (await ask(house, token)).status_code == 200

    def never(*_: object, **__: object) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(access_tokens.jwt, "decode", never)
    assert (await ask(house, token)).status_code == 200


# --- H-10: what must not pass ---------------------------------------------------------------

WRONG: dict[str, Callable[[Issuer], str]] = {
    "another audience": lambda i: i.token(aud="api://other"),
    "no audience": lambda i: i.token(aud=None),
    "an empty audience": lambda i: i.token(aud=[]),
    "another issuer": lambda i: i.token(iss="https://evil.example"),
    "an issuer with a slash more": lambda i: i.token(iss=i.url + "/"),
    "no issuer": lambda i: i.token(iss=None),
    "another subject": lambda i: i.token(azp="client-2"),
    "no subject": lambda i: i.token(azp=None),
    "expired": lambda i: i.token(exp=int(time.time()) - 120),
    "no end": lambda i: i.token(exp=None),
    "an end that is no number": lambda i: i.token(exp="never"),
    "not valid yet": lambda i: i.token(nbf=int(time.time()) + 120),
    "no beginning": lambda i: i.token(nbf=None),
    "no key named": lambda i: i.token(header={"kid": None}),
    "a foreign key": lambda i: i.token(elliptic("foreign")),
    "a foreign key under a good name": lambda i: i.token(elliptic("rsa-1")),
    "a path for a key": lambda i: i.token(header={"kid": "../../dev/null"}),
    "the public key as a secret": lambda i: with_public_key_as_secret(i.token(), i.key),
    "another kind of token": lambda i: i.token(header={"typ": "logout+jwt"}),
    "an extension that must be understood": lambda i: unsigned(
        i.token(), {"alg": "RS256", "kid": "rsa-1", "crit": ["b64"], "b64": False}, keep=True
    ),
    "none": lambda i: unsigned(i.token(), {"alg": "none", "kid": "rsa-1"}),
    "None": lambda i: unsigned(i.token(), {"alg": "None", "kid": "rsa-1"}),
    "no algorithm": lambda i: unsigned(i.token(), {"kid": "rsa-1"}),
    "a list for an algorithm": lambda i: unsigned(i.token(), {"alg": ["RS256"], "kid": "rsa-1"}),
    "a header that is a list": lambda i: ".".join(["eyJ", *i.token().split(".")[1:]]),
    "no signature": lambda i: i.token().rpartition(".")[0] + ".",
    "a changed signature": lambda i: i.token()[:-8] + "AAAAAAAA",
    "changed claims": lambda i: swapped(i.token(), i.token(sub="somebody")),
}


def unsigned(token: str, header: dict[str, Any], *, keep: bool = False) -> str:
    _, claims, signature = token.split(".")
    return f"{text(json.dumps(header).encode())}.{claims}.{signature if keep else ''}"


def swapped(token: str, other: str) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{other.split('.')[1]}.{signature}"


@pytest.mark.parametrize("name", WRONG)
async def test_H_10_a_token_that_is_not_whole_is_nobodys(house: House, issuer: Issuer, name: str):
    assert (await ask(house, issuer.token())).status_code == 200
    await refused(house, WRONG[name](issuer))


async def test_H_10_what_a_token_says_of_its_keys_is_not_looked_at(house: House, issuer: Issuer):
    other = Issuer()
    async with AsyncExitStack() as stack:
        await other.open(stack)
        own = elliptic("rsa-1")
        other.keys = [own]
        jwks = other.url.removesuffix("/v2.0") + "/keys"
        for header in ({"jku": jwks}, {"jwk": own.as_dict(private=False)}, {"x5u": jwks}):
            await refused(house, issuer.token(own, header=header, alg=None))
        # Beside a good signature they say nothing.
        assert (await ask(house, issuer.token(header={"jku": jwks}))).status_code == 200
        assert other.asked == 0


async def test_H_10_an_issuer_that_nobody_registered_is_never_asked(house: House):
    stranger = Issuer()
    async with AsyncExitStack() as stack:
        await stranger.open(stack)
        message = await refused(house, stranger.token())
        assert "No app is registered" in message
        assert stranger.asked == 0


# --- whose it is ----------------------------------------------------------------------------


async def test_a_token_outlives_neither_its_app_nor_its_registration(house: House, issuer: Issuer):
    gateway = house.gateway
    assert gateway.services is not None
    ledger, directory = gateway.services.ledger, gateway.services.directory
    identity = IdentitySettings(issuer.url, AUDIENCE, "short-lived")
    settings = AppSettings("short-lived", identity=identity)
    key = await add_app(gateway, "short-lived", identity=identity)
    token = issuer.token(azp="short-lived")
    assert (await ask(house, token)).status_code == 200
    await apps.disable(ledger, "short-lived", actor=OPERATOR, now=utc_now())
    await directory.refresh()
    await refused(house, token)
    await apps.enable(ledger, "short-lived", actor=OPERATOR, now=utc_now())
    await directory.refresh()
    assert (await ask(house, token)).status_code == 200
    without = AppSettings(settings.name)
    await apps.change(ledger, without, actor=OPERATOR, now=utc_now())
    await directory.refresh()
    await refused(house, token)
    assert (await house.post(BODY, key)).status_code == 200


async def test_a_token_that_could_be_two_apps_is_neither(house: House, issuer: Issuer):
    await add_app(house.gateway, "by-sub", identity=IdentitySettings(issuer.url, "api://two", "s"))
    identity = IdentitySettings(issuer.url, "api://two", "a")
    await add_app(house.gateway, "by-azp", identity=identity)
    message = await refused(house, issuer.token(aud="api://two", sub="s", azp="a"))
    assert "several apps" in message
    assert (await ask(house, issuer.token(aud="api://two", sub="s"))).status_code == 200


async def test_identities_come_by_the_api_and_go_by_it(house: House, issuer: Issuer):
    gateway = house.gateway
    admin = await admin_token(house)
    headers = {"authorization": f"Bearer {admin}"}
    identity = {"issuer": issuer.url, "audience": "api://by-api"}
    async with http(gateway.url, headers) as client:
        made = await client.post("/api/v1/apps", json={"name": "by-api", "identity": identity})
        assert made.status_code == 201, made.text
        assert made.json()["identity"] == {**identity, "subject": None}
        assert (await ask(house, issuer.token(aud="api://by-api"))).status_code == 200
        for wrong in ("http://idp.example", "https://x@idp.example", "https://169.254.169.254"):
            bad = {"name": "bad", "identity": {**identity, "issuer": wrong}}
            answer = await client.post("/api/v1/apps", json=bad)
            assert answer.status_code in {400, 422}, answer.text
            assert "issuer" in answer.text
        changed = await client.put("/api/v1/apps/by-api", json={})
        assert changed.json()["identity"] is None
    await refused(house, issuer.token(aud="api://by-api"))


async def admin_token(house: House) -> str:
    from gateway.identity import people, tokens

    assert house.gateway.services is not None
    ledger = house.gateway.services.ledger
    new = people.NewUser("admin@example.org", ("admin",))
    user = await people.create_user(ledger, new, actor=OPERATOR, now=utc_now())
    return await tokens.create_token(ledger, user.id, actor=OPERATOR, now=utc_now())


async def test_no_token_stands_in_a_record_or_in_the_log(
    house: House, issuer: Issuer, capfd: pytest.CaptureFixture[str]
):
    good, bad = issuer.token(), issuer.token(aud="api://other")
    await ask(house, good)
    await ask(house, bad)
    written = json.dumps(await house.gateway.records()) + "".join(capfd.readouterr())
    for token in (good, bad):
        assert token not in written
        assert token.split(".")[1] not in written


# --- the keys of an issuer ------------------------------------------------------------------


class Moved:
    """The real clock, and what a test adds to it."""

    def __init__(self) -> None:
        self.by = timedelta()

    def __call__(self):
        return utc_now() + self.by


@pytest_asyncio.fixture(loop_scope="module")
async def fresh() -> AsyncIterator[Issuer]:
    """An issuer that nobody has asked yet."""
    async with AsyncExitStack() as stack:
        issuer = Issuer()
        await issuer.open(stack)
        yield issuer


async def test_keys_are_fetched_again_for_an_unknown_name_once_a_minute(fresh: Issuer):
    clock = Moved()
    issuers = Issuers(clock)
    assert await issuers.key(fresh.url, "rsa-1") is not None
    for name in ("rsa-1", "unknown", "rsa-2", "rsa-1"):
        await issuers.key(fresh.url, name)
    assert fresh.asked == 1
    fresh.keys = [elliptic("rsa-2")]
    assert await issuers.key(fresh.url, "rsa-2") is None
    clock.by = timedelta(seconds=61)
    assert await issuers.key(fresh.url, "rsa-2") is not None
    assert await issuers.key(fresh.url, "rsa-1") is None
    assert fresh.asked == 2


async def test_a_key_that_was_withdrawn_counts_no_more_after_an_hour(fresh: Issuer):
    clock = Moved()
    issuers = Issuers(clock)
    assert await issuers.key(fresh.url, "rsa-1") is not None
    fresh.keys = [elliptic("ec-1")]
    assert await issuers.key(fresh.url, "rsa-1") is not None
    clock.by = timedelta(minutes=61)
    assert await issuers.key(fresh.url, "rsa-1") is None


@pytest.mark.parametrize("how", ["down", "redirect", "mixed up", "nonsense"])
async def test_keys_that_cannot_be_fetched_stop_everything_after_a_day(fresh: Issuer, how: str):
    clock = Moved()
    issuers = Issuers(clock)
    fresh.fails = how
    with pytest.raises(Exception, match="cannot be fetched"):
        await issuers.key(fresh.url, "rsa-1")
    fresh.fails = None
    with pytest.raises(Exception, match="cannot be fetched"):  # not asked again at once
        await issuers.key(fresh.url, "rsa-1")
    clock.by = timedelta(seconds=6)
    assert await issuers.key(fresh.url, "rsa-1") is not None
    fresh.fails = how
    clock.by = timedelta(hours=2)
    assert await issuers.key(fresh.url, "rsa-1") is not None
    clock.by = timedelta(hours=25)
    with pytest.raises(Exception, match="cannot be fetched"):
        await issuers.key(fresh.url, "rsa-1")


async def test_other_entries_in_a_list_of_keys_are_no_keys_and_no_harm(fresh: Issuer):
    public = fresh.key.as_dict(private=False)
    fresh.more = [
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
        {**public, "kid": "for encryption", "use": "enc"},
        {"kty": "EC", "kid": "odd curve", "crv": "P-1", "x": "AA", "y": "AA"},
        {"kty": "AKP", "kid": "new kind"},
    ]
    issuers = Issuers(utc_now)
    assert await issuers.key(fresh.url, "rsa-1") is not None
    for entry in fresh.more:
        assert await issuers.key(fresh.url, entry["kid"]) is None
    assert fresh.asked == 1


async def test_an_issuer_that_is_down_is_told_as_503(house: House, fresh: Issuer):
    fresh.fails = "down"
    await add_app(house.gateway, "down-bot", identity=IdentitySettings(fresh.url, AUDIENCE))
    await refused(house, fresh.token(), status=503, code="issuer_unavailable")
    async with house.untouched():
        answer = await ask(house, fresh.token())
    assert answer.headers["x-should-retry"] == "false"


async def test_keys_rotate_and_tokens_with_both_count(house: House, fresh: Issuer):
    new = elliptic("ec-2")
    fresh.keys.append(new)
    await add_app(house.gateway, "rotating", identity=IdentitySettings(fresh.url, AUDIENCE))
    assert (await ask(house, fresh.token())).status_code == 200
    assert (await ask(house, fresh.token(new))).status_code == 200
    assert fresh.asked == 1


async def test_a_token_is_remembered_until_its_end_at_the_latest(house: House, fresh: Issuer):
    assert house.gateway.services is not None
    identity = IdentitySettings(fresh.url, AUDIENCE)
    await add_app(house.gateway, "timed", identity=identity)
    clock = Moved()
    tokens = AccessTokens(house.gateway.services.directory, clock)
    token = fresh.token(exp=int(time.time()) + 90)
    assert (await tokens.app_of(token)).name == "timed"
    clock.by = timedelta(seconds=200)
    with pytest.raises(Exception, match="expired"):
        await tokens.app_of(token)
