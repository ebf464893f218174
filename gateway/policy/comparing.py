"""Two policies beside each other: which rules one has more, less or otherwise. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.policy.rules import Policy

_HANDLED = ("name", "effect", "match", "when")


@dataclass(frozen=True, slots=True)
class ChangedMember:
    """One member of a rule that differs; None where it is at its default."""

    member: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class ChangedRule:
    """A rule that both have, under one name."""

    name: str
    members: tuple[ChangedMember, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What has to be done to one policy to make it another; rules as plain data, by name."""

    added: tuple[dict[str, Any], ...]
    removed: tuple[dict[str, Any], ...]
    changed: tuple[ChangedRule, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The same for people, one rule a line: `+` added, `-` removed, `~` changed."""
        return tuple(_lines(self))


def compare(before: Policy, after: Policy) -> Comparison:
    """Compare by name; the order of rules means nothing."""
    old = {rule["name"]: rule for rule in before.documents()}
    new = {rule["name"]: rule for rule in after.documents()}
    return Comparison(
        added=tuple(new[name] for name in sorted(new.keys() - old.keys())),
        removed=tuple(old[name] for name in sorted(old.keys() - new.keys())),
        changed=tuple(
            ChangedRule(name, _members(old[name], new[name]))
            for name in sorted(old.keys() & new.keys())
            if old[name] != new[name]
        ),
    )


def sentence(rule: Mapping[str, Any]) -> str:
    """A rule, as plain data, in one line: `hold transfer on bank when args.amount > 3 (quorum 2)`.

    No line of a condition is a line of its own.
    """
    match = rule.get("match", {})
    words = [rule["effect"], _names(match.get("tool"), "every tool")]
    words += ["on", _names(match.get("server"), "every server")]
    if "app" in match:
        words += ["for", _names(match["app"], "")]
    if "when" in rule:
        words += ["when", " ".join(rule["when"].split())]
    others = [f"{name} {_shown(value)}" for name, value in rule.items() if name not in _HANDLED]
    return " ".join(words) + (f" ({', '.join(others)})" if others else "")


def _members(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[ChangedMember, ...]:
    return tuple(
        ChangedMember(name, old.get(name), new.get(name))
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    )


def _lines(comparison: Comparison) -> Iterator[str]:
    for sign, rules in (("-", comparison.removed), ("+", comparison.added)):
        yield from (f"{sign} {rule['name']}: {sentence(rule)}" for rule in rules)
    for rule in comparison.changed:
        told = (f"{m.member} {_shown(m.before)} → {_shown(m.after)}" for m in rule.members)
        yield f"~ {rule.name}: {'; '.join(told)}"


def _names(names: Sequence[str] | None, otherwise: str) -> str:
    return " or ".join(names) if names else otherwise


def _shown(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case Mapping():
            return " ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
        case list() | tuple():
            return ", ".join(str(item) for item in value)
        case _:
            return " ".join(str(value).split())
