"""Whom an app acts for: the end user's own access token, which the app passes in a header.

Read only where a server that the request names is called on behalf of its end user. It never goes
on to Azure: a token server exchanges it for one that is good for the MCP server alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from gateway.errors import NotAllowed, Refused
from gateway.exchange.messages import Binding
from gateway.proxy.http import Call
from gateway.registry.access_tokens import AccessTokens
from gateway.registry.directory import AppView, Directory
from gateway.store.oauth import OAuthClient

HEADER = "Gatepass-User-Token"
#: RFC 6750 §2.1; a scheme before it is what some clients add by themselves.
_FORM = re.compile(r"(?:Bearer )?([A-Za-z0-9._~+/-]{8,16384}=*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EndUser:
    """The end user's access token. `mark` tells one user's request from another's."""

    token: SecretStr
    mark: bytes


@dataclass(frozen=True)
class EndUsers:
    """Reads and, where the app's issuer is registered, checks the tokens of end users."""

    directory: Directory
    tokens: AccessTokens

    async def of(self, call: Call, app: AppView, bindings: Sequence[Binding]) -> EndUser | None:
        """The end user, None where nobody needs to know; raises `Refused` (400), `Unavailable`."""
        view = self.directory.view
        found = ((binding, view.for_user(binding.server_id)) for binding in bindings)
        needed = {client: binding.server_label for binding, client in found if client is not None}
        if not needed:
            return None
        token = _given(call, next(iter(needed.values())))
        subject = await self._checked(token, app, list(needed))
        return EndUser(SecretStr(token), hashlib.sha256((subject or token).encode()).digest())

    async def _checked(
        self, token: str, app: AppView, clients: Sequence[OAuthClient]
    ) -> str | None:
        """Whom the token stands for, where its issuer is known; else its token server judges it."""
        if app.identity is None:
            return None
        audiences = {app.identity.audience}
        for client in clients:
            audiences |= {client.client_id, f"api://{client.client_id}"}
        try:
            return await self.tokens.user_of(token, app.identity.issuer, frozenset(audiences))
        except NotAllowed as error:
            raise Refused(
                f"The end user's token in '{HEADER}' is not accepted. {error.message}",
                code="user_token_invalid",
                param=HEADER,
            ) from None


def _given(call: Call, label: str) -> str:
    value = call.header(HEADER.lower())
    if value is None:
        raise Refused(
            f"The server {label!r} is called on behalf of the end user: send the user's access "
            f"token as '{HEADER}'.",
            code="user_token_required",
            param=HEADER,
        )
    match = _FORM.fullmatch(value)
    if match is None:
        raise Refused(
            f"'{HEADER}' must be one access token.", code="user_token_invalid", param=HEADER
        )
    return match[1]
