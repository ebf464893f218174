"""One connection of a client: how much it may send, for how long, and how often it is answered.

The parser below is strict about framing; here its refusals become one JSON answer and the end of
the connection. One request at a time: what is sent after one that is still being answered is
thrown away, so that no two parties can count requests differently. Knows nothing of apps.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import GatepassError
from gateway.exchange.messages import Bypass
from gateway.proxy.http import CUT, FAULT, TARGET, error_body
from gateway.telemetry import refusals_total

#: Longest request line and headers together, before the headers are looked at one by one.
_HEAD_LIMIT = 32 * 1024
#: How long a whole head may take, and a body of nothing; every 16 KiB give a second more.
HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
_BYTES_A_SECOND = 16 * 1024
#: How long is waited for the other side to see our last answer.
_LINGER = 2.0
#: What chunking may cost: chunks of a byte are six bytes each, and nobody needs smaller ones.
_OVERHEAD, _OVERHEAD_A_BYTE = 128 * 1024, 8

_MALFORMED = ("The request is not well-formed HTTP/1.1.", "malformed_request", 400)
_LARGE_HEAD = ("The request line and headers are too large.", "headers_too_large", 431)
_SLOW = ("The request did not arrive in time.", "request_too_slow", 408)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits, deadlines and exactly one answer to each request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._gently = _Gently(self)
        self._reading = "head"  # head | body | nothing: between two requests
        self._deaf = False
        self._taken = 0  # bytes of the request being read
        self._body = 0
        self._timer: asyncio.TimerHandle | None = None
        self._since = self.loop.time()
        self._wait(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it does not take ends the connection."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._taken += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # What follows is not HTTP/1.1, or a body that the parser leaves alone.
            self._turn_deaf()
        except httptools.HttpParserError:
            large = self._reading == "head" and self._taken > _HEAD_LIMIT
            self._end_with(*(_LARGE_HEAD if large else _MALFORMED))
        else:
            self._watch()

    # --- what the parser tells --------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answering:
            raise ValueError("a request before the last one was answered")
        super().on_message_begin()
        self._reading, self._since = "head", self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        # After the body it would be a trailer: nobody looked at it when the request was let in.
        if self._reading == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.scope["state"] |= {TARGET: self.url, CUT: self._cut}
        super().on_headers_complete()  # fails on what is no URL: then there is nothing to answer
        self.cycle.transport = self._gently  # type: ignore[assignment]  # all that it uses
        self._reading, self._since, self._body = "body", self.loop.time(), 0

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading, self._taken = "nothing", 0
        super().on_message_complete()

    # --- limits -----------------------------------------------------------------------------

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Look at what has come of a request that is not whole yet."""
        if self._reading == "nothing":
            if not self._answering and self.timeout_keep_alive_task is None:
                # Its answer came before its end: idle from now on.
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif self._reading == "head" and self._taken > _HEAD_LIMIT:
            self._end_with(*_LARGE_HEAD)
        elif self._taken - self._body > _OVERHEAD + _OVERHEAD_A_BYTE * self._body:
            self._end_with(*_MALFORMED)
        elif self._timer is None:
            self._wait(HEAD_SECONDS if self._reading == "head" else BODY_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """The deadline, or a chance to set it anew: most timers outlive their request."""
        self._timer = None
        if self._deaf or self._reading == "nothing":
            return
        if self.flow.read_paused:  # it is we who do not read
            self._since = self.loop.time()
        allowed = HEAD_SECONDS
        if self._reading == "body":
            # Nobody waits for the rest of what is answered already.
            pace = 0 if self.cycle.response_complete else self._body / _BYTES_A_SECOND
            allowed = BODY_SECONDS + pace
        left = self._since + allowed - self.loop.time()
        if left > 0:
            self._wait(left)
        elif self._taken:
            self._end_with(*_SLOW)
        else:
            self.transport.close()  # it was opened and never used

    # --- the end ----------------------------------------------------------------------------

    def _turn_deaf(self) -> None:
        """Read no more; the answer that is being made is the last."""
        self._deaf = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _end_with(self, message: str, code: str, status: int) -> None:
        """Answer, unless an answer has begun, and close."""
        refusals_total.labels(code=code).inc()
        fault = Bypass(message, code=code, status=status)
        body = self._reading == "body"
        self._turn_deaf()
        if self._answering and not body:
            return  # what is wrong is not the request that is being answered
        if body:
            begun, cycle = self.cycle.response_started, self.cycle
            # Whoever reads the body is told why there is no more of it.
            cycle.scope["state"][FAULT] = fault
            cycle.disconnected = True
            cycle.message_event.set()
            if begun:
                self.close()
                return
        self.transport.write(_rendered(fault))
        self.close()

    def _cut(self) -> None:
        """Break off the answer that is being made."""
        self.cycle.disconnected = True
        self.close()

    def close(self) -> None:
        """Close, but not in the face of somebody who is still sending: that would be a reset, and
        the answer lost with it.
        """
        if self._reading == "nothing" or self.transport.is_closing():
            self.transport.close()
            return
        self._turn_deaf()
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER, self.transport.close)


class _Gently:
    """The transport as a request sees it: it writes, and closes as the connection would."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.close


def _rendered(fault: GatepassError) -> bytes:
    body = orjson.dumps(error_body(fault))
    return b"\r\n".join(
        [
            b"HTTP/1.1 %d %b" % (fault.status, HTTPStatus(fault.status).phrase.encode()),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
            b"",
            body,
        ]
    )
