"""The identity provider over the network: its addresses, its codes, what it says of people.

Every address is its own word from discovery and must be https (or on this machine); redirects are
not followed. A client secret goes to the token endpoint and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from gateway.egress import addresses
from gateway.egress.client import Bounds, Guarded
from gateway.errors import Refused, Unavailable
from gateway.identity.claims import SignInRefused
from gateway.openid.tokens import Checker
from gateway.registry.issuers import Issuers
from gateway.telemetry import Clock, log

#: It may well be in a network of its own: the operator names it.
_BOUNDS = Bounds(allow_private_network=True)
_FAILURES = (httpx2.HTTPError, OSError, TimeoutError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Client:
    """What the provider knows of us. Without `secret` we are a public client."""

    issuer: str
    client_id: str
    secret: str | None
    scopes: str
    public_url: str

    @property
    def redirect_uri(self) -> str:
        """The one address to which people come back."""
        return f"{self.public_url.rstrip('/')}/sign-in/callback"

    @property
    def signed_out_uri(self) -> str:
        """Where people land once they are signed out there."""
        return f"{self.public_url.rstrip('/')}/sign-in"


@dataclass(frozen=True)
class Asked:
    """One request to sign somebody in. `max_age` in seconds asks for a fresh sign-in."""

    state: str
    nonce: str
    verifier: str
    max_age: int | None = None


@dataclass(frozen=True)
class Answered:
    """What the token endpoint gave for a code: claims that were checked, and the ID token."""

    claims: Mapping[str, Any]
    id_token: str
    access_token: str | None


class Provider:
    """One provider. Knows no person and keeps nothing but public keys and addresses."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self.client = client
        self._issuers = Issuers(clock)
        self.checker = Checker(client.issuer, client.client_id, self._issuers, clock)

    async def address(self, asked: Asked) -> str:
        """Where to send the browser; raises `Unavailable` when the provider does not answer."""
        extra: dict[str, Any] = {}
        if asked.max_age is not None:
            extra = {"prompt": "login", "max_age": asked.max_age}
        address: str = prepare_grant_uri(
            await self._endpoint("authorization_endpoint"),
            self.client.client_id,
            "code",
            self.client.redirect_uri,
            self.client.scopes,
            asked.state,
            nonce=asked.nonce,
            code_challenge=create_s256_code_challenge(asked.verifier),
            code_challenge_method="S256",
            **extra,
        )
        return address

    async def check_origin(self, issuer: str | None) -> None:
        """That the answer is this provider's own (RFC 9207); raises `SignInRefused`."""
        document = await self._issuers.document(self.client.issuer)
        promised = document.get("authorization_response_iss_parameter_supported") is True
        if issuer != self.client.issuer and (promised or issuer is not None):
            raise SignInRefused("mix_up", "The answer comes from another identity provider.")

    async def redeem(self, code: str, asked: Asked) -> Answered:
        """Change a code for who it stands for. Raises `SignInRefused`, `Unavailable`."""
        endpoint = await self._endpoint("token_endpoint")
        try:
            async with self._http(await self._method()) as http:
                answer = await http.fetch_token(
                    endpoint,
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=asked.verifier,
                    redirect_uri=self.client.redirect_uri,
                )
        except AuthlibBaseError as error:
            log.warning("sign_in.code_refused", error=str(error.error)[:80])
            raise SignInRefused(
                "code_refused", "The identity provider does not take its code back."
            ) from None
        except _FAILURES as error:
            raise _silent(error) from None
        id_token, access_token = answer.get("id_token"), answer.get("access_token")
        if not isinstance(id_token, str):
            raise SignInRefused("token_unreadable", "The identity provider sent no ID token.")
        access_token = access_token if isinstance(access_token, str) else None
        claims = await self.checker.id_token(id_token, nonce=asked.nonce, access_token=access_token)
        return Answered(claims, id_token, access_token)

    async def more(self, answered: Answered) -> Mapping[str, Any]:
        """The claims with what the provider says elsewhere; those of the token win.

        Raises `SignInRefused` when that is about somebody else (OpenID Connect Core §5.3.2).
        """
        endpoint = await self._endpoint("userinfo_endpoint", needed=False)
        if endpoint is None or answered.access_token is None:
            return answered.claims
        try:
            async with self._http("none") as http:
                answer = await http.request(
                    "GET",
                    endpoint,
                    withhold_token=True,
                    headers={"authorization": f"Bearer {answered.access_token}"},
                )
                answer.raise_for_status()
                said = answer.json()
        except _FAILURES as error:
            raise _silent(error) from None
        if not isinstance(said, dict) or said.get("sub") != answered.claims.get("sub"):
            raise SignInRefused("subject_wrong", "The identity provider speaks of two people.")
        return {**said, **answered.claims}

    async def farewell(self, id_token: str | None) -> str | None:
        """Where to sign out there too (RP-Initiated Logout §2), None where that cannot be."""
        try:
            endpoint = await self._endpoint("end_session_endpoint", needed=False)
        except Unavailable:
            return None
        if endpoint is None:
            return None
        members = {
            "client_id": self.client.client_id,
            "post_logout_redirect_uri": self.client.signed_out_uri,
            **({"id_token_hint": id_token} if id_token else {}),
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(members)}"

    async def _endpoint(self, name: str, *, needed: bool = True) -> Any:
        found = (await self._issuers.document(self.client.issuer)).get(name)
        if found is None and not needed:
            return None
        try:
            return addresses.check_endpoint(str(found))
        except Refused:
            raise Unavailable(
                f"The identity provider's {name} is no address that may be used.",
                code="provider_unusable",
            ) from None

    async def _method(self) -> str:
        if self.client.secret is None:
            return "none"
        document = await self._issuers.document(self.client.issuer)
        offered = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return "client_secret_basic" if "client_secret_basic" in offered else "client_secret_post"

    def _http(self, method: str) -> Any:
        """Authlib's client over the guarded transport, to be used as a context."""
        return AsyncOAuth2Client(
            self.client.client_id,
            None if method == "none" else self.client.secret,
            token_endpoint_auth_method=method,
            transport=Guarded(_BOUNDS),
            follow_redirects=False,
            trust_env=False,
        )


def _silent(error: Exception) -> Unavailable:
    log.warning("sign_in.provider_failed", error=type(error).__name__)
    return Unavailable("The identity provider does not answer.", code="issuer_unavailable")
