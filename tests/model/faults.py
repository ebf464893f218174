"""Faults that somebody could make: each is production code with one thing wrong in it.

The machine must find every one of them; a fault it cannot find is a promise nobody watches over.
Some guards stand behind each other, and only what takes all of them away can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.mutation import Mutation

DRIVER = "gateway.proxy.driver:Driver"
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
        (f"{RELEASE}:begin_sending", 'col(Exchange.state) == "holding",', ""),
        (f"{RELEASE}:begin_sending", "col(Exchange.fence) == kept.fence,", ""),
        (f"{RELEASE}:begin_sending", 'col(ApprovalRequest.execution) == "not_sent",', ""),
        (f"{RELEASE}:begin_sending", 'key=f"{kept.id}:{kept.fence + 1}"', 'key=new_id("x", now)'),
    ),
    fault(
        "an exchange is saved by whoever has it",
        (
            f"{EXCHANGES}:save",
            """            col(Exchange.state) == kept.state,
            col(Exchange.fence) == kept.fence,
""",
            "",
        ),
        events="walk walk recover open step",
    ),
    fault(
        "an exchange is finished by whoever has it",
        (
            f"{EXCHANGES}:finish",
            """                col(Exchange.state) == kept.state,
                col(Exchange.fence) == kept.fence,
""",
            "",
        ),
    ),
    fault(
        "a round is sent before it is claimed",
        (f"{DRIVER}._forward", "await self._claim(turn)", "pass"),
        (
            f"{DRIVER}._forward",
            "ended = isinstance",
            "await self._claim(turn); ended = isinstance",
        ),
    ),
    fault(
        "a round is never claimed",
        (f"{DRIVER}._forward", "await self._claim(turn)", "pass"),
    ),
    fault(
        "whoever sends does not wait for the signed head",
        (f"{RELEASE}:begin_sending", "receipt = await tx.sealed()", "receipt = None"),
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
            ", col(ApprovalRequest.state) == lifecycle.PENDING",
            "",
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
        (f"{REVIEW}:_claimable", "if row.deadline <= now:", "if False:"),
    ),
    fault(
        "one approving review is a quorum",
        ("gateway.approvals.lifecycle:outcome", ">= standing.quorum", ">= 1"),
    ),
    fault(
        "one person counts as often as they review",
        (f"{REVIEW}:_claimable", "if item.user_id == reviewer.user_id", "if False"),
        spoil="DROP INDEX uq_reviews_standing",
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
        (
            f"{RECOVERY}._take_up",
            'saved.kept.state == "holding"',
            'saved.kept.state in ("holding", "sending")',
        ),
        (f"{RELEASE}:begin_sending", 'col(Exchange.state) == "holding"', "True"),
        (
            f"{RELEASE}:begin_sending",
            '                col(ApprovalRequest.execution) == "not_sent",\n',
            "",
        ),
    ),
    fault(
        "an outcome is written whatever is known",
        (f"{RELEASE}:observe", 'col(ApprovalRequest.execution) == "sending",', ""),
        (f"{RELEASE}:observe", 'key=f"{kept.id}:{kept.fence}"', 'key=new_id("obs", now)'),
        events="walk walk step review recover",
    ),
    fault(
        "a connection that broke counts as not sent",
        (
            "gateway.exchange.machine:Exchange._broken",
            '"unknown" if event.sent else "not_sent"',
            '"not_sent"',
        ),
    ),
    fault(
        "a sequencer of an older epoch goes on",
        ("gateway.audit.sequencer:Sequencer._check_epoch", "stored != str(self.epoch)", "False"),
    ),
    fault(
        "a call that expired counts as approved",
        ("gateway.approvals.lifecycle:answer", "state == APPROVED", "state in (APPROVED, EXPIRED)"),
        (f"{RELEASE}:begin_sending", 'col(ApprovalRequest.state) == "approved",', ""),
    ),
)
