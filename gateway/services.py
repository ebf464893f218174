"""The ready collaborators that routes, pages and jobs may touch. Built by `gateway.app`."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.approvals.decisions import Approvals
from gateway.approvals.rulings import Rulings
from gateway.approvals.wakeups import Wakeups
from gateway.audit.ledger import Ledger
from gateway.config import Settings
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
    rulings: Rulings = field(default_factory=Rulings)
    probes: Turns = field(default_factory=Turns)

    @property
    def approvals(self) -> Approvals:
        """The collaborators of the approval use cases."""
        return Approvals(self.ledger, self.envelope, self.wakeups, self.rulings)

    @property
    def prober(self) -> Prober:
        """What asks servers, for real, what they are like."""
        return Prober(self.ledger, self.vault, self.clock, self.probes)
