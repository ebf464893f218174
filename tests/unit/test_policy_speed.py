"""A thousand rules: only those are looked at that can speak of a call, and arguments once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.policy import CallFacts, Policy, arguments, evaluate, is_light, parse

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
EFFECTS = ("allow", "hold", "deny")


def _rule(number: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"match": {"server": f"s{number % 20}", "tool": f"get_{number}"}},
        {"match": {"server": f"s{number % 20}"}, "when": f"args.amount == {number}"},
        {"match": {"tool": f"*_{number % 50}"}, "when": "args.to.endsWith('@example.org')"},
        {"match": {"app": ["x*", "bot"], "tool": ["set_*", f"x{number}"]}},
        {"match": {"app": "b*", "tool": "*et_c*t_*"}, "when": f"has(args.x{number})"},
    ]
    return {"name": f"r{number}", "effect": EFFECTS[number % 3], **kinds[number % 5]}


@pytest.fixture(scope="module")
def thousand() -> Policy:
    return parse([_rule(number) for number in range(1000)])


def call(tool: str, **members: Any) -> CallFacts:
    facts = {"app": "bot", "server": "s1", "arguments": json.dumps({"amount": 6}), **members}
    return CallFacts(tool=tool, **facts)


@pytest.mark.parametrize(
    "names",
    [
        ("bot", "s1", "get_contact_7"),
        ("bot", "s1", "get_5"),
        ("bot", "s1", "get_21"),
        ("x", "s0", "set_"),
        ("other", "s19", "a_49"),
        ("bot", "elsewhere", "x3"),
        ("", "", ""),
    ],
)
def test_the_index_finds_what_a_look_at_every_rule_finds(
    thousand: Policy, names: tuple[str, str, str]
) -> None:
    expected = {rule.name for rule in thousand.rules if rule.match.covers(*names)}
    assert {rule.name for rule in thousand.candidates(*names)} == expected


def test_rules_of_other_tools_and_servers_are_not_looked_at(thousand: Policy) -> None:
    by_tool, by_server, others = thousand._index
    looked_at = len(by_tool.get("get_5", ())) + len(by_server.get("s1", ())) + len(others)
    # 200 rules name one tool and 200 one server; the rest have stars.
    assert looked_at == 1 + 50 + 600


def test_arguments_are_read_once_and_only_for_a_condition(
    thousand: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, times = arguments.read, []
    monkeypatch.setattr(arguments, "read", lambda raw: times.append(raw) or read(raw))
    evaluate(thousand, call("get_contact_7"), NOW)
    assert len(times) == 1
    evaluate(parse([{"name": "x", "effect": "allow"}]), call("get_contact_7"), NOW)
    assert len(times) == 1


@pytest.mark.parametrize(
    ("condition", "light"),
    [
        ("args.amount >= 1000 && args.currency in ['EUR', 'CHF']", True),
        ("has(args.to) && args.to.endsWith('@example.org') || size(args.list) < 3", True),
        ("now.getHours('Europe/Berlin') < 8 && timestamp('2026-01-01T00:00:00Z') < now", True),
        ("call.annotations.readOnlyHint", True),
        ("args.to.all(a, a == 'x')", False),
        ("args.to . exists (a, a == 'x')", False),
        ("args.to.exists_one(a, a == 'x')", False),
        ("args.to.map(a, a).size() > 3", False),
        ("size(args.to.filter(a, a == 'x')) > 3", False),
        ("args.name.matches('(a*)*b')", False),
        ("matches(args.name, 'a')", False),
        ("size(args.name + args.name) > 5", False),
        ("args\n.to\n.all\n(a, true)", False),
    ],
)
def test_what_is_light(condition: str, light: bool) -> None:
    policy = parse([{"name": "x", "effect": "allow", "when": condition}])
    assert is_light(policy, call("t")) is light


def test_light_conditions_are_not_light_when_there_is_too_much_of_them() -> None:
    long = "&&".join(["args.l == args.l"] * 200)
    policy = parse([{"name": f"r{n}", "effect": "allow", "when": long} for n in range(5)])
    assert is_light(policy, call("t"))
    assert not is_light(policy, call("t", arguments=json.dumps({"l": [1] * 200})))
    large = call("t", arguments=json.dumps({"l": "x" * 5_000}))
    assert not is_light(parse([{"name": "x", "effect": "allow"}]), large)
