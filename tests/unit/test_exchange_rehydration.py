"""What is hidden of a chain is remembered by what is shown, and comes back in its place."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Around
from gateway.exchange.rehydration import around, rehydrate, unanswered
from tests.support.playbook import Playbook, a_plan
from tests.support.rounds import (
    Round,
    call,
    function_call,
    listing,
    message,
    reasoning,
    request,
)

Json = dict[str, Any]
USER = {"role": "user", "content": "go"}


def answer(name: str = "mcpr_1", approve: bool = True) -> Json:
    return {"type": "mcp_approval_response", "approval_request_id": name, "approve": approve}


def test_an_approval_comes_back_before_its_call() -> None:
    chain = [listing(), reasoning(), request(), answer(), call(), message()]
    shown = [listing(), reasoning(), call(approval=None), message()]
    known = around(chain, shown)
    assert known == {
        "mcp_1": Around(before=[request(), answer()], members={"approval_request_id": "mcpr_1"})
    }
    assert rehydrate([USER, *shown, USER], known) == [USER, *chain, USER]


def test_a_request_that_is_still_open_comes_back_after_what_the_app_was_shown_last() -> None:
    chain = [reasoning(), function_call(), request()]
    known = around(chain, [reasoning(), function_call()])
    output = {"type": "function_call_output", "call_id": "call_1", "output": "1"}
    items = rehydrate([USER, reasoning(), function_call(), output], known)
    assert items == [USER, *chain, output]
    assert unanswered(items) == ["mcpr_1"]
    assert unanswered([*items, answer()]) == []


def test_members_that_were_taken_away_come_back() -> None:
    known = around([reasoning(encrypted_content="gAAA")], [reasoning()])
    assert rehydrate([reasoning()], known) == [reasoning(encrypted_content="gAAA")]


def test_a_reference_stays_a_reference() -> None:
    known = around([request(), answer(), call()], [call(approval=None)])
    for reference in ({"type": "item_reference", "id": "mcp_1"}, {"id": "mcp_1"}):
        assert rehydrate([reference], known) == [request(), answer(), reference]


def test_what_is_there_already_does_not_come_twice() -> None:
    known = around([request(), answer(), call(), message()], [call(approval=None), message()])
    whole = rehydrate([request(), call(approval=None), call(approval=None)], known)
    assert whole == [request(), answer(), call(), call()]


def test_nothing_hidden_is_nothing_to_remember() -> None:
    assert around([reasoning(), message()], [reasoning(), message()]) == {}
    assert around([request()], []) == {}


_KINDS = st.sampled_from(["shown", "hidden"])


@given(st.lists(_KINDS, max_size=12))
def test_any_chain_comes_back_whole_once_something_is_shown(kinds: list[str]) -> None:
    chain = [message(f"i_{number}") for number in range(len(kinds))]
    shown = [item for item, kind in zip(chain, kinds, strict=True) if kind == "shown"]
    assert rehydrate(shown, around(chain, shown)) == (chain if shown else [])


def test_a_snapshot_of_the_first_version_is_still_understood() -> None:
    """It kept the app's own input in front of the chain, and only when Azure keeps no state."""
    book = Playbook(a_plan(store=False, input="go"))
    book.start()
    book.hear(Round("resp_1", [reasoning(), request()]))
    second = book.exchange.snapshot()
    first = {**second, "version": 1, "context": [USER, *second["transcript"]]}
    del first["transcript"]
    assert Exchange.restore(first).snapshot() == second
