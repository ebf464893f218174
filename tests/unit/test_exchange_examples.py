"""One exchange by example: recorded sequences stitched, approvals, denials, what the app sees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.exchange.messages import (
    Answer,
    Call,
    Cancelled,
    Carried,
    Decided,
    Emit,
    Finished,
    Forward,
    FrameSeen,
    Hold,
    Listed,
    Mismatch,
    Observed,
    Plan,
    Reopened,
    Started,
)
from tests.support.playbook import (
    NO,
    YES,
    Playbook,
    a_plan,
    approve_all,
    check_stream,
    official_client,
    perform,
)
from tests.support.rounds import (
    Round,
    call,
    function_call,
    listing,
    message,
    reasoning,
    request,
)

ASKS = Round("resp_1", [listing(), reasoning(), request()])
ENDS = Round("resp_2", [call(), message()])
CALL = Call("mcpr_1", "crm", "update_contact", '{"id":42}', 0)
LISTED = Listed("crm", tuple(listing()["tools"]))


def answer_item(name: str, approve: bool = True, **more: str) -> dict:
    return {
        "type": "mcp_approval_response",
        "approval_request_id": name,
        "approve": approve,
        **more,
    }


def held(plan: Plan | None = None, first: Round = ASKS) -> Playbook:
    """An exchange whose first round has ended with a request for approval."""
    book = Playbook(plan or a_plan())
    book.start()
    assert isinstance(book.hear(first)[-1], Hold)
    return book


def kinds(book: Playbook) -> list[str]:
    return [item["type"] for item in book.finished.response["output"]]


# --- approval and denial --------------------------------------------------------------------


def test_an_approval_is_stitched_as_recorded() -> None:
    plan = a_plan()
    book = Playbook(plan)
    book.play(Started(), Forward(0, plan.body, plan.bindings))
    assert book.hear(ASKS) == [LISTED, Hold((CALL,))]
    told = {**plan.body, "input": [answer_item("mcpr_1")], "previous_response_id": "resp_1"}
    user = {"role": "user", "content": plan.asked["input"]}
    whole = {**plan.body, "input": [user, *ASKS.items, answer_item("mcpr_1")]}
    forward = Forward(1, told, plan.bindings, ("mcpr_1",), replay=whole)
    book.play(Decided("mcpr_1", YES), forward)
    relisting = Round("resp_2", [listing("mcpl_2"), *ENDS.items])
    assert book.hear(relisting)[:2] == [LISTED, Observed("mcpr_1", "executed", True)]
    final = check_stream(book.emitted)
    assert [frame.type for frame in book.emitted] == [
        "response.created", "response.in_progress",
        "response.output_item.added", "response.mcp_list_tools.in_progress",
        "response.mcp_list_tools.completed", "response.output_item.done",
        "response.output_item.added", "response.output_item.done",
        "response.output_item.added", "response.mcp_call.in_progress",
        "response.mcp_call_arguments.delta", "response.mcp_call.in_progress",
        "response.mcp_call_arguments.done", "response.mcp_call.completed",
        "response.output_item.done",
        "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.delta",
        "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert final["id"] == "resp_1"
    assert kinds(book) == ["mcp_list_tools", "reasoning", "mcp_call", "message"]
    assert official_client(book.emitted).output_text == "All done."


def test_a_denial_tells_the_model_why_and_nothing_is_executed() -> None:
    book = held()
    forward = book.decide(mcpr_1=NO)
    assert forward.releases == ()
    assert forward.body["input"] == [answer_item("mcpr_1", approve=False, reason="Wrong record")]
    commands = book.hear(Round("resp_2", [reasoning("rs_2"), message(text="I was not allowed.")]))
    assert [type(command) for command in commands] == [Finished]
    check_stream(book.emitted)
    assert official_client(book.emitted).output_text == "I was not allowed."


def test_a_reason_given_with_an_approval_stays_here() -> None:
    forward = held().decide(mcpr_1=Answer(True, "He asked for it"))
    assert forward.body["input"] == [answer_item("mcpr_1")]


def test_several_rounds_become_one_response() -> None:
    rounds = [
        ASKS,
        Round("resp_2", [call(), request("mcpr_2", '{"id":43}')]),
        Round("resp_3", [call("mcp_2", "mcpr_2", '{"id":43}'), request("mcpr_3")]),
        Round("resp_4", [call("mcp_3", "mcpr_3"), message()]),
    ]
    book = perform(a_plan(), rounds, approve_all)
    final = check_stream(book.emitted)
    assert [item["id"] for item in final["output"]] == [
        "mcpl_1", "rs_1", "mcp_1", "mcp_2", "mcp_3", "msg_1",
    ]  # fmt: skip
    parents = [
        command.body.get("previous_response_id")
        for command in book.commands
        if isinstance(command, Forward)
    ]
    assert parents == [None, "resp_1", "resp_2", "resp_3"]
    assert final["usage"] == {
        "input_tokens": 40,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 8},
        "total_tokens": 60,
    }
    assert [entry["round"] for entry in final["content_filters"]] == [
        "resp_1", "resp_2", "resp_3", "resp_4",
    ]  # fmt: skip
    assert official_client(book.emitted).usage.total_tokens == 60


def test_e_05_parallel_requests_are_answered_together_in_output_order() -> None:
    asks = Round("resp_1", [request("mcpr_a", '{"id":1}'), request("mcpr_b", '{"id":2}')])
    book = held(first=asks)
    book.play(Decided("mcpr_b", NO))
    book.play(Decided("mcpr_b", YES))  # the first decision stands
    book.play(Decided("mcpr_x", YES))  # nobody asked
    (forward,) = book.receive(Decided("mcpr_a", YES))
    assert forward.body["input"] == [
        answer_item("mcpr_a"),
        answer_item("mcpr_b", approve=False, reason="Wrong record"),
    ]
    assert forward.releases == ("mcpr_a",)
    commands = book.hear(Round("resp_2", [call("mcp_1", "mcpr_a", '{"id":1}'), message()]))
    assert commands[0] == Observed("mcpr_a", "executed", True)
    check_stream(book.emitted)


def test_e_05_answers_are_bound_to_their_call_when_executed_crosswise() -> None:
    asks = Round("resp_1", [request("mcpr_a", '{"id":1}'), request("mcpr_b", '{"id":2}')])
    book = held(first=asks)
    book.decide(mcpr_a=YES, mcpr_b=YES)
    crossed = [call("mcp_1", "mcpr_a", '{"id":2}'), call("mcp_2", "mcpr_b", '{"id":1}')]
    assert book.hear(Round("resp_2", crossed))[:4] == [
        Observed("mcpr_a", "executed", False),
        Mismatch("mcpr_a", "crm", "update_contact", "not the call approved"),
        Observed("mcpr_b", "executed", False),
        Mismatch("mcpr_b", "crm", "update_contact", "not the call approved"),
    ]


# --- what was executed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "difference",
    [{"arguments": '{"id": 42}'}, {"name": "delete_contact"}, {"label": "wiki"}],
    ids=str,
)
def test_an_execution_that_differs_from_the_approved_call_is_a_mismatch(difference: dict) -> None:
    book = held()
    book.decide(mcpr_1=YES)
    item = call(**difference)
    commands = book.hear(Round("resp_2", [item]))
    assert commands[:2] == [
        Observed("mcpr_1", "executed", False),
        Mismatch("mcpr_1", item["server_label"], item["name"], "not the call approved"),
    ]


def test_an_execution_without_an_approval_is_a_mismatch() -> None:
    book = Playbook(a_plan())
    book.start()
    commands = book.hear(Round("resp_1", [call(approval=None)]))
    assert commands[0] == Mismatch(None, "crm", "update_contact", "executed without an approval")


def test_e_19_a_denied_call_that_is_executed_is_a_mismatch() -> None:
    book = held()
    book.decide(mcpr_1=NO)
    commands = book.hear(Round("resp_2", [call()]))
    assert commands[0] == Mismatch("mcpr_1", "crm", "update_contact", "not released, or twice")


def test_e_19_a_second_execution_is_a_mismatch() -> None:
    book = held()
    book.decide(mcpr_1=YES)
    commands = book.hear(Round("resp_2", [call(), call("mcp_2"), request("mcpr_2")]))
    twice = Mismatch("mcpr_1", "crm", "update_contact", "not released, or twice")
    assert commands[:2] == [Observed("mcpr_1", "executed", True), twice]
    book.decide(mcpr_2=NO)
    assert book.hear(Round("resp_3", [call("mcp_3"), request("mcpr_3")]))[0] == twice
    book.decide(mcpr_3=NO)
    assert book.hear(Round("resp_4", [call("mcp_3")]))[0] == twice, "under the same id, too"


def test_an_output_that_leaves_an_item_out_is_not_counted_twice() -> None:
    book = held()
    book.decide(mcpr_1=YES)
    *frames, completed = Round("resp_2", [message(), call()]).frames()
    short = {**completed.data["response"], "output": [call()]}
    commands = book.hear_frames([*frames, FrameSeen(completed.type, {"response": short})])
    assert [c for c in commands if isinstance(c, Observed | Mismatch)] == [
        Observed("mcpr_1", "executed", True)
    ]


@pytest.mark.parametrize(
    ("more", "outcome"),
    [
        ({"status": "failed"}, "failed"),
        ({"error": {"type": "http_error", "code": 401, "message": "no"}}, "failed"),
        ({"status": None}, "executed"),
        ({"status": "incomplete"}, "unknown"),
        ({"status": "calling"}, "unknown"),
    ],
    ids=str,
)
def test_what_an_executed_call_says_of_itself(more: dict, outcome: str) -> None:
    book = held()
    book.decide(mcpr_1=YES)
    commands = book.hear(Round("resp_2", [call(**more), message()]))
    assert commands[0] == Observed("mcpr_1", outcome, True)
    check_stream(book.emitted)


def test_an_approved_call_that_never_shows_up_is_unknown() -> None:
    book = held()
    book.decide(mcpr_1=YES)
    assert book.hear(Round("resp_2", [message()]))[0] == Observed("mcpr_1", "unknown")


def test_items_without_an_id_are_each_looked_at_once() -> None:
    book = Playbook(a_plan())
    book.start()
    first, second = call(approval=None), call(approval=None)
    del first["id"], second["id"]
    frames = [
        FrameSeen("response.output_item.done", {"output_index": 0, "item": first}),
        FrameSeen("response.output_item.done", {"output_index": 1, "item": second}),
        FrameSeen("response.completed", {"response": {"id": "r", "output": [first, second]}}),
    ]
    commands = book.hear_frames(frames)
    assert sum(isinstance(command, Mismatch) for command in commands) == 2


def test_arguments_given_as_an_object_are_shown_as_one_string() -> None:
    book = Playbook(a_plan())
    book.start()
    hold = book.hear(Round("resp_1", [request(arguments={"id": 42, "name": "Ä"})]))[-1]
    assert hold.open[0].arguments == '{"id":42,"name":"Ä"}'
    forward = book.decide(mcpr_1=YES)
    assert forward.body["input"] == [answer_item("mcpr_1")]
    same = call(arguments={"id": 42, "name": "Ä"})
    assert book.hear(Round("resp_2", [same]))[0] == Observed("mcpr_1", "executed", True)


# --- items ----------------------------------------------------------------------------------


def test_text_before_the_request_comes_first() -> None:
    first = Round(
        "resp_1", [message("msg_0", "One moment. "), request()], echo={"output_text": "x"}
    )
    last = Round("resp_2", [call(), message()], echo={"output_text": "y"})
    book = perform(a_plan(), [first, last], approve_all)
    final = check_stream(book.emitted)
    assert final["output_text"] == "One moment. All done."
    assert official_client(book.emitted).output_text == "One moment. All done."


def test_tools_listed_again_are_hidden_but_compared_with_their_pins() -> None:
    changed = listing("mcpl_2", tools=[{"name": "other"}])
    rounds = [ASKS, Round("resp_2", [changed, listing("mcpl_3", "wiki"), call(), message()])]
    book = perform(a_plan(), rounds, approve_all)
    final = check_stream(book.emitted)
    ids = [item["id"] for item in final["output"]]
    assert ids == ["mcpl_1", "rs_1", "mcpl_3", "mcp_1", "msg_1"]
    listed = [command for command in book.commands if isinstance(command, Listed)]
    assert listed == [LISTED, Listed("crm", ({"name": "other"},)), Listed("wiki", LISTED.tools)]


def test_a_failed_listing_pins_nothing() -> None:
    book = Playbook(a_plan())
    book.start()
    commands = book.hear(Round("resp_1", [listing(error="401", tools=[]), message()]))
    assert [type(command) for command in commands] == [Finished]
    assert check_stream(book.emitted)["output"][0]["error"] == "401"


def test_a_listing_with_something_else_in_it_pins_the_tools_alone() -> None:
    book = Playbook(a_plan())
    book.start()
    odd = listing(tools=["?", *listing()["tools"], None])
    assert book.hear(Round("resp_1", [odd]))[0] == LISTED


def test_no_member_is_added_to_a_call() -> None:
    bare = call()
    del bare["approval_request_id"]
    book = Playbook(a_plan())
    book.start()
    book.hear(Round("resp_1", [bare]))
    assert check_stream(book.emitted)["output"] == [bare]


def test_a_response_without_an_id_leaves_nothing_to_go_on_from() -> None:
    book = Playbook(a_plan())
    book.start()
    book.play(
        FrameSeen("response.created", {"response": {"status": "in_progress"}}),
        Emit("response.created", {"response": {"status": "in_progress", "id": None}}),
    )
    assert (book.exchange.id, book.exchange.upstream_ids) == (None, [])


def test_unknown_items_and_members_go_on_unchanged() -> None:
    strange = {"id": "x_1", "type": "telepathy_call", "approval_request_id": "y", "deep": [None]}
    book = perform(a_plan(), [ASKS, Round("resp_2", [call(), strange])], approve_all)
    assert check_stream(book.emitted)["output"][-1] == strange


def test_unknown_frames_are_renumbered_and_keepalive_is_dropped() -> None:
    book = Playbook(a_plan())
    book.start()
    created, begun, *rest = ASKS.frames()
    book.hear_frames([created, begun])
    book.play(FrameSeen("keepalive", {"type": "keepalive", "sequence_number": 2}))
    weather = {"type": "response.weather", "sky": "blue"}
    book.play(
        FrameSeen("response.weather", {**weather, "sequence_number": 7}),
        Emit("response.weather", {**weather, "sequence_number": 2}),
    )
    book.play(
        FrameSeen("response.x.progress", {"type": "response.x.progress", "output_index": 9}),
    )
    book.hear_frames(rest)
    book.decide(mcpr_1=YES)
    book.hear(ENDS)
    check_stream(book.emitted)


def test_a_frame_without_a_number_gets_none() -> None:
    book = Playbook(a_plan())
    book.start()
    book.play(FrameSeen("response.weather", {"sky": 1}), Emit("response.weather", {"sky": 1}))


def test_an_unknown_frame_with_a_response_shows_nothing_of_ours() -> None:
    book = held()
    book.decide(mcpr_1=YES)
    response = Round("resp_2", []).response("in_progress", [])
    (emit,) = book.receive(
        FrameSeen("response.compacting", {"sequence_number": 5, "response": response})
    )
    assert emit.data["response"]["id"] == "resp_1"
    assert emit.data["response"]["tools"][0]["headers"] is None


def test_b_17_frames_before_their_item_wait_until_it_is_known_not_to_be_hidden() -> None:
    book = Playbook(a_plan())
    book.start()
    created, begun, *_ = ASKS.frames()
    book.hear_frames([created, begun])

    def early(index: int) -> FrameSeen:
        kind = "response.mcp_call_arguments.delta"
        return FrameSeen(kind, {"type": kind, "sequence_number": 9, "output_index": index})

    def added(index: int, item: dict) -> FrameSeen:
        kind = "response.output_item.added"
        data = {"type": kind, "sequence_number": 9, "output_index": index, "item": item}
        return FrameSeen(kind, data)

    for index in (0, 1, 0):
        book.play(early(index))
    book.play(added(0, request()))
    book.play(early(0))
    commands = book.receive(added(1, message()))
    assert [command.type for command in commands] == [added(1, {}).type, early(1).type]
    assert [command.data["output_index"] for command in commands] == [0, 0]
    assert [command.data["sequence_number"] for command in commands] == [2, 3]


# --- answers that were not sent -------------------------------------------------------------


def test_an_answer_that_does_not_stand_any_more_is_waited_for_again() -> None:
    book = held(first=Round("resp_1", [request(), request("mcpr_2", '{"id":43}')]))
    first = book.decide(mcpr_1=YES, mcpr_2=NO)
    book.play(Reopened(("mcpr_1",)), Hold((), ("mcpr_1",)))
    assert book.exchange.answers == {"mcpr_1": None, "mcpr_2": NO}
    second = book.decide(mcpr_1=Answer(False, "Changed"))
    assert (second.round, second.releases, second.denials) == (1, (), ("mcpr_1", "mcpr_2"))
    assert second.body["previous_response_id"] == first.body["previous_response_id"]
    assert second.body["input"] == [
        answer_item("mcpr_1", approve=False, reason="Changed"),
        answer_item("mcpr_2", approve=False, reason="Wrong record"),
    ]


def test_a_round_that_waited_to_be_sent_is_the_same_afterwards() -> None:
    book = held()
    forward = book.decide(mcpr_1=YES)
    book.play(Reopened(), forward)
    assert book.hear(Round("resp_2", [call(), message()]))[0] == Observed(
        "mcpr_1", "executed", True
    )


def test_what_was_carried_here_is_taken_back_too() -> None:
    old = Call("mcpr_0", "crm", "update_contact", "{}", 0)
    plan = replace(a_plan(previous_response_id="resp_0"), carried=(Carried(old, YES),))
    book = Playbook(plan)
    (forward,) = book.receive(Started())
    book.play(Reopened(("mcpr_0",)), Hold((), ("mcpr_0",)))
    assert book.decide(mcpr_0=YES) == forward


def test_only_what_was_not_sent_can_be_taken_back() -> None:
    book = held()
    with pytest.raises(RuntimeError):
        book.exchange.receive(Reopened(("mcpr_1",)))
    book.decide(mcpr_1=YES)
    with pytest.raises(RuntimeError, match="not sent"):
        book.exchange.receive(Reopened(("mcpr_other",)))
    book.hear_frames(Round("resp_2", [call()]).frames()[:1])
    with pytest.raises(RuntimeError, match="not sent"):
        book.exchange.receive(Reopened(("mcpr_1",)))
    first = Playbook(a_plan())
    first.start()
    with pytest.raises(RuntimeError, match="not sent"):
        first.exchange.receive(Reopened())


# --- mixed rounds, limits -------------------------------------------------------------------


def test_a_function_call_beside_a_request_goes_to_the_app_at_once() -> None:
    book = Playbook(a_plan())
    book.start()
    (finished,) = book.hear(Round("resp_1", [function_call(), request()]))
    assert finished.outcome == "completed"
    assert finished.left_open == (CALL,)
    assert kinds(book) == ["function_call"]
    check_stream(book.emitted)
    official_client(book.emitted)


def test_a_shell_that_azure_runs_itself_is_no_call_for_the_app() -> None:
    hosted = [
        {"id": "sh_1", "type": "shell_call", "call_id": "c_1", "status": "completed"},
        {"id": "sho_1", "type": "shell_call_output", "call_id": "c_1", "output": []},
    ]
    book = Playbook(a_plan())
    book.start()
    assert book.hear(Round("resp_1", [*hosted, request()])) == [Hold((CALL,))]


def test_limits_count_over_all_rounds() -> None:
    book = held(a_plan(max_output_tokens=100, max_tool_calls=5))
    forward = book.decide(mcpr_1=YES)
    assert (forward.body["max_output_tokens"], forward.body["max_tool_calls"]) == (95, 5)
    book.hear(Round("resp_2", [call(), request("mcpr_2")]))
    forward = book.decide(mcpr_2=YES)
    assert (forward.body["max_output_tokens"], forward.body["max_tool_calls"]) == (90, 4)
    assert "previous_response_id" in forward.body, "stored state needs no items again"


def test_the_rounds_have_an_end() -> None:
    plan = replace(a_plan(), max_rounds=2)
    book = held(plan)
    book.decide(mcpr_1=YES)
    commands = book.hear(Round("resp_2", [call(), request("mcpr_2")]))
    finished = commands[-1]
    assert (finished.outcome, finished.fault.status) == ("failed", 424)
    assert [left.request_id for left in finished.left_open] == ["mcpr_2"]
    assert finished.undelivered == ()
    assert [frame.type for frame in book.emitted[-2:]] == ["error", "response.failed"]
    assert check_stream(book.emitted)["status"] == "failed"


# --- what an earlier exchange left behind ---------------------------------------------------


def test_dangling_calls_are_answered_before_the_apps_own_input() -> None:
    old = Call("mcpr_0", "crm", "update_contact", "{}", 0)
    plan = replace(
        a_plan(previous_response_id="resp_g", body={"previous_response_id": "resp_k"}),
        carried=(Carried(CALL), Carried(old, NO)),
    )
    book = Playbook(plan)
    book.play(Started(), Hold((), ("mcpr_1",)))
    assert book.exchange.id is None
    forward = book.decide(mcpr_1=YES)
    assert forward.round == 0
    assert forward.releases == ("mcpr_1",)
    assert forward.body["previous_response_id"] == "resp_k"
    assert forward.body["input"] == [
        answer_item("mcpr_1"),
        answer_item("mcpr_0", approve=False, reason="Wrong record"),
        {"role": "user", "content": "Change the number."},
    ]
    upstream = Round("resp_n", [call(), message()], echo={"previous_response_id": "resp_k"})
    assert book.hear(upstream)[0] == Observed("mcpr_1", "executed", True)
    assert check_stream(book.emitted)["previous_response_id"] == "resp_g"


def test_dangling_calls_that_were_all_decided_are_answered_at_once() -> None:
    go = [{"role": "user", "content": "go"}]
    plan = replace(a_plan(input=go, previous_response_id="resp_0"), carried=(Carried(CALL, NO),))
    forward = Playbook(plan).start()
    assert [item.get("type") for item in forward.body["input"]] == ["mcp_approval_response", None]


def test_an_answer_stands_after_the_request_that_the_app_sent_again_itself() -> None:
    own = [{"role": "user", "content": "go"}, request()]
    plan = replace(a_plan(input=own, store=False), carried=(Carried(CALL, NO),))
    forward = Playbook(plan).start()
    assert [item.get("type") for item in forward.body["input"]] == [
        None, "mcp_approval_request", "mcp_approval_response",
    ]  # fmt: skip


def test_in_a_conversation_the_request_stands_beside_its_answer() -> None:
    go = [{"role": "user", "content": "go"}]
    plan = replace(a_plan(input=go, conversation="conv_1"), carried=(Carried(CALL, NO),))
    book = Playbook(plan)
    forward = book.start()
    assert [item.get("type") for item in forward.body["input"]] == [
        "mcp_approval_request", "mcp_approval_response", None,
    ]  # fmt: skip
    book.hear(Round("resp_1", [request("mcpr_2"), request("mcpr_3")]))
    forward = book.decide(mcpr_2=YES, mcpr_3=NO)
    assert forward.body["conversation"] == "conv_1"
    assert "previous_response_id" not in forward.body
    assert [(item["type"], item.get("id")) for item in forward.body["input"]] == [
        ("mcp_approval_request", "mcpr_2"), ("mcp_approval_request", "mcpr_3"),
        ("mcp_approval_response", None), ("mcp_approval_response", None),
    ]  # fmt: skip


def test_a_carried_call_is_absorbed_even_when_the_app_names_no_server() -> None:
    plan = Plan({"model": "m"}, {"model": "m"}, carried=(Carried(CALL, YES),))
    book = Playbook(plan)
    book.start()
    book.hear(Round("resp_1", [call(), message()], echo={"tools": []}))
    check_stream(book.emitted)


def test_cancelling_while_an_earlier_call_is_awaited() -> None:
    book = Playbook(replace(a_plan(), carried=(Carried(CALL),)))
    book.receive(Started())
    (finished,) = book.receive(Cancelled("gone"))
    assert (finished.response, finished.left_open) == (None, (CALL,))


# --- the response object --------------------------------------------------------------------


def test_the_object_echoes_what_the_app_declared() -> None:
    asks = replace(ASKS, echo={"max_output_tokens": 900, "metadata": {"a": "b"}, "user": "u"})
    ends = replace(ENDS, echo={"max_output_tokens": 880, "metadata": {}, "model": "other"})
    book = perform(a_plan(max_output_tokens=900), [asks, ends], approve_all)
    final = check_stream(book.emitted)
    assert (final["max_output_tokens"], final["metadata"]) == (900, {"a": "b"})
    assert "user" not in final, "no member is added"
    assert final["model"] == "other"
    assert final["created_at"] == ASKS.response("completed", [])["created_at"]
    assert final["tools"] == [
        {
            "type": "mcp",
            "server_label": "crm",
            "server_url": "https://crm.example/mcp",
            "headers": None,
            "allowed_tools": None,
            "server_description": None,
            "require_approval": "never",
        }
    ]


def test_a_server_named_by_label_alone_shows_no_address_of_ours() -> None:
    plan = Plan({"tools": [{"type": "mcp", "server_label": "crm"}]}, {})
    book = Playbook(plan)
    book.start()
    book.hear(ASKS)
    (shown,) = book.exchange.interim()["tools"]
    assert (shown["server_url"], shown["require_approval"]) == (None, "always")


def test_echoed_tools_that_are_no_servers_or_no_list_stay() -> None:
    tools = [{"type": "function", "name": "f"}, {"type": "mcp", "server_label": "stranger"}, "?"]
    for echoed in (tools, None):
        book = Playbook(a_plan())
        book.start()
        book.hear(Round("resp_1", [message()], echo={"tools": echoed}))
        assert book.finished.response["tools"] == echoed


def test_usage_is_summed_only_where_there_is_some() -> None:
    first = replace(ASKS, echo={"usage": {"input_tokens": 1, "note": "x", "details": {"a": 1}}})
    last = replace(
        ENDS,
        echo={"usage": {"input_tokens": 2.5, "note": "y", "details": None}, "tool_usage": {"n": 1}},
    )
    final = check_stream(perform(a_plan(), [first, last], approve_all).emitted)
    assert final["usage"] == {"input_tokens": 3.5, "note": "x", "details": {"a": 1}}
    assert final["tool_usage"] == {"n": 1}
    none = {"usage": None, "content_filters": None}
    rounds = [replace(ASKS, echo=none), replace(ENDS, echo=none)]
    final = check_stream(perform(a_plan(), rounds, approve_all).emitted)
    assert (final["usage"], final["content_filters"]) == (None, None)


def test_while_it_waits_the_object_is_in_progress() -> None:
    book = held(first=replace(ASKS, echo={"output_text": "t", "output": ASKS.items}))
    interim = book.exchange.interim()
    assert interim["status"] == "in_progress"
    assert [item["type"] for item in interim["output"]] == ["mcp_list_tools", "reasoning"]
    assert (interim["usage"], interim["completed_at"], interim["output_text"]) == (None, None, "")
    assert "incomplete_details" in interim
    assert "s3cret" not in repr(interim)


def test_a_plain_round_that_waits_does_not_look_finished() -> None:
    book = Playbook(a_plan())
    book.start()
    book.hear(ASKS, plain=True)
    streamed = held().exchange.interim()
    assert book.exchange.interim() == {
        **streamed,
        "content_filters": [{"blocked": False, "round": "resp_1"}],
    }
    assert streamed["usage"] is streamed["completed_at"] is None


def test_a_plain_round_that_waits_shows_nothing_but_the_missing() -> None:
    book = Playbook(a_plan())
    book.start()
    bare = {"id": "resp_1", "output": [request()]}
    book.hear_frames([FrameSeen("response.completed", {"response": bare})])
    assert book.exchange.interim() == {"id": "resp_1", "status": "in_progress", "output": []}


# --- return mode ----------------------------------------------------------------------------


def test_an_app_that_continues_by_itself_sees_the_requests() -> None:
    plan = replace(a_plan(), show_approvals=True)
    book = Playbook(plan)
    book.start()
    (_, finished) = book.hear(ASKS)
    assert finished.left_open == (CALL,)
    assert kinds(book) == ["mcp_list_tools", "reasoning", "mcp_approval_request"]
    assert len([frame for frame in book.emitted if "output_index" in frame.data]) == 8

    again = Playbook(replace(plan, carried=(Carried(CALL),)))
    again.play(Started(), Hold((), ("mcpr_1",)))
    again.decide(mcpr_1=YES)
    again.hear(ENDS)
    assert again.finished.response["output"][0]["approval_request_id"] == "mcpr_1"


# --- stateless chains -----------------------------------------------------------------------


def test_without_stored_state_everything_is_sent_again_in_order() -> None:
    secret = {"encrypted_content": "opaque"}
    plan = a_plan(store=False, body={"include": ["reasoning.encrypted_content"]})
    rounds = [
        Round("resp_1", [listing(), reasoning(**secret), request()]),
        Round("resp_2", [call(), reasoning("rs_2", **secret), request("mcpr_2")]),
        Round("resp_3", [call("mcp_2", "mcpr_2"), message()]),
    ]
    book = perform(plan, rounds, approve_all)
    forwards = [command for command in book.commands if isinstance(command, Forward)]
    assert forwards[1].body["input"] == [
        {"role": "user", "content": "Change the number."},
        *rounds[0].items,
        answer_item("mcpr_1"),
    ]
    assert forwards[2].body["input"] == [
        *forwards[1].body["input"],
        *rounds[1].items,
        answer_item("mcpr_2"),
    ]
    assert "previous_response_id" not in forwards[2].body
    assert forwards[2].body["include"] == ["reasoning.encrypted_content"]
    check_stream(book.emitted)
    assert "opaque" not in repr(book.emitted)
    assert "encrypted_content" not in repr(book.emitted)


def test_answers_to_an_earlier_exchange_stay_in_a_stateless_chain() -> None:
    plan = replace(a_plan(store=False, input=None), carried=(Carried(CALL, YES),))
    book = Playbook(plan)
    assert book.start().body["input"] == [answer_item("mcpr_1")]
    second = Round("resp_1", [call(), request("mcpr_2")])
    book.hear(second)
    assert book.decide(mcpr_2=NO).body["input"][0] == answer_item("mcpr_1")


def test_encrypted_reasoning_that_the_app_asked_for_is_shown() -> None:
    item = reasoning(encrypted_content="opaque")
    for asked in ({"store": False, "include": ["reasoning.encrypted_content"]}, {"store": True}):
        book = Playbook(a_plan(**asked))
        book.start()
        book.hear(Round("resp_1", [item, message()]))
        assert check_stream(book.emitted)["output"][0] == item
