"""What no request may look like, whoever sends it: looked at before anything else reads it.

Pure ASGI. Two readers of one request (a proxy before us, Azure behind us) must never understand it
differently: what could be read in two ways is refused, and the connection ended. A refusal of a
known app is recorded under its name. Decides nothing about what is asked for.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from gateway.audit.ledger import Ledger
from gateway.errors import GatepassError
from gateway.exchange.messages import Bypass
from gateway.proxy import refusing
from gateway.proxy.credentials import Credentials
from gateway.proxy.http import FAULT, TARGET, Call
from gateway.registry.directory import AppView
from gateway.telemetry import Clock, refusals_total

_Lines = Sequence[tuple[bytes, bytes]]

_MOST_HEADERS = 64
_HEADERS_LIMIT = 16 * 1024
_TARGET_LIMIT = 8 * 1024
#: Tokens of RFC 9110 but for the underscore, which gateways before us turn into a dash.
_IN_NAMES = (string.ascii_letters + string.digits + "!#$%&'*+-.^`|~").encode()
_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_TARGET = re.compile(rb"(?:https?://(?P<host>[^/?#@]+))?/[!-\"$-~]*|\*", re.IGNORECASE)
_WATCHED = frozenset({b"transfer-encoding", b"upgrade", b"connection", b"expect"})
#: All that `Connection` may name: nothing that is about the connection is ever sent on.
_ABOUT_CONNECTION = frozenset({"close", "keep-alive", "te", "upgrade", "http2-settings", ""})


@dataclass(frozen=True)
class Guard:
    """Looks at every request. `hosts` are the names that apps may call the gateway by."""

    hosts: frozenset[str]
    credentials: Credentials
    ledger: Ledger
    clock: Clock

    def fault(self, scope: Scope, *, of_app: bool) -> GatepassError | None:
        """What is wrong with a request's line and headers; None when nothing is."""
        lines: _Lines = scope["headers"]
        fault: GatepassError | None = (
            scope.get("state", {}).get(FAULT)
            or _of_size(lines)
            or _of_line(scope, lines)
            or _of_target(scope.get("state", {}).get(TARGET), lines)
            or _of_connection(_joined(lines))
        )
        if fault is None and of_app:
            return self._of_host(lines)
        return fault

    async def refuse(
        self, fault: GatepassError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer with `fault` and end the connection; record it if we know whose it is."""
        call = Call(scope, receive, send)
        refusals_total.labels(code=fault.code).inc()
        if (app := await self._sender(call)) is not None:
            try:
                await refusing.record(self.ledger, call, app, fault, now=self.clock())
            except GatepassError as unrecorded:
                fault = unrecorded
        await call.fail(fault, last=True)

    def _of_host(self, lines: _Lines) -> GatepassError | None:
        hosts = [value for name, value in lines if name == b"host"]
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            return _refusal("bad_host", "The Host header is missing or malformed.")
        if match["name"].decode().strip("[]").lower() not in self.hosts:
            sentence = "This address is not served here; see GATEPASS_ALLOWED_HOSTS."
            return _refusal("unknown_host", sentence, 421)
        return None

    async def _sender(self, call: Call) -> AppView | None:
        try:
            return await self.credentials.app_of(call)
        except GatepassError:
            return None


def _of_size(lines: _Lines) -> GatepassError | None:
    size = len(b"".join(itertools.chain.from_iterable(lines)))
    if len(lines) > _MOST_HEADERS or size > _HEADERS_LIMIT:
        sentence = f"More than {_MOST_HEADERS} headers or {_HEADERS_LIMIT} bytes of them."
        return _refusal("headers_too_large", sentence, 431)
    return None


def _of_line(scope: Scope, lines: _Lines) -> GatepassError | None:
    """The version of HTTP, and the names of the headers."""
    if scope["http_version"] != "1.1":
        sentence = "Only HTTP/1.1 is spoken here; set a proxy before the gateway to it."
        return _refusal("http_version_refused", sentence, 505)
    if b"".join([name for name, _ in lines]).translate(None, _IN_NAMES):
        sentence = "A header's name holds an underscore or another character it must not."
        return _refusal("header_name_refused", sentence)
    return None


def _of_target(target: bytes | None, lines: _Lines) -> GatepassError | None:
    if target is None:  # another server than ours: it keeps the target to itself
        return None
    if len(target) > _TARGET_LIMIT:
        sentence = f"The request's target is longer than {_TARGET_LIMIT} bytes."
        return _refusal("target_too_long", sentence, 414)
    match = _TARGET.fullmatch(target)
    if match is None:
        return _refusal("bad_target", "The request's target is malformed.")
    host = match["host"]
    if host is not None and dict(lines).get(b"host", b"").lower() != host.lower():
        return _refusal("bad_host", "The request's target and its Host header differ.")
    return None


def _joined(lines: _Lines) -> dict[bytes, bytes]:
    """The values of what is about the connection; of a header sent twice, both."""
    found: dict[bytes, bytes] = {}
    for name, value in lines:
        if name in _WATCHED:
            found[name] = b"%b, %b" % (found[name], value) if name in found else value
    return found


def _of_connection(headers: Mapping[bytes, bytes]) -> GatepassError | None:
    """The headers by which a message is cut out of a connection, or the connection turned over."""
    coding = headers.get(b"transfer-encoding")
    if coding is not None and coding.strip().lower() != b"chunked":
        sentence = "Of the transfer encodings only 'chunked' is accepted."
        return _refusal("transfer_encoding_refused", sentence)
    if b"upgrade" in headers:
        if b"websocket" in headers[b"upgrade"].lower():
            sentence = (
                "WebSocket connections are refused: tools could be called on them unseen. "
                "Use POST /responses with 'stream': true."
            )
            return _refusal("websocket_refused", sentence, 403)
        sentence = "Upgrades are refused; let your client speak HTTP/1.1 only."
        return _refusal("upgrade_refused", sentence, 403)
    named = headers.get(b"connection", b"").decode("latin-1").lower().split(",")
    if not _ABOUT_CONNECTION.issuperset(map(str.strip, named)):
        return _refusal("connection_refused", "'Connection' names a header that it must not.")
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        return _refusal("expectation_refused", "'Expect' may only be '100-continue'.", 417)
    return None


def _refusal(code: str, sentence: str, status: int = 400) -> GatepassError:
    return Bypass(sentence, code=code, status=status)
