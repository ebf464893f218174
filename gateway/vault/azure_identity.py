"""Who the gateway is at Azure: one credential for Key Vault and for the Azure resource.

The client libraries of Azure take half a second and 30 MB to import, so that happens at the first
token, in a thread, and never where no Azure identity is used.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.config import Settings
from gateway.errors import Unavailable

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from azure.core.credentials_async import AsyncTokenCredential

_HINTS = {
    "default": "give the gateway an identity, or say with GATEPASS_AZURE_CREDENTIAL which it has",
    "managed": "assign a managed identity to this machine, and name a user-assigned one in "
    "GATEPASS_AZURE_CLIENT_ID",
    "workload": "label the pod azure.workload.identity/use and its service account with the "
    "client id",
}


def azure_credential(settings: Settings) -> AzureCredential:
    """The identity that the settings name; nothing is imported or asked before `get_token`."""
    return AzureCredential(settings.azure_credential, settings.azure_client_id)


class AzureCredential:
    """An `AsyncTokenCredential` as the clients of Azure expect one. One per process.

    Tokens are kept, and renewed before their end, by azure-identity; many waiters cause one
    request. Raises `Unavailable` when there is no token.
    """

    def __init__(self, kind: str, client_id: str | None) -> None:
        self._kind = kind
        self._client_id = client_id
        self._inner: AsyncTokenCredential | None = None
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<AzureCredential {self._kind}>"

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """A token for a resource, such as `https://vault.azure.net/.default`."""
        async with self._lock:
            try:
                return await (await self._made()).get_token(*scopes, **options)
            except Exception as error:
                raise self._none(error) from None

    async def ready(self) -> None:
        """Import what a token takes, which may last as long as the token itself."""
        async with self._lock:
            try:
                await self._made()
            except Exception as error:
                raise self._none(error) from None

    async def close(self) -> None:
        """Close its connections."""
        if self._inner is not None:
            await self._inner.close()
            self._inner = None

    async def _made(self) -> AsyncTokenCredential:
        if self._inner is None:
            self._inner = await asyncio.to_thread(_built, self._kind, self._client_id)
        return self._inner

    def _none(self, error: Exception) -> Unavailable:
        # What Entra says of a failure may quote what it was given: only the type goes on.
        return Unavailable(
            f"Azure gives the gateway no token ({type(error).__name__}): {_HINTS[self._kind]}.",
            code="azure_identity_unavailable",
        )

    async def __aenter__(self) -> AzureCredential:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _built(kind: str, client_id: str | None) -> AsyncTokenCredential:
    from azure.identity import aio

    named: dict[str, Any] = {"client_id": client_id} if client_id else {}
    if kind == "managed":
        return aio.ManagedIdentityCredential(**named)
    if kind == "workload":
        return aio.WorkloadIdentityCredential(**named)
    named = {f"{of}_identity_client_id": client_id for of in ("managed", "workload") if client_id}
    # Of a developer's tools only the command line: the others ask, or read what is another's.
    return aio.DefaultAzureCredential(
        exclude_shared_token_cache_credential=True,
        exclude_visual_studio_code_credential=True,
        exclude_powershell_credential=True,
        exclude_developer_cli_credential=True,
        **named,
    )
