"""One visit to an MCP server through the official client, within bounds.

Streamable HTTP first; the older SSE transport where the server answers as MCP says it then does
(2025-06-18, Transports, Backwards Compatibility). Only lists: no tool is ever called.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeAlias

import anyio
import httpx2
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import Implementation, Tool

from gateway.egress.client import Bounds, open_client
from gateway.probing import failures
from gateway.probing.report import Identity, SeenTool, Timings, Visit
from gateway.probing.witness import Witness
from gateway.registry.definitions import canonical
from gateway.registry.tools import digest_definition
from gateway.scrubbing import Scrubber

MOST_TOOLS, MOST_PAGES = 1000, 200
#: Bytes of one answer, and of all definitions together.
MOST_BYTES = 4 * 1024 * 1024
_WORDS = 2000

_Transport: TypeAlias = AbstractAsyncContextManager[Any]
_OPENING = frozenset({400, 404, 405})

# The client logs what it was sent, which is a stranger's and may hold what we sent.
for _name in ("mcp", "client"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class Way:
    """Where to, with which headers, how far, and what must never be shown of the answers."""

    url: str
    bounds: Bounds
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    scrubber: Scrubber = field(default_factory=lambda: Scrubber([]), repr=False)


@dataclass
class _Notes:
    """What is known so far; a visit that fails is reported with it."""

    way: Way
    witness: Witness = field(default_factory=Witness)
    transport: str = "streamable_http"
    server: Identity | None = None
    tools: list[SeenTool] = field(default_factory=list)
    complete: bool = True
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def text(self, value: str | None, most: int = _WORDS) -> str | None:
        """A stranger's text as it may be shown: first without secrets, then cut."""
        if value is None:
            return None
        return self.way.scrubber.clean(value.encode(errors="replace")).decode(errors="replace")[
            :most
        ]

    def shown(self, value: str) -> str:
        """A stranger's text as part of a sentence."""
        return self.text(value, 200) or ""

    def ended(self) -> tuple[str, str] | None:
        """Outcome and sentence where the last request says why a visit ended, else None.

        What was seen on the wire counts more than what the client makes of it.
        """
        last = self.witness.last(*(("GET", "POST") if self.transport == "sse" else ("POST",)))
        if last is not None and last.failure is not None:
            return failures.failed(last.failure, self.way.bounds.seconds, self.shown)
        if last is not None and last.status is not None and last.status >= 400:
            return failures.refused(last.status, with_credential=bool(self.way.headers))
        return None

    def visit(self, outcome: str, sentence: str) -> Visit:
        """The visit as far as it went."""
        took = {**self.witness.seconds, **self.seconds}
        return Visit(
            outcome=outcome,
            sentence=sentence,
            transport=self.transport,
            address=self.witness.address,
            tls=self.witness.tls,
            server=self.server,
            tools=tuple(self.tools),
            complete=self.complete,
            challenge=self.text(self.witness.challenge, 200),
            milliseconds=Timings(**{step: round(value * 1000) for step, value in took.items()}),
        )


async def visit(way: Way) -> Visit:
    """Go there, introduce oneself, list the tools. Whatever happens is a `Visit`."""
    notes = _Notes(way)
    try:
        # Not asyncio's: while it unwinds, the client still wants to say good-bye to a slow server.
        with anyio.fail_after(way.bounds.seconds):
            await _talk(notes)
    except TimeoutError:
        outcome, sentence = notes.ended() or failures.slow(way.bounds.seconds)
        return notes.visit(outcome, sentence)
    except Exception as error:  # a stranger and a client of many layers: anything can come
        outcome, sentence = notes.ended() or failures.nonsense(error, notes.shown)
        return notes.visit(outcome, sentence)
    many = "its tool" if len(notes.tools) == 1 else f"{len(notes.tools)} tools"
    return notes.visit("answered", f"The server answered and listed {many}.")


async def _talk(notes: _Notes) -> None:
    way = notes.way

    def opened(headers: Any = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
        """Ours, whatever the transport would have."""
        return open_client(way.bounds, headers=way.headers, wrap=notes.witness.around)

    try:
        async with opened() as http:
            transport = streamable_http_client(
                way.url, http_client=http, max_sse_event_size=MOST_BYTES
            )
            await _session(notes, transport)
    except Exception:
        answer = notes.witness.last("POST")
        if notes.server is not None or answer is None or answer.status not in _OPENING:
            raise
        notes.transport = "sse"
        await _session(notes, sse_client(way.url, httpx_client_factory=opened))


async def _session(notes: _Notes, transport: _Transport) -> None:
    now: Callable[[], float] = asyncio.get_running_loop().time
    begun = now()
    async with _client(transport) as client:
        said = client.server_info
        notes.server = Identity(
            name=notes.text(said.name if said else None, 200),
            version=notes.text(said.version if said else None, 200),
            protocol=notes.text(client.protocol_version, 200) or "",
            instructions=notes.text(client.instructions),
        )
        notes.seconds["initialize"] = now() - begun
        begun = now()
        await _list(notes, client)
        notes.seconds["list_tools"] = now() - begun


@asynccontextmanager
async def _client(transport: _Transport) -> AsyncIterator[Client]:
    own = Implementation(name="gatepass", version=version("gatepass"))
    async with Client(transport, cache=None, client_info=own) as client:
        yield client


async def _list(notes: _Notes, client: Client) -> None:
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            if len(notes.tools) == MOST_TOOLS or notes.bytes > MOST_BYTES:
                notes.complete = False
                return
            notes.tools.append(_seen(notes, tool))
        if not page.next_cursor or page.next_cursor == cursor:
            return
        cursor = page.next_cursor
    notes.complete = False


def _seen(notes: _Notes, tool: Tool) -> SeenTool:
    listed = tool.model_dump(by_alias=True, mode="json", exclude_none=True)
    listed["inputSchema"] = tool.input_schema  # also the nulls in it
    raw = notes.way.scrubber.clean(json.dumps(listed, allow_nan=False).encode())
    notes.bytes += len(raw)
    clean = json.loads(raw)
    definition = canonical(clean)
    return SeenTool(
        name=clean["name"][:_WORDS],
        title=notes.text(clean.get("title")),
        description=notes.text(clean.get("description")),
        annotations=clean.get("annotations", {}),
        definition=definition,
        digest=digest_definition(definition),
    )
