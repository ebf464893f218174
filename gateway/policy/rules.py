"""Policy, Rule, Match, Effect, and how they are read from plain JSON-like data.

Every error of a document is found in one pass and says what is wrong, where (the path of the
member) and what to do; whoever read the document from a file adds the line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

from gateway.errors import Refused
from gateway.policy.conditions import Condition, ConditionError, compile_condition
from gateway.policy.durations import format_duration, parse_duration
from gateway.policy.names import Names, compile_names
from gateway.policy.problems import Path, Problem, kind_of

MAX_RULES = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_HOLD_ONLY = (
    "quorum",
    "groups",
    "expires",
    "execution_expires",
    "always_ask",
    "require_reason",
    "step_up",
    "undo_seconds",
    "on_expiry",
    "escalate",
)
_MEMBERS = ("name", "match", "when", "effect", *_HOLD_ONLY)
_MATCH_MEMBERS = ("app", "server", "tool")
_ESCALATE_MEMBERS = ("after", "to")


class Effect(StrEnum):
    """What a rule does to the calls that it matches; `deny` beats `hold` beats `allow`."""

    ALLOW = "allow"
    HOLD = "hold"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Match:
    """Which calls a rule is about; an empty tuple means any. `*` stands for any characters."""

    apps: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    #: The same, compiled: apps, servers, tools.
    names: tuple[Names, Names, Names] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the patterns, once for all calls."""
        compiled = tuple(compile_names(globs) for globs in (self.apps, self.servers, self.tools))
        object.__setattr__(self, "names", compiled)

    def covers(self, app: str, server: str, tool: str) -> bool:
        """Whether all three names fit. Names are compared exactly, case included."""
        apps, servers, tools = self.names
        return tool in tools and server in servers and app in apps


