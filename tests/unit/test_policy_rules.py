"""Reading policies: exact errors, one form, and examples that stay true."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.errors import Refused
from gateway.policy import Effect, Escalation, Policy, check, parse
from gateway.policy.durations import format_duration, parse_duration
from gateway.registry import declaration

RULE = {"name": "x", "effect": "hold"}
WRONG = [
    ({"name": "x"}, "p[0]: needs an effect: allow, hold or deny"),
    ({"effect": "hold"}, "p[0]: needs a name"),
    ("x", "p[0]: must be a mapping, not text"),
    ({**RULE, "name": "-x"}, "p[0].name: must be 1 to 80 letters"),
    ({**RULE, "name": 5}, "p[0].name: must be 1 to 80 letters"),
    ({**RULE, "effect": "permit"}, "p[0].effect: must be allow, hold or deny, not 'permit'"),
    ({**RULE, "effect": True}, "p[0].effect: must be allow, hold or deny, not true or false"),
    ({**RULE, "effect": ["deny"]}, "p[0].effect: must be allow, hold or deny, not a list"),
    ({**RULE, "colour": 1}, "unknown member 'colour' in p[0]; known: name, match, when"),
    ({**RULE, "match": "crm"}, "p[0].match: must be a mapping of app, server and tool, not text"),
    ({**RULE, "match": {"servr": "x"}}, "unknown member 'servr' in p[0].match; known: app, "),
    ({**RULE, "match": {"tool": 3}}, "p[0].match.tool: must be a name or a list of names"),
    ({**RULE, "match": {"tool": []}}, "p[0].match.tool: must be a name or a list of names, not an"),
    ({**RULE, "match": {"tool": ["a", 3]}}, "p[0].match.tool[1]: must be a name of 1 to 200"),
    ({**RULE, "match": {"tool": "get_?"}}, "p[0].match.tool: 'get_?': only * is special"),
    ({**RULE, "when": ""}, "p[0].when: must be a CEL condition in quotes, not an empty one"),
    ({**RULE, "when": True}, "p[0].when: must be a CEL condition in quotes, not true or false"),
    ({**RULE, "when": "args.x >"}, "p[0].when: line 1, column 9: Syntax error"),
    ({**RULE, "when": "app == 'x' &&\n  foo"}, "p[0].when: line 2, column 3: undeclared reference"),
    ({**RULE, "when": "app + 'x'"}, "p[0].when: a condition must be true or false, this one is ST"),
    ({**RULE, "when": "a" * 5000}, "p[0].when: a condition may have at most 4096 characters"),
    ({**RULE, "when": "app == 'a\0'"}, "p[0].when: a condition may not contain NUL"),
    ({**RULE, "when": "app == '\ud800'"}, "p[0].when: a condition may not contain NUL or half"),
    ({**RULE, "match": {"tool": "a\ud800"}}, "p[0].match.tool[0]: must be a name of 1 to 200 vis"),
    ({**RULE, "groups": ["a\nb"]}, "p[0].groups[0]: must be a name of 1 to 200 visible"),
    ({**RULE, "quorum": 0}, "p[0].quorum: must be a whole number from 1 to 10, not 0"),
    ({**RULE, "quorum": True}, "p[0].quorum: must be a whole number from 1 to 10, not true or f"),
    ({**RULE, "quorum": 1.5}, "p[0].quorum: must be a whole number from 1 to 10, not a number"),
    ({**RULE, "groups": {}}, "p[0].groups: must be a name or a list of names"),
    ({**RULE, "expires": "soon"}, "p[0].expires: must be a duration such as 90s, 30m or 2h"),
    ({**RULE, "expires": 30}, "p[0].expires: must be a duration such as 90s, 30m or 2h"),
    ({**RULE, "expires": "31d"}, "p[0].expires: must be a duration"),
    ({**RULE, "expires": "0s"}, "p[0].expires: must be a duration"),
    ({**RULE, "always_ask": "yes"}, "p[0].always_ask: must be true or false, not text"),
    ({**RULE, "undo_seconds": 31}, "p[0].undo_seconds: must be a whole number from 0 to 30"),
    ({**RULE, "on_expiry": "allow"}, "p[0].on_expiry: must be deny: a request that nobody"),
    ({**RULE, "escalate": "15m"}, "p[0].escalate: must be a mapping of after and to, not text"),
    ({**RULE, "escalate": {"after": "15m"}}, "p[0].escalate: needs to, such as {after: 15m, to: ["),
    ({**RULE, "escalate": {"to": ["x"]}}, "p[0].escalate: needs after, such as {after: 15m, to:"),
    ({**RULE, "escalate": {"after": "soon", "to": "x"}}, "p[0].escalate.after: must be a duration"),
    ({**RULE, "escalate": {"after": "1m", "to": []}}, "p[0].escalate.to: must be a name or a list"),
    (
        {**RULE, "escalate": {"after": "1m", "to": "x", "in": 1}},
        "unknown member 'in' in p[0].escal",
    ),
    (
        {**RULE, "effect": "deny", "escalate": {}},
        "p[0].escalate: has a meaning only with effect: h",
    ),
    ({**RULE, "effect": "allow", "quorum": 2}, "p[0].quorum: has a meaning only with effect: hold"),
    ({**RULE, "effect": "deny", "on_expiry": "deny"}, "p[0].on_expiry: has a meaning only with"),
]


@pytest.mark.parametrize(("rule", "message"), WRONG, ids=[text[:50] for _, text in WRONG])
def test_what_is_wrong_is_said_exactly(rule: object, message: str) -> None:
    with pytest.raises(Refused) as caught:
        parse([rule], "p")
    assert message in caught.value.message
    assert caught.value.code == "policy_invalid"


def test_everything_that_is_wrong_is_said_at_once() -> None:
    policy, problems = check([{"name": "x", "effect": "no"}, RULE, {"name": "y", "when": "1 +"}, 3])
    places = [problem.at("rules") for problem in problems]
    assert places == ["rules[0].effect", "rules[2]", "rules[2].when", "rules[3]"]
    assert [rule.name for rule in policy.rules] == ["x"]


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(
        Refused, match=re.escape("policies[1].name: the name 'x' is taken by rule [0]")
    ):
        parse([RULE, RULE])


@pytest.mark.parametrize("rules", ["x", None, {"a": 1}, 3])
def test_a_policy_is_a_list(rules: object) -> None:
    with pytest.raises(Refused, match="must be a list of rules"):
        parse(rules)  # type: ignore[arg-type]


def test_too_many_rules_are_refused() -> None:
    with pytest.raises(Refused, match="at most 1000 rules"):
        parse([RULE] * 1001)


def test_document_and_parse_are_inverse() -> None:
    everything = {
        "name": "big",
        "match": {"app": "a", "server": ["x", "y"], "tool": "t*"},
        "when": "args.amount > 3",
        "effect": "hold",
        "quorum": 2,
        "groups": "treasury",
        "expires": "90m",
        "execution_expires": "60s",
        "always_ask": True,
        "require_reason": True,
        "step_up": True,
        "undo_seconds": 10,
        "on_expiry": "deny",
        "escalate": {"after": "15m", "to": ["managers", "treasury"]},
    }
    policy = parse([everything])
    again = parse(policy.documents())
    assert again == policy
    assert again.digest == policy.digest
    rule = policy.rules[0]
    assert rule.effect is Effect.HOLD
    assert rule.groups == ("treasury",)
    assert rule.expires == timedelta(minutes=90)
    assert rule.escalate == Escalation(timedelta(minutes=15), ("managers", "treasury"))
    assert policy.documents()[0]["expires"] == "1h30m"


def test_defaults_do_not_change_the_digest() -> None:
    plain = parse([RULE])
    spelled = parse([{**RULE, "quorum": 1, "match": {}, "always_ask": False, "on_expiry": "deny"}])
    assert plain.digest == spelled.digest
    assert plain.digest != Policy().digest
    assert re.fullmatch("sha256:[0-9a-f]{64}", plain.digest)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1m30s", 90), ("2h", 7200), ("1d", 86400), ("30d", 2592000)],
)
def test_durations(text: str, seconds: int) -> None:
    length = parse_duration(text)
    assert length == timedelta(seconds=seconds)
    assert parse_duration(format_duration(length) or "") == length


@pytest.mark.parametrize("text", ["", "m", "1", "-1m", "1m1h", "1.5h", "30d1s", "٣m", "1 m"])
def test_no_durations(text: str) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    ("glob", "name", "fits"),
    [
        ("get_*", "get_x", True),
        ("get_*", "get_", True),
        ("get_*", "forget_x", False),
        ("get_*", "GET_x", False),
        ("*", "", True),
        ("*_x", "a_x", True),
        ("a*b*c", "aXbYc", True),
        ("a*b*c", "aXcYb", False),
        ("ab*ba", "aba", False),
        ("a**b", "ab", True),
        ("a.c", "abc", False),
        ("*a*", "bab\nc", True),
    ],
)
def test_globs(glob: str, name: str, fits: bool) -> None:
    rule = parse([{**RULE, "match": {"tool": glob}}]).rules[0]
    assert rule.match.covers("app", "server", name) is fits


def test_a_hostile_glob_costs_no_time() -> None:
    rule = parse([{**RULE, "match": {"tool": "*a" * 99}}]).rules[0]
    assert not rule.match.covers("app", "server", "a" * 98 + "b" * 100_000)


def test_match_needs_all_three() -> None:
    match = {"app": ["a", "b"], "server": "s", "tool": "t"}
    rule = parse([{**RULE, "match": match}]).rules[0]
    assert rule.match.covers("b", "s", "t")
    assert not rule.match.covers("c", "s", "t")
    assert not rule.match.covers("a", "x", "t")
    assert not rule.match.covers("a", "s", "x")


def _examples() -> list[tuple[str, str]]:
    """Every declarative example of every document that has rules in it."""
    root = Path(__file__).parents[2]
    found = []
    for page in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        found += [(page.name, block) for block in blocks if "policies:" in block]
    return found


EXAMPLES = _examples()


def test_the_documents_have_examples() -> None:
    pages = [page for page, _ in EXAMPLES]
    assert pages.count("policy.md") >= 6
    assert "README.md" in pages


@pytest.mark.parametrize(
    ("page", "example"), EXAMPLES, ids=[f"{n}-{page}" for n, (page, _) in enumerate(EXAMPLES)]
)
def test_every_example_of_the_documents_is_a_policy(page: str, example: str) -> None:
    policy = declaration.parse({page: example}).policy
    assert policy is not None
    assert policy.rules


def test_every_variable_of_conditions_has_an_example() -> None:
    conditions = " ".join(example for page, example in EXAMPLES if page == "policy.md")
    for variable in ("args.", "call.end_user", "call.annotations", "app ==", "now.get"):
        assert variable in conditions
