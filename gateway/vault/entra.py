"""Microsoft Entra ID's on-behalf-of grant: azure-identity does the work.

The libraries take half a second to import, so that happens at the first token, in a thread.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from gateway.errors import Unavailable
from gateway.store.oauth import OAuthClient
from gateway.telemetry import Clock
from gateway.vault import token_server
from gateway.vault.secret import Secret
from gateway.vault.token_server import SECONDS, Proof, Token

#: Entra's own number of what is wrong stands in its sentence, beside much that is not ours to show.
_NUMBER = re.compile(r"\bAADSTS\d{4,9}\b")


class Entra:
    """Exchanges end users' tokens. `options` go to azure-identity's connections."""

    def __init__(self, clock: Clock, options: Mapping[str, Any] | None = None) -> None:
        self._clock = clock
        self._options = {
            "retry_total": 0,
            "connection_timeout": SECONDS,
            "read_timeout": SECONDS,
            "use_env_settings": False,
            **(options or {}),
        }

    async def ask(self, client: OAuthClient, proof: Proof, user: Secret) -> Token:
        """A token for the client's scope, on behalf of `user`; raises `Unavailable`."""
        errors = await asyncio.to_thread(_errors)
        credential = self._credential(client, proof, user)
        scopes = (client.scope or "").split()
        try:
            async with asyncio.timeout(SECONDS), credential:
                token = await credential.get_token_info(*scopes)
        except TimeoutError as error:
            raise token_server.unreachable(client, error) from None
        except errors.AzureError as error:
            raise _told(client, error) from None
        return Token(token.token, token.expires_on - self._clock().timestamp())

    def _credential(self, client: OAuthClient, proof: Proof, user: Secret) -> Any:
        from azure.identity.aio import OnBehalfOfCredential

        shown: dict[str, Any] = {}
        if proof.secret is not None:
            shown["client_secret"] = proof.secret.reveal()
        elif proof.assertion is not None:
            shown["client_assertion_func"] = proof.assertion.reveal
        return OnBehalfOfCredential(
            client.tenant or "",
            client.client_id,
            user_assertion=user.reveal(),
            authority=client.authority,
            **shown,
            **self._options,
        )


def _errors() -> Any:
    import azure.core.exceptions
    import azure.identity.aio

    return azure.core.exceptions


def _told(client: OAuthClient, error: Any) -> Unavailable:
    """What azure-identity raised, without what Entra wrote: only codes of a known form."""
    answer = getattr(error, "response", None)
    if answer is None:
        return token_server.unreachable(client, error)
    if answer.status_code in {429, 503}:
        return token_server.busy(client, token_server.pause(answer.headers))
    message = str(error.message)
    code = next((known for known in token_server.SAYS if f"({known})" in message), None)
    number = _NUMBER.search(message)
    return token_server.refused(client, code, f", {number[0]}" if number else "")
