"""Looks on while the MCP client talks: statuses, failures, addresses, certificates, times.

The client tells less than happened (it turns a refusal into an error of its own), so what is
reported is what was seen on the wire.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2

from gateway.probing.report import Tls

#: Steps of a new connection, as the pool calls them, and as they are reported.
_STEPS = {"connection.connect_tcp": "connect", "connection.start_tls": "tls"}


@dataclass(frozen=True, slots=True)
class Event:
    """One request and what became of it: a status, or what kept it from having one."""

    method: str
    status: int | None = None
    failure: Exception | None = None


@dataclass
class Witness:
    """What was seen in one visit; facts of the connection are those of the first one."""

    address: str | None = None
    tls: Tls | None = None
    challenge: str | None = None
    events: list[Event] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _begun: dict[str, float] = field(default_factory=dict)

    def around(self, guarded: httpx2.AsyncBaseTransport) -> httpx2.AsyncBaseTransport:
        """The same transport, looked at."""
        return _Watched(guarded, self)

    def last(self, *methods: str) -> Event | None:
        """What became of the last request by one of these methods."""
        found = (event for event in reversed(self.events) if event.method in methods)
        return next(found, None)

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """Told by the pool of every step."""
        step, _, state = name.rpartition(".")
        short = _STEPS.get(step)
        if short is None or short in self.seconds:
            return
        now = asyncio.get_running_loop().time()
        if state == "started":
            self._begun[short] = now
        elif state == "complete":
            self.seconds[short] = now - self._begun.pop(short, now)
            self._note(info["return_value"])

    def _note(self, stream: Any) -> None:
        if self.address is None and (address := stream.get_extra_info("server_addr")):
            self.address = str(address[0])
        secured = stream.get_extra_info("ssl_object")
        if self.tls is None and secured is not None:
            self.tls = _tls(secured)


class _Watched(httpx2.AsyncBaseTransport):
    def __init__(self, inner: httpx2.AsyncBaseTransport, witness: Witness) -> None:
        self._inner = inner
        self._witness = witness

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions = {**request.extensions, "trace": self._witness.trace}
        try:
            answer = await self._inner.handle_async_request(request)
        except httpx2.HTTPError as error:
            self._witness.events.append(Event(request.method, failure=error))
            raise
        self._witness.events.append(Event(request.method, answer.status_code))
        if answer.status_code in (401, 403):
            self._witness.challenge = answer.headers.get("www-authenticate")
        stream = answer.stream
        assert isinstance(stream, httpx2.AsyncByteStream)  # noqa: S101 - an async transport's
        answer.stream = _Read(stream, request.method, self._witness)
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Read(httpx2.AsyncByteStream):
    """A body whose failure is noted as well."""

    def __init__(self, inner: httpx2.AsyncByteStream, method: str, witness: Witness) -> None:
        self._inner = inner
        self._method = method
        self._witness = witness

    async def __aiter__(self) -> Any:
        try:
            async for chunk in self._inner:
                yield chunk
        except httpx2.HTTPError as error:
            self._witness.events.append(Event(self._method, failure=error))
            raise

    async def aclose(self) -> None:
        await self._inner.aclose()


def _tls(secured: ssl.SSLObject) -> Tls:
    cipher = secured.cipher()
    certificate: Mapping[str, Any] = secured.getpeercert() or {}
    ends = certificate.get("notAfter")
    return Tls(
        version=secured.version() or "unknown",
        cipher=cipher[0] if cipher else "unknown",
        subject=_name(certificate.get("subject", ())),
        issuer=_name(certificate.get("issuer", ())),
        expires=datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), UTC) if ends else None,
    )


def _name(parts: Any) -> str:
    """A distinguished name in one line, most telling part first."""
    pairs = [pair for group in parts for pair in group]
    common = [value for key, value in pairs if key in ("commonName", "organizationName")]
    return ", ".join(reversed(common)) or ", ".join(value for _, value in pairs)
