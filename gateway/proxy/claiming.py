"""From a decided round to one that may be sent: secrets are opened first, then it is claimed.

What cannot be opened is known before anything is marked as being sent. What was opened, and is
another one when the claim looks, is opened anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

from gateway.approvals import release
from gateway.approvals.release import Claimed, Fell, Sending
from gateway.approvals.standing import Waits
from gateway.errors import GatepassError
from gateway.exchange.messages import Forward
from gateway.proxy.assignment import Tools
from gateway.proxy.injection import Prepared
from gateway.proxy.live import Live
from gateway.proxy.reports import Reports


@dataclass(frozen=True)
class Ready:
    """It may be sent, once, under the lease of this term."""

    prepared: Prepared
    term: int


@dataclass(frozen=True)
class Claiming:
    """The claims of one exchange."""

    tools: Tools
    live: Live
    reports: Reports
    user: SecretStr | None = None  # the access token of whom the app acts for

    async def attempt(self, turn: Forward, term: int) -> Ready | Fell | Waits:
        """Claim what is to be told to Azure, or say why not; a first round without answers needs
        no claim, and goes out under the lease of `term`. Raises when a secret cannot be had or the
        claim is lost.
        """
        azure = self.tools.azure
        if not turn.releases and not turn.denials:
            fresh = self.reports.leave.given
            return Ready(await azure.prepare(turn, fresh=fresh, user=self.user), term)
        while True:
            problem, prepared = None, None
            try:
                prepared = await azure.prepare(turn, fresh=bool(turn.releases), user=self.user)
            except GatepassError as error:
                problem = error  # it does not matter where nothing is to be sent in any case
            claim, term = await self._begin(turn, prepared)
            if prepared is not None and isinstance(claim, Claimed):
                self.live.receipt = claim.receipt
                return Ready(prepared, term)
            if isinstance(claim, Fell | Waits):
                return claim
            if problem is not None:
                raise problem

    async def _begin(self, turn: Forward, prepared: Prepared | None) -> tuple[release.Claim, int]:
        # Before the claim: what is claimed under a lease that lapses must not be sent any more.
        term = await self.tools.lease.renewed()
        names, kept = self.reports.approvals, self.live.kept
        sending = Sending(
            [names[name] for name in turn.releases],
            [names[name] for name in turn.denials],
            None if prepared is None else prepared.opened,
        )
        fence, now = kept.fence, self.tools.clock()
        begin, context, directory = release.begin_sending, self.tools.context, self.tools.directory
        try:
            return await begin(context, kept, sending, directory, now=now), term
        finally:
            # Marked, even where the signed head did not follow: somebody must say what became.
            if kept.fence > fence:
                self.reports.sending = set(sending.released)
