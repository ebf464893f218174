"""Step 2: find every place in a request where a tool or an approval can hide.

A member, tool or item that is not understood is refused, never ignored. What is found is
returned as findings; `enforcement` decides what of it may be sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gateway.errors import Refused
from gateway.exchange import belongings, folding
from gateway.exchange.messages import MCP_ITEMS, Bypass, Json

#: Tools that cannot reach an MCP server through Azure's own MCP client.
_PLAIN_TOOLS = frozenset(
    {
        "function", "custom", "web_search", "web_search_preview", "file_search",
        "code_interpreter", "image_generation", "computer", "computer_use",
        "computer_use_preview", "local_shell", "shell", "apply_patch",
    }
)  # fmt: skip
_DATED_SEARCH = re.compile(r"web_search(_preview)?_[0-9]{4}_[0-9]{2}_[0-9]{2}")
#: Input items without a tool, an approval or a reference in them.
_PLAIN_ITEMS = frozenset(
    {
        "message", "reasoning", "function_call", "function_call_output", "custom_tool_call",
        "custom_tool_call_output", "computer_call", "computer_call_output", "file_search_call",
        "web_search_call", "image_generation_call", "code_interpreter_call", "local_shell_call",
        "local_shell_call_output", "shell_call", "shell_call_output", "apply_patch_call",
        "apply_patch_call_output", "compaction",
    }
)  # fmt: skip
_KNOWN_ITEMS = _PLAIN_ITEMS | MCP_ITEMS | {"item_reference", "mcp_approval_response"}
_MCP_MEMBERS = frozenset(
    {
        "type", "server_label", "server_url", "server_description", "headers", "authorization",
        "allowed_tools", "require_approval", "allowed_callers", "defer_loading",
    }
)  # fmt: skip

#: Members that lead to a tool, a credential or an approval, wherever they stand.
_TELLING = frozenset(
    {
        "agent", "agent_reference", "allowed_callers", "allowed_tools", "approval_request_id",
        "approve", "authorization", "background", "connector_id", "conversation", "headers",
        "include", "input", "multi_agent", "previous_response_id", "prompt", "require_approval",
        "server_description", "server_label", "server_url", "store", "stream", "tool_choice",
        "tools", "tunnel_id", "type",
    }
)  # fmt: skip
_TELLING_FOLDED = frozenset(map(folding.folded, _TELLING))
#: Kinds that have one place where they may stand, and are nothing inside of something else.
_NEVER_INSIDE = frozenset(
    {
        "mcp", "connector", "additionaltools", "toolsearch", "toolsearchoutput", "program",
        "programoutput", "programmatictoolcalling", "mcpapprovalrequest", "mcpapprovalresponse",
    }
)  # fmt: skip
#: Where a schema, a text or a value of the app's own stands.
_OPAQUE = frozenset(
    {"parameters", "input_schema", "schema", "arguments", "metadata", "output", "format"}
)
_HOLDERS = (dict, list)

_REFUSED_MEMBERS = {
    "prompt": "a stored prompt may carry tools that nobody sees in the request",
    "agent": "a stored agent brings tools and credentials of its own",
    "agent_reference": "a stored agent brings tools and credentials of its own",
    "multi_agent": "subagents inherit the tools and may be paused several at once",
}
_REFUSED_TOOLS = {
    "tool_search": "it loads tools that are not in the request",
    "programmatic_tool_calling": "code written by the model would call tools",
}
_REFUSED_ITEMS = {
    "additional_tools": "declare tools in 'tools', where they can be seen",
    "tool_search_output": "declare tools in 'tools', where they can be seen",
    "program": "code written by the model would call tools",
    "program_output": "code written by the model would call tools",
}
_REFUSED_MCP = {
    "connector_id": "connectors are not registered servers; use 'server_url'",
    "tunnel_id": "tunnels are not registered servers; use 'server_url'",
    "project_connection_id": "stored connections bring credentials of their own",
}


@dataclass(frozen=True, slots=True)
class McpTool:
    """An `mcp` entry at `index` of `tools`, as the app sent it."""

    index: int
    label: str
    url: str | None
    entry: Json


@dataclass(frozen=True, slots=True)
class SentItem:
    """An MCP item in the app's input: acceptable only if the gateway handed it out."""

    index: int
    type: str
    id: str
    item: Json