@dataclass(frozen=True, slots=True)
class Escalation:
    """Whom to ask as well, once a request has waited for so long."""

    after: timedelta
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy. What follows `when` has a meaning for `hold` only."""

    name: str
    effect: Effect
    match: Match = Match()
    when: Condition | None = None
    quorum: int = 1
    groups: tuple[str, ...] = ()
    expires: timedelta | None = None
    execution_expires: timedelta | None = None
    always_ask: bool = False
    require_reason: bool = False
    step_up: bool = False
    undo_seconds: int = 0
    escalate: Escalation | None = None

    @property
    def all_groups(self) -> frozenset[str]:
        """Every reviewer group that the rule names, at once or later."""
        return frozenset((*self.groups, *(self.escalate.to if self.escalate else ())))

    def document(self) -> dict[str, Any]:
        """The rule as plain data, without what is at its default: what is stored and digested."""
        match = {
            name: list(globs)
            for name, globs in zip(
                _MATCH_MEMBERS,
                (self.match.apps, self.match.servers, self.match.tools),
                strict=True,
            )
            if globs
        }
        members: dict[str, Any] = {
            "name": self.name,
            "match": match,
            "when": None if self.when is None else self.when.source,
            "effect": self.effect.value,
            "quorum": self.quorum if self.quorum != 1 else None,
            "groups": list(self.groups),
            "expires": format_duration(self.expires),
            "execution_expires": format_duration(self.execution_expires),
            "always_ask": self.always_ask,
            "require_reason": self.require_reason,
            "step_up": self.step_up,
            "undo_seconds": self.undo_seconds,
            "escalate": _escalation(self.escalate),
        }
        return {name: value for name, value in members.items() if value}


@dataclass(frozen=True)
class Policy:
    """A list of rules. Without a matching rule a call is held."""

    rules: tuple[Rule, ...] = ()

    def documents(self) -> list[dict[str, Any]]:
        """The rules as plain data; `parse` gives the same policy back."""
        return [rule.document() for rule in self.rules]

    def candidates(self, app: str, server: str, tool: str) -> tuple[Rule, ...]:
        """The rules that may speak of a call by its names, in no particular order."""
        return self._recent(app, server, tool)

    @cached_property
    def _recent(self) -> Callable[[str, str, str], tuple[Rule, ...]]:
        # Names repeat from call to call, and a policy never changes.
        return lru_cache(maxsize=512)(self._candidates)

    def _candidates(self, app: str, server: str, tool: str) -> tuple[Rule, ...]:
        by_tool, by_server, others = self._index
        found = (*by_tool.get(tool, ()), *by_server.get(server, ()), *others)
        return tuple(rule for rule in found if rule.match.covers(app, server, tool))

    @cached_property
    def _index(self) -> tuple[dict[str, list[Rule]], dict[str, list[Rule]], list[Rule]]:
        # Each rule stands where fewest calls come by: under its tools, else under its servers.
        by_tool: dict[str, list[Rule]] = {}
        by_server: dict[str, list[Rule]] = {}
        others: list[Rule] = []
        for rule in self.rules:
            _, servers, tools = rule.match.names
            for names, index in ((tools, by_tool), (servers, by_server)):
                if names.listed:
                    for name in names.exact:
                        index.setdefault(name, []).append(rule)
                    break
            else:
                others.append(rule)
        return by_tool, by_server, others

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the hex SHA-256 of the rules as RFC 8785 JSON."""
        text = json.dumps(
            self.documents(), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def parse(rules: Sequence[Any], where: str = "policies") -> Policy:
    """Read a policy; raises `Refused` (`policy_invalid`) that lists every problem, one a line."""
    policy, problems = check(rules)
    if problems:
        lines = "\n".join(problem.text(where) for problem in problems)
        raise Refused(lines, code="policy_invalid", param=problems[0].at(where))
    return policy


def check(rules: Any) -> tuple[Policy, list[Problem]]:
    """Read what can be read of `rules` and say everything that is wrong with the rest."""
    if not isinstance(rules, list | tuple):
        return Policy(), [Problem((), f"must be a list of rules, not {kind_of(rules)}")]
    if len(rules) > MAX_RULES:
        return Policy(), [Problem((), f"may hold at most {MAX_RULES} rules, not {len(rules)}")]
    problems: list[Problem] = []
    found: list[Rule] = []
    first: dict[str, int] = {}
    for index, document in enumerate(rules):
        rule = _Reader((index,), problems).rule(document)
        if rule is None:
            continue
        if rule.name in first:
            text = f"the name {rule.name!r} is taken by rule [{first[rule.name]}]; choose another"
            problems.append(Problem((index, "name"), text))
        first.setdefault(rule.name, index)
        found.append(rule)
    return Policy(tuple(found)), problems


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one rule; every problem goes to `problems` and reading goes on."""

    path: Path
    problems: list[Problem] = field(repr=False)

    def rule(self, document: Any) -> Rule | None:
        if not isinstance(document, Mapping):
            self.report((), f"must be a mapping, not {kind_of(document)}")
            return None
        before = len(self.problems)
        self.only_known(document, _MEMBERS, ())
        name = self.name(document)
        effect = self.effect(document)
        self.only_for_hold(document, effect)
        values = {
            member: read(self, (member,), document[member])
            for member, read in _READERS.items()
            if member in document
        }
        if len(self.problems) > before or effect is None:
            return None
        values.pop("on_expiry", None)
        return Rule(name, effect, **values)

    def report(self, below: Path, message: str) -> None:
        self.problems.append(Problem((*self.path, *below), message))

    def only_known(self, document: Mapping[Any, Any], known: Sequence[str], below: Path) -> None:
        for member in document:
            if member not in known:
                path = (*self.path, *below, str(member))
                self.problems.append(Problem(path, "unknown member", tuple(known)))

    def name(self, document: Mapping[str, Any]) -> str:
        match document.get("name"):
            case str() as text if _NAME.fullmatch(text):
                return text
            case None:
                self.report((), "needs a name")
            case given:
                # YAML reads a bare `no` or `7` as something else than text.
                quotes = "" if isinstance(given, str) else "; put it in quotes"
                self.report(
                    ("name",),
                    "must be 1 to 80 letters, digits, dots, dashes or underscores, "
                    f"beginning with a letter or digit{quotes}",
                )
        return ""

    def effect(self, document: Mapping[str, Any]) -> Effect | None:
        given = document.get("effect")
        if given is None:
            self.report((), "needs an effect: allow, hold or deny")
            return None
        if given not in tuple(Effect):
            shown = repr(given) if isinstance(given, str) else kind_of(given)
            self.report(("effect",), f"must be allow, hold or deny, not {shown}")
            return None
        return Effect(given)

    def only_for_hold(self, document: Mapping[str, Any], effect: Effect | None) -> None:
        if effect in (None, Effect.HOLD):
            return
        for member in _HOLD_ONLY:
            if member in document:
                text = f"has a meaning only with effect: hold, not with {effect}; remove it"
                self.report((member,), text)

    def escalate(self, below: Path, value: Any) -> Escalation | None:
        if not isinstance(value, Mapping):
            self.report(below, f"must be a mapping of after and to, not {kind_of(value)}")
            return None
        self.only_known(value, _ESCALATE_MEMBERS, below)
        for member in _ESCALATE_MEMBERS:
            if value.get(member) is None:
                self.report(below, f"needs {member}, such as {{after: 15m, to: [managers]}}")
                return None
        after = self.duration((*below, "after"), value["after"])
        to = self.texts((*below, "to"), value["to"])
        return Escalation(after, tuple(dict.fromkeys(to))) if after and to else None

    def match(self, below: Path, value: Any) -> Match:
        if not isinstance(value, Mapping):
            self.report(below, f"must be a mapping of app, server and tool, not {kind_of(value)}")
            return Match()
        self.only_known(value, _MATCH_MEMBERS, below)
        apps, servers, tools = (
            self.globs((*below, member), value[member]) if member in value else ()
            for member in _MATCH_MEMBERS
        )
        return Match(apps, servers, tools)

    def globs(self, below: Path, value: Any) -> tuple[str, ...]:
        names = self.texts(below, value)
        for name in names:
            if any(character in name for character in "?[]{}"):
                text = f"{name!r}: only * is special in a pattern; list the names instead"
                self.report(below, text)
        return names

    def texts(self, below: Path, value: Any) -> tuple[str, ...]:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not items:
            self.report(below, f"must be a name or a list of names, not {_or_empty(value)}")
            return ()
        for index, item in enumerate(items):
            if not isinstance(item, str) or not 0 < len(item) <= 200 or not item.isprintable():
                text = f"must be a name of 1 to 200 visible characters, not {_or_empty(item)}"
                self.report((*below, index), text)
                return ()
        return tuple(items)

    def when(self, below: Path, value: Any) -> Condition | None:
        if not isinstance(value, str) or not value.strip():
            shown = _or_empty(value.strip() if isinstance(value, str) else value)
            self.report(below, f"must be a CEL condition in quotes, not {shown}")
            return None
        try:
            return compile_condition(value)
        except ConditionError as error:
            path = (*self.path, *below)
            self.problems.extend(Problem(path, f.message, within=f.at) for f in error.flaws)
            return None

    def quorum(self, below: Path, value: Any) -> int:
        return self.number(below, value, (1, 10))

    def undo_seconds(self, below: Path, value: Any) -> int:
        return self.number(below, value, (0, 30))

    def number(self, below: Path, value: Any, limits: tuple[int, int]) -> int:
        low, high = limits
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            shown = value if type(value) is int else kind_of(value)
            self.report(below, f"must be a whole number from {low} to {high}, not {shown}")
            return low
        return value

    def flag(self, below: Path, value: Any) -> bool:
        if not isinstance(value, bool):
            self.report(below, f"must be true or false, not {kind_of(value)}")
        return value is True

    def duration(self, below: Path, value: Any) -> timedelta | None:
        length = parse_duration(value) if isinstance(value, str) else None
        if length is None:
            shown = repr(value) if isinstance(value, str) else kind_of(value)
            text = f"must be a duration such as 90s, 30m or 2h (at most 30d), not {shown}"
            self.report(below, text)
        return length


def _on_expiry(reader: _Reader, below: Path, value: Any) -> None:
    if value != "deny":
        reader.report(below, "must be deny: a request that nobody answers is never released")


#: Member to the method that reads it; what is read becomes the member of the same name.
_READERS: dict[str, Callable[[_Reader, Path, Any], Any]] = {
    "match": _Reader.match,
    "when": _Reader.when,
    "quorum": _Reader.quorum,
    "groups": _Reader.texts,
    "expires": _Reader.duration,
    "execution_expires": _Reader.duration,
    "always_ask": _Reader.flag,
    "require_reason": _Reader.flag,
    "step_up": _Reader.flag,
    "undo_seconds": _Reader.undo_seconds,
    "on_expiry": _on_expiry,
    "escalate": _Reader.escalate,
}


def _escalation(escalate: Escalation | None) -> dict[str, Any] | None:
    if escalate is None:
        return None
    return {"after": format_duration(escalate.after), "to": list(escalate.to)}


def _or_empty(value: Any) -> str:
    return "an empty one" if value in ("", [], ()) else kind_of(value)
