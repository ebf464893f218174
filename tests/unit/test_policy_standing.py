"""A decision stands as long as the rules of now ask for no more than those it was taken under."""

from __future__ import annotations

from itertools import product

import pytest

from gateway.policy.evaluation import Ruling
from gateway.policy.rules import Effect
from gateway.policy.standing import DecidedUnder, stricter

HOLD, ALLOW, DENY = Effect.HOLD, Effect.ALLOW, Effect.DENY


def held(**members: object) -> Ruling:
    return Ruling(HOLD, "r", "because", **members)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "then", "why"),
    [
        (Ruling(ALLOW, "r", ""), DecidedUnder("policy"), None),
        (Ruling(ALLOW, "r", ""), DecidedUnder("reviewers", 3), None),
        (Ruling(DENY, "r", ""), DecidedUnder("policy"), "policy_denies"),
        (Ruling(DENY, "r", ""), DecidedUnder("reviewers", 2), "policy_denies"),
        (held(), DecidedUnder("policy"), "policy_holds"),
        (held(), DecidedUnder("reviewers"), None),
        (held(), DecidedUnder("grant"), None),
        (held(quorum=2), DecidedUnder("reviewers"), "quorum_larger"),
        (held(quorum=2), DecidedUnder("reviewers", 2), None),
        (held(quorum=1), DecidedUnder("reviewers", 2), None),
        (held(groups=("a",)), DecidedUnder("reviewers"), "other_groups"),
        (held(groups=("a",)), DecidedUnder("reviewers", groups=frozenset({"b"})), "other_groups"),
        (
            held(groups=("a",)),
            DecidedUnder("reviewers", groups=frozenset({"a", "b"})),
            "other_groups",
        ),
        (held(groups=("a", "b")), DecidedUnder("reviewers", groups=frozenset({"a"})), None),
        (held(), DecidedUnder("reviewers", groups=frozenset({"a"})), None),
        (held(require_reason=True), DecidedUnder("reviewers"), "reason_required"),
        (held(require_reason=True), DecidedUnder("reviewers", require_reason=True), None),
        (held(step_up=True), DecidedUnder("reviewers"), "fresh_sign_in_required"),
        (held(step_up=True), DecidedUnder("grant", step_up=True), None),
        (held(always_ask=True), DecidedUnder("grant"), "always_ask"),
        (held(always_ask=True), DecidedUnder("reviewers"), None),
    ],
)
def test_E_13_what_counts_as_stricter(now: Ruling, then: DecidedUnder, why: str | None) -> None:
    assert stricter(now, then) == why


def test_the_same_rules_are_never_stricter_than_themselves() -> None:
    for quorum, groups, reason in product((1, 2), ((), ("a",), ("a", "b")), (True, False)):
        now = held(quorum=quorum, groups=groups, require_reason=reason)
        assert stricter(now, DecidedUnder("reviewers", quorum, frozenset(groups), reason)) is None
