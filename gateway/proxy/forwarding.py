"""Chat completions, embeddings and models: looked through, passed on, recorded.

They cannot reach an MCP server today. What could bring tools that are not in the request, or of a
kind that this gateway does not know, is refused, so that they cannot tomorrow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from gateway.errors import Refused
from gateway.exchange.document import dump, parse
from gateway.exchange.folding import folded
from gateway.exchange.messages import Bypass, Json
from gateway.proxy import ownership
from gateway.proxy.azure import Wire
from gateway.proxy.http import Call
from gateway.proxy.relay import Ask, Relay
from gateway.proxy.surface import Target
from gateway.proxy.trace import Trace
from gateway.registry.directory import AppView
from gateway.store.database import Database

_UPSTREAM = {"chat": "chat/completions", "embeddings": "embeddings", "models": "models"}
_TOOLS = frozenset({"function", "custom"})
#: Tools of the Responses API that run elsewhere.
_REFUSED_TOOLS = frozenset({"mcp", "tool_search", "programmatic_tool_calling"})
_LOOKED_AT = frozenset({"tools", "messages", "model", "stream"})
_STORED = "it stands for tools, or for credentials, that nobody sees in the request"


@dataclass(frozen=True)
class Forwarding:
    """Answers `chat`, `embeddings`, `models` and `model`."""

    relay: Relay
    db: Database
    max_body: int

    async def answer(self, call: Call, app: AppView, target: Target, wire: Wire) -> None:
        """Pass one request on."""
        path = f"models/{target.ids[0]}" if target.name == "model" else _UPSTREAM[target.name]
        ask = Ask(call.method, path, wire)
        asked: Json = {}
        if call.method == "POST":
            asked = await self._inspected(call, app, target)
            ask = dataclasses.replace(ask, body=dump(asked))
        async with self.relay.tracing(call, app, target.name) as trace:
            trace.route, trace.model = f"/{path}", asked.get("model")
            trace.streamed = bool(asked.get("stream"))

            async def deliver(response: aiohttp.ClientResponse) -> None:
                await self._deliver(call, response, trace)

            await self.relay.send(call, trace, ask, deliver)

    async def _inspected(self, call: Call, app: AppView, target: Target) -> Json:
        asked = parse(await call.body(self.max_body))
        if target.deployment is not None:
            asked["model"] = target.deployment  # as at Azure: what the path names is asked
        _check_members(asked)
        _check_tools(asked.get("tools"))
        if named := list(_file_ids(asked.get("messages"))):
            async with self.db.reading() as session:
                await ownership.check_files(session, app.id, named)
        return asked

    async def _deliver(self, call: Call, response: aiohttp.ClientResponse, trace: Trace) -> None:
        if response.content_type == "text/event-stream":
            await self.relay.stream(call, response, trace)
        else:
            await self.relay.whole(call, response, trace)


def _check_members(asked: Json) -> None:
    for name, value in asked.items():
        plain = folded(name)
        if plain in _LOOKED_AT and name not in _LOOKED_AT:
            raise Bypass(
                f"The member {name[:80]!r} could be taken for another.",
                code="member_misspelt",
                param=name[:80],
            )
        root = next((root for root in ("agent", "mcp") if plain.startswith(root)), None)
        root = "prompt" if plain == "prompt" else root
        if root is not None and value is not None:
            raise Bypass(
                f"'{name[:80]}' is refused: {_STORED}.", code=f"{root}_refused", param=name[:80]
            )


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise Refused("'tools' must be a list.", code="invalid_type", param="tools")
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise Refused(f"{where} must be an object.", code="invalid_type", param=where)
        kind = tool.get("type")
        if isinstance(kind, str) and kind in _TOOLS:
            continue
        if isinstance(kind, str) and kind in _REFUSED_TOOLS:
            raise Bypass(
                f"{where}: {kind!r} is refused here. Use POST /responses with registered servers.",
                code="tool_refused",
                param=where,
            )
        raise Bypass(
            f"{where}: the tool type {str(kind)[:80]!r} is not known to this gateway here.",
            code="tool_type_unknown",
            param=where,
        )


def _file_ids(messages: Any) -> Iterator[str]:
    """Uploaded files that the app shows to the model."""
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            file = part.get("file") if isinstance(part, dict) else None
            if isinstance(file, dict) and (name := file.get("file_id")) is not None:
                if not isinstance(name, str):
                    raise Refused("A file id must be a string.", code="invalid_type")
                yield name
