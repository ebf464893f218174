"""What a page may say of the ledger, and only after a check that was made just now.

Never says "verified" from memory: every badge is a proof recomputed while the page was made.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.approvals import alarms
from gateway.approvals import reading as requests
from gateway.approvals.views import ApprovalView
from gateway.audit import reading
from gateway.audit.reading import Entry, Verdict
from gateway.registry import pauses
from gateway.services import Services
from web.rendering import Head, Watch
from web.translation import N_

_SEVERITY = ("failed", "cannot_verify", "verified", "not_yet_sealed")
_PREFIX = 12  # characters of the root in the foot of a page


async def head(services: Services) -> Head | None:
    """The newest signed head; None before the first."""
    newest = await reading.latest(services.db)
    return Head(newest.size, newest.root.hex()[:_PREFIX]) if newest is not None else None


def alarm(services: Services) -> str | None:
    """A sentence for the top of every page, while the ledger cannot be relied upon."""
    if services.ledger.healthy:
        return None
    return N_("The ledger cannot be written. Nothing is released until it can.")


async def watch(services: Services) -> Watch:
    """What is open, as the database says now."""
    return Watch(
        len(await alarms.listing(services.db)),
        tuple(await pauses.listing(services.db)),
        await requests.unclear(services.db),
    )


async def record(services: Services, index: int) -> Verdict:
    """One record, verified now from its bytes up to the signed head."""
    return await reading.verify_record(services.db, services.ledger.signer.verifier, index)


async def records(services: Services, entries: Sequence[Entry]) -> list[Verdict]:
    """These records, each verified now from its bytes up to the signed head."""
    return await reading.verify_entries(services.db, services.ledger.signer.verifier, entries)


def worst(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that a page has to show of all that it lists; None of an empty list."""
    return min(verdicts, key=lambda verdict: _SEVERITY.index(verdict.state), default=None)


async def decision(services: Services, view: ApprovalView) -> Verdict | None:
    """The record of a request's decision, verified now; None while there is no decision."""
    if view.decision is None:
        return None
    if view.record.decided is None:
        return Verdict("not_yet_sealed", "The record of the decision has no place yet.")
    return await record(services, view.record.decided)
