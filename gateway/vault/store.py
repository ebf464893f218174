"""What a store of secrets can do."""

from __future__ import annotations

from typing import Protocol

from gateway.store.references import SecretRef
from gateway.vault.secret import Purpose, Secret


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


class Remote(Store, Protocol):
    """A store on another machine, reached over connections of its own.

    Its `ping` also renews what it is signed in with: it is called again and again.
    """

    async def close(self) -> None:
        """Close what is open."""
        ...
