"""Step 3: from findings to the request we are willing to send.

Every MCP entry is built anew from the registry: the app chooses which registered servers and
which of their tools, and nothing else. Credentials are not here; a `Binding` tells the sender
which server's to add.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from gateway.errors import Refused
from gateway.exchange.inspection import Findings, McpTool
from gateway.exchange.messages import Binding, Bypass, Carried, Json, ServerFacts

#: Finds a registered server by its URL, or by its label when the app names no URL.
Match = Callable[[str | None, str], ServerFacts | None]
_ENCRYPTED = "reasoning.encrypted_content"


@dataclass(frozen=True, slots=True)
class Enforced:
    """The body to send, whose servers it uses, and what of the app's wishes was overridden."""

    body: Json
    bindings: tuple[Binding, ...]
    overridden: tuple[str, ...]
    strict_tools: Mapping[str, frozenset[str] | None]


def enforce(
    request: Json, findings: Findings, match: Match, carried: tuple[Carried, ...] = ()
) -> Enforced:
    """Build the body of the first round; raises `Bypass` when a server is not registered.

    `strict_tools` says, per label, for which tools the app itself asks for approval (None: all);
    an app may be stricter than policy.
    """
    bindings: list[Binding] = []
    overridden: list[str] = []
    strict: dict[str, frozenset[str] | None] = {}
    body = copy.copy(request)
    if findings.mcp_tools:
        body["tools"] = tools = list(request["tools"])
        for tool in findings.mcp_tools:
            server = _registered(tool, match)
            tools[tool.index] = _entry(tool, server)
            bindings.append(Binding(tool.index, tool.label, server.id, server.url))
            overridden += _overridden(tool)
            if (wanted := _asked_for(tool)) != frozenset():
                strict[tool.label] = wanted
        if request.get("store") is False:
            body["include"] = _including(request.get("include"))
    if carried or findings.sent_approvals:
        body["input"] = _without_approvals(request.get("input"), findings)
    return Enforced(body, tuple(bindings), tuple(overridden), strict)


def with_leave(body: Json, bindings: Sequence[Binding], tools: Mapping[str, Sequence[str]]) -> Json:
    """The body with leave to call `tools`, by label, without asking; every other one is asked for.

    By name alone: a filter on what servers say of their own tools would let them decide.
    """
    entries = list(body["tools"])
    for binding in bindings:
        if names := tools.get(binding.server_label):
            approval = {"never": {"tool_names": sorted(names)}}
            entry = {**entries[binding.tool_index], "require_approval": approval}
            entries[binding.tool_index] = entry
    return {**body, "tools": entries}


def _registered(tool: McpTool, match: Match) -> ServerFacts:
    where = f"tools[{tool.index}]"
    server = match(tool.url, tool.label)
    if server is None:
        named = "server_label" if tool.url is None else "server_url"
        raise Bypass(
            f"{where}.{named} is not a registered MCP server that this app may use. "
            "Ask an administrator of this gateway to register it.",
            code="mcp_server_not_allowed",
            param=f"{where}.{named}",
        )
    return server


def _entry(tool: McpTool, server: ServerFacts) -> Json:
    entry: Json = {
        "type": "mcp",
        "server_label": tool.label,
        "server_url": server.url,
        "require_approval": "always",
    }
    if server.description:
        entry["server_description"] = server.description
    allowed = _allowed_tools(tool)
    if allowed is not None:
        entry["allowed_tools"] = allowed
    return entry


def _allowed_tools(tool: McpTool) -> list[str] | Json | None:
    """What the app narrows itself to. `read_only` rests on what the server says of itself: good
    enough to ask for fewer tools, never to let one through.
    """
    allowed = tool.entry.get("allowed_tools")
    if isinstance(allowed, dict):
        names, read_only = allowed.get("tool_names"), allowed.get("read_only")
    else:
        names, read_only = allowed, None
    if not (names is None or _is_names(names)) or not isinstance(read_only, bool | None):
        raise Refused(
            f"tools[{tool.index}].allowed_tools must be a list of tool names.",
            code="invalid_type",
            param=f"tools[{tool.index}].allowed_tools",
        )
    if read_only is None:
        return names
    return {"read_only": read_only, **({} if names is None else {"tool_names": names})}


def _is_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _overridden(tool: McpTool) -> list[str]:
    found = [
        f"tools[{tool.index}].{member}"
        for member in ("headers", "authorization", "server_description")
        if tool.entry.get(member)
    ]
    approval = tool.entry.get("require_approval")
    if approval not in (None, "always"):
        found.append(f"tools[{tool.index}].require_approval")
    return found


def _asked_for(tool: McpTool) -> frozenset[str] | None:
    """The tools for which the app itself wants approval; None stands for all of them.

    Only a plain list of names asks for less than all. `never` alone means that the others do
    need approval, and what is not understood is taken for the stricter wish.
    """
    approval = tool.entry.get("require_approval")
    if approval in (None, "never"):
        return frozenset()
    if isinstance(approval, dict) and isinstance(wanted := approval.get("always"), dict):
        names = wanted.get("tool_names")
        if _is_names(names) and wanted.get("read_only") is None:
            return frozenset(names)
    return None


def _including(include: Any) -> list[Any]:
    # Without stored state the chain goes on by re-sending items, and reasoning items are only
    # accepted back with their encrypted content.
    wanted = list(include) if isinstance(include, list) else []
    return wanted if _ENCRYPTED in wanted else [*wanted, _ENCRYPTED]


def _without_approvals(value: Any, findings: Findings) -> list[Json]:
    dropped = {sent.index for sent in findings.sent_approvals}
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [item for index, item in enumerate(value or []) if index not in dropped]
