"""`keyvault:VAULT/NAME`: secrets of Azure Key Vault, read with the gateway's own identity at Azure.

The newest version is read, or the one behind `#`. Disabled, deleted, expired and unknown secrets
are sentences of their own, and nothing is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.store.references import SecretRef
from gateway.telemetry import Clock
from gateway.vault.azure_identity import AzureCredential, azure_credential
from gateway.vault.secret import Purpose, Secret, opened

if TYPE_CHECKING:
    from azure.keyvault.secrets import KeyVaultSecret
    from azure.keyvault.secrets.aio import SecretClient

_SECONDS = 5.0


class KeyVaultStore:
    """Reads with the rights of the gateway's identity. Asks at every call.

    `address` makes the URL of a vault from its name; `options` go to the client of Azure as they
    are.
    """

    def __init__(
        self,
        credential: AzureCredential,
        clock: Clock,
        address: Callable[[str], str],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._credential = credential
        self._clock = clock
        self._address = address
        # Nothing is tried again: whoever asks is told at once, and may ask again.
        self._options = {"retry_total": 0, "logging_enable": False, **(options or {})}
        self._clients: dict[str, SecretClient] = {}
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return "<KeyVaultStore>"

    async def open(self, ref: SecretRef, _purpose: Purpose) -> Secret:
        """The value now; `Unavailable` when there is none."""
        vault, _, name = ref.name.partition("/")
        try:
            # The first time the libraries are imported: that is not the vault's time.
            client = await self._client(vault)
            async with asyncio.timeout(_SECONDS):
                found = await client.get_secret(name, ref.field)
        except Unavailable:
            raise
        except Exception as error:
            raise _failure(ref, error) from None
        return self._usable(ref, found)

    async def ping(self) -> None:
        """Which vaults there are is known from references alone: each is asked when opened."""

    async def close(self) -> None:
        """Close the connections, those to the identity among them."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()
        await self._credential.close()

    async def _client(self, vault: str) -> SecretClient:
        async with self._lock:
            if vault not in self._clients:
                await self._credential.ready()
                made = await asyncio.to_thread(_client_class)
                self._clients[vault] = made(self._address(vault), self._credential, **self._options)
            return self._clients[vault]

    def _usable(self, ref: SecretRef, found: KeyVaultSecret) -> Secret:
        about, now = found.properties, self._clock()
        # Key Vault gives these away all the same; whoever set a date did not mean that.
        if about.expires_on is not None and about.expires_on <= now:
            raise Unavailable(f"{ref} has expired: store it again.", code="secret_missing")
        if about.not_before is not None and about.not_before > now:
            raise Unavailable(f"{ref} may not be used yet: see its dates.", code="secret_missing")
        return opened(str(ref), found.value or "", about.version)


def keyvault_store(settings: Settings, clock: Clock) -> KeyVaultStore:
    """The store of this installation; nothing is imported or asked before it is used."""
    suffix = settings.keyvault_suffix
    identity = azure_credential(settings)
    return KeyVaultStore(identity, clock, lambda name: f"https://{name}.{suffix}")


def _client_class() -> type[SecretClient]:
    from azure.keyvault.secrets.aio import SecretClient

    return SecretClient


def _failure(ref: SecretRef, error: Exception) -> Unavailable:
    """What the state of the vault or the secret is; what Azure says of it is not repeated."""
    status = getattr(error, "status_code", None)
    inner = getattr(getattr(error, "error", None), "innererror", None) or {}
    vault = ref.name.partition("/")[0]
    if status == 403 and inner.get("code") == "SecretDisabled":
        return Unavailable(
            f"{ref} is disabled: enable it, or store it again.", code="secret_missing"
        )
    if status == 404:
        return Unavailable(f"There is no secret {ref}: store it there.", code="secret_missing")
    if status in {401, 403}:
        return Unavailable(
            f"Key Vault does not let the gateway read {ref}: its identity needs the role 'Key "
            f"Vault Secrets User' for the vault '{vault}', and the way there must be open to it.",
            code="vault_forbidden",
        )
    if status == 429:
        return Unavailable(f"The vault of {ref} is asked too often (429).", code="vault_busy")
    if status is not None:
        return Unavailable(
            f"The vault of {ref} cannot answer at the moment ({status}).", code="vault_unavailable"
        )
    return Unavailable(
        f"The vault of {ref} cannot be reached ({type(error).__name__}).", code="vault_unreachable"
    )
