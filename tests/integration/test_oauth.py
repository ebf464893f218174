"""Tokens for `oauth:` references, from a real authorization server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.errors import Unavailable
from gateway.proxy.injection import Injection
from gateway.proxy.signing_in import SignIn
from gateway.registry.directory import View
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.oauth import OAuthClient
from gateway.telemetry import configure_logging
from gateway.vault import Clients, Purpose, Secret, Vault, open_vault, token_server
from tests.support.clock import FakeClock
from tests.support.credentials import bound
from tests.support.oauth import CLIENT, EXCHANGE, SECRET, TokenServer, elsewhere, user_token

REF = bound("oauth:crm")
USUAL, FRESH = Purpose(fresh=False), Purpose()


@pytest.fixture
async def tokens(clock: FakeClock) -> AsyncIterator[TokenServer]:
    server = TokenServer(lambda: clock().timestamp())
    async with AsyncExitStack() as stack:
        await server.open(stack)
        yield server


class House:
    """A vault with one client, whose settings a test may change."""

    def __init__(self, db: Database, clock: FakeClock, tokens: TokenServer) -> None:
        self.client = OAuthClient(
            "crm",
            "client_credentials",
            CLIENT,
            token_url=f"{tokens.url}/token",
            client_secret="env:CRM_SECRET",
            allow_private_network=True,
        )
        self.environment = {"CRM_SECRET": SECRET}
        clients = Clients(self.find, clock)
        envelope = Envelope(bytes(32))
        self.vault: Vault = open_vault(db, envelope, self.environment, clients=clients)

    def find(self, name: str) -> OAuthClient | None:
        return self.client if name == "crm" else None

    def become(self, **changes: Any) -> None:
        members = {name: getattr(self.client, name) for name in self.client.__slots__}
        self.client = OAuthClient(**{**members, **changes})

    async def open(self, purpose: Purpose = FRESH) -> Secret:
        return await self.vault.open(REF, purpose)

    async def refused(self, purpose: Purpose = FRESH) -> Unavailable:
        with pytest.raises(Unavailable) as caught:
            await self.open(purpose)
        assert "canary" not in str(caught.value)
        assert caught.value.__cause__ is None
        return caught.value


@pytest.fixture
def house(sqlite: Database, clock: FakeClock, tokens: TokenServer) -> House:
    return House(sqlite, clock, tokens)


def on_behalf(token: str, *, fresh: bool = True) -> Purpose:
    return Purpose(fresh, Secret("the end user's token", token))


# --- keeping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["basic", "post"])
async def test_a_client_gets_a_token_and_shows_who_it_is(
    house: House, tokens: TokenServer, way: str
) -> None:
    house.become(client_auth=way, scope="crm.read crm.write", audience="https://crm.example")
    secret = await house.open()
    assert tokens.accepts(secret.reveal())
    (asked,) = tokens.asked
    assert asked["grant_type"] == "client_credentials"
    assert (asked["scope"], asked["audience"]) == ("crm.read crm.write", "https://crm.example")
    assert ("client_secret" in asked) == (way == "post")
    assert repr(secret) == "<secret oauth:crm>"
    assert secret.version == "2026-01-05T10:00:00Z"


async def test_a_token_is_kept_until_shortly_before_its_end(
    house: House, tokens: TokenServer, clock: FakeClock
) -> None:
    first = await house.open()
    clock.advance(3600 - 121)
    assert await house.open() is first
    clock.advance(2)  # too little is left for a call that somebody waited for, not for others
    assert await house.open(USUAL) is first
    second = await house.open()
    assert second.reveal() != first.reveal()
    assert await house.open(USUAL) is second
    assert len(tokens.asked) == 2
    clock.advance(3600 - 14)
    assert (await house.open(USUAL)).reveal() not in {first.reveal(), second.reveal()}


async def test_a_short_life_is_used_for_the_most_of_it(
    house: House, tokens: TokenServer, clock: FakeClock
) -> None:
    tokens.lifetime = 40
    first = await house.open()
    clock.advance(29)
    assert await house.open() is first
    clock.advance(2)
    assert await house.open() is not first


async def test_another_definition_of_the_client_has_other_tokens(
    house: House, tokens: TokenServer
) -> None:
    first = await house.open()
    house.become(scope="other")
    assert (await house.open()).reveal() != first.reveal()


async def asked(tokens: TokenServer) -> None:
    """Wait until the server has been asked; fails when nobody does."""
    async with asyncio.timeout(30):
        while not tokens.asked:
            await asyncio.sleep(0)


async def test_fifty_who_wait_cause_one_request(house: House, tokens: TokenServer) -> None:
    tokens.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(house.open()) for _ in range(50)]
        await asked(tokens)
        tokens.gate.set()
    assert len({task.result().reveal() for task in waiting}) == 1
    assert len(tokens.asked) == 1


async def test_fifty_who_wait_share_one_failure(house: House, tokens: TokenServer) -> None:
    tokens.gate, tokens.secret = asyncio.Event(), "another"
    waiting = [asyncio.ensure_future(house.refused()) for _ in range(50)]
    await asked(tokens)
    tokens.gate.set()
    failures = await asyncio.gather(*waiting)
    assert {error.code for error in failures} == {"token_refused"}
    assert len(tokens.asked) == 1


async def test_whoever_gives_up_waiting_takes_the_others_nothing(
    house: House, tokens: TokenServer
) -> None:
    tokens.gate = asyncio.Event()
    first = asyncio.ensure_future(house.open())
    others = [asyncio.ensure_future(house.open()) for _ in range(3)]
    await asked(tokens)
    others.pop().cancel()
    first.cancel()  # it was asking for the others, too
    tokens.gate.set()
    secrets = await asyncio.gather(*others)
    assert len({secret.reveal() for secret in secrets}) == 1
    assert len(tokens.asked) == 2


async def test_tokens_that_may_be_in_use_are_told_until_they_end(
    house: House, tokens: TokenServer, clock: FakeClock
) -> None:
    assert house.vault.issued() == ()
    first = await house.open()
    clock.advance(3600 - 60)
    second = await house.open()
    assert house.vault.issued() == (first, second)
    assert house.vault.issues == 2
    clock.advance(61)
    assert house.vault.issued() == (second,)


# --- failing ----------------------------------------------------------------------------------


def answer(status: int, body: Any, **headers: str) -> Callable[[Request, Any], Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request, form: JSONResponse(
        {**body, "error_description": f"{dict(request.headers)} {form} canary"}, status, named
    )


TROUBLE = [
    (answer(400, {"error": "invalid_scope"}), "token_refused", "invalid_scope: it does not give"),
    (answer(401, {"error": "invalid_client"}), "token_refused", "does not know this client"),
    (answer(400, {"error": "canary"}), "token_refused", "it answered 400"),
    (answer(500, {}), "token_refused", "it answered 500"),
    (answer(200, {"error": "invalid_grant"}), "token_refused", "invalid_grant"),
    (answer(200, {"error": "canary"}), "token_refused", "does not say why in words known"),
    (answer(200, {"access_token": "canary"}), "token_refused", "does not say why"),
    (answer(200, {"access_token": "canary", "token_type": "DPoP"}), "token_refused", "bearer"),
    (answer(200, {"access_token": "canary\n", "token_type": "bearer"}), "secret_unusable", "line"),
    (answer(429, {}, retry_after="30"), "token_server_busy", "asked again in 30 s"),
    (elsewhere, "token_refused", "redirects are not followed"),
    (lambda *_: Response(b"canary<html>", 502), "token_refused", "it answered 502"),
    (lambda *_: Response(b" " * 65_537), "token_server_unavailable", "TooLarge"),
]  # fmt: skip


@pytest.mark.parametrize(("fails", "code", "sentence"), TROUBLE)
async def test_a_server_that_gives_no_token_is_told_of_in_our_own_words(
    house: House, tokens: TokenServer, fails: Any, code: str, sentence: str
) -> None:
    tokens.fails = fails
    error = await house.refused()
    assert error.code == code
    assert sentence in error.message
    assert len(error.message) < 300


async def test_a_busy_server_is_left_alone_for_as_long_as_it_says(
    house: House, tokens: TokenServer, clock: FakeClock
) -> None:
    tokens.fails = answer(429, {}, retry_after="30")
    await house.refused()
    clock.advance(29)
    assert (await house.refused()).code == "token_server_busy"
    assert len(tokens.asked) == 1
    tokens.fails = None
    clock.advance(2)
    await house.open()


async def test_a_server_that_is_silent_or_gone_is_not_waited_for(
    house: House, tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_server, "SECONDS", 0.2)
    tokens.gate = asyncio.Event()
    error = await house.refused()
    assert error.code == "token_server_unavailable"
    tokens.gate.set()
    house.become(token_url="http://127.0.0.1:9/token")
    assert "ConnectError" in (await house.refused()).message


async def test_a_failed_renewal_gives_nothing_from_memory(
    house: House, tokens: TokenServer, clock: FakeClock
) -> None:
    await house.open()
    clock.advance(3600 - 60)
    tokens.fails = answer(401, {"error": "invalid_client"})
    await house.refused()  # the old one would be good for a minute yet: too short for a call
    tokens.fails = None
    await house.open()


async def test_a_client_that_is_not_registered_any_more(house: House) -> None:
    with pytest.raises(Unavailable) as caught:
        await house.vault.open(bound("oauth:other"))
    assert caught.value.code == "oauth_client_unknown"


async def test_a_secret_that_cannot_be_opened_is_named(house: House) -> None:
    house.environment.clear()
    assert "CRM_SECRET" in (await house.refused()).message


# --- for the end user -------------------------------------------------------------------------


async def test_an_end_user_s_token_is_exchanged_for_one_of_their_own(
    house: House, tokens: TokenServer, clock: FakeClock
) -> None:
    end = clock().timestamp() + 7200
    ann, bo = user_token("ann", end), user_token("bo", end)
    tokens.users = {ann: "ann", bo: "bo"}
    house.become(grant="token_exchange", audience="https://crm.example")
    hers, his = await house.open(on_behalf(ann)), await house.open(on_behalf(bo))
    assert hers.reveal().endswith("of-ann")
    assert his.reveal().endswith("of-bo")
    assert await house.open(on_behalf(ann)) is hers
    assert [form["grant_type"] for form in tokens.asked] == [EXCHANGE, EXCHANGE]
    assert tokens.asked[0]["subject_token"] == ann
    assert tokens.asked[0]["audience"] == "https://crm.example"
    assert house.vault.issued() == ()
    assert house.vault.issued(Secret("ann", ann)) == (hers,)


async def test_what_stands_for_a_user_is_taken_out_of_that_user_s_answers(
    house: House, tokens: TokenServer, clock: FakeClock
) -> None:
    ann = user_token("ann", clock().timestamp() + 7200)
    tokens.users = {ann: "ann"}
    house.become(grant="token_exchange")
    hers = await house.open(on_behalf(ann))
    directory: Any = SimpleNamespace(view=View())
    injection = Injection(directory, house.vault, SignIn(None))
    raw = f"{ann} and {hers.reveal()}".encode()
    scrubber = await injection.scrubber(Secret("ann", ann))
    assert scrubber.clean(raw) == b"[redacted] and [redacted]"
    assert (await injection.scrubber()).clean(raw) == raw  # nobody else's answers can have them


async def test_without_the_end_user_s_token_there_is_none(house: House) -> None:
    house.become(grant="token_exchange")
    error = await house.refused()
    assert (error.code, error.status) == ("user_token_missing", 400)


async def test_a_token_of_a_user_that_has_expired_gives_nothing_more(
    house: House, tokens: TokenServer, clock: FakeClock
) -> None:
    """Though the one that was given for it would be good for longer."""
    ann = user_token("ann", clock().timestamp() + 600)
    tokens.users = {ann: "ann"}
    house.become(grant="token_exchange")
    await house.open(on_behalf(ann))
    clock.advance(599)
    await house.open(on_behalf(ann))
    clock.advance(1)
    error = await house.refused(on_behalf(ann))
    assert (error.code, error.status) == ("user_token_expired", 400)


async def test_a_token_that_the_server_does_not_accept_is_not_repeated(
    house: House, tokens: TokenServer
) -> None:
    house.become(grant="token_exchange")
    error = await house.refused(on_behalf("canary-opaque-token"))
    assert "it does not accept the end user's token" in error.message


# --- where and who ----------------------------------------------------------------------------


async def test_the_issuer_says_where_tokens_are_to_be_had(
    house: House, tokens: TokenServer
) -> None:
    house.become(token_url=None, issuer=tokens.url)
    assert tokens.accepts((await house.open()).reveal())


async def test_an_issuer_cannot_lead_to_where_we_must_not_go(
    house: House, tokens: TokenServer
) -> None:
    tokens.names = "http://169.254.169.254/token"
    house.become(token_url=None, issuer=tokens.url)
    assert (await house.refused()).code == "token_server_unknown"
    tokens.names = None
    house.become(issuer=f"{tokens.url}/")  # not letter by letter what it calls itself
    assert (await house.refused()).code == "token_server_unknown"
    assert tokens.asked == []


async def test_a_pod_proves_itself_by_its_service_account(
    house: House, tokens: TokenServer, tmp_path: Path, clock: FakeClock, sqlite: Database
) -> None:
    file = tmp_path / "token"
    house.become(client_secret=None, assertion="workload_identity")
    assert (await house.refused()).code == "assertion_missing"
    house.environment["AZURE_FEDERATED_TOKEN_FILE"] = str(file)
    clients = Clients(house.find, clock)
    vault = open_vault(sqlite, Envelope(bytes(32)), house.environment, clients=clients)
    tokens.assertions = {"canary-assertion-1", "canary-assertion-2"}
    for number in (1, 2):  # Kubernetes replaces it every hour
        file.write_text(f"canary-assertion-{number}\n")
        assert tokens.accepts((await vault.open(REF)).reveal())
        assert tokens.asked[-1]["client_assertion"] == f"canary-assertion-{number}"
        clock.advance(3600)


async def test_S_18_no_log_at_any_level_holds_a_secret(
    house: House, tokens: TokenServer, clock: FakeClock, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug")
    await house.open()
    tokens.fails = answer(401, {"error": "invalid_client"})
    house.become(grant="token_exchange", client_auth="post")
    await house.refused(on_behalf(user_token("canary", clock().timestamp() + 600)))
    logging.getLogger("gatepass.test").debug("that anything is logged at all")
    written = "".join(capfd.readouterr())
    assert "anything is logged" in written
    assert "canary" not in written
    assert SECRET not in written
