"""Tamper classes: each is found, its class named, its record named, by both verifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.audit import checkpoint, tree, verify_evidence
from gateway.audit.checkpoint import Proof
from gateway.audit.folder import Expected, verify_folder
from gateway.audit.records import SYSTEM, canonical
from gateway.audit.signing import Signer
from gateway.audit.verification import Layer, Report, verify_record
from tests.support.evidence import (
    ANN,
    ARGUMENTS,
    BLIND,
    BO,
    DIGEST,
    Teller,
    args,
    folder_of,
    sealed,
    write,
)
from tests.support.ledger import signer

Check = Callable[..., Report]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Verify with both programs; they must agree on the code and on the records named."""
    count = iter(range(1000))

    def both(files: dict[str, bytes], **expected: list[str]) -> Report:
        report = verify_folder(files, Expected([signer().verifier], **expected))
        root = write(files, tmp_path / str(next(count)))
        options = ["--key", str(signer().verifier)]
        for name, texts in expected.items():
            for number, text in enumerate(texts):
                (tmp_path / f"{name}{number}").write_text(text)
                options += [f"--{name[:-1]}", str(tmp_path / f"{name}{number}")]
        code = verify_evidence.main([str(root), *options])
        said = capsys.readouterr().out
        assert code == report.exit_code, (said, [str(item) for item in report.findings])
        for finding in report.findings:
            if finding.index is not None and finding.layer == report.exit_code:
                assert f"record {finding.index}: " in said
        return report

    return both


def bodies(count: int = 3) -> list[bytes]:
    teller = Teller()
    teller.started()
    for number in range(count):
        teller.whole(str(number))
    return [record.body for record in teller.records]


def bundle(leaves: list[bytes]) -> str:
    return tree.entries_path(0, len(leaves))


def told(tell: Callable[[Teller], None]) -> dict[str, bytes]:
    teller = Teller()
    teller.started()
    tell(teller)
    return folder_of([record.body for record in teller.records])


def test_honest_folders_are_sound(check: Check) -> None:
    for count in (1, 3, 60):
        report = check(folder_of(bodies(count)))
        assert report.findings == []
        assert report.valid
        assert report.size == 1 + 5 * count


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600))
def test_any_prefix_of_an_honest_ledger_is_sound(size: int) -> None:
    leaves = MANY[:size]
    assert verify_folder(folder_of(leaves)).findings == []


MANY = bodies(120)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
@given(st.data())
def test_any_flipped_bit_fails(data: st.DataObject) -> None:
    files = dict(FILES)
    path = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[path])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    files[path] = bytes(content)
    report = verify_folder(files)
    assert report.exit_code in set(Layer)
    if path.startswith(("tile/entries", "tile/0")):
        assert any(finding.index is not None for finding in report.findings)


FILES = folder_of(MANY[:300])


def test_A_01_one_byte_of_a_leaf(check: Check) -> None:
    leaves = bodies()
    files = folder_of(leaves)
    changed = [*leaves[:7], leaves[7].replace(b"usr_ann", b"usr_anm"), *leaves[8:]]
    files[bundle(leaves)] = tree.pack(changed)
    for forged in (files, sealed(files)):
        report = check(forged)
        assert report.exit_code == Layer.TREE
        assert report.findings[0].index == 7
        assert report.findings[0].damage == "record hash mismatch"
        assert "approval.reviewed" in report.findings[0].sentence


def test_A_02_leaf_and_its_tile_hash(check: Check) -> None:
    leaves = bodies(60)
    files = folder_of(leaves)
    changed = leaves[250].replace(b"usr_ann", b"usr_anm").replace(b"app_1", b"app_2")
    assert changed != leaves[250]
    altered = [*leaves[:250], changed, *leaves[251:]]
    files[tree.entries_path(0)] = tree.pack(altered[:256])
    files[tree.tile_path(0, 0)] = b"".join(map(tree.leaf_hash, altered[:256]))
    report = check(sealed(files))
    assert report.exit_code == Layer.TREE
    found = {finding.damage: finding for finding in report.findings}
    assert "tile not authenticated by head" in found
    assert "records 201 to 300" in found["tile not authenticated by head"].sentence


def test_a_tile_alone(check: Check) -> None:
    leaves = bodies()
    files = folder_of(leaves)
    name = tree.tile_path(0, 0, len(leaves))
    content = bytearray(files[name])
    content[5 * 32] ^= 1
    report = check(sealed({**files, name: bytes(content)}))
    assert (report.exit_code, report.findings[0].index) == (Layer.TREE, 5)
    assert report.findings[0].damage == "tile hash mismatch"
    upper = folder_of(MANY)
    name = tree.tile_path(1, 0, 2)
    content = bytearray(upper[name])
    content[40] ^= 1
    report = check(sealed({**upper, name: bytes(content)}))
    assert (report.exit_code, report.findings[0].index) == (Layer.TREE, 256)


