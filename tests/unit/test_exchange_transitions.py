"""The table of transitions is what the machine does: neither more nor less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import orjson

from gateway.exchange.machine import TRANSITIONS, Exchange
from gateway.exchange.messages import (
    Broken,
    Call,
    Cancelled,
    Carried,
    Decided,
    Event,
    FrameSeen,
    Plan,
    Rejected,
    Reopened,
    Started,
)
from tests.support.playbook import NO, YES, a_plan
from tests.support.rounds import Round, call, function_call, message, request

CALL = Call("mcpr_0", "crm", "update_contact", "{}", 0)


def plans() -> Iterator[Plan]:
    """Every kind of exchange: fresh, continuing an open or a decided call, in return mode."""
    plan = replace(a_plan(), max_rounds=3)
    yield plan
    yield replace(plan, carried=(Carried(CALL),))
    yield replace(plan, carried=(Carried(CALL, NO), Carried(replace(CALL, request_id="mcpr_9"))))
    yield replace(plan, carried=(Carried(CALL, YES),))
    yield replace(plan, show_approvals=True)


def events(exchange: Exchange) -> Iterator[Event]:
    """Everything that can happen to an exchange, whether it can happen now or not."""
    number = exchange.stitcher.round
    ids = [f"mcpr_{number}a", f"mcpr_{number}b"]
    yield Started()
    yield Rejected(500, {"error": {"code": "x"}})
    yield Broken("reset", sent=True)
    yield Broken("reset", sent=False)
    yield Cancelled("gone")
    yield Reopened()
    for name in [*ids, "mcpr_0", "mcpr_9"]:
        yield Reopened((name,))
        yield Decided(name, YES)
        yield Decided(name, NO)
    yield FrameSeen("response.created", {"response": {"id": f"resp_{number}"}})
    yield FrameSeen("response.output_item.done", {"output_index": 7, "item": message("msg_x")})
    yield FrameSeen("keepalive", {})
    yield FrameSeen("error", {})
    yield FrameSeen("response.completed", {})
    for status in ("completed", "incomplete", "failed", "cancelled"):
        for items in (
            [message(f"msg_{number}")],
            [request(name) for name in ids],
            [function_call(), request(ids[0])],
            [call(approval=None), request(ids[1])],
        ):
            yield Round(f"resp_{number}", items, status).plain()


def key(exchange: Exchange) -> tuple[object, ...]:
    """What decides how an exchange may go on; the rest only grows."""
    return (
        exchange.state,
        exchange.stitcher.round,
        tuple(exchange.answers.items()),
        tuple(exchange.calls),
        tuple(exchange.released),
        bool(exchange.client_calls),
        exchange.id is None,
        exchange.error_told,
    )


def walk(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """All transitions that can be reached, breadth first, as (state, event, state)."""
    first = Exchange(plan)
    waiting, known = [orjson.dumps(first.snapshot())], {key(first)}
    while waiting:
        saved = waiting.pop(0)
        for event in events(Exchange.restore(orjson.loads(saved))):
            exchange = Exchange.restore(orjson.loads(saved))
            before = exchange.state
            try:
                exchange.receive(event)
            except RuntimeError:
                assert orjson.dumps(exchange.snapshot()) == saved, "a refused event changes nothing"
                continue
            yield before, type(event).__name__, exchange.state
            if key(exchange) not in known:
                known.add(key(exchange))
                waiting.append(orjson.dumps(exchange.snapshot()))


def test_the_table_equals_what_the_machine_does() -> None:
    seen = {step for plan in plans() for step in walk(plan)}
    found: dict[str, set[str]] = {state: set() for state in TRANSITIONS}
    for before, _, after in seen:
        if before != after:
            found[before].add(after)
    assert found == {state: set(after) for state, after in TRANSITIONS.items()}
    by_event = {(before, event) for before, event, _ in seen}
    assert by_event == {
        ("new", "Started"),
        ("forwarding", "FrameSeen"),
        ("forwarding", "Rejected"),
        ("forwarding", "Broken"),
        ("forwarding", "Cancelled"),
        ("forwarding", "Reopened"),
        ("holding", "Decided"),
        ("holding", "Cancelled"),
    }
    to = {(event, after) for before, event, after in seen if before == "forwarding"}
    assert to == {
        ("FrameSeen", "forwarding"),
        ("FrameSeen", "holding"),
        ("FrameSeen", "done"),
        ("FrameSeen", "failed"),
        ("FrameSeen", "cancelled"),
        ("Rejected", "failed"),
        ("Broken", "failed"),
        ("Cancelled", "cancelled"),
        ("Reopened", "holding"),
        ("Reopened", "forwarding"),
    }


def test_an_end_is_an_end() -> None:
    ends = {state for state, after in TRANSITIONS.items() if not after}
    assert ends == {"done", "failed", "cancelled"}
    assert {after for reach in TRANSITIONS.values() for after in reach} <= set(TRANSITIONS)
