"""An Azure and an MCP server that show whatever they were sent, in every way that they can.

Both are the demo's own with a mirror in front. A text `mirror KIND STATUS` in a request, or
`Mirror.always`, says how Azure shows it; the MCP server shows its headers in all that it says.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.demo.mcp_server import McpSettings, create_mcp_server
from gateway.demo.runner import cut_connection
from gateway.demo.upstream import UpstreamSettings, create_upstream
from tests.support.demo import TOKEN

_WISH = re.compile(rb"mirror ([a-z-]+)(?: (\d+))?")
#: Headers that the gateway passes on, and some that it does not.
_HEADERS = ("openai-version", "x-ms-region", "apim-request-id", "retry-after", "x-request-id")
KINDS = (
    "error 400", "error 401", "error 403", "error 404", "error 408", "error 413", "error 422",
    "error 429", "error 500", "error 502", "error 503", "text 400", "text 500", "redirect",
    "headers", "whole", "escaped", "garbage", "broken", "silent", "cut",
)  # fmt: skip
STREAMED = ("stream", "pieces 1", "pieces 5", "pieces 40", "failing", "broken-stream")


class Mirror:
    """Azure. `key` is what it accepts."""

    def __init__(self, key: str, **settings: Any) -> None:
        self.always: str | None = None
        self.shown = 0
        self._azure = create_upstream(UpstreamSettings(key, **settings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Show what came, if that is wished; else answer as the demo does."""
        if scope["type"] != "http" or scope["path"].startswith("/_demo"):
            await self._azure(scope, receive, send)
            return
        raw = await Request(scope, receive).body()
        wish = _WISH.search(self.always.encode() if self.always else raw)
        if wish is None:
            await self._azure(scope, _once(raw), send)
            return
        self.shown += 1
        told = f"{json.dumps(dict(Headers(scope=scope)))} {raw.decode(errors='replace')}"
        number = int(wish[2] or 0)
        answer = await _shown(wish[1].decode(), number, raw, told, scope)
        await answer(scope, _once(b""), send)


def _once(raw: bytes) -> Receive:
    told = False

    async def receive() -> Message:
        nonlocal told
        if told:
            await asyncio.Event().wait()
        told = True
        return {"type": "http.request", "body": raw, "more_body": False}

    return receive


async def _shown(kind: str, number: int, raw: bytes, told: str, scope: Scope) -> Response:
    match kind:
        case "error":
            error = {"message": told, "type": told, "param": told, "code": "mirror"}
            return JSONResponse({"error": error, "more": [told]}, number)
        case "text":
            return Response(told, number)
        case "redirect":
            return Response(told, 307, {"location": f"http://127.0.0.1:9/?{_key(scope)}"})
        case "headers":
            headers = {name: f"{_key(scope)} {_tokens(raw)}".strip() for name in _HEADERS}
            return JSONResponse(whole(raw, "nothing"), headers=headers)
        case "whole":
            return JSONResponse(whole(raw, told))
        case "escaped":
            text = json.dumps(whole(raw, told)).replace("+", "\\u002B").replace("/", "\\/")
            return Response(text, media_type="application/json")
        case "garbage":
            return Response('{"output": [' + told, media_type="application/json")
        case "silent":
            await asyncio.sleep(30)
            return Response(told)
        case "cut":
            await cut_connection(scope)
            return Response()
        case _:
            return StreamingResponse(
                _stream(kind, number, raw, told, scope),
                media_type="application/json" if kind == "broken" else "text/event-stream",
            )


async def _stream(
    kind: str, number: int, raw: bytes, told: str, scope: Scope
) -> AsyncIterator[bytes]:
    if kind == "broken":
        yield json.dumps(whole(raw, told)).encode()[: len(told)]
        await cut_connection(scope)
        return
    response = whole(raw, told)
    yield _frame("response.created", response={**response, "status": "in_progress", "output": []})
    if kind == "pieces":
        message = {**response["output"][-1], "content": [], "status": "in_progress"}
        yield _frame("response.output_item.added", output_index=0, item=message)
        part = {"type": "output_text", "text": "", "annotations": []}
        place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
        yield _frame("response.content_part.added", **place, part=part)
        for start in range(0, len(told), number):
            yield _frame("response.output_text.delta", **place, delta=told[start : start + number])
        yield _frame("response.output_text.done", **place, text=told)
        item = response["output"][-1]
        yield _frame("response.output_item.done", output_index=0, item=item)
        response["output"] = [item]
    if kind == "failing":
        yield _frame("error", error={"message": told, "type": "x", "code": "x", "param": told})
        failed = {**response, "status": "failed", "error": {"code": "x", "message": told}}
        yield _frame("response.failed", response=failed)
        return
    if kind == "broken-stream":
        yield f"data: {told}".encode()[:-5]
        await cut_connection(scope)
        return
    yield _frame("response.completed", response=response)


def _frame(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def whole(raw: bytes, told: str) -> dict[str, Any]:
    """A response object in which `told` stands wherever a text can."""
    body = json.loads(raw) if raw.startswith(b"{") else {}
    failed = {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s0", "tools": []}
    part = {"type": "output_text", "text": told, "annotations": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    return {
        "id": "resp_mirror", "object": "response", "created_at": 1, "status": "completed",
        "error": None, "model": body.get("model", "m"), "instructions": told,
        "output": [{**failed, "error": told}, {**message, "content": [part]}],
        "tools": body.get("tools", []), "usage": None, "metadata": {"told": told[:512]},
        "data": [{"id": "m", "object": "model", "told": told}], "choices": [], "told": told,
    }  # fmt: skip


def _key(scope: Scope) -> str:
    return Headers(scope=scope).get("api-key", "")


def _tokens(raw: bytes) -> str:
    """Everything that could be a credential in it, as it may stand in a header."""
    body = json.loads(raw) if raw.startswith(b"{") else {}
    tools = body.get("tools") or []
    return " ".join(value for tool in tools for value in (tool.get("headers") or {}).values())[
        :6000
    ]


def reflecting_bank() -> ASGIApp:
    """The demo's bank for anybody with any token, which it says again in all that it says.

    `?status=N` makes it answer that, and its headers.
    """
    bank = create_mcp_server(McpSettings(TOKEN))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await bank(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("authorization", "")
        if status := re.search(rb"status=(\d+)", scope["query_string"]):
            told = JSONResponse({"error": given, "headers": dict(headers)}, int(status[1]))
            await told(scope, receive, send)
            return
        others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
        known = (b"authorization", f"Bearer {TOKEN}".encode())
        started: list[Message] = []
        body = b""

        async def keep(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                started.append(message)
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                told = _saying(body, given)
                length = (b"content-length", str(len(told)).encode())
                kept = [pair for pair in started[0]["headers"] if pair[0] != b"content-length"]
                await send({**started[0], "headers": [*kept, length]})
                await send({"type": "http.response.body", "body": told})

        await bank({**scope, "headers": [*others, known]}, receive, keep)

    return app


def _saying(body: bytes, given: str) -> bytes:
    """An answer of MCP, with `given` in each text that it has."""
    try:
        document = json.loads(body)
    except ValueError:
        return body
    result = document.get("result") if isinstance(document, dict) else None
    if not isinstance(result, dict):
        return body
    for tool in result.get("tools", []):
        tool["description"] = f"{tool.get('description')} {given}"
    for part in result.get("content", []):
        part["text"] = f"{part.get('text')} {given}"
    return json.dumps(document).encode()
