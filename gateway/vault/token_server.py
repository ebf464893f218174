"""Asking a token server for a token: OAuth 2.0 over the guarded client.

Client credentials (RFC 6749 §4.4), token exchange (RFC 8693), client assertions (RFC 7523),
discovery (RFC 8414, OpenID Connect). Authlib writes the forms and proves the client; what a
server answers is read here, and of what it says of a failure nothing but its code is passed on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx2
import orjson
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_token_request

from gateway.egress import addresses
from gateway.egress.client import Bounds, Redirected, open_client
from gateway.errors import Refused, Unavailable
from gateway.store.oauth import TOKEN_EXCHANGE, OAuthClient
from gateway.vault.secret import Secret

SECONDS = 10.0
_LARGEST = 64 * 1024
#: Seconds that a token is good for when its server does not say, and at the most.
_UNSAID, _LONGEST = 60.0, 86_400.0
_LONGEST_PAUSE = 300.0
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105
_JWT = "urn:ietf:params:oauth:token-type:jwt"
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_BASIC = {"basic": "client_secret_basic", "post": "client_secret_post"}
#: RFC 6749 §5.2, RFC 8693 §2.2.2, OpenID Connect. What is not on the list is not repeated.
SAYS: Mapping[str, str] = {
    "invalid_client": "it does not know this client, or not this secret or assertion",
    "invalid_grant": "it does not accept the end user's token, or not any more",
    "invalid_request": "it does not accept the request",
    "invalid_scope": "it does not give this client this scope",
    "invalid_target": "it does not give tokens for this audience or resource",
    "unauthorized_client": "it does not let this client use this grant",
    "unsupported_grant_type": "it does not know this grant",
    "interaction_required": "the end user has to sign in again, or to agree",
    "consent_required": "the end user has to agree first",
    "temporarily_unavailable": "it is busy",
    "server_error": "it failed",
}


@dataclass(frozen=True, slots=True)
class Token:
    """An access token as it was given. `lifetime` is in seconds from then."""

    value: str = field(repr=False)
    lifetime: float


class Busy(Unavailable):
    """The server wants to be left alone for so many seconds."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message, code="token_server_busy")
        self.seconds = seconds


