"""One call, one policy, one moment: the ruling.

`deny` beats `hold` beats `allow`, whatever the order of the rules; without a matching rule a
call is held. A condition that cannot be evaluated counts as matching for `hold` and `deny`, as
not matching for `allow`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gateway.policy import arguments as argument_text
from gateway.policy.conditions import Bindings, CannotEvaluate, bind
from gateway.policy.rules import Effect, Policy, Rule

#: Up to here a call is ruled on at once: characters of arguments, and characters of conditions
#: times those of arguments, which is what the operators of a light condition can cost.
_LIGHT_ARGUMENTS = 4096
_LIGHT_WORK = 1_000_000
_LEAST = 20


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What policy may know of a call. `arguments` is the raw string, `server` a label.

    `end_user` is claimed by the app; `definition` is the tool definition as pinned, or None.
    """

    app: str
    server: str
    tool: str
    arguments: str
    end_user: str | None = None
    definition: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """What policy says about one call, with the rule and the reason.

    `why` names no value of the call, so it may stand in the ledger and on a page. What follows
    it has a meaning for `hold` only; `groups` empty means any reviewer, `expires` None means the
    installation's own deadline. After `escalate_after`, if it is set, members of `escalate_to`
    may review as well. `rules` are all rules that matched, by name.
    """

    effect: Effect
    rule: str | None
    why: str
    quorum: int = 1
    groups: tuple[str, ...] = ()
    expires: timedelta | None = None
    require_reason: bool = False
    step_up: bool = False
    always_ask: bool = False
    execution_expires: timedelta | None = None
    undo_seconds: int = 0
    escalate_after: timedelta | None = None
    escalate_to: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that matches a call; `unevaluated` says why only its names are sure to."""

    rule: Rule
    unevaluated: str | None = None

    @property
    def name(self) -> str:
        """The name of the rule."""
        return self.rule.name


def evaluate(policy: Policy, call: CallFacts, now: datetime) -> Ruling:
    """Rule on `call`. Never raises for anything that stands in the call."""
    return combine(matching(policy, call, now))


def matching(policy: Policy, call: CallFacts, now: datetime) -> list[Hit]:
    """The rules that match; the arguments are read once, and only if a condition is asked."""
    candidates = policy.candidates(call.app, call.server, call.tool)
    bindings = _bindings(call, now) if any(rule.when for rule in candidates) else None
    return [hit for rule in candidates if (hit := _hit(rule, bindings)) is not None]


def unevaluated(policy: Policy, call: CallFacts, why: str) -> list[Hit]:
    """The rules that match when no condition can be evaluated."""
    return [
        Hit(rule, why) if rule.when else Hit(rule)
        for rule in policy.candidates(call.app, call.server, call.tool)
        if rule.when is None or rule.effect is not Effect.ALLOW
    ]


def always_allows(policy: Policy, app: str, server: str, tool: str) -> str | None:
    """The rule by which every call of a tool is allowed, whatever its arguments or the time.

    None as soon as one rule could hold or deny a call of it.
    """
    candidates = policy.candidates(app, server, tool)
    if any(rule.effect is not Effect.ALLOW for rule in candidates):
        return None
    return min((rule.name for rule in candidates if rule.when is None), default=None)


def is_light(policy: Policy, call: CallFacts) -> bool:
    """Whether `evaluate` is known to take a few milliseconds at most, whatever the call says."""
    if len(call.arguments) > _LIGHT_ARGUMENTS:
        return False
    candidates = policy.candidates(call.app, call.server, call.tool)
    conditions = [rule.when for rule in candidates if rule.when]
    if not all(condition.light for condition in conditions):
        return False
    text = sum(len(condition.source) for condition in conditions)
    return text * max(len(call.arguments), _LEAST) <= _LIGHT_WORK


def combine(hits: Sequence[Hit]) -> Ruling:
    """The ruling that follows from the rules that match."""
    for effect in (Effect.DENY, Effect.HOLD, Effect.ALLOW):
        found = sorted((hit for hit in hits if hit.rule.effect is effect), key=lambda hit: hit.name)
        if found:
            names = tuple(sorted(hit.name for hit in hits))
            return _held(found, names) if effect is Effect.HOLD else _settled(found[0], names)
    return Ruling(Effect.HOLD, None, "No rule of the policy matches this call, so it is held.")


def _bindings(call: CallFacts, now: datetime) -> Bindings:
    described = {
        "tool": call.tool,
        "server": call.server,
        "app": call.app,
        "end_user": call.end_user,
        "arguments": call.arguments if len(call.arguments) <= 65536 else "",
        "arguments_length": len(call.arguments),
        "annotations": _annotations(call.definition),
    }
    parsed = argument_text.read(call.arguments)
    return bind(parsed, len(call.arguments), described, (call.app, call.server), now)


def _annotations(definition: Mapping[str, Any] | None) -> dict[str, bool]:
    # Claims of the server about its own tool: worth a look, never a reason to trust it.
    given = (definition or {}).get("annotations")
    if not isinstance(given, Mapping):
        return {}
    return {str(name): value for name, value in given.items() if isinstance(value, bool)}


def _hit(rule: Rule, bindings: Bindings | None) -> Hit | None:
    if rule.when is None or bindings is None:
        return Hit(rule)
    match rule.when.evaluate(bindings):
        case CannotEvaluate(why):
            return None if rule.effect is Effect.ALLOW else Hit(rule, why)
        case holds:
            return Hit(rule) if holds else None


def _settled(hit: Hit, names: tuple[str, ...]) -> Ruling:
    verb = "denies" if hit.rule.effect is Effect.DENY else "allows"
    why = f"Rule {hit.name!r} {verb} this call{_doubt(hit)}."
    return Ruling(hit.rule.effect, hit.name, why, rules=names)


def _held(hits: list[Hit], names: tuple[str, ...]) -> Ruling:
    """The strictest of every member over all rules that hold the call."""
    strictest = min(hits, key=_leniency)
    rules = [hit.rule for hit in hits]
    escalations = [rule.escalate for rule in rules if rule.escalate]
    quorum = max(rule.quorum for rule in rules)
    return Ruling(
        effect=Effect.HOLD,
        rule=strictest.name,
        why=_why_held(strictest, len(hits) - 1, quorum),
        quorum=quorum,
        groups=_groups(rules),
        expires=_shortest([rule.expires for rule in rules]),
        require_reason=any(rule.require_reason for rule in rules),
        step_up=any(rule.step_up for rule in rules),
        always_ask=any(rule.always_ask for rule in rules),
        execution_expires=_shortest([rule.execution_expires for rule in rules]),
        undo_seconds=max(rule.undo_seconds for rule in rules),
        escalate_after=min((each.after for each in escalations), default=None),
        escalate_to=tuple(sorted({group for each in escalations for group in each.to})),
        rules=names,
    )


def _leniency(hit: Hit) -> tuple[int, bool, int, str]:
    rule = hit.rule
    return -rule.quorum, not rule.groups, len(rule.groups), rule.name


def _groups(rules: list[Rule]) -> tuple[str, ...]:
    """Whose members may review: what all rules with groups agree on, never their union.

    When they agree on no group, the groups of the strictest of them.
    """
    named = [rule for rule in rules if rule.groups]
    if not named:
        return ()
    shared = set(named[0].groups).intersection(*(rule.groups for rule in named))
    strictest = min(named, key=lambda rule: _leniency(Hit(rule)))
    return tuple(sorted(shared or strictest.groups))


def _shortest(lengths: list[timedelta | None]) -> timedelta | None:
    return min((length for length in lengths if length is not None), default=None)


def _why_held(hit: Hit, others: int, quorum: int) -> str:
    people = "a reviewer" if quorum == 1 else f"{quorum} reviewers"
    also = f", and {others} more {'rule does' if others == 1 else 'rules do'}" if others else ""
    return f"Rule {hit.name!r} holds this call for {people}{_doubt(hit)}{also}."


def _doubt(hit: Hit) -> str:
    if hit.unevaluated is None:
        return ""
    return f" because its condition cannot be evaluated: {hit.unevaluated}"
