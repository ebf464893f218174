"""The `mcp` tools of a request: which exist, which need approval, and the real calls to servers.

Connects with the official SDK over streamable HTTP, with exactly the headers it was given, one
connection for each listing and each call. It keeps nothing between them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NoReturn

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

from gateway.demo.wire import JSON, ApiError, bad_request

_TIMEOUT = httpx2.Timeout(30.0, read=120.0)


@dataclass(frozen=True)
class McpServer:
    """One `mcp` entry of `tools`. `headers` already contain `authorization` as a Bearer token."""

    label: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    allowed: JSON | list[str] | None = None
    approval: JSON | str = "always"

    def offers(self, tool: JSON) -> bool:
        """Whether `allowed_tools` lets the model see this tool."""
        match self.allowed:
            case None:
                return True
            case list():
                return tool["name"] in self.allowed
            case _:
                return _matches(self.allowed, tool)

    def needs_approval(self, tool: JSON) -> bool:
        """`require_approval` as the service reads it; anything unclear asks."""
        match self.approval:
            case "never":
                return False
            case {"always": always, "never": never}:
                return _matches(always, tool) or not _matches(never, tool)
            case {"always": always}:
                return _matches(always, tool)
            case {"never": never}:
                return not _matches(never, tool)
            case _:
                return True


def _matches(wanted: object, tool: JSON) -> bool:
    match wanted:
        case list():
            return tool["name"] in wanted
        case {"tool_names": [*names]} if tool["name"] not in names:
            return False
        case {"read_only": bool(read_only)}:
            return bool((tool.get("annotations") or {}).get("read_only")) == read_only
        case {"tool_names": [*_]}:
            return True
        case _:
            return False


def servers(tools: Sequence[JSON]) -> dict[str, McpServer]:
    """The `mcp` entries by label. ApiError(400) for what the service does not accept."""
    found: dict[str, McpServer] = {}
    for index, tool in enumerate(tools):
        if tool.get("type") != "mcp":
            continue
        label = tool.get("server_label")
        if not isinstance(label, str) or not label:
            _missing(f"tools[{index}].server_label")
        if label in found:
            raise bad_request(
                f"Duplicate server_label found in tools: '{label}'. Please use unique labels.",
                param=f"tools[{index}].server_label",
            )
        found[label] = _server(tool, label, index)
    return found


def _server(tool: JSON, label: str, index: int) -> McpServer:
    url = tool.get("server_url")
    if not isinstance(url, str):
        _missing(f"tools[{index}].server_url")
    headers = {str(k): str(v) for k, v in (tool.get("headers") or {}).items()}
    if token := tool.get("authorization"):
        if "authorization" in {name.lower() for name in headers}:
            raise bad_request(
                "The 'authorization' parameter cannot be used together with an 'Authorization' "
                "header.",
                param=f"tools[{index}].authorization",
            )
        headers["Authorization"] = f"Bearer {token}"
    approval = tool.get("require_approval") or "always"
    return McpServer(label, url, headers, tool.get("allowed_tools"), approval)


def _missing(param: str) -> NoReturn:
    raise bad_request(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


class McpFailure(Exception):
    """A listing or a call did not work; `error` is the object that `mcp_call.error` carries."""

    def __init__(self, error: JSON) -> None:
        super().__init__(str(error.get("message", error["type"])))
        self.error = error

    def status_text(self) -> str:
        """`401 (Unauthorized)` for HTTP failures, `424 (Failed Dependency)` for the others."""
        code = int(self.error["code"]) if self.error["type"] == "http_error" else 424
        try:
            phrase = HTTPStatus(code).phrase
        except ValueError:
            phrase = "Unknown"
        return f"{code} ({phrase})"

    def as_list_error(self, label: str) -> ApiError:
        return ApiError(
            424,
            f"Error retrieving tool list from MCP server: '{label}'. "
            f"Http status code: {self.status_text()}",
            kind="external_connector_error",
            param="tools",
            code="http_error",
        )


async def list_tools(server: McpServer) -> list[JSON]:
    """The server's tools as an `mcp_list_tools` item shows them, `allowed_tools` applied."""
    found: list[JSON] = []
    async with _connected(server) as client:
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor)
            found.extend(_described(tool) for tool in page.tools)
            cursor = page.next_cursor
            if not cursor:
                break
    return [tool for tool in found if server.offers(tool)]


def _described(tool: Any) -> JSON:
    hints = tool.annotations
    return {
        "annotations": {"read_only": bool(hints and hints.read_only_hint)},
        "description": tool.description,
        "input_schema": tool.input_schema,
        "name": tool.name,
    }


async def call_tool(server: McpServer, name: str, arguments: str) -> str:
    """Call for real, once. Returns the text output; McpFailure with the item's error object."""
    try:
        parsed = json.loads(arguments)
    except ValueError:
        raise McpFailure(_protocol_error(-32602, "Arguments are not valid JSON")) from None
    async with _connected(server) as client:
        result = await client.call_tool(name, parsed)
    texts = [part.text for part in result.content if isinstance(part, TextContent)]
    if result.is_error:
        content = [{"type": "text", "text": text, "annotations": None} for text in texts]
        raise McpFailure({"type": "mcp_tool_execution_error", "content": content})
    return "\n".join(texts)


@asynccontextmanager
async def _connected(server: McpServer) -> AsyncIterator[Client]:
    """A session with the server. Whatever breaks it is raised as McpFailure."""
    statuses: list[int] = []

    async def note(response: httpx2.Response) -> None:
        statuses.append(response.status_code)

    http_client = httpx2.AsyncClient(
        headers=dict(server.headers),
        timeout=_TIMEOUT,
        event_hooks={"response": [note]},
        # Reading the certificates takes longer than a call; plain http has no use for them.
        verify=not server.url.startswith("http:"),
    )
    try:
        async with (
            http_client as http,
            Client(streamable_http_client(server.url, http_client=http), cache=None) as client,
        ):
            yield client
    except McpFailure:
        raise
    except Exception as problem:
        raise McpFailure(_failure(problem, statuses)) from problem


def _failure(problem: BaseException, statuses: list[int]) -> JSON:
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    if statuses and statuses[-1] >= 400:
        code = statuses[-1]
        return {"type": "http_error", "code": code, "message": f"HTTP status {code}"}
    if isinstance(problem, MCPError):
        return _protocol_error(problem.code, problem.message)
    if isinstance(problem, httpx2.HTTPError | OSError):
        return {"type": "http_error", "code": 424, "message": "The server could not be reached"}
    return _protocol_error(-32603, f"unhandled errors in a TaskGroup ({type(problem).__name__})")


def _protocol_error(code: int, message: str) -> JSON:
    return {"type": "mcp_protocol_error", "code": code, "message": message}
