"""Step 3: from findings to the request we are willing to send.

Every MCP entry is built anew from the registry: the app chooses which registered servers and
which of their tools, and nothing else. Credentials are not here; a `Binding` tells the sender
which server's to add.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
    names = _tool_names(tool)
    if names is not None:
        entry["allowed_tools"] = names
    return entry


def _tool_names(tool: McpTool) -> list[str] | None:
    allowed = tool.entry.get("allowed_tools")
    if isinstance(allowed, dict):
        # `read_only` rests on what the server says of itself: it never widens anything here.
        allowed = allowed.get("tool_names")
    if allowed is None:
        return None
    if isinstance(allowed, list) and all(isinstance(name, str) for name in allowed):
        return allowed
    raise Refused(
        f"tools[{tool.index}].allowed_tools must be a list of tool names.",
        code="invalid_type",
        param=f"tools[{tool.index}].allowed_tools",
    )


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
    """The tools for which the app itself wants approval; None stands for all of them."""
    approval = tool.entry.get("require_approval")
    if approval == "always":
        return None
    if isinstance(approval, dict) and isinstance(approval.get("always"), dict):
        names = approval["always"].get("tool_names")
        if isinstance(names, list):
            return frozenset(name for name in names if isinstance(name, str))
        return None
    return frozenset()


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
