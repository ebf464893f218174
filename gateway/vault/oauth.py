"""`oauth:` secrets: tokens that a token server gives, kept in memory until they are nearly over.

A token of a client is shared by all; one on behalf of an end user is good for that user's token
alone. Many who wait for one token cause one request. Fails closed: without a token nothing is sent.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import Unavailable
from gateway.flight import Flight
from gateway.store.oauth import ON_BEHALF_OF, OAuthClient
from gateway.store.references import SecretRef
from gateway.telemetry import Clock
from gateway.vault import token_server
from gateway.vault.entra import Entra
from gateway.vault.secret import Purpose, Secret, opened
from gateway.vault.token_server import Busy, Proof

#: Seconds that a token must still be good for: for a call that somebody waited for, which Azure
#: may take a while to make, and for anything else. At most this share of its whole life.
_FRESH, _USUAL, _SHARE = 120.0, 15.0, 0.25
#: Tokens that are kept at the most, and seconds for which a discovered address counts.
_MOST, _DISCOVERED = 4096, 3600.0

Open = Callable[[SecretRef, Purpose], Awaitable[Secret]]


@dataclass(frozen=True, slots=True)
class Clients:
    """How clients are found: by name, as configured now."""

    find: Callable[[str], OAuthClient | None]
    clock: Clock


@dataclass(frozen=True, slots=True)
class _Key:
    """Whose token it is: another definition of the client has other tokens."""

    client: OAuthClient
    user: bytes | None


@dataclass(frozen=True, slots=True)
class _Held:
    """A token in memory; `margin` is how long before `ends` it is not used any more."""

    secret: Secret
    ends: float
    lifetime: float

    def is_good(self, now: float, *, fresh: bool) -> bool:
        margin = min(_FRESH if fresh else _USUAL, self.lifetime * _SHARE)
        return now < self.ends - margin


class OAuthStore:
    """Opens `oauth:NAME`. `open_secret` opens the clients' own secrets, in other stores."""

    def __init__(
        self,
        open_secret: Open,
        clients: Clients,
        environment: Mapping[str, str],
        entra: Entra | None = None,
    ) -> None:
        self._open_secret = open_secret
        self._clients = clients
        self._assertion_file = environment.get("AZURE_FEDERATED_TOKEN_FILE")
        self._entra = entra or Entra(clients.clock)
        self._held: dict[_Key, tuple[_Held, ...]] = {}
        self._flight: Flight[Secret] = Flight()
        self._asked_again: dict[OAuthClient, float] = {}
        self._discovered: dict[OAuthClient, tuple[str, float]] = {}
        #: How many tokens that stand for no user were given.
        self.issues = 0

    def __repr__(self) -> str:
        return "<OAuthStore>"

    async def open(self, ref: SecretRef, purpose: Purpose) -> Secret:
        """A token that is good for a while yet, for a fresh purpose a good while."""
        client = self._clients.find(ref.name)
        if client is None:
            raise Unavailable(
                f"There is no OAuth client {ref.name!r}: register it, or change the credential.",
                code="oauth_client_unknown",
            )
        user = _user_of(client, purpose, self._now())
        key = _Key(client, None if user is None else _mark(user))
        held = self._held.get(key, ())
        if held and held[-1].is_good(self._now(), fresh=purpose.fresh):
            return held[-1].secret
        return await self._flight.share(key, lambda: self._renew(key, user))

    async def ping(self) -> None:
        """Token servers are asked when a token is needed, and not before."""

    def issued(self, end_user: Secret | None = None) -> tuple[Secret, ...]:
        """The tokens that may be in use, of the clients or of an end user: they must come back in
        no answer. Those that were renewed are among them until they end.
        """
        now, user = self._now(), None if end_user is None else _mark(end_user)
        found = (one for key, held in self._held.items() if key.user == user for one in held)
        return tuple(one.secret for one in found if now < one.ends)

    def _now(self) -> float:
        return self._clients.clock().timestamp()

    async def _renew(self, key: _Key, user: Secret | None) -> Secret:
        client, now = key.client, self._now()
        if (wait := self._asked_again.get(client, now) - now) > 0:
            raise token_server.busy(client, wait)
        try:
            token = await self._ask(client, user)
        except Busy as error:
            self._asked_again[client] = self._now() + error.seconds
            raise
        self._asked_again.pop(client, None)
        ends = now + token.lifetime  # counted from before it was asked for
        until = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        secret = opened(f"oauth:{client.name}", token.value, until)
        self._remember(key, _Held(secret, ends, token.lifetime))
        return secret

    async def _ask(self, client: OAuthClient, user: Secret | None) -> token_server.Token:
        proof = await self._proof(client)
        if client.grant == ON_BEHALF_OF and user is not None:
            return await self._entra.ask(client, proof, user)
        return await token_server.ask(client, await self._address(client), proof, user)

    async def _address(self, client: OAuthClient) -> str:
        if client.token_url is not None:
            return client.token_url
        if client.tenant is not None:
            return f"{client.authority}/{client.tenant}/oauth2/v2.0/token"
        url, until = self._discovered.get(client, ("", 0.0))
        if until <= self._now():
            url = await token_server.discover(client)
            self._discovered = {
                known: found
                for known, found in self._discovered.items()
                if self._clients.find(known.name) == known
            }
            self._discovered[client] = url, self._now() + _DISCOVERED
        return url

    async def _proof(self, client: OAuthClient) -> Proof:
        ref = client.secret_ref()
        if ref is not None:
            return Proof(secret=await self._open_secret(ref, Purpose()))
        return Proof(assertion=await asyncio.to_thread(self._assertion, client))

    def _assertion(self, client: OAuthClient) -> Secret:
        """The token of the pod's service account: read anew, because it is replaced every hour."""
        name = f"the workload identity of the OAuth client {client.name}"
        if not self._assertion_file:
            raise Unavailable(
                f"The OAuth client {client.name!r} proves itself by the workload identity of its "
                "pod, and AZURE_FEDERATED_TOKEN_FILE is not set here.",
                code="assertion_missing",
            )
        try:
            return opened(name, Path(self._assertion_file).read_text("ascii").strip())
        except (OSError, ValueError):
            raise Unavailable(
                f"The file that AZURE_FEDERATED_TOKEN_FILE names cannot be read for {name}.",
                code="assertion_missing",
            ) from None

    def _remember(self, key: _Key, held: _Held) -> None:
        now = self._now()
        before = tuple(one for one in self._held.pop(key, ()) if now < one.ends)
        if len(self._held) >= _MOST:
            self._held = {known: all_ for known, all_ in self._held.items() if now < all_[-1].ends}
            while len(self._held) >= _MOST:
                del self._held[next(iter(self._held))]
        self._held[key] = (*before, held)
        self.issues += key.user is None


def _user_of(client: OAuthClient, purpose: Purpose, now: float) -> Secret | None:
    """The end user's token where the client acts for one; raises `Unavailable` when it is gone."""
    if not client.for_user:
        return None
    if purpose.end_user is None:
        raise Unavailable(
            f"The OAuth client {client.name!r} acts for the end user, whose own access token is "
            "not here: the app sends it as 'Gatepass-User-Token'.",
            code="user_token_missing",
            status=400,
        )
    if _is_over(purpose.end_user, now):
        raise Unavailable(
            "The end user's access token has expired, so nothing is done for them any more: send "
            "the request again with a new one.",
            code="user_token_expired",
            status=400,
        )
    return purpose.end_user


def _is_over(token: Secret, now: float) -> bool:
    """Whether it says of itself that it is over; one that cannot be read is its server's to judge.

    Only to end early what would fail, or go on too long, anyway: nothing is believed here.
    """
    with contextlib.suppress(ValueError, IndexError, TypeError):
        payload = token.reveal().split(".")[1]
        claims: Any = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return isinstance(claims, dict) and float(claims.get("exp", now + 1)) <= now
    return False


def _mark(user: Secret) -> bytes:
    return hashlib.sha256(user.reveal().encode()).digest()