def test_A_03_whole_tree_rebuilt_under_the_old_signature(check: Check) -> None:
    leaves = bodies()
    files = folder_of([*leaves[:4], *leaves[5:]])
    old = folder_of(leaves)["checkpoint"].decode()
    new = files["checkpoint"].decode()
    files["checkpoint"] = (new.partition("\n\n")[0] + "\n\n" + old.partition("\n\n")[2]).encode()
    report = check(files)
    assert (report.exit_code, report.findings[0].damage) == (Layer.NOTES, "bad signature")


def test_A_04_whole_tree_signed_with_another_key(check: Check) -> None:
    leaves = bodies()
    other = Signer("gatepass.test", bytes(32))
    note = other.sign(len(leaves), tree.root_of(map(tree.leaf_hash, leaves)))
    report = check(folder_of(leaves) | {"checkpoint": note.encode()})
    assert (report.exit_code, report.findings[0].damage) == (Layer.NOTES, "unknown key")


def forgeries() -> dict[str, list[bytes]]:
    leaves = [*MANY[:40]]
    backdated = Teller()
    backdated.add("security.refused", SYSTEM, {"app": "app_9"}, code="x")
    return {
        "A_05": [*leaves[:20], *leaves[21:]],
        "A_06": [*leaves[:20], backdated.records[0].body, *leaves[20:]],
        "A_07": [*leaves[:20], leaves[22], leaves[21], leaves[20], *leaves[23:]],
    }


@pytest.mark.parametrize("row", ["A_05", "A_06", "A_07"])
def test_A_05_06_07_history_signed_again_with_the_real_key(row: str, check: Check) -> None:
    leaves = MANY[:40]
    pin = signer().sign(30, tree.root_of(map(tree.leaf_hash, leaves[:30])))
    plan = tree.plan_inclusion(25, 30)
    hashes = [tree.leaf_hash(leaf) for leaf in leaves[:30]]
    path = tree.prove(
        plan, lambda node: tree.root_of(hashes[node[1] << node[0] : (node[1] + 1) << node[0]])
    )
    receipt = Proof(25, path, pin).text()
    files = folder_of(forgeries()[row])
    for expected in ({"pins": [pin]}, {"receipts": [receipt]}):
        report = check(files, **expected)
        assert report.exit_code == Layer.CONSISTENCY
        assert any(finding.damage == "history was changed" for finding in report.findings)
    assert check(folder_of(leaves), pins=[pin], receipts=[receipt]).valid


def test_A_08_the_end_is_cut_off_and_an_older_head_shown(check: Check) -> None:
    leaves = MANY[:40]
    newer = signer().sign(40, tree.root_of(map(tree.leaf_hash, leaves)))
    report = check(folder_of(leaves[:30]), pins=[newer])
    assert (report.exit_code, report.findings[0].damage) == (
        Layer.CONSISTENCY,
        "records are missing",
    )


def test_A_10_two_heads_of_one_size(check: Check) -> None:
    other = signer().sign(40, tree.root_of(map(tree.leaf_hash, MANY[1:41])))
    report = check(folder_of(MANY[:40]), pins=[other])
    assert (report.exit_code, report.findings[0].damage) == (
        Layer.CONSISTENCY,
        "history was changed",
    )


def test_A_11_size_of_n_with_the_root_of_less(check: Check) -> None:
    leaves = bodies()
    note = signer().sign(len(leaves), tree.root_of(map(tree.leaf_hash, leaves[:-1])))
    report = check(sealed(folder_of(leaves) | {"checkpoint": note.encode()}))
    assert report.exit_code == Layer.TREE


def test_a_head_of_another_ledger_does_not_fit(check: Check) -> None:
    key = Signer("elsewhere.test", bytes(range(32)))
    pin = key.sign(5, tree.root_of(map(tree.leaf_hash, MANY[:5])))
    report = verify_folder(folder_of(MANY[:40]), Expected([signer().verifier, key.verifier], [pin]))
    assert (report.exit_code, report.findings[0].damage) == (Layer.CONSISTENCY, "another ledger")


def test_A_17_duplicate_id(check: Check) -> None:
    leaves = bodies()
    report = check(folder_of([*leaves, leaves[0]]))
    assert report.exit_code == Layer.GRAMMAR
    assert report.findings[0].damage == "duplicate id"
    assert report.findings[0].index == len(leaves)


STORIES: dict[str, tuple[str, int, Callable[[Teller], None]]] = {}


def tells(damage: str, index: int) -> Callable[[Callable[[Teller], None]], None]:
    def note(tell: Callable[[Teller], None]) -> None:
        STORIES[tell.__name__] = damage, index, tell

    return note


