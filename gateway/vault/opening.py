"""The vault: which stores there are, and how a reference finds its store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gateway.errors import Unavailable
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.references import STORES, SecretRef
from gateway.vault.environment import EnvironmentStore
from gateway.vault.files import FileStore
from gateway.vault.oauth import Clients, OAuthStore
from gateway.vault.sealed import SealedStore
from gateway.vault.secret import Purpose, Secret

_USUAL = Purpose()


class Store(Protocol):
    """Somewhere that secrets live.

    `open` gives the current value and raises `Unavailable` when it cannot; for a fresh purpose,
    nothing is served from memory. Both may be called concurrently.
    """

    async def open(self, ref: SecretRef, purpose: Purpose) -> Secret:
        """The value of `ref`."""
        ...

    async def ping(self) -> None:
        """Raise `Unavailable` when no value could be opened now."""
        ...


class Vault:
    """Opens references. The stores are fixed when it is built."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = dict(stores)

    async def open(self, ref: SecretRef, purpose: Purpose = _USUAL) -> Secret:
        """The secret behind `ref`; raises `Unavailable`, and nothing else, when there is none."""
        store = self._stores.get(ref.store)
        if store is None:
            raise Unavailable(self._no_such(ref.store), code="secret_store_unknown")
        try:
            return await store.open(ref, purpose)
        except Unavailable:
            raise
        except Exception as error:
            # What a driver says may quote what it was given: only its type is passed on.
            raise Unavailable(
                f"The secret {ref} cannot be opened ({type(error).__name__}).",
                code="secret_unavailable",
            ) from None

    async def ping(self) -> None:
        """Raise `Unavailable` when a store cannot answer."""
        for name, store in self._stores.items():
            try:
                await store.ping()
            except Unavailable:
                raise
            except Exception as error:
                raise Unavailable(
                    f"The secret store {name!r} does not answer ({type(error).__name__}).",
                    code="secret_unavailable",
                ) from None

    def issued(self, end_user: Secret | None = None) -> tuple[Secret, ...]:
        """Tokens that were given to us and may be in use, or those for an end user: to be looked
        for in answers.
        """
        store = self._stores.get("oauth")
        return store.issued(end_user) if isinstance(store, OAuthStore) else ()

    @property
    def issues(self) -> int:
        """How many such tokens there have been: it grows when `issued` has another one."""
        store = self._stores.get("oauth")
        return store.issues if isinstance(store, OAuthStore) else 0

    def problem_with(self, ref: SecretRef) -> str | None:
        """A sentence when no store of this installation could ever open `ref`, else None."""
        return None if ref.store in self._stores else self._no_such(ref.store)

    def _no_such(self, store: str) -> str:
        here = ", ".join(f"{name}:" for name in self._stores)
        known = "is not part of this version" if store in STORES else "is unknown"
        return f"The secret store '{store}:' {known}; this installation opens {here}."


def open_vault(
    db: Database,
    envelope: Envelope,
    environment: Mapping[str, str],
    keep_out: Sequence[Path] = (),
    clients: Clients | None = None,
) -> Vault:
    """The vault of this process.

    `environment` is the process's environment; files below `keep_out` (the gateway's own keys and
    data) are never opened as credentials; `clients` are those that obtain tokens.
    """
    stores: dict[str, Store] = {
        "sealed": SealedStore(db, envelope),
        "env": EnvironmentStore(environment),
        "file": FileStore(keep_out),
    }
    if clients is not None:
        # Their own secrets are in the other stores: a token is never had by way of a token.
        stores["oauth"] = OAuthStore(Vault(stores).open, clients, environment)
    return Vault(stores)
