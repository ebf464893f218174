"""What is hidden of a chain is remembered by what is shown, and comes back in its place."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Around
from gateway.exchange.rehydration import around, rehydrate, unanswered
from tests.support.playbook import YES, Playbook, a_plan
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


DENIED = {**answer(approve=False), "reason": "This call is not to be made again."}


def test_an_approval_whose_call_was_never_reported_is_not_told_again() -> None:
    """The connection broke after it was sent: whether the call was made is not known."""
    chain = [listing(), request(), answer()]
    known = around(chain, [listing()])
    assert rehydrate([USER, listing()], known) == [USER, listing(), request(), DENIED]
    assert unanswered(rehydrate([listing()], known)) == []


def test_an_approval_whose_call_is_left_out_is_not_told_again() -> None:
    chain = [
        request(),
        request("mcpr_2"),
        answer(),
        answer("mcpr_2"),
        call(),
        call("mcp_2", "mcpr_2"),
    ]
    shown = [call(approval=None), call("mcp_2", None)]
    known = around(chain, shown)
    assert rehydrate(shown, known) == chain
    left = rehydrate(shown[:1], known)
    assert [item["approve"] for item in left if "approve" in item] == [True, False]
    named = rehydrate([{"type": "item_reference", "id": "mcp_1"}, {"id": "mcp_2"}], known)
    assert [item["approve"] for item in named if "approve" in item] == [True, True]


def test_a_stateless_round_does_not_tell_an_approval_again_that_nothing_came_of() -> None:
    book = Playbook(a_plan(store=False, input=[USER]))
    book.start()
    book.hear(Round("resp_1", [request()]))
    book.decide(mcpr_1=YES)
    book.hear(Round("resp_2", [message(), request("mcpr_2")]))  # it says nothing of the call
    forward = book.decide(mcpr_2=YES)
    answers = [item for item in forward.body["input"] if "approve" in item]
    assert answers == [DENIED, answer("mcpr_2")]


@given(st.data())
def test_no_part_of_a_chain_brings_an_approval_back_without_its_call(data: st.DataObject) -> None:
    chain: list[Json] = [USER]
    for number in range(data.draw(st.integers(1, 4))):
        chain += [request(f"mcpr_{number}"), answer(f"mcpr_{number}", data.draw(st.booleans()))]
        if chain[-1]["approve"] and data.draw(st.booleans()):
            chain.append(call(f"mcp_{number}", f"mcpr_{number}"))
        chain.append(message(f"msg_{number}"))
    shown = [
        {**item, "approval_request_id": None} if item.get("type") == "mcp_call" else item
        for item in chain
        if item.get("type") in {"mcp_call", "message"} and item.get("id")
    ]
    known = around(chain[1:], shown)
    sent = data.draw(st.lists(st.sampled_from(shown), max_size=8))
    whole = rehydrate([USER, *sent], known)
    for place, item in enumerate(whole):
        if item.get("approve"):
            later = [i.get("approval_request_id") for i in whole[place:] if i["type"] == "mcp_call"]
            assert item["approval_request_id"] in later


def test_a_snapshot_of_the_first_version_is_still_understood() -> None:
    """It kept the app's own input in front of the chain, and only when Azure keeps no state."""
    book = Playbook(a_plan(store=False, input="go"))
    book.start()
    book.hear(Round("resp_1", [reasoning(), request()]))
    second = book.exchange.snapshot()
    first = {**second, "version": 1, "context": [USER, *second["transcript"]]}
    del first["transcript"]
    assert Exchange.restore(first).snapshot() == second
