"""Calls that Azure makes without asking: only with leave, each seen, none of them twice."""

from __future__ import annotations

import pytest

from gateway.exchange.messages import Broken, Call, FrameSeen, Mismatch, Observed, Ran, Rejected
from tests.support.playbook import YES, Playbook, a_plan
from tests.support.rounds import Json, Round, call, message, request

UNASKED = "executed without an approval"


def started(*tools: str, label: str = "crm") -> Playbook:
    book = Playbook(a_plan())
    book.start()
    book.exchange.give_leave({label: tools})
    return book


def ran(outcome: str = "executed", item_id: str = "mcp_1", arguments: str = '{"id":42}') -> Ran:
    return Ran(Call(item_id, "crm", "update_contact", arguments, 0), outcome)


@pytest.mark.parametrize("plain", [False, True])
def test_a_call_with_leave_is_told_as_one_that_ran(plain: bool) -> None:
    book = started("update_contact")
    commands = book.hear(Round("resp_1", [call(approval=None), message()]), plain=plain)
    assert commands[0] == ran()
    assert not [command for command in commands if isinstance(command, Mismatch)]
    shown = book.finished.response
    assert shown is not None
    assert [item["type"] for item in shown["output"]] == ["mcp_call", "message"]


def test_a_failed_call_with_leave_is_told_as_such() -> None:
    commands = started("update_contact").hear(Round("resp_1", [call(approval=None, error="no")]))
    assert commands[0] == ran("failed")


@pytest.mark.parametrize(
    "item",
    [
        call(approval=None, name="delete_contact"),
        call(approval=None, label="other"),
        call(approval="mcpr_9"),
        call(approval=None, name=None),
    ],
)
def test_anything_else_that_nobody_asked_for_is_a_mismatch(item: Json) -> None:
    commands = started("update_contact").hear(Round("resp_1", [item]))
    assert isinstance(commands[0], Mismatch)
    assert not [command for command in commands if isinstance(command, Ran)]


def test_leave_ends_with_its_round() -> None:
    book = started("update_contact")
    asked = request(name="delete_contact")
    book.hear(Round("resp_1", [call(approval=None), asked]))
    book.decide(mcpr_1=YES)
    items = [call("mcp_2", name="delete_contact"), call("mcp_3", approval=None)]
    commands = book.hear(Round("resp_2", items))
    assert commands[:2] == [
        Observed("mcpr_1", "executed", True),
        Mismatch(None, "crm", "update_contact", UNASKED),
    ]


def test_two_calls_with_leave_are_two() -> None:
    items = [call(approval=None), call("mcp_2", approval=None, arguments='{"id":7}')]
    commands = started("update_contact").hear(Round("resp_1", items))
    assert commands[:2] == [ran(), ran(item_id="mcp_2", arguments='{"id":7}')]


def begun(book: Playbook) -> None:
    item = {**call(approval=None), "arguments": "", "status": "in_progress", "output": None}
    book.hear_frames(
        [
            FrameSeen("response.created", {"response": {"id": "resp_1", "output": []}}),
            FrameSeen("response.output_item.added", {"output_index": 0, "item": item}),
            FrameSeen(
                "response.mcp_call_arguments.done",
                {"item_id": "mcp_1", "output_index": 0, "arguments": '{"id":42}'},
            ),
        ]
    )


@pytest.mark.parametrize("end", [Broken("Gone.", sent=True), Rejected(400, {"error": {}})])
def test_a_call_that_had_begun_when_the_round_broke_is_unknown(end: Broken | Rejected) -> None:
    book = started("update_contact")
    begun(book)
    assert ran("unknown") in book.receive(end)


def test_how_a_call_ended_is_known_before_its_item_says_so() -> None:
    book = started("update_contact")
    begun(book)
    book.receive(FrameSeen("response.mcp_call.completed", {"item_id": "mcp_1", "output_index": 0}))
    assert ran("executed") in book.receive(Broken("Gone.", sent=True))


def test_what_a_frame_that_cannot_be_understood_tells_is_not_lost() -> None:
    book = started("update_contact")
    begun(book)
    output = [call(approval=None), 5]
    frame = FrameSeen("response.completed", {"response": {"id": "resp_1", "output": output}})
    assert ran("unknown") in book.receive(frame)


def test_leave_is_for_a_round_that_runs() -> None:
    book = Playbook(a_plan())
    with pytest.raises(RuntimeError):
        book.exchange.give_leave({"crm": ["update_contact"]})
