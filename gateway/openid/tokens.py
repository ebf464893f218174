"""Tokens of the identity provider, checked whole: its own, for us, of now, signed with its key.

ID tokens as OpenID Connect Core §3.1.3.7 says, logout tokens as Back-Channel Logout §2.6 does.
What a token says about keys, beside the name of one, is never looked at. Fails closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from authlib.oidc.core.claims import CodeIDToken
from joserfc import jws, jwt
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError, MissingClaimError
from joserfc.jws import JWSRegistry

from gateway.identity.claims import SignInRefused
from gateway.registry.access_tokens import ALGORITHMS
from gateway.registry.issuers import Issuers
from gateway.telemetry import Clock

LEEWAY = 30
_LONGEST = 65_536
_OLDEST_NOTICE = 300
_EVENT = "http://schemas.openid.net/event/backchannel-logout"
_CODES = {"iss": "issuer_wrong", "aud": "audience_wrong", "azp": "audience_wrong",
          "nonce": "nonce_wrong"}  # fmt: skip


@dataclass(frozen=True)
class Checker:
    """Checks what `issuer` signs for `client_id`."""

    issuer: str
    client_id: str
    issuers: Issuers
    clock: Clock

    async def id_token(
        self, token: str, *, nonce: str, access_token: str | None = None
    ) -> Mapping[str, Any]:
        """The claims of an ID token that answers the request with this nonce.

        Raises `SignInRefused`, or `Unavailable` when the keys cannot be had.
        """
        header, claims = await self._signed(token, ("jwt",))
        checked = CodeIDToken(
            claims,
            header,
            {
                "iss": {"essential": True, "value": self.issuer},
                "aud": {"essential": True, "value": self.client_id},
                "nonce": {"essential": True, "value": nonce},
            },
            {"client_id": self.client_id, "nonce": nonce, "access_token": access_token},
        )
        self._validate(checked)
        self._authenticated(claims)
        return claims

    async def logout_token(self, token: str) -> Mapping[str, Any]:
        """The claims of a notice that a session there has ended; raises as `id_token` does."""
        header, claims = await self._signed(token, ("jwt", "logout+jwt"))
        now = self.clock().timestamp()
        options = {
            "iss": {"essential": True, "value": self.issuer},
            "aud": {"essential": True, "value": self.client_id},
            "iat": {"essential": True},
            "jti": {"essential": True},
        }
        checked = _Notice(claims, header, options, {"client_id": self.client_id})
        self._validate(checked)
        if "nonce" in claims or not _about_logout(claims):
            raise _refused("token_wrong", "This is no notice of signing out.")
        if now - claims["iat"] > _OLDEST_NOTICE:
            raise _refused("token_expired", "This notice is old.")
        return claims

    async def _signed(
        self, token: str, types: tuple[str, ...]
    ) -> tuple[Mapping[str, Any], dict[str, Any]]:
        header = _header(token, types)
        key = await self.issuers.key(self.issuer, header["kid"])
        if key is None or key.get("alg") not in (None, header["alg"]):
            raise _refused("key_unknown", "The token is not signed by a key of the provider.")
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        try:
            decoded = jwt.decode(token, key, ALGORITHMS, registry)
        except (JoseError, ValueError, TypeError):
            raise _refused("signature_wrong", "The token's signature does not hold.") from None
        if not isinstance(decoded.claims, dict):
            raise _refused("token_unreadable", "The token cannot be read.")
        return decoded.header, decoded.claims

    def _validate(self, claims: CodeIDToken) -> None:
        try:
            claims.validate(int(self.clock().timestamp()), LEEWAY)
        except ExpiredTokenError:
            raise _refused("token_expired", "The token has expired.") from None
        except (ClaimError, MissingClaimError) as error:
            code = _CODES.get(str(getattr(error, "claim", "")), "claim_wrong")
            raise _refused(code, "A claim of the token does not hold.") from None
        except (JoseError, ValueError, TypeError, AttributeError):
            raise _refused("claim_wrong", "A claim of the token cannot be read.") from None

    def _authenticated(self, claims: Mapping[str, Any]) -> None:
        at = claims.get("auth_time")
        if at is None:
            return
        latest = self.clock().timestamp() + LEEWAY
        if type(at) not in (int, float) or not 0 <= at <= latest:
            raise _refused("claim_wrong", "The time of the sign-in is none.")


class _Notice(CodeIDToken):  # type: ignore[misc]  # Authlib has no types
    """A logout token has no subject where it names a session."""

    ESSENTIAL_CLAIMS = ("iss", "aud", "iat", "jti")


def _about_logout(claims: Mapping[str, Any]) -> bool:
    events, named = claims.get("events"), (claims.get("sub"), claims.get("sid"))
    told = isinstance(events, dict) and isinstance(events.get(_EVENT), dict)
    texts = all(name is None or isinstance(name, str) for name in named)
    return told and texts and any(named) and isinstance(claims.get("jti"), str)


def _header(token: str, types: tuple[str, ...]) -> Mapping[str, Any]:
    """The header as the token claims it: which key to look for, no more."""
    if len(token) > _LONGEST:
        raise _refused("token_unreadable", "The token is too long.")
    try:
        header = jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError, TypeError):
        raise _refused("token_unreadable", "The token cannot be read.") from None
    if header.get("alg") not in ALGORITHMS:
        raise _refused("algorithm_refused", "The token is not signed with an accepted algorithm.")
    if str(header.get("typ", "jwt")).lower() not in types:
        raise _refused("token_wrong", "This is a token of another kind.")
    if not isinstance(header.get("kid"), str):
        raise _refused("key_unknown", "The token does not name its key.")
    return header


def _refused(code: str, message: str) -> SignInRefused:
    return SignInRefused(code, message)