@tells("execution without release", 4)
def A_20_outcome_without_intent(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.executed("a")


def unasked(t: Teller, *tools: str, effect: str = "allow", **leave: str) -> None:
    t.preallowed("a", *tools, **leave)
    t.ruled("a", effect)
    t.requested("a", actor=SYSTEM)


def executed_unasked(t: Teller, outcome: str = "executed") -> None:
    t.add("execution.observed", SYSTEM, t.subject("a"), outcome=outcome)


@tells("execution without release", 5)
def A_20_unasked_with_leave_for_another_tool(t: Teller) -> None:
    unasked(t, "read_email")
    t.decided("a", by="policy", actor=SYSTEM)
    executed_unasked(t)


@tells("execution without release", 5)
def A_20_unasked_with_leave_of_another_policy(t: Teller) -> None:
    unasked(t, "send_email", policy="sha256:" + "7" * 64)
    t.decided("a", by="policy", actor=SYSTEM)
    executed_unasked(t)


@tells("execution without release", 5)
def A_20_unasked_with_leave_of_another_exchange(t: Teller) -> None:
    t.preallowed("b", "send_email")
    t.ruled("a")
    t.requested("a", actor=SYSTEM)
    t.decided("a", by="policy", actor=SYSTEM)
    executed_unasked(t)


@tells("execution without release", 5)
def A_20_unasked_before_the_leave(t: Teller) -> None:
    t.ruled("a")
    t.requested("a", actor=SYSTEM)
    t.decided("a", by="policy", actor=SYSTEM)
    t.add("exchange.finished", SYSTEM, {"exchange": "exc_a"}, outcome="done")
    executed_unasked(t)
    t.preallowed("a", "send_email")


@tells("execution without release", 4)
def A_20_unasked_before_it_was_decided(t: Teller) -> None:
    unasked(t, "send_email")
    executed_unasked(t)


@tells("execution without release", 5)
def A_20_unasked_although_policy_held_it(t: Teller) -> None:
    unasked(t, "send_email", effect="hold")
    t.reviewed("a")
    executed_unasked(t)


@tells("two outcomes", 6)
def A_22_unasked_twice(t: Teller) -> None:
    unasked(t, "send_email")
    t.decided("a", by="policy", actor=SYSTEM)
    executed_unasked(t)
    executed_unasked(t)


@tells("released twice", 6)
def A_22_unasked_and_released_as_well(t: Teller) -> None:
    unasked(t, "send_email")
    t.decided("a", by="policy", actor=SYSTEM)
    executed_unasked(t)
    t.released("a")


@tells("release without decision", 2)
def A_21_intent_without_decision(t: Teller) -> None:
    t.requested("a")
    t.released("a")


@tells("release without decision", 4)
def A_21_intent_after_denial(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a", verdict="deny")
    t.decided("a", "deny")
    t.released("a")


@tells("release without decision", 1)
def A_21_release_without_any_rule(t: Teller) -> None:
    t.released("a")


@tells("release without decision", 3)
def A_21_release_on_a_ruling_alone(t: Teller) -> None:
    t.ruled("a", "allow")
    t.requested("a")
    t.released("a")


@tells("another call", 4)
def A_21_release_of_another_tool_than_allowed(t: Teller) -> None:
    t.ruled("a", "allow")
    t.requested("a")
    t.decided("a", by="policy", actor=SYSTEM)
    t.add("release.sending", SYSTEM, {**t.subject("a"), "tool": "read"}, fence=1)


@tells("decision without ruling", 2)
def A_21_approved_by_policy_without_ruling(t: Teller) -> None:
    t.requested("a")
    t.decided("a", by="policy", actor=SYSTEM)


@tells("decision without ruling", 2)
def A_21_denied_by_policy_without_ruling(t: Teller) -> None:
    t.requested("a")
    t.decided("a", "deny", "policy", actor=SYSTEM)


@tells("decision without ruling", 4)
def A_21_approved_by_policy_on_the_ruling_of_another_request(t: Teller) -> None:
    t.ruled("b", "allow")
    t.ruled("a", "hold")
    t.requested("a")
    t.decided("a", by="policy", actor=SYSTEM)


@tells("decision without ruling", 3)
def A_21_approved_by_policy_that_said_deny(t: Teller) -> None:
    t.ruled("a", "deny")
    t.requested("a")
    t.decided("a", by="policy", actor=SYSTEM)


@tells("decision without ruling", 3)
def A_21_denied_by_policy_that_said_allow(t: Teller) -> None:
    t.ruled("a", "allow")
    t.requested("a")
    t.decided("a", "deny", "policy", actor=SYSTEM)


@tells("decision without ruling", 2)
def A_21_policy_speaks_after_it_decided(t: Teller) -> None:
    t.requested("a")
    t.decided("a", by="policy", actor=SYSTEM)
    t.ruled("a", "allow")


@tells("ruling after request", 2)
def A_21_policy_speaks_after_the_request(t: Teller) -> None:
    t.requested("a")
    t.ruled("a", "allow")


@tells("two rulings", 2)
def A_21_policy_speaks_twice(t: Teller) -> None:
    t.ruled("a", "hold")
    t.ruled("a", "allow")


@tells("two rulings", 3)
def A_21_policy_speaks_again_after_the_request(t: Teller) -> None:
    t.ruled("a", "hold")
    t.requested("a")
    t.ruled("a", "allow")


@tells("another policy", 3)
def A_21_decided_under_another_policy(t: Teller) -> None:
    t.ruled("a", "allow")
    t.requested("a")
    t.decided("a", by="policy", actor=SYSTEM, policy="sha256:" + "00" * 32)


@tells("arguments differ", 2)
def A_24_ruled_on_other_arguments(t: Teller) -> None:
    t.ruled("a", "allow", args=args(b"harmless"))
    t.requested("a")


@tells("approval against policy", 4)
def A_21_approved_by_people_although_policy_denied(t: Teller) -> None:
    t.ruled("a", "deny")
    t.requested("a")
    t.reviewed("a")
    t.decided("a")


@tells("decision without grant", 3)
def A_23_approved_by_a_grant(t: Teller) -> None:
    t.ruled("a", "hold")
    t.requested("a")
    t.decided("a", by="grant", actor=SYSTEM)


@tells("decision without grant", 2)
def A_23_denied_by_a_grant(t: Teller) -> None:
    t.requested("a")
    t.decided("a", "deny", "grant", actor=SYSTEM)


@tells("approval by nobody", 2)
def A_23_approved_by_cancellation(t: Teller) -> None:
    t.requested("a")
    t.decided("a", by="cancelled", actor=SYSTEM)


@tells("two outcomes", 6)
def A_22_two_outcomes_for_one_fence(t: Teller) -> None:
    t.whole("a")
    t.executed("a", "failed")


@tells("released twice", 6)
def A_22_released_twice(t: Teller) -> None:
    t.whole("a")
    t.released("a", fence=2)


@tells("two decisions", 4)
def A_22_two_decisions(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.decided("a", "deny", "expiry")


@tells("review by requester", 2)
def A_23_review_by_requester(t: Teller) -> None:
    t.requested("a", ANN)
    t.reviewed("a", ANN)


@tells("review by requester", 2)
def A_23_review_by_the_user_behind_the_app(t: Teller) -> None:
    t.requested("a", requester="usr_ann")
    t.reviewed("a", ANN)


@tells("decision by requester", 3)
def A_23_decision_by_requester(t: Teller) -> None:
    t.requested("a", ANN)
    t.reviewed("a", BO)
    t.decided("a", actor=ANN)


@tells("below quorum", 3)
def A_23_below_quorum(t: Teller) -> None:
    t.requested("a", quorum=2)
    t.reviewed("a")
    t.decided("a")


@tells("below quorum", 2)
def A_23_decided_without_review(t: Teller) -> None:
    t.requested("a")
    t.decided("a")


@tells("two reviews", 3)
def A_23_one_person_reviews_twice(t: Teller) -> None:
    t.requested("a", quorum=2)
    t.reviewed("a")
    t.reviewed("a")
    t.decided("a")


@tells("approval by nobody", 2)
def A_23_approved_by_expiry(t: Teller) -> None:
    t.requested("a")
    t.decided("a", by="expiry")


@tells("approval against a denial", 4)
def A_23_approved_against_a_denial(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a", ANN)
    t.reviewed("a", BO, "deny")
    t.decided("a")


@tells("denial without review", 2)
def A_23_denied_by_no_reviewer(t: Teller) -> None:
    t.requested("a")
    t.decided("a", "deny")


@tells("review after decision", 6)
def A_23_review_after_decision(t: Teller) -> None:
    t.whole("a")
    t.reviewed("a", BO)


@tells("review without request", 1)
def A_23_review_without_request(t: Teller) -> None:
    t.reviewed("a")


@tells("decision without request", 1)
def A_23_decision_without_request(t: Teller) -> None:
    t.decided("a")


@tells("execution without request", 1)
def A_20_execution_without_request(t: Teller) -> None:
    t.executed("a")


@tells("duplicate request", 2)
def A_17_requested_twice(t: Teller) -> None:
    t.requested("a")
    t.requested("a")


@tells("arguments differ", 5)
def A_24_executed_with_other_arguments(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.released("a")
    t.executed("a", args=args(ARGUMENTS + b" "))


@tells("unreported difference", 5)
def A_24_difference_without_alarm(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.released("a")
    t.executed("a", match=False, args=args(b"other"))


@tells("arguments differ", 3)
def A_24_decided_on_other_arguments(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a", args=args(b"other"))


@tells("another call", 3)
def A_24_decided_on_another_digest(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a", digest="sha256:" + "00" * 32)


@tells("another call", 2)
def A_24_reviewed_another_digest(t: Teller) -> None:
    t.requested("a")
    subject = t.subject("a")
    t.add("approval.reviewed", ANN, subject, verdict="approve", digest="sha256:" + "00" * 32)


@tells("another call", 5)
def A_24_executed_on_another_server(t: Teller) -> None:
    t.whole("a")
    t.records.pop()
    subject = {**t.subject("a"), "server": "bank"}
    t.add("execution.observed", SYSTEM, subject, outcome="executed", match=True, fence=1)


@tells("duplicate id", 2)
def A_17_the_same_refusal_twice(t: Teller) -> None:
    t.add("security.refused", SYSTEM, {"app": "app_1"}, code="x")
    t.records.append(t.records[-1])


@tells("epoch went back", 1)
def election_went_back(t: Teller) -> None:
    t.started(1)


@tells("released after superseded", 5)
def E_14_released_although_it_was_superseded(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.superseded("a")
    t.released("a")


@tells("superseded after release", 5)
def E_14_superseded_after_it_was_released(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.released("a")
    t.superseded("a")


@tells("superseded without approval", 2)
def E_14_superseded_before_it_was_decided(t: Teller) -> None:
    t.requested("a")
    t.superseded("a")


@tells("superseded without approval", 5)
def E_14_superseded_twice(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.superseded("a")
    t.superseded("a")


@tells("superseded without approval", 1)
def E_14_superseded_without_a_request(t: Teller) -> None:
    t.superseded("a")


@tells("another call", 4)
def E_14_superseded_as_another_call(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    subject = {**t.subject("a"), "tool": "read"}
    t.add("approval.superseded", SYSTEM, subject, code="definition_changed")


@tells("released while paused", 5)
def E_17_released_while_everything_is_paused(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.add("pause.begun", SYSTEM, {}, pause="pau_1", covers="all")
    t.released("a")


@tells("released while paused", 5)
def E_17_released_while_its_app_is_paused(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.add("pause.begun", SYSTEM, {"app": "app_1"}, pause="pau_1", covers="app")
    t.released("a")


@tells("released while paused", 7)
def E_17_released_while_another_pause_of_its_server_goes_on(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.add("pause.begun", SYSTEM, {}, pause="pau_1", covers="all")
    t.add("pause.begun", SYSTEM, {"server": "crm"}, pause="pau_2", covers="server")
    t.add("pause.ended", SYSTEM, {}, pause="pau_1", covers="all")
    t.released("a")


@tells("pause without beginning", 1)
def E_17_a_pause_that_ends_before_it_began(t: Teller) -> None:
    t.add("pause.ended", SYSTEM, {}, pause="pau_1", covers="all")


@pytest.mark.parametrize("row", sorted(STORIES))
def test_grammar(row: str, check: Check) -> None:
    damage, index, tell = STORIES[row]
    report = check(told(tell))
    assert report.exit_code == Layer.GRAMMAR
    first = next(finding for finding in report.findings if finding.damage == damage)
    assert first.index == index


@pytest.mark.parametrize("kind", ["call.ruled", "release.sending", "execution.observed"])
def test_a_step_of_no_request_is_malformed(kind: str, check: Check) -> None:
    leaves = bodies(1)
    teller = Teller()
    teller.ruled("x")
    teller.released("x")
    teller.executed("x")
    (body,) = [record.body for record in teller.records if record.kind == kind]
    report = check(folder_of([*leaves, body.replace(b'"approval":"apr_x",', b"")]))
    assert (report.exit_code, report.findings[0].damage) == (Layer.GRAMMAR, "malformed record")
    assert report.findings[0].index == len(leaves)


def test_an_id_that_is_none_is_malformed(check: Check) -> None:
    leaves = bodies(1)
    number = leaves[3].index(b'"id":"') + 6
    leaves[3] = leaves[3][:number] + b"z" * 36 + leaves[3][number + 36 :]
    report = check(folder_of(leaves))
    assert report.exit_code == Layer.GRAMMAR
    assert any(finding.index == 3 for finding in report.findings)


LEGAL: list[Callable[[Teller], None]] = []


def legal(tell: Callable[[Teller], None]) -> None:
    LEGAL.append(tell)


@legal
def denied(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a", verdict="deny")
    t.decided("a", "deny")
    t.released("a", approve=False)
    t.executed("a", "not_sent")


@legal
def expired(t: Teller) -> None:
    t.requested("a")
    t.decided("a", "deny", "expiry", actor=SYSTEM)


@legal
def quorum_of_two(t: Teller) -> None:
    t.requested("a", quorum=2)
    t.reviewed("a", ANN)
    t.reviewed("a", BO)
    t.decided("a", actor=BO)
    t.released("a")
    t.executed("a")


@legal
def two_released_together(t: Teller) -> None:
    for name in ("a", "b"):
        t.requested(name)
        t.reviewed(name)
        t.decided(name)
    t.released("a")
    t.released("b")
    t.executed("a")
    t.executed("b", "failed")


@legal
def allowed_by_a_rule(t: Teller) -> None:
    t.ruled("a", "allow")
    t.requested("a")
    t.decided("a", by="policy", actor=SYSTEM, policy=DIGEST)
    t.released("a")
    t.executed("a")


@legal
def called_unasked_with_leave(t: Teller) -> None:
    unasked(t, "read_email", "send_email")
    t.decided("a", by="policy", actor=SYSTEM, policy=DIGEST)
    executed_unasked(t)


@legal
def called_unasked_and_settled_by_a_person(t: Teller) -> None:
    unasked(t, "send_email")
    t.decided("a", by="policy", actor=SYSTEM, policy=DIGEST)
    executed_unasked(t, "unknown")
    t.add("execution.observed", SYSTEM, t.subject("a"), outcome="executed", reconciled=True)


@legal
def denied_by_a_rule(t: Teller) -> None:
    t.ruled("a", "deny")
    t.requested("a")
    t.decided("a", "deny", "policy", actor=SYSTEM, policy=DIGEST)
    t.released("a", approve=False)


@legal
def held_by_a_rule(t: Teller) -> None:
    t.ruled("a", "hold")
    t.whole("a")


@legal
def unknown_and_then_settled_by_a_person(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.released("a")
    t.executed("a", "unknown")
    t.executed("a", "executed", reconciled=True)


@legal
def not_sent_and_released_again(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.released("a", fence=1)
    t.executed("a", "not_sent", fence=1)
    t.released("a", fence=2)
    t.executed("a", "executed", fence=2)


@legal
def superseded_and_asked_anew(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.superseded("a")
    t.whole("b")


@legal
def superseded_after_it_was_not_sent(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.released("a")
    t.executed("a", "not_sent")
    t.superseded("a")


@legal
def unknown_and_looked_into(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.released("a")
    t.executed("a", "unknown")
    t.add("execution.evidence", SYSTEM, t.subject("a"), finding="executed", match=True)
    t.executed("a", "executed", reconciled=True)


@legal
def released_after_the_pause_and_beside_others(t: Teller) -> None:
    t.add("pause.begun", SYSTEM, {}, pause="pau_1", covers="all")
    t.add("pause.begun", SYSTEM, {"app": "app_2"}, pause="pau_2", covers="app")
    t.add("pause.begun", SYSTEM, {"server": "bank"}, pause="pau_3", covers="server")
    t.requested("b")
    t.reviewed("b", verdict="deny")
    t.decided("b", "deny")
    t.released("b", approve=False)
    t.add("pause.ended", SYSTEM, {}, pause="pau_1", covers="all")
    t.whole("a")


@legal
def difference_with_alarm(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")
    t.decided("a")
    t.released("a")
    t.add("execution.mismatch", SYSTEM, t.subject("a"), code="arguments_differ", fence=1)
    t.executed("a", match=False, args=args(b"other"))


@legal
def still_open(t: Teller) -> None:
    t.requested("a")
    t.reviewed("a")


@pytest.mark.parametrize("tell", LEGAL, ids=lambda tell: tell.__name__)
def test_legal_stories(tell: Callable[[Teller], None], check: Check) -> None:
    assert [str(finding) for finding in check(told(tell)).findings] == []


def payload(name: str = "apr_0", raw: bytes = ARGUMENTS, blind: bytes = BLIND) -> bytes:
    document = {"approval": name, "arguments": raw.decode(), "blind": blind.hex()}
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def test_A_25_26_payload_changed_or_moved(check: Check) -> None:
    leaves = bodies()
    place = "payloads/apr_0.json"
    assert check(folder_of(leaves, **{place: payload()})).valid
    for content in (
        payload(raw=ARGUMENTS + b" "),
        payload(blind=bytes(32)),
        payload("apr_1"),
        payload(blind=b""),
        b"{}",
        b"[]",
        b"",
        payload().replace(b"0a0b", b"0A0B"),
    ):
        report = check(folder_of(leaves, **{place: content}))
        assert (report.exit_code, report.findings[0].index) == (Layer.PAYLOADS, 1)
    report = check(folder_of(leaves, **{"payloads/apr_9.json": payload("apr_9")}))
    assert report.exit_code == Layer.PAYLOADS


def test_A_27_files_missing_or_added(check: Check) -> None:
    files = folder_of(bodies(), **{"payloads/apr_0.json": payload()})
    for path in files:
        report = check({name: content for name, content in files.items() if name != path})
        assert report.exit_code, path
        assert path in str(report.findings), path
    report = check(sealed({**files, "notes.txt": b"x"}))
    assert (report.exit_code, report.findings[0].damage) == (Layer.MANIFEST, "unknown file")
    report = check(sealed({**files, "tile/0/001.p/3": b"x"}))
    assert report.exit_code == Layer.MANIFEST


def test_A_36_a_leaf_that_is_not_canonical(check: Check) -> None:
    leaves = bodies()
    leaves[3] = leaves[3].replace(b'{"actor"', b'{ "actor"')
    report = check(folder_of(leaves))
    assert report.exit_code == Layer.GRAMMAR
    found = next(finding for finding in report.findings if finding.damage == "malformed record")
    assert found.index == 3
    assert "approval.decided" in found.sentence


def test_A_37_a_leaf_too_long_and_lengths_that_lie(check: Check) -> None:
    leaves = bodies()
    long = canonical({"v": 1}).replace(b"1", b'1,"x":"' + b"y" * 5000 + b'"')
    report = check(folder_of([*leaves, long]))
    assert (report.exit_code, report.findings[0].index) == (Layer.GRAMMAR, len(leaves))
    files = folder_of(leaves)
    honest = files[bundle(leaves)]
    for content in (honest[:-1], honest + b"\0", b"\xff\xff" + honest[2:], honest[2:], b""):
        report = check(sealed({**files, bundle(leaves): content}))
        assert report.exit_code == Layer.TREE
        assert report.findings[0].index is not None


def test_A_45_a_head_that_claims_a_vast_size_costs_nothing(check: Check) -> None:
    files = folder_of(bodies())
    for size in (10**9, 2**62):
        report = check(sealed({**files, "checkpoint": signer().sign(size, bytes(32)).encode()}))
        assert report.exit_code == Layer.TREE
        assert len(report.findings) < 101


def test_A_45_findings_are_bounded(check: Check) -> None:
    files = folder_of(MANY[:300])
    report = check({**files, "tile/0/000": bytes(8192)})
    assert len(report.findings) == 100


def test_A_46_unknown_schema_version_is_unsupported(check: Check) -> None:
    for old, new in ((b'"v":1', b'"v":2'), (b"approval.decided", b"approval.debated")):
        leaves = bodies(1)
        leaves[3] = leaves[3].replace(old, new)
        report = check(folder_of(leaves[:4]))
        assert (report.exit_code, report.findings[0].damage) == (Layer.UNSUPPORTED, "unsupported")
        assert not report.valid


def test_proofs_are_checked(check: Check) -> None:
    leaves = bodies()
    files = folder_of(leaves)
    hashes = [tree.leaf_hash(leaf) for leaf in leaves]
    path = tree.prove(
        tree.plan_inclusion(3, len(leaves)),
        lambda node: tree.root_of(hashes[node[1] << node[0] : (node[1] + 1) << node[0]]),
    )
    note = files["checkpoint"].decode()
    good = Proof(3, path, note)
    assert check(sealed({**files, "proofs/3.tlog-proof": good.text().encode()})).valid
    for name, proof in (
        ("proofs/4.tlog-proof", good),
        ("proofs/4.tlog-proof", Proof(4, path, note)),
        ("proofs/3.tlog-proof", Proof(3, path[:-1], note)),
        ("proofs/99.tlog-proof", Proof(99, path, note)),
    ):
        report = check(sealed({**files, name: proof.text().encode()}))
        assert report.exit_code == Layer.CONSISTENCY
        assert name in report.findings[0].sentence


def test_one_record_under_its_proof() -> None:
    leaves = bodies()
    hashes = [tree.leaf_hash(leaf) for leaf in leaves]
    note = signer().sign(len(leaves), tree.root_of(hashes))
    plan = tree.plan_inclusion(3, len(leaves))
    path = tree.prove(
        plan, lambda node: tree.root_of(hashes[node[1] << node[0] : (node[1] + 1) << node[0]])
    )
    proof, key = Proof(3, path, note), signer().verifier
    assert verify_record(leaves[3], 3, proof, key) is None
    damaged = verify_record(leaves[3].replace(b"approve", b"approvd"), 3, proof, key)
    assert damaged is not None
    assert (damaged.damage, damaged.index) == ("record hash mismatch", 3)
    assert "approval.decided" in damaged.sentence
    assert verify_record(leaves[3], 4, proof, key) is not None
    stranger = verify_record(leaves[3], 3, proof, Signer("x", bytes(32)).verifier)
    assert stranger is not None
    assert stranger.damage == "unknown key"


def test_keys_in_the_folder_are_believed_without_others(check: Check) -> None:
    files = folder_of(bodies())
    assert verify_folder(files).valid
    name = next(path for path in files if path.startswith("keys/"))
    report = verify_folder(sealed({**files, name: b"nonsense\n"}))
    assert report.exit_code == Layer.NOTES
    assert checkpoint.open_note(files["checkpoint"], [signer().verifier]).size == 16


# What the shipped verifier refuses to read, each for its own reason.
GOOD_NOTE = signer().sign(3, bytes(32))
GOOD_KEY = str(signer().verifier)


def _sign_text(text: str) -> str:
    made = signer()
    signature = checkpoint.encode64(made.verifier.id + made._key.sign(text.encode()))
    return f"{text}\n— {made.verifier.name} {signature}\n"


def keys() -> dict[tuple[str, bytes], bytes]:
    return dict([verify_evidence.read_key(GOOD_KEY.encode())])


def test_the_shipped_verifier_reads_what_is_good() -> None:
    head = verify_evidence.read_note(GOOD_NOTE.encode(), keys())
    assert head == ("gatepass.test", 3, bytes(32))
    receipt = Proof(7, [bytes(32)], GOOD_NOTE).text().encode()
    assert verify_evidence.read_receipt(receipt) == (7, [bytes(32)], GOOD_NOTE.encode())
    assert verify_evidence.read_json(b'{"a":1}') == {"a": 1}


@pytest.mark.parametrize(
    "damaged",
    [
        GOOD_NOTE.removesuffix("\n"),
        GOOD_NOTE + "\n",
        GOOD_NOTE.replace("\n", "\r\n"),
        GOOD_NOTE.replace("\n\n", "\n"),
        GOOD_NOTE.replace("—", "-"),
        GOOD_NOTE.replace("gatepass.test Bo", "gatepass.test Bp"),
        GOOD_NOTE.replace("=\n\n", "\n\n"),
        GOOD_NOTE + GOOD_NOTE.rpartition("\n\n")[2],
        GOOD_NOTE + "— other AAAA\n",
        GOOD_NOTE + "".join(f"— other{n} AAAAAAAA\n" for n in range(16)),
        GOOD_NOTE + "— other " + "A" * 65536 + "\n",
        GOOD_NOTE.replace("\n3\n", "\n4\n"),
        signer().sign(3, bytes(31)),
        signer("gatepass.test").sign(-3, bytes(32)),
        signer().sign(2**62 + 1, bytes(32)),
        _sign_text("gatepass.test\n03\n" + checkpoint.encode64(bytes(32)) + "\n"),
        _sign_text("gatepass.test\n+3\n" + checkpoint.encode64(bytes(32)) + "\n"),
        _sign_text("\n3\n" + checkpoint.encode64(bytes(32)) + "\n"),
        _sign_text("gatepass.test\n3\n" + checkpoint.encode64(bytes(32)) + "\nmore\n"),
        _sign_text("gatepass.test\n3\n" + checkpoint.encode64(bytes(32))[:-2] + "B=\n"),
        _sign_text("gate\tpass\n3\n" + checkpoint.encode64(bytes(32)) + "\n"),
    ],
)
def test_the_shipped_verifier_refuses_other_notes(damaged: str) -> None:
    with pytest.raises(verify_evidence.Bad):
        verify_evidence.read_note(damaged.encode(), keys())


@pytest.mark.parametrize(
    "damaged",
    [
        "nonsense",
        GOOD_KEY + "A",
        GOOD_KEY.replace("+0", "+1", 1),
        GOOD_KEY.replace("+AQ", "+Ag", 1),
        GOOD_KEY[:-4],
        GOOD_KEY.replace("gatepass", "gate pass"),
    ],
)
def test_the_shipped_verifier_refuses_other_keys(damaged: str) -> None:
    with pytest.raises(verify_evidence.Bad):
        verify_evidence.read_key(damaged.encode())


@pytest.mark.parametrize(
    "damaged",
    [
        Proof(7, [bytes(31)], GOOD_NOTE).text(),
        Proof(-7, [bytes(32)], GOOD_NOTE).text(),
        Proof(7, [bytes(32)] * 65, GOOD_NOTE).text(),
        Proof(7, [], GOOD_NOTE).text().replace("@v1", "@v2"),
        Proof(7, [], GOOD_NOTE).text().replace("index 7", "extra 7"),
        Proof(7, [], GOOD_NOTE).text().replace("index 7", "index 07"),
        "c2sp.org/tlog-proof@v1",
    ],
)
def test_the_shipped_verifier_refuses_other_receipts(damaged: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        verify_evidence.read_receipt(damaged.encode())


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"a":1.0}', b'{"a":NaN}', b'{"a":1,"a":1}', b'{"b":1,"a":1}', b'{"a": 1}', b"[]", b"1",
        b'{"a":"\\u0041"}', b'{"a":"\\ud800"}', b'{"a":-0}', b'{"a":01}', b'{"a":"\xff"}',
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"a":' + b"9" * 5000 + b"}", b"",
    ],
)  # fmt: skip
def test_the_shipped_verifier_refuses_other_json(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        verify_evidence.read_json(damaged)


def test_the_shipped_verifier_refuses_paths_that_lead_elsewhere() -> None:
    hashes = [tree.leaf_hash(leaf) for leaf in MANY[:5]]
    root = tree.root_of(hashes)
    plan = tree.plan_inclusion(4, 5)
    path = tree.prove(
        plan, lambda node: tree.root_of(hashes[node[1] << node[0] : (node[1] + 1) << node[0]])
    )
    assert verify_evidence.climb(hashes[4], 4, 5, path) == root
    for index, size, other in ((5, 5, path), (4, 5, []), (4, 5, [*path, *path, bytes(32)])):
        assert verify_evidence.climb(hashes[4], index, size, other) != root
    assert verify_evidence.climb(root, 1, 1, []) is None


def test_the_shipped_verifier_refuses_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(folder_of(bodies()), tmp_path / "evidence")
    monkeypatch.setattr(verify_evidence, "LARGEST", 2000)
    assert verify_evidence.main([str(root)]) == Layer.MANIFEST
    assert "REFUSED: tile/entries/000.p/16 is too large" in capsys.readouterr().out


def test_both_say_that_a_head_is_of_another_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = Signer("elsewhere.test", bytes(range(32)))
    files = folder_of(MANY[:40])
    files |= {
        f"keys/{key.verifier.id.hex()}.vkey": f"{key.verifier}\n".encode(),
        "checkpoints/5.note": key.sign(5, tree.root_of(map(tree.leaf_hash, MANY[:5]))).encode(),
    }
    assert verify_folder(sealed(files)).exit_code == Layer.CONSISTENCY
    root = write(sealed(files), tmp_path / "evidence")
    assert verify_evidence.main([str(root)]) == Layer.CONSISTENCY
    assert "is of another ledger" in capsys.readouterr().out
