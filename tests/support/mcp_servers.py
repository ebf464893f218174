"""Real MCP servers with odd habits, made with the official SDK."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from mcp.server import Server, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.types import ListToolsResult, PaginatedRequestParams, Tool
from starlette.types import ASGIApp, Receive, Scope, Send

Lister = Callable[[str | None], Awaitable[ListToolsResult]]


def tool(name: str, description: str = "Does it.", **more: Any) -> Tool:
    """A tool of no arguments."""
    return Tool(name=name, description=description, input_schema={"type": "object"}, **more)


def pages(count: int, size: int) -> Lister:
    """So many tools, so many on a page."""

    async def lister(cursor: str | None) -> ListToolsResult:
        begin = int(cursor or 0)
        end = min(begin + size, count)
        listed = [tool(f"tool_{number}") for number in range(begin, end)]
        return ListToolsResult(tools=listed, next_cursor=str(end) if end < count else None)

    return lister


def these(*tools: Tool) -> Lister:
    """Exactly these."""

    async def lister(_: str | None) -> ListToolsResult:
        return ListToolsResult(tools=list(tools))

    return lister


def server(lister: Lister, *, stateful: bool = False, **about: Any) -> ASGIApp:
    """A server that lists what `lister` gives for a cursor; MCP at `/mcp`."""

    async def list_tools(
        _: ServerRequestContext[Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return await lister(params.cursor if params else None)

    about = {"name": "odd", "version": "3.1", **about}
    made: Server[Any] = Server(on_list_tools=list_tools, **about)
    # Stateful ones answer in streams, and want to be left properly.
    return made.streamable_http_app(json_response=not stateful, stateless_http=not stateful)


def old_server() -> ASGIApp:
    """One that knows the older transport alone; at `/sse`."""
    made = MCPServer("old")

    @made.tool()
    def remember(what: str) -> str:
        """Remembers."""
        return what

    return made.sse_app()


def watching(app: ASGIApp, requests: list[tuple[str, dict[str, str]]]) -> ASGIApp:
    """The same app; every request's method and headers are noted."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            requests.append((scope["method"], headers))
        await app(scope, receive, send)

    return watched


@contextlib.asynccontextmanager
async def encrypted(url: str, tls: ssl.SSLContext) -> AsyncIterator[str]:
    """What is at `url` over TLS, on a port of its own; yields `https://127.0.0.1:PORT`."""
    port = int(url.rpartition(":")[2])
    inside: set[asyncio.Task[Any] | None] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside.add(asyncio.current_task())
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    listener = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for task in inside:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in inside if task), return_exceptions=True)
