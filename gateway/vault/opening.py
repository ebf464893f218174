"""The vault: which stores there are, and how a reference finds its store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gateway.errors import Unavailable
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.references import STORES, SecretRef, origin_of
from gateway.vault.environment import EnvironmentStore
from gateway.vault.files import FileStore
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
        """The secret behind `ref`; raises `Unavailable`, and nothing else, when there is none.

        Nothing is opened for sending that is not bound to where the scope of `ref` says it goes.
        """
        if purpose.sent and not ref.is_bound:
            raise Unavailable(_unbound(ref), code="credential_unbound")
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
) -> Vault:
    """The vault of this process.

    `environment` is the process's environment; files below `keep_out` (the gateway's own keys and
    data) are never opened as credentials.
    """
    return Vault(
        {
            "sealed": SealedStore(db, envelope),
            "env": EnvironmentStore(environment),
            "file": FileStore(keep_out),
        }
    )


def _unbound(ref: SecretRef) -> str:
    url = (ref.scope or "").partition(" ")[2]
    where = f"to the server at {origin_of(url)}" if url else "to a server"
    return (
        f"The credential {ref} is not bound {where}. Somebody who may set credentials must bind it "
        "anew: 'gatepass credentials bind SERVER'."
    )
