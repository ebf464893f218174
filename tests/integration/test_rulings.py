"""Rulings that may take long are made elsewhere, and never make anybody else wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.approvals.rulings import UNEXAMINED, Rulings
from gateway.policy import CallFacts, Effect, Policy, evaluate, is_light, parse, signals

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
#: Many seconds of work in few iterations: each walks through a long text.
HOSTILE = "args.l.all(x, !args.s.matches('(a{1,30}){1,30}b'))"
BAIT = json.dumps({"s": "a" * 60_000, "l": [1] * 900})


def call(arguments: str = "{}", **members: Any) -> CallFacts:
    return CallFacts(**{"app": "bot", "server": "crm", "tool": "t", **members}, arguments=arguments)


def policy(*rules: tuple[str, str, str | None]) -> Policy:
    return parse(
        [
            {"name": name, "effect": effect, **({} if when is None else {"when": when})}
            for name, effect, when in rules
        ]
    )


@pytest.fixture
def rulings() -> Iterator[Rulings]:
    made = Rulings(limit=30)
    yield made
    made.close()


@contextlib.asynccontextmanager
async def beats() -> AsyncIterator[list[float]]:
    """The longest pauses that the event loop made; a list that is filled at the end."""
    found: list[float] = []
    loop = asyncio.get_running_loop()

    async def beat() -> None:
        longest = 0.0
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                before = loop.time()
                await asyncio.sleep(0.001)
                longest = max(longest, loop.time() - before)
        found.append(longest)

    task = asyncio.create_task(beat())
    await asyncio.sleep(0.01)
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(
    ("condition", "arguments"),
    [
        ("args.l.exists(x, x > 3)", json.dumps({"l": list(range(900))})),
        ("args.l.all(x, args.l.all(y, x == y))", json.dumps({"l": [1] * 900})),
        ("args.name.matches('^a+$')", '{"name": "aaa"}'),
        ("args.a + args.b > 3", '{"a": 1, "b": 5}'),
        ("args.x == 1", json.dumps({"x": 1, "l": [0] * 10_000})),
        ("args.y + 'a' == 'b'", json.dumps({"x": "\ud800", "y": "ü\u2028"})),
        ("args.y + 'a' == 'b'", '{"x": "\ud800", "y": "\u2028"}'),
        ("args.x == 1", "[" * 20_000),
        ("call.annotations.readOnlyHint", "x" * 20_000),
        ("now.getHours() == 9", json.dumps({"x": "y" * 1_000_000})),
    ],
)
async def test_the_other_process_says_what_this_one_would(
    rulings: Rulings, condition: str, arguments: str
) -> None:
    rules = policy(("a", "allow", condition), ("h", "hold", "args.never"), ("d", "deny", condition))
    facts = call(arguments, definition={"annotations": {"readOnlyHint": True}}, end_user="ann")
    assert not is_light(rules, facts)
    assessed = await rulings.assess(rules, facts, NOW)
    assert assessed.ruling == evaluate(rules, facts, NOW)
    assert assessed.signals == signals(facts)
    assert await rulings.rule(rules, facts, NOW) == assessed.ruling


async def test_what_is_light_starts_no_process(rulings: Rulings) -> None:
    rules = policy(("a", "allow", "args.amount < 100 && args.to.endsWith('@example.org')"))
    facts = call('{"amount": 5, "to": "ann@example.org"}')
    assert (await rulings.assess(rules, facts, NOW)).ruling.effect is Effect.ALLOW
    assert rulings._process is None


async def test_d_06_a_hostile_condition_stops_nobody_else_and_is_no_answer() -> None:
    rulings = Rulings(limit=0.5)
    try:
        warm = policy(("a", "allow", "args.l.all(x, x > 0)"))
        await rulings.assess(warm, call('{"l": [1]}'), NOW)
        # The yardstick: what the same machine does while nothing but sleep goes on.
        async with beats() as idle:
            await asyncio.sleep(0.5)
        async with beats() as busy:
            denied = await rulings.assess(policy(("d", "deny", HOSTILE)), call(BAIT), NOW)
            allowed = await rulings.assess(policy(("a", "allow", HOSTILE)), call(BAIT), NOW)
        assert denied.ruling.effect is Effect.DENY
        assert "cannot be evaluated: it took too long" in denied.ruling.why
        assert denied.signals == (UNEXAMINED,)
        assert (allowed.ruling.effect, allowed.ruling.rule) == (Effect.HOLD, None)
        # Twice half a second was spent; the loop was never stopped for a good part of it.
        assert max(busy) < 0.25 + 3 * max(idle)
        # And the next one is ruled on as ever.
        assert (await rulings.assess(warm, call('{"l": [1]}'), NOW)).ruling.effect is Effect.ALLOW
    finally:
        rulings.close()


async def test_rules_without_a_condition_hold_whatever_becomes_of_the_others() -> None:
    rulings = Rulings(limit=0.3)
    try:
        rules = policy(("h", "hold", HOSTILE), ("plain", "deny", None), ("a", "allow", None))
        ruling = (await rulings.assess(rules, call(BAIT), NOW)).ruling
        assert (ruling.effect, ruling.rule) == (Effect.DENY, "plain")
        assert ruling.rules == ("a", "h", "plain")
        loose = policy(("a", "allow", HOSTILE), ("b", "allow", None))
        assert (await rulings.assess(loose, call(BAIT), NOW)).ruling.rule == "b"
    finally:
        rulings.close()


async def test_a_process_that_was_killed_is_started_again(rulings: Rulings) -> None:
    rules = policy(("a", "allow", "args.l.all(x, x > 0)"))
    facts = call('{"l": [1]}')
    assert (await rulings.assess(rules, facts, NOW)).ruling.effect is Effect.ALLOW
    process = rulings._process
    assert process is not None
    process.kill()
    process.wait()
    assert (await rulings.assess(rules, facts, NOW)).ruling.effect is Effect.ALLOW


async def test_it_is_given_nothing_of_our_environment(
    rulings: Rulings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEPASS_UPSTREAM_API_KEY", "canary")
    await rulings.assess(policy(("a", "allow", "args.l.all(x, true)")), call('{"l": []}'), NOW)
    assert rulings._process is not None
    environment = Path(f"/proc/{rulings._process.pid}/environ").read_bytes()
    assert b"canary" not in environment
    assert os.environ["GATEPASS_UPSTREAM_API_KEY"] == "canary"


async def test_more_policies_than_it_remembers_are_all_ruled_by(rulings: Rulings) -> None:
    facts = call('{"l": [1]}')
    many = [policy((f"r{n}", "deny", f"args.l.all(x, x < {n})")) for n in range(12)]
    for rules in (*many, *many):
        expected = evaluate(rules, facts, NOW)
        assert (await rulings.assess(rules, facts, NOW)).ruling == expected
