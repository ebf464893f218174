"""What the model does next, within `tool_choice`, `allowed_tools` and the other limits. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gateway.demo.computer import computer_tool
from gateway.demo.images import tool_of
from gateway.demo.mcp_tools import McpServer
from gateway.demo.model import Call, Round, Script
from gateway.demo.turns import Turn, answer, next_turn, since_user
from gateway.demo.wire import JSON

_OWN_CALLS = ("mcp_approval_request", "function_call", "image_generation_call", "computer_call")


@dataclass(frozen=True)
class Situation:
    """Everything the model looks at: `context` ends with `output`, this response's items so far."""

    script: Script
    body: JSON
    context: Sequence[JSON]
    output: Sequence[JSON]
    servers: Mapping[str, McpServer]
    lists: Mapping[str, Sequence[JSON]]


def choose(now: Situation) -> Turn:
    """The next turn: calls, or the closing text."""
    _, after = since_user(now.context)
    script = _possible(now)
    turn = next_turn(script, after, parallel=now.body.get("parallel_tool_calls") is not False)
    choice = now.body.get("tool_choice")
    if turn.calls and (choice == "none" or _spent(now)):
        return Turn(answer(script, after))
    for call in turn.calls:
        if not is_offered(now, call):
            return Turn(f"There is no tool named {call.tool}.")
    if not turn.calls and not _has_called(now) and (forced := _forced(now, choice)):
        return Turn(None, (forced,))
    return turn


def _possible(now: Situation) -> Script:
    """The script without the words that merely look like calls of tools nobody offers."""

    def keep(rounds: tuple[Round, ...]) -> tuple[Round, ...]:
        kept = (
            replace(
                r,
                calls=tuple(
                    c
                    for c in r.calls
                    if c.explicit or (c.kind != "function" and is_offered(now, c))
                ),
            )
            for r in rounds
        )
        return tuple(r for r in kept if r.calls)

    script = now.script
    return replace(script, rounds=keep(script.rounds), if_denied=keep(script.if_denied))


def _spent(now: Situation) -> bool:
    limit = now.body.get("max_tool_calls")
    made = sum(1 for item in now.output if item["type"] in ("mcp_call", "image_generation_call"))
    return limit is not None and made >= limit


def _has_called(now: Situation) -> bool:
    """Whether the model made a call of its own in this response; a forced one counts once."""
    return any(
        item["type"] in _OWN_CALLS
        or (item["type"] == "mcp_call" and not item["approval_request_id"])
        for item in now.output
    )


def _forced(now: Situation, choice: object) -> Call | None:
    """The call that `tool_choice` demands when the script asks for none."""
    match choice:
        case {"type": "mcp", "server_label": str(label), **rest}:
            names = [str(rest["name"])] if rest.get("name") else _names(now, label)
            return Call(f"{label}.{names[0]}", "{}") if names else None
        case {"type": "function", "name": str(name)}:
            return Call(name, "{}", "function")
        case {"type": "image_generation"}:
            return Call("image_generation", "{}", "image")
        case {"type": "computer_use_preview" | "computer"}:
            return Call("computer", "{}", "computer")
        case "required" | {"type": "allowed_tools", "mode": "required"}:
            every = [f"{label}.{name}" for label in now.lists for name in _names(now, label)]
            return Call(every[0], "{}") if every else None
        case _:
            return None


def _names(now: Situation, label: str) -> list[str]:
    return [str(tool["name"]) for tool in now.lists.get(label, []) if _visible(now, label, tool)]


def _visible(now: Situation, label: str, tool: JSON) -> bool:
    """Re-sent lists are filtered again: `allowed_tools` may have changed since they were made."""
    server = now.servers.get(label)
    if server is None or not server.offers(tool):
        return False
    match now.body.get("tool_choice"):
        case {"type": "allowed_tools", "tools": [*allowed]}:
            return any(
                a.get("server_label") == label and a.get("name") in (None, tool["name"])
                for a in allowed
            )
        case _:
            return True


def is_offered(now: Situation, call: Call) -> bool:
    """Whether the request has a tool for the call; functions are not looked up."""
    match call.kind:
        case "image":
            return tool_of(now.body) is not None
        case "computer":
            return computer_tool(now.body) is not None
        case "mcp":
            return resolve(now, call) is not None
        case _:
            return True


def resolve(now: Situation, call: Call) -> tuple[McpServer, JSON] | None:
    """The server and tool that a call names, as `tool` or as `label.tool`."""
    if call.kind != "mcp":
        return None
    for label, tools in now.lists.items():
        for tool in tools:
            names = (tool["name"], f"{label}.{tool['name']}")
            if call.tool in names and _visible(now, label, tool):
                return now.servers[label], tool
    return None
