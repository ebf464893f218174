"""Tool definitions in one form, whoever listed them: the server itself, or Azure. Pure.

MCP (`tools/list`, 2025-06-18 and later) and Azure (`mcp_list_tools`) spell the same tool in two
ways, and Azure hands on less: name, description, schema of the arguments, and of the annotations
only whether the tool says that it reads. Only what both can say can be compared, so only that is
pinned; members that neither is known for stay, so that something new is a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import Refused

#: Members of an MCP tool that Azure does not hand on; the model never sees them.
_UNSEEN = frozenset({"title", "outputSchema", "icons", "execution", "_meta"})
_UNSEEN_HINTS = frozenset(
    {"title", "readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"}
)
#: Beyond it a float no longer tells neighbouring whole numbers apart.
_EXACT = 2**53


def canonical(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The form that is pinned: `name`, `description`, `input_schema`, `annotations.read_only`.

    Absent and null are the same; a whole number is one, however it is written. A form that is
    canonical already stays as it is. Raises `Refused` for one that is nested too deeply to be read.
    """
    try:
        return _canonical(definition)
    except RecursionError:
        raise Refused(
            "The server's list of tools is refused: a definition is nested too deeply.",
            code="tool_definition_invalid",
        ) from None


def _canonical(definition: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        name: _plain(value)
        for name, value in definition.items()
        if value is not None and name not in _UNSEEN
    }
    if "inputSchema" in found and "input_schema" not in found:
        found["input_schema"] = found.pop("inputSchema")
    found["annotations"] = _annotations(found.get("annotations", {}))
    return found


def _annotations(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    kept = {name: value for name, value in given.items() if name not in _UNSEEN_HINTS}
    claim = given.get("read_only", given.get("readOnlyHint"))
    return {**kept, "read_only": False if claim is None else claim}


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {name: _plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case float() if value.is_integer() and abs(value) <= _EXACT:
            return int(value)
        case _:
            return value
