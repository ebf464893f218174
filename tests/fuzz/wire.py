"""Raw bytes to a running gateway: an answer or the end of the connection, and it stays up."""

from __future__ import annotations

import asyncio
import json
import re
from random import Random

from tests.fuzz.sources import cut, damaged, some

SECONDS = 5.0
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"\x00",
    b"\xff",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Host: evil\r\n",
    b"Connection: close\r\n",
    b"Upgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"GET ",
    b"POST ",
    b"%2f",
    b"#",
    b"?",
    b"//",
    b"..",
    b"http://evil/",
    b";a=b",
    b"ffffffffffffffff\r\n",
    b"a" * 3000,
]
_PATHS = [
    "/openai/v1/responses",
    "/v1/responses/resp_1",
    "/",
    "/api/v1/me",
    "/healthz",
    "/openai/v1/x",
]


def make(random: Random, host: str, key: str) -> bytes:
    """One to three requests, almost right."""
    return b"".join(_request(random, host, key) for _ in range(1 + some(random, 2)))


def _request(random: Random, host: str, key: str) -> bytes:
    body = json.dumps({"model": "gpt-4.1", "input": "Hello"}).encode()
    lines = [f"host: {host}", f"api-key: {key if random.random() < 0.7 else 'wrong'}"]
    if random.random() < 0.3:
        lines.append("transfer-encoding: chunked")
        half = len(body) // 2
        body = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            half,
            body[:half],
            len(body) - half,
            body[half:],
        )
    else:
        lines.append(f"content-length: {len(body)}")
    method = random.choice(["POST", "POST", "POST", "GET", "DELETE", "OPTIONS"])
    random.shuffle(lines)
    head = "\r\n".join([f"{method} {random.choice(_PATHS)} HTTP/1.1", *lines]).encode()
    raw = head + b"\r\n\r\n" + body
    return damaged(raw, random, _PIECES) if random.random() < 0.8 else raw


async def check(port: int, raw: bytes, random: Random) -> str:
    """Send it in pieces and then no more; what came of it."""
    pieces = cut(raw, random) if random.random() < 0.3 else [raw]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        async with asyncio.timeout(SECONDS) as limit:
            for piece in pieces[:50]:
                writer.write(piece)
                await writer.drain()
            while not answer:
                # Half a request is waited for: then we say that there is no more of it.
                try:
                    answer = await asyncio.wait_for(reader.read(65536), 0.1)
                except TimeoutError:
                    break
                if not answer:
                    return "closed"
            writer.write_eof()
            answer += await reader.read()
    except OSError:
        assert not limit.expired(), "neither an answer nor an end"
        return "reset"
    finally:
        writer.close()
    statuses = [int(status) for status in _STATUS.findall(answer)]
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:100]
    assert 500 not in statuses, answer[:300]
    return str(statuses[0]) if statuses else "closed"
