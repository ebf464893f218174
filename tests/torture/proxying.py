"""A way between two processes that breaks: it resets connections, or lets them fall silent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_RESET = struct.pack("ii", 1, 0)


@dataclass
class Way:
    """Copies bytes both ways to `port`; `reset` and `silence` do it to a random connection."""

    port: int
    random: random.Random
    resets: int = 0
    silences: int = 0
    _open: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = field(default_factory=dict)
    _silent: set[asyncio.Task[None]] = field(default_factory=set)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        task = asyncio.current_task()
        assert task is not None
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.close()
            return
        self._open[task] = [writer, there_writer]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(task, reader, there_writer))
                group.create_task(self._copy(task, there_reader, writer))
        except (ExceptionGroup, OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.pop(task, None)
            self._silent.discard(task)
            for end in (writer, there_writer):
                end.close()

    async def _copy(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(65536):
            while task in self._silent:
                await asyncio.sleep(0.05)
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    def reset(self) -> None:
        """Both ends of one connection are reset, whatever is under way."""
        if not self._open:
            return
        task = self.random.choice(list(self._open))
        for writer in self._open[task]:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        task.cancel()
        self.resets += 1

    async def silence(self, seconds: float) -> None:
        """One connection says nothing for a while, and is reset then: half open."""
        if not self._open:
            return
        task = self.random.choice(list(self._open))
        self._silent.add(task)
        self.silences += 1
        await asyncio.sleep(seconds)
        if task in self._open:
            for writer in self._open[task]:
                writer.transport.abort()
            task.cancel()


@contextlib.asynccontextmanager
async def way_to(port: int, seed: random.Random) -> AsyncIterator[tuple[Way, int]]:
    """A way, and the port on which it begins."""
    way = Way(port, seed)
    server = await asyncio.start_server(way.carry, "127.0.0.1", 0)
    try:
        yield way, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(way._open):
            task.cancel()
        await asyncio.sleep(0)
