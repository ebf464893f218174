"""What the model does now: call tools, or answer with what happened since the user spoke. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.demo.model import Call, Round, Script
from gateway.demo.wire import JSON, compact

_CALLS = (
    "mcp_approval_request",
    "function_call",
    "image_generation_call",
    "computer_call",
)


@dataclass(frozen=True)
class Turn:
    """The next step: `calls` to make after saying `say`, or, without calls, the answer `say`."""

    say: str | None
    calls: tuple[Call, ...] = ()


def user_text(item: JSON) -> str:
    """The text of one message item, its parts joined by newlines; "" when it has none."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content or [] if "text" in part)


def since_user(context: Sequence[JSON]) -> tuple[JSON, list[JSON]]:
    """The last user message ({} when there is none), and the items after it."""
    for index in range(len(context) - 1, -1, -1):
        item = context[index]
        if item.get("type") == "message" and item.get("role") == "user":
            return item, list(context[index + 1 :])
    return {}, list(context)


def next_turn(script: Script, after: Sequence[JSON], *, parallel: bool = True) -> Turn:
    """What the model does now, given the items `after` the user's message."""
    denials = [i for i, item in enumerate(after) if _is_denial(item)]
    rounds, counted = script.rounds, after
    if denials:
        rounds, counted = script.if_denied, after[denials[0] + 1 :]
    if not parallel:
        rounds = tuple(Round(r.say, (call,)) for r in rounds for call in r.calls)
    made = sum(1 for item in counted if _is_call(item))
    for turn in rounds:
        if made <= 0:
            return Turn(turn.say, turn.calls)
        made -= len(turn.calls)
    return Turn(answer(script, after))


def _is_denial(item: JSON) -> bool:
    return item.get("type") == "mcp_approval_response" and item.get("approve") is False


def _is_call(item: JSON) -> bool:
    # An approved call was counted at its request already.
    if item.get("type") == "mcp_call":
        return not item.get("approval_request_id")
    return item.get("type") in _CALLS


def answer(script: Script, after: Sequence[JSON]) -> str:
    """The closing text: what the tools returned, what was denied and why, or an echo."""
    asked = {item["id"]: item for item in after if item.get("type") == "mcp_approval_request"}
    sentences = [sentence for item in after if (sentence := _sentence(item, asked))]
    return " ".join([*(sentences or [f"You said: {script.text}"]), script.saw]).rstrip()


def _sentence(item: JSON, asked: dict[str, JSON]) -> str:
    match item.get("type"):
        case "mcp_call":
            name = f"{item.get('server_label')}.{item.get('name')}"
            failed = f"failed: {compact(item['error'])}" if item.get("error") else ""
            return f"{name} {failed or 'returned: ' + str(item.get('output'))}."
        case "function_call_output":
            output = item.get("output")
            return (
                f"The function returned: {output if isinstance(output, str) else compact(output)}."
            )
        case "computer_call_output":
            return "The computer showed a screenshot."
        case "image_generation_call":
            return "Here is the image you asked for."
        case "mcp_approval_response" if item.get("approve") is False:
            request = asked.get(str(item.get("approval_request_id")), {})
            name = f"{request.get('server_label', '?')}.{request.get('name', '?')}"
            reason = item.get("reason")
            why = f" The reason given: {reason}" if reason else ""
            return f"I did not run {name}: the call was denied.{why}"
        case _:
            return ""
