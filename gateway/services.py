"""The ready collaborators that routes, pages and jobs may touch. Built by `gateway.app`."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.approvals.decisions import Approvals
from gateway.approvals.rulings import Rulings
from gateway.approvals.wakeups import Wakeups
from gateway.audit.ledger import Ledger
from gateway.config import Settings
from gateway.openid.flow import SignIn
from gateway.probing.probes import Prober, Turns
from gateway.registry.directory import Directory
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.notifications import Notifications
from gateway.telemetry import Clock
from gateway.vault import Vault


@dataclass(frozen=True)
class Services:
    """One process's collaborators, each ready to use."""

    settings: Settings
    db: Database
    ledger: Ledger
    envelope: Envelope
    directory: Directory
    vault: Vault
    notifications: Notifications
    wakeups: Wakeups
    clock: Clock
    sign_in: SignIn | None = None  # through the identity provider, where there is one
    rulings: Rulings = field(default_factory=Rulings)
    probes: Turns = field(default_factory=Turns)

    @property
    def approvals(self) -> Approvals:
        """The collaborators of the approval use cases."""
        step_up = self.settings.step_up
        return Approvals(self.ledger, self.envelope, self.wakeups, self.rulings, step_up)

    @property
    def prober(self) -> Prober:
        """What asks servers, for real, what they are like."""
        return Prober(self.ledger, self.directory, self.vault, self.clock, self.probes)

    async def close(self) -> None:
        """Close what is open: the connections to vaults, the judges of conditions, the database."""
        await self.vault.close()
        self.rulings.close()
        await self.db.close()