@dataclass(frozen=True, slots=True)
class SentApproval:
    """An `mcp_approval_response` the app sent: at best a wish."""

    index: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What a request holds that matters to us.

    `item_ids` are those of all items in the input, `references` of those that are only named;
    `file_ids` name uploaded files, `containers` machines that code runs on, and `domains` what
    such a machine may reach.
    """

    mcp_tools: tuple[McpTool, ...] = ()
    sent_items: tuple[SentItem, ...] = ()
    sent_approvals: tuple[SentApproval, ...] = ()
    item_ids: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    file_ids: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    previous_response_id: str | None = None
    conversation: str | None = None
    logged: bool = False

    @property
    def mediated(self) -> bool:
        """Whether the exchange needs more than passing through: there are tools to watch over, or
        a background stream whose frames must outlive Azure's.
        """
        return bool(self.mcp_tools) or self.logged

    @property
    def refers(self) -> bool:
        """Whether anything in the request is somebody's: it must be the app's own."""
        return (
            self.previous_response_id is not None
            or self.conversation is not None
            or bool(self.item_ids or self.references or self.sent_items)
            or bool(self.file_ids or self.containers)
        )


def inspect(request: Json) -> Findings:
    """Look through a create request; raises `Refused` or `Bypass` with the member at fault."""
    _check_names(request, "")
    for member, why in _REFUSED_MEMBERS.items():
        if request.get(member) is not None:
            raise Bypass(f"'{member}' is refused: {why}.", code=f"{member}_refused", param=member)
    items = list(_items(request.get("input")))
    mcp_tools = tuple(_mcp_tools(request.get("tools")))
    tools: list[Json] = request.get("tools") or []
    return Findings(
        mcp_tools=mcp_tools,
        **_sent(items),
        file_ids=(*belongings.files_in(items), *belongings.files_of(tools)),
        containers=tuple(belongings.containers(tools)),
        domains=tuple(belongings.domains(tools)),
        previous_response_id=belongings.text(request, "previous_response_id"),
        conversation=belongings.conversation(request),
        logged=bool(request.get("background") and request.get("stream")),
    )


def inspect_items(value: Any) -> Findings:
    """Look through items that are put into a conversation; raises as `inspect` does."""
    items = list(_items(value))
    return Findings(**_sent(items), file_ids=tuple(belongings.files_in(items)))


def _sent(items: list[tuple[int, Json]]) -> dict[str, Any]:
    return {
        "sent_items": tuple(
            SentItem(index, item["type"], str(item.get("id") or ""), item)
            for index, item in items
            if item.get("type") in MCP_ITEMS
        ),
        "sent_approvals": tuple(
            SentApproval(index, str(item.get("approval_request_id") or ""))
            for index, item in items
            if item.get("type") == "mcp_approval_response"
        ),
        "item_ids": tuple(str(item["id"]) for _, item in items if item.get("id")),
        "references": tuple(
            str(item.get("id") or "") for _, item in items if _kind(item) == "item_reference"
        ),
    }


def _items(value: Any) -> Iterator[tuple[int, Json]]:
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list):
        raise Refused("'input' must be a string or a list.", code="invalid_type", param="input")
    for index, item in enumerate(value):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise Refused(f"{where} must be an object.", code="invalid_type", param=where)
        _check_item(item, where)
        yield index, item


def _kind(item: Json) -> Any:
    """The item's type; a message may come without one, and so may a bare reference."""
    if "type" in item:
        return item["type"]
    return "message" if "role" in item else "item_reference" if set(item) == {"id"} else None


def _check_item(item: Json, where: str) -> None:
    _check_names(item, where)
    kind = _kind(item)
    if why := _REFUSED_ITEMS.get(kind) if isinstance(kind, str) else None:
        raise Bypass(f"{where}: {kind!r} is refused: {why}.", code="item_refused", param=where)
    if not isinstance(kind, str) or kind not in _KNOWN_ITEMS:
        raise Bypass(
            f"{where}: the item type {kind!r} is not known to this gateway.",
            code="item_type_unknown",
            param=where,
        )
    if kind not in MCP_ITEMS:
        _check_inside(item, where)


