"""Entra's on-behalf-of grant: the real azure-identity against a stub of Entra under TLS."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.demo.runner import serve
from gateway.errors import Unavailable
from gateway.store.oauth import OAuthClient
from gateway.store.references import SecretRef
from gateway.telemetry import configure_logging, utc_now
from gateway.vault import Clients, Purpose, Secret
from gateway.vault.entra import Entra
from gateway.vault.oauth import OAuthStore
from tests.support.clock import FakeClock
from tests.support.oauth import user_token
from tests.support.tls import over_tls

TENANT = "11111111-2222-3333-4444-555555555555"
REF = SecretRef("oauth", "graph")


class Stub:
    """Entra's token address, as far as this grant goes."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.fails: Callable[[], Response] | None = None

    async def token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        self.asked.append(form)
        if self.fails is not None:
            return self.fails()
        token = f"canary-token-{len(self.asked)}"
        return JSONResponse({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
async def store(stub: Stub, clock: FakeClock, tmp_path: Path) -> AsyncIterator[OAuthStore]:
    clock.now = utc_now()  # azure-identity has a clock of its own
    routes = [Route(f"/{TENANT}/oauth2/v2.0/token", stub.token, methods=["POST"])]
    async with (
        serve(Starlette(routes=routes)) as plain,
        over_tls(plain, tmp_path) as (
            url,
            authority,
        ),
    ):
        client = OAuthClient(
            "graph",
            "on_behalf_of",
            "gatepass",
            tenant=TENANT,
            authority=url,
            client_secret="env:GRAPH",
            scope="https://graph.microsoft.com/.default",
        )

        async def secret(ref: SecretRef, _: Purpose) -> Secret:
            assert ref.scope == f"oauth/graph {url}/{TENANT}"
            return Secret(str(ref), "canary-secret")

        entra = Entra(clock, {"connection_verify": str(authority)})
        yield OAuthStore(secret, Clients(lambda _: client, clock), {}, entra)


def on_behalf(clock: FakeClock) -> Purpose:
    token = user_token("canary", clock().timestamp() + 7200)
    return Purpose(True, Secret("the end user's token", token))


async def test_a_token_is_had_on_behalf_of_the_user(
    store: OAuthStore, stub: Stub, clock: FakeClock
) -> None:
    purpose = on_behalf(clock)
    first = await store.open(REF, purpose)
    assert first.reveal() == "canary-token-1"
    assert await store.open(REF, purpose) is first
    (form,) = stub.asked
    assert purpose.end_user is not None
    assert form["assertion"] == purpose.end_user.reveal()
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    assert form["requested_token_use"] == "on_behalf_of"
    assert (form["client_id"], form["client_secret"]) == ("gatepass", "canary-secret")
    assert "https://graph.microsoft.com/.default" in form["scope"]
    clock.advance(3500)
    assert (await store.open(REF, purpose)).reveal() == "canary-token-2"


def answer(status: int, error: str, text: str = "", **headers: str) -> Callable[[], Response]:
    body = {"error": error, "error_description": f"{text} canary-assertion"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: JSONResponse(body, status, named)


@pytest.mark.parametrize(
    ("fails", "code", "sentence"),
    [
        (
            answer(400, "invalid_grant", "AADSTS500133: the assertion is over."),
            "token_refused",
            "invalid_grant: it does not accept the end user's token, or not any more, AADSTS500133",
        ),
        (answer(400, "interaction_required", "AADSTS50076: MFA"), "token_refused", "AADSTS50076"),
        (answer(401, "invalid_client", "AADSTS7000215"), "token_refused", "AADSTS7000215"),
        (answer(429, "x", "", retry_after="7"), "token_server_busy", "asked again in 7 s"),
        (answer(400, "canary_error"), "token_refused", "does not say why in words known here"),
        (lambda: Response(b"canary", 307, {"location": "/canary"}), "token_", "token"),
    ],
)
async def test_what_entra_refuses_is_told_by_code_and_number(
    store: OAuthStore, stub: Stub, clock: FakeClock, fails: Any, code: str, sentence: str
) -> None:
    stub.fails = fails
    with pytest.raises(Unavailable) as caught:
        await store.open(REF, on_behalf(clock))
    assert caught.value.code.startswith(code)
    assert sentence in caught.value.message
    assert "canary" not in caught.value.message
    assert len(stub.asked) == 1


async def test_S_18_azure_identity_logs_no_secret_at_any_level(
    store: OAuthStore, stub: Stub, clock: FakeClock, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug")
    await store.open(REF, on_behalf(clock))
    stub.fails = answer(400, "invalid_grant", "AADSTS500133")
    clock.advance(3500)
    with pytest.raises(Unavailable):
        await store.open(REF, on_behalf(clock))
    logging.getLogger("gatepass.test").debug("that anything is logged at all")
    written = "".join(capfd.readouterr())
    assert "anything is logged" in written
    assert "canary" not in written
