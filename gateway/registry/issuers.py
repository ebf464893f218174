"""What token issuers publish: their keys and addresses, found by discovery, kept for a while.

Only registered issuers are ever asked, over https (plain http on this machine alone), through the
guarded client. What a token says about where keys are is never looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
import orjson
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey, import_key

from gateway.egress import addresses
from gateway.egress.client import Bounds, open_client
from gateway.errors import Refused, Unavailable
from gateway.telemetry import Clock, log

Key = RSAKey | ECKey

#: A company's own issuer is often in its own network.
_BOUNDS = Bounds(allow_private_network=True)
#: Seconds: fetched anew when older than this; used that long if fetching fails; and the pause
#: between two fetches after a good one and after a bad one.
_STALE, _USELESS = 3600.0, 86_400.0
_AFTER_SUCCESS, _AFTER_FAILURE = 60.0, 5.0

_FAILURES = (
    httpx2.HTTPError, OSError, TimeoutError, Refused,
    ValueError, KeyError, TypeError, AttributeError,
)  # fmt: skip


class Issuers:
    """The keys and documents of every issuer that was asked for. One per process."""

    def __init__(self, clock: Clock, bounds: Bounds = _BOUNDS) -> None:
        self._clock = clock
        self._bounds = bounds
        self._known: dict[str, _Issuer] = {}

    async def key(self, issuer: str, name: str) -> Key | None:
        """The key of that name, None if the issuer has none; raises `Unavailable` when unknown."""
        found = await self._fresh(issuer, lambda known: name in known.keys)
        return found.keys.get(name)

    async def document(self, issuer: str) -> Mapping[str, Any]:
        """What the issuer says of itself (OpenID Connect Discovery §3); raises `Unavailable`."""
        return (await self._fresh(issuer, lambda known: bool(known.document))).document

    async def _fresh(self, issuer: str, answers: Callable[[_Issuer], bool]) -> _Issuer:
        """The issuer, asked again when what is known is old or does not answer the question."""
        found = self._known.setdefault(issuer, _Issuer(issuer))
        now = self._clock().timestamp()
        if not found.is_due(now) and answers(found):
            return found
        async with found.lock:
            if (found.is_due(now) or not answers(found)) and now >= found.next_fetch:
                await found.fetch(now, self._bounds)
        if now - found.fetched > _USELESS:
            raise Unavailable(
                "The keys of the token's issuer cannot be fetched, so it cannot be checked.",
                code="issuer_unavailable",
            )
        return found


class _Issuer:
    """One issuer and what is known of it."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.keys: Mapping[str, Key] = {}
        self.document: Mapping[str, Any] = {}
        self.fetched = float("-inf")
        self.next_fetch = float("-inf")
        self.lock = asyncio.Lock()

    def is_due(self, now: float) -> bool:
        """Whether the keys are so old that one may have been withdrawn."""
        return now - self.fetched > _STALE

    async def fetch(self, now: float, bounds: Bounds) -> None:
        """Fetch the keys; if that fails, those from before stay."""
        try:
            async with asyncio.timeout(bounds.seconds):
                self.document, self.keys = await _fetched(self.issuer, bounds)
        except _FAILURES as error:
            self.next_fetch = now + _AFTER_FAILURE
            log.warning("issuer.unavailable", issuer=self.issuer, error=type(error).__name__)
        else:
            self.fetched, self.next_fetch = now, now + _AFTER_SUCCESS


async def _fetched(issuer: str, bounds: Bounds) -> tuple[dict[str, Any], dict[str, Key]]:
    async with open_client(bounds) as client:
        found = await _document(client, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise ValueError("the document is another issuer's")
        address = addresses.check_issuer(str(found.get("jwks_uri")))
        return found, _keys(await _document(client, address))


async def _document(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    answer = await client.get(url)
    if answer.status_code != 200:
        raise ValueError(f"answered {answer.status_code}")
    document = orjson.loads(answer.content)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document


def _keys(document: dict[str, Any]) -> dict[str, Key]:
    """The public keys that sign, by name. Shared secrets in such a list are none."""
    found: dict[str, Key] = {}
    for member in document["keys"]:
        if member.get("kty") not in ("RSA", "EC") or member.get("use", "sig") != "sig":
            continue
        # One key of a kind that is not known here must not take the others away.
        with contextlib.suppress(JoseError, ValueError, KeyError, TypeError):
            key = import_key(member)
            if isinstance(key, Key) and key.kid is not None:
                found[key.kid] = key
    return found
