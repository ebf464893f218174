"""The body of the next round: only answers, a parent, the tools again, the rest of the limits."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.exchange.messages import Answer
from gateway.exchange.resume import Progress, as_items, next_body
from tests.support.playbook import YES as APPROVED
from tests.support.playbook import Playbook, a_plan
from tests.support.rounds import Json, Round, listing, request

YES = {"mcpr_1": Answer(True)}


def after(output_tokens: int = 0, executions: int = 0, **asked: Any) -> Json:
    """The second body of a request with these members."""
    return next_body(a_plan(**asked), YES, Progress(("resp_1",), [], output_tokens, executions))


def test_everything_the_app_asked_for_is_said_again() -> None:
    kept = {
        "instructions": "Be brief", "text": {"format": {"type": "text"}}, "temperature": 0.1,
        "reasoning": {"effort": "low"}, "include": ["x"], "metadata": {"a": "b"}, "stream": True,
        "service_tier": "auto", "truncation": "auto", "parallel_tool_calls": False, "store": True,
        "previous_response_id": "resp_0",
    }  # fmt: skip
    body = after(**kept)
    plan = a_plan(**kept)
    del kept["previous_response_id"]
    assert body == {
        "model": "gpt-5-deploy",
        "tools": plan.body["tools"],
        **kept,
        "previous_response_id": "resp_1",
        "input": [
            {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
        ],
    }


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"),
        ("none", "none"),
        (None, None),
        ("required", "auto"),
        ({"type": "mcp", "server_label": "crm", "name": "t"}, "auto"),
        ({"type": "function", "name": "f"}, "auto"),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "mcp"}]},
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]},
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": []},
            {"type": "allowed_tools", "mode": "auto", "tools": []},
        ),
    ],
    ids=repr,
)
def test_no_tool_is_forced_a_second_time(choice: Any, sent: Any) -> None:
    assert after(tool_choice=choice)["tool_choice"] == sent


def test_a_choice_that_was_not_made_is_not_made() -> None:
    assert "tool_choice" not in after()


@pytest.mark.parametrize(
    ("member", "limit", "left"),
    [
        ("max_output_tokens", 900, 800),
        ("max_output_tokens", 110, 16),
        ("max_output_tokens", None, None),
        ("max_output_tokens", True, True),
        ("max_tool_calls", 5, 3),
        ("max_tool_calls", 2, 1),
    ],
)
def test_limits_are_reduced_by_what_was_used(member: str, limit: Any, left: Any) -> None:
    assert after(100, 2, **{member: limit})[member] == left


def test_every_approved_call_can_still_be_made() -> None:
    answers = {"a": Answer(True), "b": Answer(True), "c": Answer(False)}
    progress = Progress(("resp_1",), [], 0, 5)
    assert next_body(a_plan(max_tool_calls=6), answers, progress)["max_tool_calls"] == 2


def test_the_first_body_is_the_plan() -> None:
    plan = a_plan(tool_choice="required", max_output_tokens=20)
    assert next_body(plan, {}, Progress((), [], 0, 0)) is plan.body


@pytest.mark.parametrize(
    ("value", "items"),
    [(None, []), ("Hi", [{"role": "user", "content": "Hi"}]), ([{"id": "x"}], [{"id": "x"}])],
    ids=repr,
)
def test_input_in_any_form_is_a_list_of_items(value: Any, items: list[Json]) -> None:
    assert as_items(value) == items


def test_a_round_can_be_sent_without_its_parent_where_the_chain_began_here() -> None:
    book = Playbook(a_plan(input="go"))
    assert book.start().replay is None
    book.hear(Round("resp_1", [listing(), request()]))
    forward = book.decide(mcpr_1=APPROVED)
    assert forward.replay is not None
    assert forward.replay["input"] == [
        {"role": "user", "content": "go"}, listing(), request(), *forward.body["input"],
    ]  # fmt: skip
    changed = {"input": None, "previous_response_id": None}
    assert {**forward.replay, **changed} == {**forward.body, **changed}


@pytest.mark.parametrize(
    "asked",
    [{"previous_response_id": "resp_0"}, {"conversation": "conv_1"}, {"store": False}],
    ids=str,
)
def test_what_began_elsewhere_or_has_no_parent_is_not_sent_again_whole(asked: Json) -> None:
    book = Playbook(a_plan(input=[], **asked))
    book.start()
    book.hear(Round("resp_1", [request()]))
    assert book.decide(mcpr_1=APPROVED).replay is None
