"""Step 8: the body of the next round. Pure; the rules that Azure imposes on a resume.

A resume carries nothing but the answers, names the last round as its parent and sends the
complete tools again, because servers and credentials are never remembered. Without stored state
there is no parent, and everything so far is sent again, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.exchange.messages import Answer, Call, Json, Plan
from gateway.exchange.rehydration import settled

_LEAST_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Progress:
    """What the rounds so far have used up and left behind.

    `transcript` is everything since the app's input, in order.
    """

    upstream_ids: tuple[str, ...]
    transcript: list[Json]
    output_tokens: int
    executions: int


def next_body(plan: Plan, answers: Mapping[str, Answer], progress: Progress) -> Json:
    """The body to send now; `answers` are told to Azure in their order."""
    items = [answer_item(name, answer) for name, answer in answers.items()]
    if not progress.upstream_ids:
        return _first(plan, items)
    body = dict(plan.body)
    if plan.body.get("store") is False:
        body["input"] = [*as_items(body.get("input")), *settled(progress.transcript), *items]
    elif plan.body.get("conversation") is not None:
        # There is no parent here: Azure wants to see the request again beside its answer.
        body["input"] = [*_asked(progress.transcript, answers), *items]
    else:
        body["input"] = items
        body["previous_response_id"] = progress.upstream_ids[-1]
    if "tool_choice" in body:
        body["tool_choice"] = _unforced(body["tool_choice"])
    _reduce(body, "max_output_tokens", progress.output_tokens, _LEAST_TOKENS)
    # What was approved is not to fail for want of the calls already made.
    approved = sum(answer.approve for answer in answers.values())
    _reduce(body, "max_tool_calls", progress.executions, max(1, approved))
    return body


def replay_body(plan: Plan, body: Json, progress: Progress) -> Json | None:
    """The same round without its parent, everything so far sent again; None where the chain began
    before this exchange. For an Azure that does not find what it has just made.
    """
    began_here = plan.body.get("previous_response_id") is None and not plan.carried
    if not (began_here and progress.upstream_ids and "previous_response_id" in body):
        return None
    whole = {name: value for name, value in body.items() if name != "previous_response_id"}
    answers = body["input"]
    before = [*as_items(plan.body.get("input")), *settled(progress.transcript)]
    return {**whole, "input": [*before, *answers]}


def as_items(value: Any) -> list[Json]:
    """`input` as a list of items, whichever way the app wrote it."""
    if value is None:
        return []
    return [{"role": "user", "content": value}] if isinstance(value, str) else list(value)


def _first(plan: Plan, items: list[Json]) -> Json:
    if not items:
        return plan.body
    own = as_items(plan.body.get("input"))
    if plan.body.get("previous_response_id") is not None:
        # Answers to what an earlier exchange left open come first: Azure refuses any other item
        # while an approval of the parent is unanswered.
        return {**plan.body, "input": [*items, *own]}
    if plan.body.get("conversation") is not None:
        asked = [request_item(carried.call) for carried in plan.carried]
        return {**plan.body, "input": [*asked, *items, *own]}
    # The app has sent the chain itself, and the requests are in it.
    return {**plan.body, "input": [*own, *items]}


def _asked(transcript: list[Json], answers: Mapping[str, Answer]) -> list[Json]:
    return [
        item
        for item in transcript
        if item.get("type") == "mcp_approval_request" and item.get("id") in answers
    ]


def request_item(call: Call) -> Json:
    """The approval request of a call, as Azure once sent it."""
    return {
        "id": call.request_id,
        "type": "mcp_approval_request",
        "server_label": call.server_label,
        "name": call.tool,
        "arguments": call.arguments,
    }


def answer_item(request_id: str, answer: Answer) -> Json:
    """What Azure is told about one approval request."""
    item: Json = {
        "type": "mcp_approval_response",
        "approval_request_id": request_id,
        "approve": answer.approve,
    }
    if answer.reason is not None and not answer.approve:
        item["reason"] = answer.reason
    return item


def _unforced(choice: Any) -> Any:
    # A forced tool would be forced again, and the chain would never come to its answer.
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return {**choice, "mode": "auto"}
    return "auto" if isinstance(choice, dict) or choice == "required" else choice


def _reduce(body: Json, member: str, used: int, least: int) -> None:
    limit = body.get(member)
    if isinstance(limit, int) and not isinstance(limit, bool):
        body[member] = max(least, limit - used)
