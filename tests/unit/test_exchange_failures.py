"""Every way an exchange ends badly: what the app is told, what is known of the released call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.exchange.messages import (
    Answer,
    Broken,
    Call,
    Cancelled,
    Carried,
    Decided,
    Emit,
    FrameSeen,
    Observed,
    Rejected,
    Started,
)
from tests.support.playbook import NO, YES, Playbook, a_plan, check_stream, official_client
from tests.support.rounds import Round, call, listing, message, request

ASKS = Round("resp_1", [listing(), request("mcpr_1"), request("mcpr_2")])
CALLS = tuple(Call(name, "crm", "update_contact", '{"id":42}', 0) for name in ("mcpr_1", "mcpr_2"))
REFUSAL = {"error": {"message": "no", "type": "x", "param": "p", "code": "c", "inner": {"a": 1}}}


def resuming(*, plain: bool = False) -> Playbook:
    """An exchange whose second round runs: one call released, one denied."""
    book = Playbook(a_plan())
    book.start()
    book.hear(ASKS, plain=plain)
    book.decide(mcpr_1=YES, mcpr_2=NO)
    return book


def told(book: Playbook) -> list[str]:
    return [frame.type for frame in book.emitted]


# --- Azure says what cannot be understood ---------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        FrameSeen("response.output_item.added", {"output_index": [], "item": {"type": "message"}}),
        FrameSeen("response.completed", {"response": {"id": "resp_2", "output": [7]}}),
        FrameSeen("response.completed", {"response": {"id": "resp_2", "output": 7}}),
        FrameSeen("response.completed", {"response": {"id": "resp_2", "usage": [1]}}),
    ],
    ids=str,
)
def test_a_frame_of_another_shape_ends_the_exchange_and_leaves_the_call_unknown(
    frame: FrameSeen,
) -> None:
    book = resuming()
    commands = book.receive(frame)
    assert commands[0] == Observed("mcpr_1", "unknown")
    assert commands[-1].outcome == "failed"
    assert commands[-1].fault.headers == {"x-should-retry": "false"}
    assert told(book)[-2:] == ["error", "response.failed"]


def test_odd_counts_and_names_do_not_stop_the_chain() -> None:
    """Numbers that cannot be written once they are added up, and an id that is no text."""
    huge = {"output_tokens": 2**64 - 1, "input_tokens": 2**64 - 1, "total_tokens": 7}
    book = Playbook(a_plan(store=False, input=[]))
    book.start()
    book.hear(Round("resp_1", [request()], echo={"usage": huge}))
    book.decide(mcpr_1=YES)
    odd = {**call(), "approval_request_id": [["mcpr_1"]]}
    book.hear(Round("resp_2", [odd, request("mcpr_2")], echo={"usage": huge}))
    book.decide(mcpr_2=NO)
    book.hear(Round("resp_3", [message()]))
    assert book.finished.outcome == "completed"
    assert book.finished.response["usage"]["total_tokens"] == 7 + 7 + 15


def test_an_index_that_was_shown_does_not_show_an_approval_later() -> None:
    book = Playbook(a_plan())
    book.start()
    book.receive(FrameSeen("response.created", {"response": ASKS.response("in_progress", [])}))
    item = {"output_index": 0, "item": {"type": "reasoning", "id": "rs_1"}}
    book.receive(FrameSeen("response.output_item.added", item))
    for kind in ("added", "done"):
        asked = {"output_index": 0, "item": request()}
        book.receive(FrameSeen(f"response.output_item.{kind}", asked))
    assert "mcpr_1" not in str(book.emitted)


def test_an_approval_at_no_index_is_not_shown_either() -> None:
    book = Playbook(a_plan())
    book.start()
    assert book.receive(FrameSeen("response.output_item.done", {"item": request()})) == []


# --- Azure refuses a round ------------------------------------------------------------------


def test_a_refused_first_round_is_an_http_answer() -> None:
    book = Playbook(a_plan())
    book.start()
    headers = {"retry-after": "3"}
    (finished,) = book.receive(Rejected(429, REFUSAL, headers))
    assert (finished.outcome, finished.response, book.emitted) == ("failed", None, [])
    assert (finished.fault.status, finished.fault.body) == (429, REFUSAL)
    assert finished.fault.headers == headers, "the app may try again: nobody was asked"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_a_refused_resume_has_a_status_that_no_client_repeats(status: int) -> None:
    """Some clients read nothing but the status, and would have people asked once more."""
    fault = resuming().receive(Rejected(status, REFUSAL))[-1].fault
    assert (fault.status, fault.body) == (424, REFUSAL)
    assert fault.headers["x-should-retry"] == "false"
    book = Playbook(a_plan())
    book.start()
    assert book.receive(Rejected(status, REFUSAL))[-1].fault.status == status, "nobody was asked"


def test_a_refused_resume_that_no_client_repeats_keeps_its_status() -> None:
    assert resuming().receive(Rejected(400, REFUSAL))[-1].fault.status == 400


def test_a_refused_resume_is_told_in_the_stream_and_not_to_be_retried() -> None:
    book = resuming()
    error, failed, finished = book.receive(Rejected(429, REFUSAL))[1:]
    assert error.data["error"] == REFUSAL["error"], "nested, as it came"
    assert (error.data["code"], error.data["message"], error.data["param"]) == ("c", "no", "p")
    assert failed.data["response"]["error"] == {"code": "c", "message": "no"}
    assert failed.data["response"]["status"] == "failed"
    assert finished.fault.headers["x-should-retry"] == "false"
    assert finished.response == failed.data["response"]
    assert check_stream(book.emitted)["id"] == "resp_1"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429])
def test_E_10_an_error_before_anything_leaves_the_call_unsent(status: int) -> None:
    book = resuming()
    assert book.receive(Rejected(status, REFUSAL))[0] == Observed("mcpr_1", "not_sent")
    assert book.finished.undelivered == CALLS, "both still wait for an answer at Azure"
    assert book.finished.left_open == ()


@pytest.mark.parametrize(
    "rejected",
    [
        Rejected(500, REFUSAL),
        Rejected(502, {}),
        Rejected(504, REFUSAL),
        Rejected(408, REFUSAL),
        Rejected(424, REFUSAL),
        Rejected(503, REFUSAL),
        Rejected(400, {"error": {"code": "content_filter"}}),
    ],
    ids=lambda rejected: f"{rejected.status}",
)
def test_E_10_an_error_that_may_come_after_the_call_leaves_it_unknown(rejected: Rejected) -> None:
    book = resuming()
    assert book.receive(rejected)[0] == Observed("mcpr_1", "unknown")


@pytest.mark.parametrize("name", ["retry-after", "Retry-After-Ms"])
def test_a_server_too_busy_to_begin_has_not_called(name: str) -> None:
    book = resuming()
    busy = Rejected(503, {"error": "busy"}, {name: "2"})
    assert book.receive(busy)[0] == Observed("mcpr_1", "not_sent")
    assert book.emitted[-1].data["response"]["error"] == {"code": "server_error", "message": None}


def test_a_refused_first_round_with_answers_must_not_be_repeated() -> None:
    book = Playbook(replace(a_plan(), carried=(Carried(CALLS[0], YES), Carried(CALLS[1], NO))))
    book.start()
    observed, finished = book.receive(Rejected(500, REFUSAL))
    assert observed == Observed("mcpr_1", "unknown")
    assert finished.undelivered == CALLS
    assert finished.fault.headers == {"x-should-retry": "false"}


# --- the connection is lost -----------------------------------------------------------------


def test_a_first_round_that_never_left_may_be_retried() -> None:
    book = Playbook(a_plan())
    book.start()
    (finished,) = book.receive(Broken("unreachable", sent=False))
    assert (finished.fault.status, finished.fault.headers) == (502, {})
    assert finished.fault.body["error"]["message"] == "unreachable"


def test_a_first_round_that_may_have_arrived_is_not_to_be_retried() -> None:
    book = Playbook(a_plan())
    book.start()
    (finished,) = book.receive(Broken("reset", sent=True))
    assert finished.fault.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize(("sent", "outcome"), [(True, "unknown"), (False, "not_sent")])
def test_E_11_a_resume_that_breaks_is_unknown_once_sent(sent: bool, outcome: str) -> None:
    book = resuming()
    commands = book.receive(Broken("reset", sent=sent))
    assert commands[0] == Observed("mcpr_1", outcome)
    assert book.finished.fault.headers == {"x-should-retry": "false"}
    assert book.finished.undelivered == CALLS
    assert check_stream(book.emitted)["status"] == "failed"


@pytest.mark.parametrize(
    ("frame", "outcome"),
    [
        ("response.mcp_call.completed", "executed"),
        ("response.mcp_call.failed", "failed"),
        ("response.mcp_call_arguments.done", "unknown"),
    ],
)
def test_a_stream_that_breaks_after_the_call_still_says_what_happened(
    frame: str, outcome: str
) -> None:
    book = resuming()
    status = "failed" if outcome == "failed" else "completed"
    for event in Round("resp_2", [message(), call(status=status)]).frames():
        book.receive(event)
        if event.type == frame:
            break
    commands = book.receive(Broken("reset", sent=True))
    assert commands[0] == Observed("mcpr_1", outcome)
    assert book.finished.undelivered == (), "Azure has begun the round: it has the answers"
    final = check_stream(book.emitted)
    assert [item["type"] for item in final["output"]] == ["mcp_list_tools", "message"]


def test_a_round_that_breaks_while_it_asks_leaves_the_call_open() -> None:
    book = Playbook(a_plan())
    book.start()
    book.hear_frames(ASKS.frames()[:-1])
    book.receive(Broken("reset", sent=True))
    assert book.finished.left_open == CALLS
    assert check_stream(book.emitted)["output"] == [listing()]


def test_an_ending_without_a_response_is_no_ending() -> None:
    book = resuming()
    commands = book.receive(FrameSeen("response.completed", {"type": "response.completed"}))
    assert commands[0] == Observed("mcpr_1", "unknown")
    assert book.finished.outcome == "failed"


# --- Azure says itself that it failed -------------------------------------------------------


def test_a_failure_told_by_azure_is_passed_on_under_one_id() -> None:
    book = resuming()
    created, *_, failed = Round("resp_2", [], "failed").frames()
    error = {"type": "error", "sequence_number": 2, "error": {"type": "t", "message": "m"}}
    assert book.receive(created) == []
    (emit,) = book.receive(FrameSeen("error", error))
    assert emit.data["error"] == error["error"]
    observed, ending, finished = book.receive(failed)
    assert observed == Observed("mcpr_1", "unknown")
    assert (ending.type, finished.outcome) == ("response.failed", "failed")
    assert ending.data["response"]["usage"]["input_tokens"] == 20, "also what failed is paid for"
    check_stream(book.emitted)


def test_an_error_told_once_is_not_told_twice() -> None:
    book = resuming()
    book.receive(FrameSeen("error", {"type": "error", "sequence_number": 2, "error": {}}))
    book.receive(Broken("reset", sent=True))
    assert told(book)[-2:] == ["error", "response.failed"]
    check_stream(book.emitted)
    official_client(book.emitted)


@pytest.mark.parametrize("status", ["incomplete", "failed"])
def test_a_request_in_a_round_that_did_not_complete_is_void(status: str) -> None:
    book = Playbook(a_plan())
    book.start()
    book.hear(replace(ASKS, status=status))
    assert (book.finished.outcome, book.finished.left_open) == (status, CALLS)
    assert book.finished.fault is None
    assert check_stream(book.emitted)["output"] == [listing()]


def test_an_unfinished_item_of_an_incomplete_round_is_in_the_output() -> None:
    book = Playbook(a_plan())
    book.start()
    half = {**message(), "status": "incomplete"}
    round_ = Round("resp_1", [half], "incomplete")
    frames = [frame for frame in round_.frames() if not frame.type.endswith(".done")]
    book.hear_frames(frames)
    assert book.finished.response["output"] == [half]


def test_a_plain_response_that_azure_cancelled_is_cancelled() -> None:
    book = resuming(plain=True)
    commands = book.receive(Round("resp_2", [], "cancelled").plain())
    assert commands[0] == Observed("mcpr_1", "unknown")
    assert book.finished.outcome == "cancelled"


# --- nobody wants it any more ---------------------------------------------------------------


def test_cancelling_while_people_think_leaves_their_calls_open() -> None:
    book = Playbook(a_plan())
    book.start()
    book.hear(ASKS)
    book.play(Decided("mcpr_1", YES))
    (finished,) = book.receive(Cancelled("the app hung up"))
    assert (finished.outcome, finished.left_open) == ("cancelled", CALLS)
    assert finished.response["status"] == "cancelled"
    assert finished.fault.body["error"]["message"] == "the app hung up"
    assert finished.fault.status == 499


def test_cancelling_a_running_round_knows_nothing_of_its_call() -> None:
    book = resuming()
    observed, finished = book.receive(Cancelled("gone"))
    assert observed == Observed("mcpr_1", "unknown")
    assert finished.undelivered == CALLS


# --- what must not happen -------------------------------------------------------------------


def test_E_09_an_ended_exchange_takes_no_decision() -> None:
    book = resuming()
    book.hear(Round("resp_2", [call(), message()]))
    for event in (
        Started(),
        Decided("mcpr_1", YES),
        FrameSeen("response.created", {}),
        Rejected(400, {}),
        Broken("x", sent=True),
        Cancelled("x"),
    ):
        with pytest.raises(RuntimeError, match="an exchange that is done has no such event"):
            book.exchange.receive(event)


def test_a_state_that_is_not_in_the_table_cannot_be_entered() -> None:
    book = resuming()
    with pytest.raises(RuntimeError, match="cannot go from forwarding to new"):
        book.exchange._enter("new")


def test_a_snapshot_of_another_version_is_refused() -> None:
    exchange = Playbook(a_plan()).exchange
    with pytest.raises(ValueError, match="snapshot version 99 is not known"):
        type(exchange).restore({**exchange.snapshot(), "version": 99})


def test_an_execution_begun_for_another_request_does_not_count_for_ours() -> None:
    book = resuming()
    for event in Round("resp_2", [call(approval="mcpr_9")]).frames()[:-2]:
        book.receive(event)
    assert book.receive(Broken("reset", sent=True))[0] == Observed("mcpr_1", "unknown")


def test_the_denied_call_is_named_with_the_released_one() -> None:
    book = Playbook(a_plan())
    book.start()
    book.hear(ASKS)
    forward = book.decide(mcpr_1=Answer(False), mcpr_2=YES)
    assert (forward.releases, forward.denials) == (("mcpr_2",), ("mcpr_1",))
    assert "reason" not in forward.body["input"][0]


def test_a_keepalive_is_numbered_like_any_frame() -> None:
    book = Playbook(a_plan())
    book.start()
    book.hear(ASKS)
    number = book.emitted[-1].data["sequence_number"] + 1
    assert book.exchange.keepalive() == Emit(
        "keepalive", {"type": "keepalive", "sequence_number": number}
    )
    book.decide(mcpr_1=YES, mcpr_2=NO)
    book.hear(Round("resp_2", [call(), message()]))
    after = [frame.data["sequence_number"] for frame in book.emitted]
    assert number not in after
    assert after[-1] == len(after)
