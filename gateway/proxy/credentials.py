"""Who asks: the one reader of the credentials of an app's request.

A key or an access token, as `api-key` or as `Authorization: Bearer`, and nowhere else. Neither
goes on to Azure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.errors import NotAllowed, Refused
from gateway.proxy.http import Call
from gateway.registry.access_tokens import AccessTokens
from gateway.registry.directory import AppView, Directory

#: A signed JWT: its header is a JSON object, so that it begins like this.
_TOKEN = re.compile(r"eyJ[\w-]*\.[\w-]*\.[\w-]*", re.ASCII)


@dataclass(frozen=True)
class Credentials:
    """Tells whose request it is."""

    directory: Directory
    tokens: AccessTokens

    async def app_of(self, call: Call) -> AppView:
        """The app that asks; raises `NotAllowed` (401), `Refused` or `Unavailable`."""
        credential = _credential(call)
        if _TOKEN.fullmatch(credential):
            return await self.tokens.app_of(credential)
        app = self.directory.authenticate(credential) or await self.directory.recheck(credential)
        if app is None:
            raise _unauthenticated("The key is not one of this gateway's, or was revoked.")
        return app


def _credential(call: Call) -> str:
    """The one credential of a request; several are accepted only if they are equal."""
    found: list[str] = []
    bearer = call.header("authorization")
    if bearer is not None:
        scheme, _, value = bearer.partition(" ")
        if scheme.lower() != "bearer" or not value:
            raise _unauthenticated("The 'Authorization' header must be 'Bearer' and a key.")
        found.append(value.strip())
    key = call.header("api-key")
    if key is not None:
        found.append(key)
    if not found:
        raise _unauthenticated("Send your key as 'api-key' or as 'Authorization: Bearer'.")
    if len(set(found)) > 1:
        raise Refused("Two different keys were sent.", code="credentials_differ")
    return found[0]


def _unauthenticated(message: str) -> NotAllowed:
    return NotAllowed(message, code="invalid_api_key", status=401)