def _mcp_tools(value: Any) -> Iterator[McpTool]:
    if value is None:
        return
    if not isinstance(value, list):
        raise Refused("'tools' must be a list.", code="invalid_type", param="tools")
    labels: set[str] = set()
    for index, entry in enumerate(value):
        where = f"tools[{index}]"
        if not isinstance(entry, dict):
            raise Refused(f"{where} must be an object.", code="invalid_type", param=where)
        if entry.get("type") != "mcp":
            _check_names(entry, where)
            _check_tool(entry, where)
            _check_inside(entry, where)
            continue
        tool = _mcp_tool(entry, index, where)
        if tool.label in labels:
            raise Bypass(
                f"{where}: the label {tool.label!r} is declared twice.",
                code="mcp_label_duplicate",
                param=f"{where}.server_label",
            )
        labels.add(tool.label)
        yield tool


def _check_names(members: Json, where: str) -> None:
    """A name that a more forgiving reader takes for one that matters is a way round us."""
    for name in members:
        if name not in _TELLING and folding.folded(name) in _TELLING_FOLDED:
            raise Bypass(
                f"{where or 'The body'}: the member {name[:80]!r} could be taken for another.",
                code="member_misspelt",
                param=f"{where}.{name[:80]}" if where else name[:80],
            )


def _check_inside(node: Any, where: str) -> None:
    """Nothing inside of a plain tool or item may be a tool or an approval itself."""
    level = _children(node)
    while level:
        for holder in level:
            if isinstance(holder, dict) and folding.folded(holder.get("type")) in _NEVER_INSIDE:
                raise Bypass(
                    f"{where}: something of type {holder['type'][:80]!r} must not stand in here.",
                    code="tool_refused",
                    param=where,
                )
        level = [child for holder in level for child in _children(holder)]


def _children(holder: Any) -> list[Any]:
    if isinstance(holder, list):
        return [value for value in holder if isinstance(value, _HOLDERS)]
    return [
        value
        for name, value in holder.items()
        if isinstance(value, _HOLDERS) and name not in _OPAQUE
    ]


def _check_tool(entry: Json, where: str) -> None:
    kind = entry.get("type")
    if isinstance(kind, str) and kind in _REFUSED_TOOLS:
        raise Bypass(
            f"{where}: {kind!r} is refused: {_REFUSED_TOOLS[kind]}.",
            code="tool_refused",
            param=where,
        )
    if kind == "namespace":
        inner = entry.get("tools")
        if isinstance(inner, list) and all(
            isinstance(tool, dict) and tool.get("type") in ("function", "custom") for tool in inner
        ):
            return
    # A dated variant (web_search_preview_2025_03_11) is the same tool.
    elif isinstance(kind, str) and (kind in _PLAIN_TOOLS or _DATED_SEARCH.fullmatch(kind)):
        return
    raise Bypass(
        f"{where}: the tool type {kind!r} is not known to this gateway.",
        code="tool_type_unknown",
        param=where,
    )


def _mcp_tool(entry: Json, index: int, where: str) -> McpTool:
    for member, why in _REFUSED_MCP.items():
        if entry.get(member) is not None:
            raise Bypass(
                f"{where}.{member} is refused: {why}.",
                code="mcp_member_refused",
                param=f"{where}.{member}",
            )
    if unknown := sorted(set(entry) - _MCP_MEMBERS - set(_REFUSED_MCP)):
        raise Bypass(
            f"{where}: the member {unknown[0]!r} is not known to this gateway.",
            code="mcp_member_unknown",
            param=f"{where}.{unknown[0]}",
        )
    if entry.get("allowed_callers") not in (None, ["direct"]):
        raise Bypass(
            f"{where}.allowed_callers may only be ['direct']: a program written by the model "
            "must not call tools.",
            code="mcp_member_refused",
            param=f"{where}.allowed_callers",
        )
    if entry.get("defer_loading"):
        raise Bypass(
            f"{where}.defer_loading is refused: tools must be listed before they are called.",
            code="mcp_member_refused",
            param=f"{where}.defer_loading",
        )
    label, url = entry.get("server_label"), entry.get("server_url")
    if not isinstance(label, str) or not label:
        raise Refused(
            f"{where}.server_label must be a string.",
            code="invalid_type",
            param=f"{where}.server_label",
        )
    if url is not None and not isinstance(url, str):
        raise Refused(
            f"{where}.server_url must be a string.",
            code="invalid_type",
            param=f"{where}.server_url",
        )
    return McpTool(index, label, url, entry)
