"""Requests as raw bytes over a bare socket: clients would put right what tests want wrong."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass(frozen=True)
class Reply:
    """Everything that came back, and whether the other side closed the connection."""

    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """Of every answer on the connection, in order."""
        return [int(status) for status in _STATUS.findall(self.raw)]

    @property
    def code(self) -> str:
        """The code of the last answer's error."""
        return self.error["code"]

    @property
    def error(self) -> dict[str, Any]:
        """The last answer's error, which has the OpenAI shape."""
        error = json.loads(self.raw.rpartition(b"\r\n\r\n")[2])["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def header(self, name: str) -> str:
        """A header of the last answer."""
        head = self.raw.rpartition(b"\r\n\r\n")[0].rpartition(b"HTTP/1.1 ")[2].decode("latin-1")
        lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        return lines[name]


async def exchange(port: int, *parts: bytes, pause: float = 0.02, patience: float = 5) -> Reply:
    """Send the parts, then read until the connection ends or has been silent for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw, closed = b"", False
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        while not closed:
            # After a whole answer there is only the end of the connection to wait for.
            wait = 0.1 if whole(raw) else patience
            chunk = await asyncio.wait_for(reader.read(65536), wait)
            raw, closed = raw + chunk, not chunk
    except TimeoutError:
        pass
    except ConnectionError:
        closed = True
    finally:
        writer.close()
    return Reply(raw, closed)


def whole(raw: bytes) -> bool:
    """Whether the last answer on the connection is complete."""
    head, end, body = raw.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])
