"""Faults that somebody could make: each is production code with one thing wrong in it.

The machine must find every one of them; a fault it cannot find is a promise nobody watches over.
Some guards stand behind each other, and only what takes all of them away can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.mutation import Mutation

CLAIMING = "gateway.proxy.claiming:Claiming.attempt"
RELEASE = "gateway.approvals.release"
EXCHANGES = "gateway.approvals.exchanges"
DECISIONS = "gateway.approvals.decisions"
REVIEW = "gateway.approvals.review"
RECOVERY = "gateway.proxy.recovery:Recovery"
LEDGER = "gateway.audit.ledger"


@dataclass(frozen=True)
class Fault:
    """What is wrong."""

    name: str
    mutations: tuple[Mutation, ...]
    spoil: str = ""  # a statement that takes a guard of the database away
    events: str = ""  # what happens, where the fault needs much of something rare


def fault(name: str, *changes: tuple[str, str, str], spoil: str = "", events: str = "") -> Fault:
    """A fault made of changes (function, old text, new text)."""
    return Fault(name, tuple(Mutation(name, *change) for change in changes), spoil, events)


FAULTS = (
    fault(
        "a claim is compared with nothing",
        (f"{RELEASE}:_claim", 'col(Exchange.state) == "holding",', ""),
        (f"{RELEASE}:_claim", "col(Exchange.fence) == kept.fence,", ""),
    ),
    fault(
        "a claim does not look at the fence",
        (f"{RELEASE}:_claim", "col(Exchange.fence) == kept.fence,", ""),
        events="walk walk step review recover",
    ),
    fault(
        "a round is never claimed",
        (CLAIMING, "if not turn.releases and not turn.denials:", "if True:"),
    ),
    fault(
        "whoever sends does not wait for the signed head",
        (f"{RELEASE}:_begin", "receipt = await tx.sealed()", "receipt = None"),
    ),
    fault(
        "a review is acknowledged before the signed head has it",
        (f"{REVIEW}:review", "await tx.sealed()", "pass"),
    ),
    fault(
        "records are written after the commit",
        (
            f"{LEDGER}:Ledger.transaction",
            """                if transaction.records:
                    await self._insert(session, transaction.records)
""",
            """            if transaction.records:
                async with self.db.transaction() as session:
                    await self._insert(session, transaction.records)
""",
        ),
    ),
    fault(
        "a decision leaves no record",
        (f"{DECISIONS}:decide", "tx.record(record)", "pass"),
    ),
    fault(
        "a decision does not look at the state",
        (
            f"{DECISIONS}:decide",
            '_EXPIRE if decision.by == "expiry" else _DECIDE',
            "(n := _DECIDE._clone(), setattr(n, '_where_criteria', n._where_criteria[:1]))[0]",
        ),
        (
            f"{DECISIONS}:decide",
            "actor=decision.actor,",
            "actor=decision.actor, key=decision.state,",
        ),
        events="walk review review expire cancel",
    ),
    fault(
        "expiry compares the wrong way",
        (f"{DECISIONS}:expire_due", "<= now", ">= now"),
    ),
    fault(
        "a review counts after the deadline",
        ("gateway.approvals.case:Case.check_open", "if self.row.deadline <= now:", "if False:"),
    ),
    fault(
        "one approving review is a quorum",
        ("gateway.approvals.lifecycle:outcome", ">= standing.quorum", ">= 1"),
    ),
    fault(
        "recovery takes up what was being sent",
        (
            f"{RECOVERY}._take_up",
            'saved.kept.state == "holding"',
            'saved.kept.state in ("holding", "sending")',
        ),
    ),
    fault(
        "recovery forgets that an outcome is unknown",
        (f"{RECOVERY}._take_up", "await self._unknown(saved)", "pass"),
    ),
    fault(
        "recovery sends again what was being sent",
        (f"{RECOVERY}._take_up", 'kept.state == "holding"', 'kept.state in ("holding", "sending")'),
        (f"{RELEASE}:_claim", 'col(Exchange.state) == "holding",', ""),
        (f"{RELEASE}:_mark", 'col(ApprovalRequest.execution) == "not_sent",', ""),
        ("gateway.approvals.standing:approved", 'ApprovalRequest.execution == "not_sent",', ""),
    ),
    fault(
        "an outcome is written whatever is known",
        (f"{RELEASE}:observe", 'col(ApprovalRequest.execution) == "sending",', ""),
        (f"{RELEASE}:observe", "fence == kept.fence,", ""),
        events="walk walk step review recover",
    ),
    fault(
        "a call that expired counts as approved",
        ("gateway.approvals.lifecycle:answer", "state == APPROVED", "state in (APPROVED, EXPIRED)"),
        (f"{RELEASE}:_mark", 'col(ApprovalRequest.state) == "approved",', ""),
        ("gateway.approvals.standing:approved", "ApprovalRequest.state == lifecycle.APPROVED,", ""),
    ),
)
