"""Whether a decision still stands under the rules of now: stricter than then, and in what.

Pure. A rule that has become milder takes nothing back; one that has become stricter asks again.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.policy.evaluation import Ruling
from gateway.policy.rules import Effect


@dataclass(frozen=True, slots=True)
class DecidedUnder:
    """What a decision to allow rested on. `by`: policy | reviewers | grant.

    The rest is what was asked of reviewers; `groups` empty means any of them.
    """

    by: str
    quorum: int = 1
    groups: frozenset[str] = frozenset()
    require_reason: bool = False
    step_up: bool = False


def stricter(now: Ruling, then: DecidedUnder) -> str | None:
    """In what `now` asks for more than `then`, as a stable code, or None."""
    match now.effect:
        case Effect.ALLOW:
            return None
        case Effect.DENY:
            return "policy_denies"
        case Effect.HOLD:
            return "policy_holds" if then.by == "policy" else _stricter_hold(now, then)


def _stricter_hold(now: Ruling, then: DecidedUnder) -> str | None:
    if now.quorum > then.quorum:
        return "quorum_larger"
    # Everybody who could decide then must be one who could decide now.
    if now.groups and not (then.groups and then.groups <= set(now.groups)):
        return "other_groups"
    if now.require_reason and not then.require_reason:
        return "reason_required"
    if now.step_up and not then.step_up:
        return "fresh_sign_in_required"
    # People have been asked; only what answered in their place counts no more.
    return "always_ask" if now.always_ask and then.by == "grant" else None
