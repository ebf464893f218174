"""The sample MCP server: a small bank on the official SDK, over streamable HTTP.

Answers 401 without its exact `Authorization: Bearer TOKEN`. `GET /effects` (same token) shows
every change it ever made, so that anyone can count executions.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from mcp.server import Server, ServerRequestContext
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.demo.bank import TOOLS, Bank, BankRefused, BankTool, perform
from gateway.demo.runner import run_until_stopped
from gateway.demo.wire import JSON, compact
from gateway.telemetry import Clock, utc_now


@dataclass(frozen=True)
class McpSettings:
    """`token` is what clients must send; `effects` a JSON-lines file that is only appended to.

    `call_delay` makes every call take that many seconds before it takes effect.
    """

    token: str = field(repr=False)
    effects: Path | None = None
    call_delay: float = 0.0
    clock: Clock = utc_now


@dataclass
class _Desk:
    """The bank and how its tools are described; descriptions can be changed while it runs."""

    bank: Bank
    call_delay: float
    descriptions: dict[str, str] = field(default_factory=dict)

    def described(self, tool: BankTool) -> Tool:
        return Tool(
            name=tool.name,
            description=self.descriptions.get(tool.name, tool.description),
            input_schema=tool.arguments.model_json_schema(),
            annotations=ToolAnnotations(
                read_only_hint=not tool.writes,
                destructive_hint=tool.destructive,
                idempotent_hint=not tool.writes,
                open_world_hint=False,
            ),
        )

    async def list_tools(
        self, _: ServerRequestContext[JSON], __: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return ListToolsResult(tools=[self.described(tool) for tool in TOOLS])

    async def call_tool(
        self, _: ServerRequestContext[JSON], wanted: CallToolRequestParams
    ) -> CallToolResult:
        tool = next((t for t in TOOLS if t.name == wanted.name), None)
        if tool is None:
            return _refused(f"Unknown tool: {wanted.name}")
        if self.call_delay:
            await asyncio.sleep(self.call_delay)
        try:
            result = perform(self.bank, tool, wanted.arguments or {})
        except BankRefused as problem:
            return _refused(str(problem))
        except ValidationError as problem:
            places = sorted({".".join(map(str, e["loc"])) for e in problem.errors()})
            return _refused("Invalid arguments: " + ", ".join(places))
        return CallToolResult(content=[TextContent(type="text", text=compact(result))])

    async def show_effects(self, _: Request) -> Response:
        return JSONResponse({"effects": self.bank.effects})

    async def redescribe(self, request: Request) -> Response:
        """PUT a new description, as a server does that changes a tool after it was accepted."""
        name = request.path_params["name"]
        if name not in {tool.name for tool in TOOLS}:
            return JSONResponse({"error": "unknown tool"}, 404)
        self.descriptions[name] = (await request.body()).decode()
        return Response(status_code=204)


def _refused(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=message)], is_error=True)


def create_mcp_server(settings: McpSettings) -> ASGIApp:
    """The server as an ASGI app, MCP at `/mcp`; its bank is `app.state.bank` of the inner app."""
    desk = _Desk(Bank(settings.effects, settings.clock), settings.call_delay)
    server: Server[JSON] = Server(
        "sample-bank",
        version="1.0",
        instructions="A sample bank: balances, transfers and contacts.",
        on_list_tools=desk.list_tools,
        on_call_tool=desk.call_tool,
    )
    app = server.streamable_http_app(
        json_response=True,
        stateless_http=True,
        # The token is what protects it; in a container it is reached by another name.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        custom_starlette_routes=[
            Route("/effects", desk.show_effects, methods=["GET"]),
            Route("/tools/{name}/description", desk.redescribe, methods=["PUT"]),
        ],
    )
    return _require_token(app, settings.token)


def _require_token(app: Starlette, token: str) -> ASGIApp:
    expected = f"Bearer {token}".encode()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(given, expected):
                refusal = JSONResponse(
                    {"error": "invalid_token", "error_description": "Authentication required"},
                    401,
                    headers={"www-authenticate": 'Bearer error="invalid_token"'},
                )
                await refusal(scope, receive, send)
                return
        await app(scope, receive, send)

    return guarded


def main(arguments: list[str] | None = None) -> None:
    """Run the sample MCP server as a process of its own; prints its address when it is ready."""
    parser = argparse.ArgumentParser(prog="gateway.demo.mcp_server", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--token", required=True)
    parser.add_argument("--effects", type=Path, metavar="FILE", help="append effects here")
    parser.add_argument("--call-delay", type=float, default=0.0, metavar="SECONDS")
    given = parser.parse_args(arguments)
    app = create_mcp_server(McpSettings(given.token, given.effects, given.call_delay))
    line = "Sample MCP server ready: {url}/mcp"
    asyncio.run(run_until_stopped(app, host=given.host, port=given.port, line=line))


if __name__ == "__main__":
    main()
