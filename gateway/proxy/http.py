"""The little HTTP that the proxy path needs, straight on ASGI: bodies, headers, JSON answers."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from gateway.errors import GatepassError, Refused
from gateway.exchange.messages import Bypass, Json, Rejected

_JSON = re.compile(
    r"\s*application/json\s*(;(?!\s*charset)[^;]*|;\s*charset\s*=\s*\"?utf-8\"?\s*)*", re.IGNORECASE
)
#: In a scope's state: what the connection found wrong, the target of the request as it came, and
#: what breaks the connection off.
FAULT = "gatepass.fault"
TARGET = "gatepass.target"
CUT = "gatepass.cut"
#: What may stand in a header that goes out again: more is written by some and dropped by others.
_PLAIN = re.compile(rb"[ -~]*")
_LONGEST_LENGTH = 18  # digits of a Content-Length: a number that every parser can hold

#: A request's id is unique and no secret: asking the system for each would cost more than the id.
_NUMBERS = random.Random(secrets.randbits(256))  # noqa: S311


class ClientGone(Exception):
    """The app closed its connection before its request was complete."""


class Call:
    """One request of an app: its line, its headers, its body once read."""

    __slots__ = (
        "_headers",
        "_lines",
        "_receive",
        "_send",
        "_state",
        "id",
        "method",
        "path",
        "query",
        "started",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._state: Mapping[str, Any] = scope.get("state", {})
        self.method: str = scope["method"]
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        # Routes are matched on the path as it was sent: an encoded character is not on any.
        self.path = raw.split(b"?")[0].decode("latin-1")
        self.query: list[tuple[str, str]] = (
            parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            if scope["query_string"]
            else []
        )
        self._lines: list[tuple[bytes, bytes]] = scope["headers"]
        self._headers = dict(self._lines)
        self.id = f"req_{_NUMBERS.getrandbits(96):024x}"
        self.started = False

    def header(self, name: str) -> str | None:
        """The value of a header; raises when it was sent more than once, or is not plain ASCII."""
        wanted = name.encode()
        value: bytes | None = self._headers.get(wanted)
        if value is None:
            return None
        # The dictionary has the last of several. Most requests repeat no header at all.
        repeats = len(self._headers) != len(self._lines)
        if repeats and sum(key == wanted for key, _ in self._lines) > 1:
            raise Refused(f"The header '{name}' was sent more than once.", code="duplicate_header")
        if not _PLAIN.fullmatch(value):
            raise Bypass(
                f"The header '{name}' holds a character that is not printable ASCII.",
                code="header_value_refused",
                status=400,
            )
        return value.decode("ascii")

    async def body(self, limit: int) -> bytes:
        """The whole body, which must be JSON; raises as `chunks` does."""
        if not _JSON.fullmatch(self.header("content-type") or "application/json"):
            raise Refused(
                "The body must be sent as application/json, in UTF-8.",
                code="content_type_unsupported",
                status=415,
            )
        self._admit(limit)
        parts: list[bytes] = []
        size, more = 0, True
        while more:  # not through `chunks`: most bodies are one, and a generator costs more
            part, more = await self._part()
            size = _within(size + len(part), limit)
            parts.append(part)
        return b"".join(parts)

    async def chunks(self, limit: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes, whatever it is; raises `Refused` (413, 415), what ended it early,
        or `ClientGone`.
        """
        self._admit(limit)
        size, more = 0, True
        while more:
            part, more = await self._part()
            size = _within(size + len(part), limit)
            yield part

    def _admit(self, limit: int) -> None:
        """What can be said of a body before it is read."""
        declared = self.header("content-length") or "0"
        if len(declared) > _LONGEST_LENGTH:
            raise _too_large(limit)
        _within(int(declared), limit)
        encoding = self.header("content-encoding")
        if encoding not in (None, "", "identity"):
            raise Refused(
                "Compressed bodies are not accepted; send the body as it is.",
                code="content_encoding_unsupported",
                status=415,
            )

    async def _part(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise self._state.get(FAULT) or ClientGone
        return message.get("body", b""), message.get("more_body", False)

    async def disconnected(self) -> None:
        """Return when the app closes its connection. Only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # --- answering --------------------------------------------------------------------------

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """The status line and the headers."""
        self.started = True
        lines = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        lines.append((b"x-request-id", self.id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": lines})

    async def write(self, part: bytes) -> None:
        """Some of the body, sent at once."""
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self, part: bytes = b"") -> None:
        """The last of the body."""
        await self._send({"type": "http.response.body", "body": part, "more_body": False})

    def cut(self) -> None:
        """Break the answer off, so that nobody takes what was sent of it for the whole."""
        if (cut := self._state.get(CUT)) is not None:
            cut()

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """A whole JSON answer."""
        await self.start(
            status,
            {"content-type": "application/json", "content-length": str(len(body)), **headers},
        )
        await self.end(body)

    async def fail_as(self, answer: Rejected) -> None:
        """Azure's own error, as it came, unless an answer has begun."""
        if not self.started:
            await self.answer(answer.status, orjson.dumps(answer.body), answer.headers)

    async def fail(self, error: GatepassError, *, last: bool = False) -> None:
        """A refusal or failure in the OpenAI error shape, unless an answer has begun.

        `last`: nothing more is read from this connection.
        """
        if self.started:
            return
        headers = {"x-should-retry": "false"} if error.status in {403, 409, 502, 503} else {}
        if last or error.status in {408, 413}:
            headers["connection"] = "close"
        await self.answer(error.status, orjson.dumps(error_body(error)), headers)


def error_body(error: GatepassError) -> Json:
    """`{"error": {message, type, param, code}}`."""
    types: dict[int, Any] = {401: "authentication_error", 403: "permission_error", 404: "not_found"}
    kind = types.get(error.status) or (
        "invalid_request_error" if error.status < 500 else "server_error"
    )
    return {
        "error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    }


def _within(size: int, limit: int) -> int:
    if size > limit:
        raise _too_large(limit)
    return size


def _too_large(limit: int) -> Refused:
    return Refused(f"The body is longer than {limit} bytes.", code="body_too_large", status=413)
