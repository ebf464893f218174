"""E-11: a kept connection to Azure that ends just when a resume comes. One sending, or none.

A real way lies between the gateway and Azure. It keeps connections open from round to round, as
Azure does, until the bytes of a resume come: then it resets the connection, before Azure has had
any of them, or once it has had all of them. Whoever sends the bytes again by itself, because a
kept connection may have been closed long ago, sends an approval twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import RESPONSES
from tests.support.demo import TRANSFER
from tests.support.gateway import MODEL, Gateway, open_gateway

pytestmark = pytest.mark.e2e
RESUME = b'"mcp_approval_response"'
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Way:
    """Carries bytes to `port` and back. `spoil`: what becomes of a connection on which a resume
    comes (`before` Azure has had it, `after`), `only_kept` that a new one is left alone.
    """

    port: int
    spoil: str
    only_kept: bool = False
    resumes: int = 0  # that came here, each counted once
    kept: int = 0  # of them on a connection that had carried something before
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the gateway."""
        there_reader, there = await asyncio.open_connection("127.0.0.1", self.port)
        back = asyncio.ensure_future(self._back(there_reader, writer))
        self._tasks.add(back)
        used = False
        try:
            while (request := await _request(reader)) is not None:
                if RESUME in request:
                    self.resumes += 1
                    self.kept += used
                    if used or not self.only_kept:
                        back.cancel()
                        if self.spoil == "after":
                            await asyncio.wait([back])
                            there.write(request)
                            await _executed(there_reader)
                        self._end(writer)
                        return
                used = True
                there.write(request)
                await there.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            back.cancel()
            for end in (writer, there):
                end.close()

    def _end(self, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()


async def _executed(reader: asyncio.StreamReader) -> None:
    """Until Azure has told of the call; nobody hears it."""
    seen = b""
    while b"bank.transfer returned" not in seen:
        chunk = await reader.read(65536)
        assert chunk, seen
        seen += chunk


async def _request(reader: asyncio.StreamReader) -> bytes | None:
    """One whole request, which has a length; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    return head + await reader.readexactly(int(lines.get(b"content-length", b"0")))


@asynccontextmanager
async def opened(folder: Path, spoil: str, **how: bool) -> AsyncIterator[tuple[Gateway, Way]]:
    """A gateway whose Azure lies behind such a way."""
    async with AsyncExitStack() as stack:
        way = Way(0, spoil, **how)
        server = await asyncio.start_server(way.carry, "127.0.0.1", 0)
        stack.callback(server.close)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/openai/v1/"
        gateway = await open_gateway(stack, folder, GATEPASS_UPSTREAM_URL=url)
        way.port = int(gateway.world.url.rpartition(":")[2])
        yield gateway, way
        await gateway.verify()


async def held_and_approved(gateway: Gateway, stream: bool) -> tuple[Any, dict[str, Any]]:
    """The app's answer, and the request as it stands at the end."""
    body = {"model": MODEL, "input": TRANSFER, "tools": [gateway.tool()], "stream": stream}
    asking = asyncio.ensure_future(gateway.raw("POST", RESPONSES, json=body))
    (request,) = await gateway.pending()
    assert (await gateway.review(request)).status_code == 201
    answer = await asking
    return answer, await gateway.request(request["id"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("spoil", "sent"), [("before", 0), ("after", 1)])
async def test_E_11_a_resume_whose_connection_is_reset_is_not_sent_again(
    tmp_path: Path, spoil: str, sent: int, stream: bool
):
    async with opened(tmp_path, spoil) as (gateway, way):
        answer, request = await held_and_approved(gateway, stream)
        assert request["execution"] == "unknown"
        assert way.resumes == 1
        assert (await gateway.rounds()) == 1 + sent
        assert len(await gateway.effects()) == sent
        assert answer.status_code == (200 if stream else 424)
        (observed,) = await gateway.records("execution.observed")
        assert observed["outcome"] == "unknown"
        assert len(await gateway.records("release.sending")) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_E_11_a_resume_does_not_take_a_connection_that_was_kept(tmp_path: Path, stream: bool):
    async with opened(tmp_path, "before", only_kept=True) as (gateway, way):
        answer, request = await held_and_approved(gateway, stream)
        assert (answer.status_code, request["execution"]) == (200, "executed")
        assert (way.resumes, way.kept) == (1, 0)
        assert len(await gateway.effects()) == 1
