"""The vault: which stores there are, and how a reference finds its store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.references import STORES, SecretRef, origin_of
from gateway.telemetry import Clock, log, vault_up
from gateway.vault.environment import EnvironmentStore
from gateway.vault.files import FileStore
from gateway.vault.keyvault import keyvault_store
from gateway.vault.oauth import Clients, OAuthStore
from gateway.vault.openbao import openbao_store
from gateway.vault.sealed import SealedStore
from gateway.vault.secret import Purpose, Secret
from gateway.vault.sharing import Shared
from gateway.vault.store import Remote, Store

_USUAL = Purpose()
_PAUSE = 10.0
#: The stores that take settings of their own.
_SET_UP = frozenset({"vault"})


class Vault:
    """Opens references. The stores are fixed when it is built.

    Those that are `remote` may be out of reach for a while: what needs them waits or is refused,
    and all else goes on.
    """

    def __init__(
        self, local: Mapping[str, Store], remote: Mapping[str, Remote] | None = None
    ) -> None:
        self._local = dict(local)
        self._remote = dict(remote or {})
        self._stores: dict[str, Store] = {**self._local, **self._remote}

    @property
    def configured(self) -> tuple[str, ...]:
        """The names of the stores that are there because somebody set them up."""
        return tuple(name for name in self._remote if name in _SET_UP)

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

    async def ping(self, *names: str) -> None:
        """Raise `Unavailable` when one of these stores cannot answer; without a name, those that
        every release depends on: the local ones.
        """
        for name in names or self._local:
            try:
                await self._stores[name].ping()
            except Unavailable:
                raise
            except Exception as error:
                raise Unavailable(
                    f"The secret store {name!r} does not answer ({type(error).__name__}).",
                    code="secret_unavailable",
                ) from None

    async def run(self) -> None:
        """Stay signed in to the stores on other machines, and say when their state changes."""
        said: dict[str, str | None] = {}
        while True:
            for name in self._remote:
                problem = await self._problem(name)
                vault_up.labels(store=name).set(problem is None)
                if said.get(name) != problem:
                    log.warning("vault.state", store=name, problem=problem or "none any more")
                said[name] = problem
            await asyncio.sleep(_PAUSE)

    async def close(self) -> None:
        """Close the connections to other machines."""
        for store in self._remote.values():
            await store.close()

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

    def problem_with(self, store: str) -> str | None:
        """A sentence when this installation has no such store, else None."""
        return None if store in self._stores else self._no_such(store)

    async def _problem(self, name: str) -> str | None:
        try:
            await self.ping(name)
        except Unavailable as error:
            return error.message
        return None

    def _no_such(self, store: str) -> str:
        if store == "vault":
            return "The secret store 'vault:' is not set up here: set GATEPASS_VAULT_ADDR."
        here = ", ".join(f"{name}:" for name in self._stores)
        known = "is not part of this version" if store in STORES else "is unknown"
        return f"The secret store '{store}:' {known}; this installation opens {here}."


def open_vault(
    db: Database,
    envelope: Envelope,
    environment: Mapping[str, str],
    keep_out: Sequence[Path] = (),
    remote: Mapping[str, Remote] | None = None,
    clients: Clients | None = None,
) -> Vault:
    """The vault of this process.

    `environment` is the process's environment; files below `keep_out` (the gateway's own keys and
    data) are never opened as credentials. `remote` are the stores on other machines, `clients`
    those that obtain tokens.
    """
    local: dict[str, Store] = {
        "sealed": SealedStore(db, envelope),
        "env": EnvironmentStore(environment),
        "file": FileStore(keep_out),
    }
    if clients is not None:
        # Their own secrets are in the other stores: a token is never had by way of a token.
        local["oauth"] = OAuthStore(Vault(local, remote).open, clients, environment)
    return Vault(local, remote)


def remote_stores(settings: Settings, clock: Clock) -> dict[str, Remote]:
    """The stores on other machines that the settings name; none is asked yet."""
    found: dict[str, Remote] = {"keyvault": keyvault_store(settings, clock)}
    if (bao := openbao_store(settings)) is not None:
        found["vault"] = bao
    seconds = settings.secret_cache.total_seconds()
    return {name: Shared(store, seconds, time.monotonic) for name, store in found.items()}


def _unbound(ref: SecretRef) -> str:
    url = (ref.scope or "").partition(" ")[2]
    where = f"to the server at {origin_of(url)}" if url else "to a server"
    return (
        f"The credential {ref} is not bound {where}. Somebody who may set credentials must bind it "
        "anew: 'gatepass credentials bind SERVER'."
    )
