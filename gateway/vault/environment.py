"""`env:` secrets: variables of the process, handed in by whoever starts it."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.errors import Unavailable
from gateway.store.references import SecretRef
from gateway.vault.secret import Purpose, Secret, opened

_OWN = "GATEPASS_"


class EnvironmentStore:
    """Reads the mapping it was given; the gateway's own variables are no credentials."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def __repr__(self) -> str:
        return "<EnvironmentStore>"

    async def open(self, ref: SecretRef, _purpose: Purpose) -> Secret:
        """The variable's value; `Unavailable` when it is unset, empty or the gateway's own."""
        if ref.name.upper().startswith(_OWN):
            raise Unavailable(
                f"{ref} names a variable of the gateway itself; these are never sent to a server.",
                code="secret_forbidden",
            )
        value = self._environment.get(ref.name)
        if value is None:
            raise Unavailable(
                f"The environment variable {ref.name} is not set; set it and restart.",
                code="secret_missing",
            )
        return opened(str(ref), value)

    async def ping(self) -> None:
        """The mapping is in memory: nothing can be out of reach."""
