"""What people do beside a plain review, as both verifiers judge it: grants, emergencies, voices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.audit import verify_evidence
from gateway.audit.folder import Expected, verify_folder
from gateway.audit.records import SYSTEM
from gateway.audit.verification import Layer
from tests.support.evidence import ANN, BO, DIGEST, Teller, args, folder_of, write
from tests.support.ledger import signer

Story = Callable[[Teller], None]
FAULTY: dict[str, tuple[str, int, Story]] = {}
LEGAL: list[Story] = []


def tells(damage: str, index: int) -> Callable[[Story], None]:
    def note(tell: Story) -> None:
        FAULTY[tell.__name__] = damage, index, tell

    return note


def legal(tell: Story) -> None:
    LEGAL.append(tell)


def grant(t: Teller, name: str = "a", **more: object) -> None:
    subject = {key: value for key, value in t.subject(name).items() if key != "exchange"}
    fields: dict[str, object] = {
        "grant": "grt_1",
        "terms": DIGEST,
        "digest": DIGEST,
        "scope": "app",
        "pattern": "exact",
        "expires": "2026-01-05T17:00:00.000000Z",
        "args": args(b"pattern"),
    }
    t.add("grant.created", ANN, subject, **{**fields, **more})


def approved(t: Teller, name: str = "a") -> None:
    t.ruled(name, "hold")
    t.requested(name)
    t.reviewed(name)
    t.decided(name)


def asked(t: Teller, name: str = "b", effect: str = "hold") -> None:
    t.ruled(name, effect)
    t.requested(name)


def by_grant(t: Teller, name: str = "b", use: int = 1, **more: object) -> None:
    t.decided(name, by="grant", actor=SYSTEM, **{"grant": "grt_1", "use": use, **more})


def ended(t: Teller) -> None:
    subject = {"app": "app_1", "server": "crm", "tool": "send_email"}
    t.add("grant.ended", ANN, subject, grant="grt_1", code="revoked")


def reviewed_for(t: Teller, who: object, other: str) -> None:
    subject = t.subject("a")
    t.add("approval.reviewed", who, subject, verdict="approve", digest=DIGEST, instead_of=other)


def taken_back(t: Teller, who: object = ANN) -> None:
    t.add("review.withdrawn", who, t.subject("a"), review="rev_1")


def broken(t: Teller, who: object = ANN) -> None:
    t.add("break_glass.used", who, t.subject("a"), review="rev_1", digest=DIGEST)


@legal
def two_calls_answered_by_a_grant(t: Teller) -> None:
    approved(t)
    grant(t, max_uses=2)
    for number, name in enumerate("bc", 1):
        asked(t, name)
        by_grant(t, name, number)
        t.released(name)
    ended(t)


@legal
def one_who_stands_in_makes_the_quorum(t: Teller) -> None:
    t.requested("a", quorum=2)
    t.reviewed("a", ANN)
    reviewed_for(t, BO, "usr_cy")
    t.decided("a", actor=BO)


@legal
def a_review_taken_back_and_given_again(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    taken_back(t)
    t.reviewed("a")
    t.decided("a", actor=SYSTEM)


@legal
def a_broken_glass_is_enough(t: Teller) -> None:
    t.requested("a", quorum=3)
    t.reviewed("a")
    broken(t)
    t.decided("a", code="break_glass")


@legal
def who_was_enabled_again_counts(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    for disabled in (True, False):
        t.add("user.changed", BO, {"user": "usr_ann"}, disabled=disabled)
    t.decided("a", actor=SYSTEM)


@tells("grant was over", 9)
def B_25_answered_by_a_grant_that_had_ended(t: Teller) -> None:
    approved(t)
    grant(t)
    ended(t)
    asked(t)
    by_grant(t)


@tells("grant was over", 8)
def B_25_answered_by_a_grant_that_had_expired(t: Teller) -> None:
    approved(t)
    grant(t, expires="2026-01-05T09:00:01.000000Z")
    asked(t)
    by_grant(t)


@tells("grant of another call", 8)
def B_25_answered_by_a_grant_for_another_app(t: Teller) -> None:
    approved(t)
    grant(t)
    asked(t)
    subject = {**t.subject("b"), "app": "app_2"}
    decision = {"value": "approve", "by": "grant"}
    t.add("approval.decided", SYSTEM, subject, decision=decision, grant="grt_1", use=1)


@tells("grant used too often", 11)
def B_25_answered_more_often_than_granted(t: Teller) -> None:
    approved(t)
    grant(t, max_uses=1)
    for number, name in enumerate("bc", 1):
        asked(t, name)
        by_grant(t, name, number)


@tells("grant used too often", 8)
def B_25_a_use_that_is_not_the_next(t: Teller) -> None:
    approved(t)
    grant(t)
    asked(t)
    by_grant(t, use=2)


@tells("grant against policy", 8)
def B_25_a_grant_does_not_beat_a_denial(t: Teller) -> None:
    approved(t)
    grant(t)
    asked(t, effect="deny")
    by_grant(t)


@tells("grant without approval", 3)
def B_25_remembered_before_it_was_approved(t: Teller) -> None:
    t.ruled("a", "hold")
    t.requested("a")
    grant(t)


@tells("grant without approval", 4)
def B_25_remembered_what_policy_allowed(t: Teller) -> None:
    t.ruled("a", "allow")
    t.requested("a")
    t.decided("a", by="policy", actor=SYSTEM)
    grant(t)


@tells("grant without approval", 5)
def B_25_remembered_an_emergency(t: Teller) -> None:
    t.requested("a", quorum=2)
    t.reviewed("a")
    broken(t)
    t.decided("a")
    grant(t)


@tells("another call", 5)
def B_25_remembered_another_call_than_approved(t: Teller) -> None:
    approved(t)
    grant(t, digest="sha256:" + "00" * 32)


@tells("two grants", 6)
def B_25_two_grants_of_one_id(t: Teller) -> None:
    approved(t)
    grant(t)
    grant(t)


@tells("end of no grant", 1)
def B_25_the_end_of_no_grant(t: Teller) -> None:
    ended(t)


@tells("below quorum", 4)
def E_16_a_review_that_was_taken_back_does_not_count(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    taken_back(t)
    t.decided("a", actor=SYSTEM)


@tells("withdrawal without review", 2)
def E_16_taken_back_what_was_never_given(t: Teller) -> None:
    t.requested("a")
    taken_back(t)


@tells("withdrawal without review", 4)
def E_16_taken_back_after_the_decision(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    taken_back(t)


@tells("one voice twice", 3)
def E_16_somebody_and_who_stands_in_for_them(t: Teller) -> None:
    t.requested("a", quorum=2)
    t.reviewed("a", ANN)
    reviewed_for(t, BO, "usr_ann")


@tells("one voice twice", 3)
def E_16_who_stands_in_and_then_the_other(t: Teller) -> None:
    t.requested("a", quorum=2)
    reviewed_for(t, BO, "usr_ann")
    t.reviewed("a", ANN)


@tells("below quorum", 4)
def B_22_who_was_disabled_before_the_decision_does_not_count(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.add("user.changed", BO, {"user": "usr_ann"}, disabled=True)
    t.decided("a", actor=SYSTEM)


@tells("below quorum", 3)
def B_10_below_quorum_without_a_broken_glass(t: Teller) -> None:
    t.requested("a", quorum=2)
    t.reviewed("a")
    t.decided("a", code="break_glass")


@tells("below quorum", 5)
def B_10_a_glass_that_somebody_else_broke(t: Teller) -> None:
    t.requested("a", quorum=3)
    t.reviewed("a", ANN)
    broken(t, ANN)
    t.reviewed("a", BO)
    t.decided("a", actor=BO)


@tells("emergency without review", 2)
def B_10_a_broken_glass_without_a_review(t: Teller) -> None:
    t.requested("a", quorum=2)
    broken(t)


def told(tell: Story) -> dict[str, bytes]:
    teller = Teller()
    teller.started()
    tell(teller)
    return folder_of([record.body for record in teller.records])


@pytest.fixture
def verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[Story], tuple[list[str], str]]:
    """What both programs say; they must agree on the code."""

    def both(tell: Story) -> tuple[list[str], str]:
        files = told(tell)
        report = verify_folder(files, Expected([signer().verifier]))
        root = write(files, tmp_path / tell.__name__)
        code = verify_evidence.main([str(root), "--key", str(signer().verifier)])
        said = capsys.readouterr().out
        assert code == report.exit_code, (said, [str(item) for item in report.findings])
        return [f"{item.layer} {item.index} {item.damage}" for item in report.findings], said

    return both


@pytest.mark.parametrize("tell", LEGAL, ids=lambda tell: tell.__name__)
def test_legal_stories(tell: Story, verdicts: Callable[[Story], tuple[list[str], str]]) -> None:
    assert verdicts(tell)[0] == []


@pytest.mark.parametrize("row", sorted(FAULTY))
def test_grammar(row: str, verdicts: Callable[[Story], tuple[list[str], str]]) -> None:
    damage, index, tell = FAULTY[row]
    found, said = verdicts(tell)
    assert found == [f"{Layer.GRAMMAR} {index} {damage}"]
    assert f"{int(Layer.GRAMMAR)} record {index}: " in said
