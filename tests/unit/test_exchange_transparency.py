"""A request without MCP servers goes through as if nobody stood between."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.exchange.messages import Broken, Emit, FrameSeen, Hold, Plan
from tests.support.playbook import YES, Playbook, check_stream
from tests.support.rounds import Round, call, function_call, message, reasoning, request

ASKED = {"model": "gpt-5-deploy", "input": "Hello", "tools": [{"type": "function", "name": "f"}]}
PLAIN = Round("resp_1", [reasoning(), message(), function_call()], echo={"tools": []})


def begun(asked: dict | None = None) -> Playbook:
    plan = Plan(asked or ASKED, asked or ASKED, mediated=False)
    book = Playbook(plan)
    book.start()
    return book


def shift(frames: list[FrameSeen], by: int) -> list[FrameSeen]:
    """The same frames, numbered as another upstream might."""
    return [
        FrameSeen(f.type, {**f.data, "sequence_number": f.data["sequence_number"] + by})
        for f in frames
    ]


@pytest.mark.parametrize("by", [0, 1, 100])
def test_every_frame_of_a_stream_is_passed_on_equal(by: int) -> None:
    book = begun()
    frames = shift(PLAIN.frames(), by)
    original = copy.deepcopy(frames)
    book.hear_frames(frames)
    assert [(emit.type, emit.data) for emit in book.emitted] == [(f.type, f.data) for f in original]
    assert book.finished.response == PLAIN.response("completed", PLAIN.items)


def test_azure_may_echo_something_else_in_the_end() -> None:
    *frames, completed = PLAIN.frames()
    response = {**completed.data["response"], "metadata": {"a": "b"}, "tool_choice": "none"}
    changed = {**response, "output": [message("msg_9")]}
    for asked, told in [(ASKED, response), ({**ASKED, "previous_response_id": "resp_0"}, changed)]:
        book = begun(asked)
        book.hear_frames([*frames, FrameSeen(completed.type, {**completed.data, "response": told})])
        assert book.finished.response["output"] == told["output"]
    book = begun()
    book.hear_frames([*frames, FrameSeen(completed.type, {**completed.data, "response": response})])
    assert book.finished.response == response


def test_a_plain_response_is_passed_on_equal() -> None:
    book = begun()
    book.hear_frames([PLAIN.plain()])
    assert book.finished.response == PLAIN.response("completed", PLAIN.items)


def test_deltas_pass_unparsed_and_the_numbers_go_on() -> None:
    book = begun()
    frames = PLAIN.frames()
    for frame in frames:
        if book.exchange.passes(frame.type):
            assert frame.type.endswith(".delta")
        else:
            (first, *_) = book.receive(frame)
            assert first == Emit(frame.type, frame.data)
    assert not book.exchange.passes("response.output_text.delta"), "it is over"


def test_a_frame_without_a_name_is_parsed() -> None:
    assert not begun().exchange.passes(None)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.text(), st.lists, max_leaves=5))
def test_members_nobody_knows_survive(value: object) -> None:
    book = begun()
    data = {"type": "response.new", "sequence_number": 3, "new": value}
    assert book.exchange.receive(FrameSeen("response.new", data)) == [Emit("response.new", data)]


def test_after_a_keepalive_the_rest_is_numbered_without_a_gap() -> None:
    book = begun()
    frames = PLAIN.frames()
    keepalive = FrameSeen("keepalive", {"type": "keepalive", "sequence_number": 2})
    book.hear_frames([*frames[:2], keepalive, *shift(frames[2:], 1)])
    assert not book.exchange.passes("response.output_text.delta")
    assert [emit.data for emit in book.emitted] == [frame.data for frame in frames]


def test_a_break_after_unparsed_deltas_is_told_under_the_next_number() -> None:
    book = begun()
    frames = PLAIN.frames()
    book.hear_frames(frames[:2])
    book.exchange.passes("response.output_text.delta")
    book.receive(Broken("reset", sent=True))
    assert [emit.data["sequence_number"] for emit in book.emitted] == [0, 1, 3, 4]


def test_items_out_of_order_are_put_in_order() -> None:
    book = begun()
    created, started, *_ = PLAIN.frames()
    added = [
        FrameSeen(
            "response.output_item.added",
            {"type": "response.output_item.added", "output_index": index, "item": item},
        )
        for index, item in [(1, message()), (0, reasoning())]
    ]
    book.hear_frames([created, started])
    shown = book.hear_frames(added)
    assert [emit.data["output_index"] for emit in shown] == [0, 1]
    assert not book.exchange.passes("response.output_text.delta")


def test_a_frame_of_an_unnamed_item_passes_where_nothing_is_hidden() -> None:
    book = begun()
    data = {"type": "response.x", "output_index": 0, "sequence_number": 0}
    book.play(FrameSeen("response.x", data), Emit("response.x", data))


def test_only_the_parent_the_app_named_is_put_back() -> None:
    asked = {**ASKED, "previous_response_id": "resp_g"}
    round_ = Round("resp_1", PLAIN.items, echo={"tools": [], "previous_response_id": "resp_k"})
    book = begun(asked)
    book.hear(round_)
    expected = round_.response("completed", round_.items)
    assert book.finished.response == {**expected, "previous_response_id": "resp_g"}
    check_stream(book.emitted)


def test_B_16_a_request_for_approval_is_held_even_where_no_server_was_declared() -> None:
    book = begun()
    assert isinstance(book.hear(Round("resp_1", [message("msg_0"), request()]))[-1], Hold)
    assert not book.exchange.passes("response.output_text.delta")
    book.decide(mcpr_1=YES)
    echo = {"tools": []}
    book.hear(Round("resp_2", [call(), message()], echo=echo))
    final = book.finished.response
    assert [item["type"] for item in final["output"]] == ["message", "mcp_call", "message"]
    assert final["output"][1]["approval_request_id"] is None
