"""Step 8: the body of the next round. Pure; the rules that Azure imposes on a resume.

A resume carries nothing but the answers, names the last round as its parent and sends the
complete tools again, because servers and credentials are never remembered. Without stored state
there is no parent, and everything so far is sent again, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.exchange.messages import Answer, Json, Plan

_LEAST_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Progress:
    """What the rounds so far have used up and left behind."""

    upstream_ids: tuple[str, ...]
    context: list[Json]
    output_tokens: int
    executions: int


def next_body(plan: Plan, answers: Mapping[str, Answer], progress: Progress) -> Json:
    """The body to send now; `answers` are told to Azure in their order."""
    items = [_item(name, answer) for name, answer in answers.items()]
    if not progress.upstream_ids:
        return _first(plan, items)
    body = {name: value for name, value in plan.body.items() if name != "conversation"}
    if plan.body.get("store") is False:
        body["input"] = [*progress.context, *items]
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


def as_items(value: Any) -> list[Json]:
    """`input` as a list of items, whichever way the app wrote it."""
    if value is None:
        return []
    return [{"role": "user", "content": value}] if isinstance(value, str) else list(value)


def _first(plan: Plan, items: list[Json]) -> Json:
    if not items:
        return plan.body
    # Answers to what an earlier exchange left open come first: Azure refuses any other item
    # while an approval of the parent is unanswered.
    return {**plan.body, "input": [*items, *as_items(plan.body.get("input"))]}


def _item(request_id: str, answer: Answer) -> Json:
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
