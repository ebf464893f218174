"""Access tokens instead of keys: is it one of a registered issuer's, and whose is it?

A token stands for the one app whose issuer, audience and, where it is set, subject it names. It
is checked whole: signature by a key of the issuer, algorithm from a list, times. Fails closed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from joserfc import jws, jwt
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError
from joserfc.jws import JWSRegistry
from joserfc.jwt import ClaimsOption, JWTClaimsRegistry

from gateway.errors import NotAllowed
from gateway.registry.directory import AppView, Directory
from gateway.registry.issuers import Issuers
from gateway.telemetry import Clock

#: Signatures by a private key alone: neither `none` nor a shared secret is among them.
ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"
)  # fmt: skip
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_LONGEST = 16_384
_LEEWAY = 30
#: Seconds for which a token that was checked is not checked again, and how many are remembered.
_REMEMBERED, _MOST = 600.0, 4096


@dataclass(frozen=True, slots=True)
class _Checked:
    """What a good token says. `until` is when it is checked again, at its end at the latest."""

    issuer: str
    audiences: frozenset[str]
    subjects: frozenset[str]
    until: float


class AccessTokens:
    """Checks tokens, and remembers those that were good. One per process."""

    def __init__(self, directory: Directory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._issuers = Issuers(clock)
        self._good: dict[bytes, _Checked] = {}

    async def app_of(self, token: str) -> AppView:
        """The app that the token stands for; raises `NotAllowed` (401) or `Unavailable`."""
        return self._app(await self._checked(token))

    async def user_of(self, token: str, issuer: str, audiences: frozenset[str]) -> str:
        """Whom a token of `issuer` for one of `audiences` stands for; raises as `app_of` does."""
        checked = await self._checked(token)
        if checked.issuer != issuer:
            raise _refused("It is not of the issuer that is registered for the app.")
        if not checked.audiences & audiences:
            raise _refused("It is for another audience.")
        return " ".join([issuer, *sorted(checked.subjects)])

    async def _checked(self, token: str) -> _Checked:
        digest = hashlib.sha256(token.encode()).digest()
        checked = self._good.get(digest)
        if checked is None or checked.until <= self._clock().timestamp():
            checked = await self._check(token)
            self._remember(digest, checked)
        return checked

    async def _check(self, token: str) -> _Checked:
        header, issuer = _unchecked(token)
        if issuer not in self._directory.view.apps_by_issuer:
            await self._directory.look_again()
            if issuer not in self._directory.view.apps_by_issuer:
                raise _refused("No app is registered for the issuer of this access token.")
        key = await self._issuers.key(issuer, header["kid"])
        if key is None or key.get("alg") not in (None, header["alg"]):
            raise _refused("The access token is not signed by a key of its issuer.")
        now = self._clock().timestamp()
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        try:
            claims = jwt.decode(token, key, ALGORITHMS, registry).claims
            _claims(issuer, int(now)).validate(claims)
        except ExpiredTokenError:
            raise _refused("The access token has expired.") from None
        except ClaimError as error:
            raise _refused(f"The access token's claim {error.claim!r} does not hold.") from None
        except (JoseError, ValueError, TypeError):
            raise _refused("The access token's signature does not hold.") from None
        return _Checked(
            issuer,
            _texts(claims["aud"]),
            _texts([claims.get("sub"), claims.get("azp"), claims.get("appid")]),
            min(float(claims["exp"]), now + _REMEMBERED),
        )

    def _app(self, checked: _Checked) -> AppView:
        """By what is registered now: a token outlives neither its app nor its registration."""
        found = [
            app
            for app in self._directory.view.apps_by_issuer.get(checked.issuer, ())
            if app.identity is not None
            and app.identity.audience in checked.audiences
            and (app.identity.subject is None or app.identity.subject in checked.subjects)
        ]
        if len(found) > 1:
            raise _refused("The access token stands for several apps: register subjects.")
        if not found:
            raise _refused("No app is registered for this access token.")
        return found[0]

    def _remember(self, digest: bytes, checked: _Checked) -> None:
        self._good[digest] = checked
        if len(self._good) > _MOST:
            del self._good[next(iter(self._good))]


def _unchecked(token: str) -> tuple[Mapping[str, str], str]:
    """Header and issuer as the token claims them: where to look for the key, no more."""
    if len(token) > _LONGEST:
        raise _refused("The access token is too long.")
    try:
        parts = jws.extract_compact(token.encode())
        header, claims = parts.headers(), orjson.loads(parts.payload)
    except (JoseError, ValueError, TypeError):
        raise _refused("The access token cannot be read.") from None
    if header.get("alg") not in ALGORITHMS:
        raise _refused("The access token is not signed with an accepted algorithm.")
    if str(header.get("typ", "jwt")).lower() not in _TYPES:
        raise _refused("This is a token, but not an access token.")
    if not isinstance(header.get("kid"), str) or not isinstance(claims, dict):
        raise _refused("The access token does not name its key.")
    return header, str(claims.get("iss"))


def _claims(issuer: str, now: int) -> JWTClaimsRegistry:
    needed: ClaimsOption = {"essential": True}
    named: ClaimsOption = {"essential": True, "value": issuer}
    return JWTClaimsRegistry(now, _LEEWAY, iss=named, aud=needed, exp=needed, nbf=needed)


def _texts(value: Any) -> frozenset[str]:
    values = value if isinstance(value, list) else [value]
    return frozenset(text for text in values if isinstance(text, str) and text)


def _refused(message: str) -> NotAllowed:
    return NotAllowed(message, code="invalid_token", status=401)
