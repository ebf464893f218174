"""The ready collaborators that routes, pages and jobs may touch. Built by `gateway.app`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gateway.approvals.decisions import Approvals
from gateway.approvals.rulings import Rulings
from gateway.approvals.wakeups import Wakeups
from gateway.audit.ledger import Ledger
from gateway.config import Settings
from gateway.openid.flow import SignIn
from gateway.registry.directory import Directory
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.notifications import Notifications
from gateway.telemetry import Clock
from gateway.vault import Vault

#: Really asks a registered server, by label, what it offers.
Probe = Callable[[str], Awaitable[dict[str, object]]]


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
    probe: Probe | None = None
    sign_in: SignIn | None = None  # through the identity provider, where there is one
    rulings: Rulings = field(default_factory=Rulings)

    @property
    def approvals(self) -> Approvals:
        """The collaborators of the approval use cases."""
        step_up = self.settings.step_up
        return Approvals(self.ledger, self.envelope, self.wakeups, self.rulings, step_up)