def _bounds(client: OAuthClient) -> Bounds:
    return Bounds(client.allow_private_network, seconds=SECONDS, most=_LARGEST)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a client shows: its secret, or an assertion of where it runs."""

    secret: Secret | None = None
    assertion: Secret | None = None


async def ask(client: OAuthClient, url: str, proof: Proof, user: Secret | None) -> Token:
    """A token from the token address `url`; raises `Unavailable`, with nothing of the answer.

    `user` is the end user's own access token, for a token exchange.
    """
    headers, body = _request(client, url, proof, user)
    try:
        async with asyncio.timeout(SECONDS), open_client(_bounds(client)) as http:
            answer = await http.post(url, headers=headers, content=body)
    except Redirected:
        raise refused(client, None, "; redirects are not followed") from None
    except (httpx2.HTTPError, OSError, TimeoutError) as error:
        raise unreachable(client, error) from None
    if answer.status_code != 200:
        raise _refusal(client, answer.status_code, answer.headers, _object(answer.content))
    return _token(client, _object(answer.content))


async def discover(client: OAuthClient) -> str:
    """The token address that the issuer itself names; raises `Unavailable`."""
    issuer = client.issuer or ""
    try:
        async with asyncio.timeout(SECONDS), open_client(_bounds(client)) as http:
            for url in _well_known(issuer):
                found = await http.get(url, headers={"accept": "application/json"})
                document = _object(found.content)
                if found.status_code == 200 and document.get("issuer") == issuer:
                    named, private = (
                        str(document.get("token_endpoint")),
                        client.allow_private_network,
                    )
                    return addresses.check(named, allow_private_network=private).url
    except (httpx2.HTTPError, OSError, TimeoutError) as error:
        raise unreachable(client, error) from None
    except Refused:
        pass  # what it names must not be asked
    raise Unavailable(
        f"The issuer of the OAuth client {client.name!r} does not say where its tokens are to be "
        "had; write down token_url instead of issuer.",
        code="token_server_unknown",
    )


def unreachable(client: OAuthClient, error: BaseException) -> Unavailable:
    """No answer in time. Only the type of what went wrong is passed on."""
    why = (
        f"no answer within {SECONDS:.0f} s"
        if isinstance(error, TimeoutError)
        else (type(error).__name__)
    )
    return Unavailable(
        f"The token server of the OAuth client {client.name!r} cannot be reached ({why}).",
        code="token_server_unavailable",
    )


def refused(client: OAuthClient, code: object, detail: str = "") -> Unavailable:
    """The server gives no token; `code` is what it says of it, `detail` safe to be shown."""
    known = code if isinstance(code, str) and code in SAYS else None
    why = f"{known}: {SAYS[known]}" if known else "and does not say why in words known here"
    return Unavailable(
        f"The token server of the OAuth client {client.name!r} gives no token ({why}{detail}).",
        code="token_refused",
    )


def busy(client: OAuthClient, seconds: float) -> Busy:
    """The server, or we for its sake, want no request for so long."""
    return Busy(
        f"The token server of the OAuth client {client.name!r} is busy; it is asked again in "
        f"{math.ceil(seconds)} s.",
        seconds,
    )


def pause(headers: Mapping[str, str]) -> float:
    """Seconds that a 429 asks for; a moment when it does not say."""
    given = headers.get("retry-after") or ""
    return min(float(given), _LONGEST_PAUSE) if given.isascii() and given.isdigit() else 1.0


def _request(
    client: OAuthClient, url: str, proof: Proof, user: Secret | None
) -> tuple[dict[str, str], str]:
    grant, members = client.grant, {"audience": client.audience, "resource": client.resource}
    if client.grant == TOKEN_EXCHANGE:
        grant = _EXCHANGE
        members |= {
            "subject_token": None if user is None else user.reveal(),
            "subject_token_type": _ACCESS_TOKEN,
            "requested_token_type": _ACCESS_TOKEN,
        }
    if proof.assertion is not None:
        members |= {
            "client_id": client.client_id,
            "client_assertion_type": _ASSERTION,
            "client_assertion": proof.assertion.reveal(),
        }
    body = prepare_token_request(grant, scope=client.scope or "", **members)
    headers = {
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/x-www-form-urlencoded",
    }
    if proof.secret is not None:
        name, secret = client.client_id, proof.secret.reveal()
        if client.client_auth == "basic":  # RFC 6749 §2.3.1: encoded before they are joined
            name, secret = quote(name, safe=""), quote(secret, safe="")
        method = _BASIC[client.client_auth]
        _, headers, body = ClientAuth(name, secret, method).prepare("POST", url, headers, body)
    return headers, body


def _object(raw: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _refusal(
    client: OAuthClient, status: int, headers: Mapping[str, str], document: dict[str, Any]
) -> Unavailable:
    if status in {429, 503}:
        return busy(client, pause(headers))
    if document.get("error") in SAYS:
        return refused(client, document["error"])
    return refused(client, None, f"; it answered {status}")


def _token(client: OAuthClient, document: dict[str, Any]) -> Token:
    """RFC 6749 §5.1; RFC 8693 §2.2.1: what was issued must be good to be sent to a server."""
    value, kind = document.get("access_token"), document.get("token_type")
    issued = document.get("issued_token_type", _ACCESS_TOKEN)
    if not isinstance(value, str) or not isinstance(kind, str):
        raise refused(client, document.get("error"))
    if kind.lower() != "bearer" or issued not in (_ACCESS_TOKEN, _JWT):
        raise refused(client, None, "; what it gives is no bearer token")
    return Token(value, _lifetime(document.get("expires_in")))


def _lifetime(given: Any) -> float:
    """Some servers write the number as text, and some leave it out."""
    try:
        seconds = float(given) if not isinstance(given, bool) else math.nan
    except (TypeError, ValueError):
        return _UNSAID
    return min(max(seconds, 0.0), _LONGEST) if math.isfinite(seconds) else _UNSAID


def _well_known(issuer: str) -> tuple[str, str]:
    parts = urlsplit(issuer)
    path = f"/.well-known/oauth-authorization-server{parts.path.rstrip('/')}"  # RFC 8414 §3.1
    return (
        f"{issuer.rstrip('/')}/.well-known/openid-configuration",
        urlunsplit((parts.scheme, parts.netloc, path, "", "")),
    )
