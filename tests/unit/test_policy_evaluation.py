"""Rulings: effects beat one another in one order, whatever the order of the rules."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import (
    CallFacts,
    Effect,
    Policy,
    Ruling,
    always_allows,
    combine,
    evaluate,
    parse,
    unevaluated,
)

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def call(arguments: str = "{}", **members: Any) -> CallFacts:
    facts = {"app": "bot", "server": "crm", "tool": "get_contact", **members}
    return CallFacts(arguments=arguments, **facts)


def rule(name: str, effect: str, **members: Any) -> dict[str, Any]:
    return {"name": name, "effect": effect, **members}


def ruled(rules: list[dict[str, Any]], facts: CallFacts | None = None) -> Ruling:
    return evaluate(parse(rules), facts or call(), NOW)


def test_without_a_rule_a_call_is_held() -> None:
    ruling = ruled([])
    assert ruling == Ruling(
        Effect.HOLD, None, "No rule of the policy matches this call, so it is held."
    )


def test_deny_beats_hold_beats_allow() -> None:
    allow, hold, deny = rule("a", "allow"), rule("h", "hold"), rule("d", "deny")
    assert ruled([allow]).effect is Effect.ALLOW
    assert ruled([allow, hold]).effect is Effect.HOLD
    ruling = ruled([hold, allow, deny])
    assert (ruling.effect, ruling.rule) == (Effect.DENY, "d")
    assert ruling.why == "Rule 'd' denies this call."
    assert ruling.rules == ("a", "d", "h")


def test_the_strictest_of_several_holds_wins() -> None:
    ruling = ruled(
        [
            rule("one", "hold", expires="10m", always_ask=True),
            rule("two", "hold", quorum=2, groups=["treasury", "board"], expires="1h"),
            rule(
                "three",
                "hold",
                require_reason=True,
                step_up=True,
                groups=["treasury", "it"],
                undo_seconds=5,
            ),
            rule("fine", "allow"),
        ]
    )
    assert ruling.rule == "two"
    assert ruling.quorum == 2
    assert ruling.groups == ("treasury",)
    assert ruling.expires == timedelta(minutes=10)
    assert ruling.always_ask
    assert ruling.require_reason
    assert ruling.step_up
    assert ruling.undo_seconds == 5
    assert ruling.why == "Rule 'two' holds this call for 2 reviewers, and 2 more rules do."


def test_a_request_escalates_soonest_and_to_all_that_any_rule_names() -> None:
    def escalate(after: str, *to: str) -> dict[str, Any]:
        return {"escalate": {"after": after, "to": list(to)}}

    ruling = ruled(
        [
            rule("one", "hold", **escalate("1h", "managers")),
            rule("two", "hold", **escalate("15m", "board", "managers")),
            rule("three", "hold"),
        ]
    )
    assert ruling.escalate_after == timedelta(minutes=15)
    assert ruling.escalate_to == ("board", "managers")
    alone = ruled([rule("three", "hold")])
    assert (alone.escalate_after, alone.escalate_to) == (None, ())


def test_groups_are_never_united() -> None:
    rules = [
        rule("a", "hold", groups=["security"]),
        rule("b", "hold", groups=["treasury"], quorum=2),
        rule("c", "hold", quorum=3),
    ]
    ruling = ruled(rules)
    assert ruling.groups == ("treasury",)
    assert ruling.quorum == 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("{}", "a member that it names is missing"),
        ('{"amount": "5"}', "a value is not of the type that it expects"),
        ('{"amount": 5, "amount": 6}', "the arguments name a member twice"),
        ('{"amount": 5, "Amount": 6}', "the arguments have members that differ only in case"),
        ("[5]", "the arguments are not a JSON object"),
        ("{", "the arguments are not JSON"),
        ('{"amount": NaN}', "the arguments are not JSON"),
        ('{"amount": 1e999}', "a number is out of range"),
        ('{"amount": 5, "x": "a\\u0000"}', "text that not every reader can read"),
        ('{"amount": 5, "x": "\\ud800"}', "text that not every reader can read"),
        ('{"amount": ' + "[" * 40 + "]" * 40 + "}", "the arguments are nested too deeply"),
        ('{"amount": 5, "x": "' + "a" * 70_000 + '"}', "the arguments are too large"),
        ('{"amount": 5, "x": [' + "1," * 1001 + "1]}", "a list that is too long"),
        ('{"amount": 5, "x": [' + ("[" + "1," * 900 + "1],") * 12 + "1]}", "too many values"),
    ],
)
def test_what_cannot_be_evaluated_matches_hold_and_deny_but_not_allow(
    arguments: str, reason: str
) -> None:
    condition = "args.amount > 3"
    facts = call(arguments)
    denied = ruled([rule("d", "deny", when=condition)], facts)
    assert denied.effect is Effect.DENY
    assert reason in denied.why
    held = ruled([rule("h", "hold", when=condition, quorum=2)], facts)
    assert (held.effect, held.rule, held.quorum) == (Effect.HOLD, "h", 2)
    allowed = ruled([rule("a", "allow", when=condition)], facts)
    assert (allowed.effect, allowed.rule) == (Effect.HOLD, None)


def test_reasons_quote_no_value_of_the_call() -> None:
    facts = call('{"amount": "canary-7f3a", "n": 99999999999999999999}')
    for condition in ("args.amount > 3", "args.n > 3", "args['canary-7f3a'] > 1"):
        ruling = ruled([rule("d", "deny", when=condition)], facts)
        assert "canary" not in ruling.why
        assert "9999" not in ruling.why


def test_nul_does_not_end_a_string() -> None:
    # The CEL library ends strings at NUL, so that this would hold.
    allow = rule("a", "allow", when="args.path == '/public'")
    assert ruled([allow], call('{"path": "/public"}')).effect is Effect.ALLOW
    assert ruled([allow], call('{"path": "/public\\u0000/../secret"}')).effect is Effect.HOLD
    by_tool = rule("b", "allow", when="call.tool == 'read'")
    assert ruled([by_tool], call(tool="read")).effect is Effect.ALLOW
    assert ruled([by_tool], call(tool="read\0x")).effect is Effect.HOLD


def test_a_condition_without_arguments_is_decided_without_them() -> None:
    allow = rule("a", "allow", when="call.tool == 'get_contact' && app == 'bot'")
    assert ruled([allow], call("not json")).effect is Effect.ALLOW


def test_what_conditions_see() -> None:
    facts = call(
        '{"list": [1, 2], "deep": {"x": true}}',
        end_user="ann",
        definition={"name": "x", "annotations": {"read_only": True, "title": "x"}},
    )
    for condition in (
        "args.list.exists(x, x == 2) && args.deep.x",
        "call.end_user == 'ann' && call.app == app && call.server == server",
        "call.annotations.read_only && !has(call.annotations.title)",
        "now == timestamp('2026-01-05T09:00:00Z') && now.getHours('Europe/Berlin') == 10",
        "call.arguments_length == 37 && call.arguments.startsWith('{')",
        "has(args.list) && !has(args.missing)",
    ):
        assert ruled([rule("a", "allow", when=condition)], facts).effect is Effect.ALLOW, condition


def test_too_many_steps_are_not_an_answer() -> None:
    arguments = '{"l": [' + ",".join("1" for _ in range(900)) + "]}"
    condition = "args.l.all(x, args.l.all(y, x == y))"
    ruling = ruled([rule("a", "allow", when=condition)], call(arguments))
    assert ruling.effect is Effect.HOLD
    denied = ruled([rule("d", "deny", when=condition)], call(arguments))
    assert "too many steps" in denied.why


def test_conditions_may_be_evaluated_by_several_threads() -> None:
    policy = parse(
        [rule("a", "allow", when="args.n % 2 == 0"), rule("d", "deny", when="args.n > 9")]
    )
    wrong: list[int] = []

    def work(number: int) -> None:
        expected = Effect.DENY if number > 9 else Effect.ALLOW if number % 2 == 0 else Effect.HOLD
        for _ in range(300):
            if evaluate(policy, call(f'{{"n": {number}}}'), NOW).effect is not expected:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 10, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


_CONDITIONS = st.sampled_from(
    [None, "args.n > 3", "args.n < 3", "args.missing", "app == 'bot'", "app == 'x'"]
)


@st.composite
def _rules(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for index in range(draw(st.integers(0, 6))):
        effect = draw(st.sampled_from(["allow", "hold", "deny"]))
        members: dict[str, Any] = {}
        if (condition := draw(_CONDITIONS)) is not None:
            members["when"] = condition
        if draw(st.booleans()):
            members["match"] = {"tool": draw(st.sampled_from(["get_*", "*", "set_*"]))}
        if effect == "hold":
            members["quorum"] = draw(st.integers(1, 3))
            members |= draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "groups": st.lists(st.sampled_from("abc"), min_size=1, unique=True),
                        "expires": st.sampled_from(["1m", "1h"]),
                        "always_ask": st.booleans(),
                        "require_reason": st.booleans(),
                    },
                )
            )
        found.append(rule(f"r{index}", effect, **members))
    return found


@given(_rules(), st.randoms(use_true_random=False), st.sampled_from(['{"n": 2}', '{"n": 4}', "{"]))
def test_the_order_of_rules_never_matters(rules: list[Any], random: Any, arguments: str) -> None:
    shuffled = list(rules)
    random.shuffle(shuffled)
    facts = call(arguments)
    assert evaluate(parse(shuffled), facts, NOW) == evaluate(parse(rules), facts, NOW)


@given(_rules())
def test_one_matching_deny_always_wins(rules: list[Any]) -> None:
    assert ruled([*rules, rule("last", "deny")]).effect is Effect.DENY


@given(_rules())
def test_adding_a_hold_never_loosens(rules: list[Any]) -> None:
    before = ruled(rules)
    after = ruled([*rules, rule("more", "hold", quorum=2, require_reason=True)])
    if before.effect is Effect.DENY:
        assert after.effect is Effect.DENY
        return
    assert after.effect is Effect.HOLD
    assert after.quorum >= 2
    assert after.require_reason
    if before.effect is Effect.HOLD:
        assert after.quorum >= before.quorum
        assert after.groups == before.groups
        assert after.always_ask >= before.always_ask


@given(st.text(max_size=200))
def test_no_argument_string_raises(arguments: str) -> None:
    policy = Policy(parse([rule("a", "allow", when="args.x == 1 || call.arguments == 'x'")]).rules)
    assert evaluate(policy, call(arguments), NOW).effect in tuple(Effect)


@given(_rules(), _rules(), st.sampled_from(['{"n": 2}', '{"n": 4}', "{"]))
def test_more_denials_never_release(rules: list[Any], more: list[Any], arguments: str) -> None:
    facts = call(arguments)
    extra = [rule(f"x{n}", "deny", **_without_hold(each)) for n, each in enumerate(more)]
    before, after = ruled(rules, facts), ruled([*rules, *extra], facts)
    if before.effect is not Effect.ALLOW:
        assert after.effect is not Effect.ALLOW
    if before.effect is Effect.DENY:
        assert after.effect is Effect.DENY


@given(_rules(), st.sampled_from(['{"n": 2}', '{"n": 4}', "{"]))
def test_an_allow_never_beats_what_holds_or_denies(rules: list[Any], arguments: str) -> None:
    facts = call(arguments)
    stricter = [each for each in rules if each["effect"] != "allow"]
    before, after = ruled(stricter, facts), ruled([*stricter, rule("all", "allow")], facts)
    if before.rule is None:
        assert (after.effect, after.rule) == (Effect.ALLOW, "all")
    else:
        assert (after.effect, after.rule) == (before.effect, before.rule)


@given(_rules(), st.sampled_from(['{"n": 2}', '{"n": 4}', "{"]))
def test_what_cannot_be_evaluated_is_never_looser(rules: list[Any], arguments: str) -> None:
    order = (Effect.ALLOW, Effect.HOLD, Effect.DENY)
    facts, policy = call(arguments), parse(rules)
    known = evaluate(policy, facts, NOW)
    unknown = combine(unevaluated(policy, facts, "it took too long"))
    assert order.index(unknown.effect) >= order.index(known.effect)


def _without_hold(members: dict[str, Any]) -> dict[str, Any]:
    return {name: members[name] for name in ("match", "when") if name in members}


_ANNOTATIONS = st.dictionaries(
    st.sampled_from(["readOnlyHint", "read_only", "destructiveHint", "idempotentHint", "title"]),
    st.one_of(st.booleans(), st.text(max_size=5), st.none()),
)


@given(_rules(), _ANNOTATIONS, st.sampled_from(['{"n": 2}', "{"]))
def test_R_14_what_a_server_says_of_its_tool_changes_no_ruling(
    rules: list[Any], annotations: dict[str, Any], arguments: str
) -> None:
    definition = {"name": "get_contact", "annotations": annotations}
    claimed = ruled(rules, call(arguments, definition=definition))
    assert claimed == ruled(rules, call(arguments))


def test_R_14_a_condition_may_ask_for_what_was_pinned_and_only_narrow_itself() -> None:
    read_only = rule("a", "allow", when="call.annotations.readOnlyHint")
    claims = call(definition={"annotations": {"readOnlyHint": True}})
    assert ruled([read_only], claims).effect is Effect.ALLOW
    for claimed in ({}, {"readOnlyHint": "true"}, {"readOnlyHint": 1}, None, "readOnlyHint"):
        facts = call(definition={"annotations": claimed})
        assert ruled([read_only], facts).effect is Effect.HOLD
    assert ruled([read_only, rule("d", "deny")], claims).effect is Effect.DENY


@given(_rules(), st.sampled_from(['{"n": 2}', '{"n": 4}', "{", '{"n": 9, "n": 1}']))
def test_what_is_always_allowed_is_allowed_whatever_the_arguments(
    rules: list[Any], arguments: str
) -> None:
    name = always_allows(parse(rules), "bot", "crm", "get_contact")
    if name is not None:
        assert ruled(rules, call(arguments)).effect is Effect.ALLOW


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        ([], None),
        ([rule("a", "allow")], "a"),
        ([rule("b", "allow"), rule("a", "allow", when="args.n > 3")], "b"),
        ([rule("a", "allow", when="true")], None),
        ([rule("a", "allow"), rule("h", "hold", when="false")], None),
        ([rule("a", "allow"), rule("d", "deny", match={"tool": "get_*"}, when="args.n > 3")], None),
        ([rule("a", "allow"), rule("d", "deny", match={"tool": "set_*"})], "a"),
        ([rule("a", "allow", match={"app": "other"})], None),
    ],
)
def test_what_is_always_allowed(rules: list[Any], name: str | None) -> None:
    assert always_allows(parse(rules), "bot", "crm", "get_contact") == name
