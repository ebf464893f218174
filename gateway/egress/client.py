"""The guarded client: what is connected to is the very address that was checked.

A URL is read by one parser (`addresses`), and what that read is fetched. A name is looked up once
for each connection; when any of its addresses is out of bounds, none is used. Name and certificate
stay those of the URL. Nothing is redirected, no proxy or netrc of the environment counts, and an
answer has a deadline and a largest size, compressed or not (it is not).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpcore2
import httpx2

from gateway.egress import addresses
from gateway.errors import Refused

#: The addresses of a name: (host, port) → numbers as text. Raises `OSError` when it has none.
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
_MOST_CONNECTIONS = 10
_KEPT_SECONDS = 30.0


class Blocked(httpx2.RequestError):
    """Not sent: the address, or what its name stands for, is out of bounds."""


class Redirected(httpx2.RequestError):
    """The server pointed elsewhere; `location` is what it said. It was not followed."""

    def __init__(self, status: int, location: str, request: httpx2.Request) -> None:
        super().__init__("The server redirects, which is not followed.", request=request)
        self.status = status
        self.location = location


class TooLarge(httpx2.RequestError):
    """The answer is larger than was asked for, or compressed although nobody asked for that."""


async def by_system(host: str, port: int) -> list[str]:
    """The addresses of a name as the host's own resolver knows them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a client may go. `seconds`: until the whole answer is there; `most`: its bytes.

    `trust` are the certificates that are accepted; None: those of the host.
    """

    allow_private_network: bool = False
    seconds: float = 10.0
    most: int = 1024 * 1024
    resolve: Resolve = by_system
    trust: ssl.SSLContext | None = None


#: Puts something between the client and the guard, to look on.
Wrap: TypeAlias = Callable[[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport]


def open_client(
    bounds: Bounds = Bounds(),
    *,
    headers: Mapping[str, str] | None = None,
    wrap: Wrap = lambda guarded: guarded,
) -> httpx2.AsyncClient:
    """A client within `bounds`, to be used as a context. What it raises is `httpx2.HTTPError`."""
    return httpx2.AsyncClient(
        transport=wrap(Guarded(bounds)),
        headers={"user-agent": "gatepass", **(headers or {})},
        timeout=bounds.seconds,
        follow_redirects=False,
        trust_env=False,
    )


class Guarded(httpx2.AsyncBaseTransport):
    """Sends requests within `bounds`; everything else of them is the client's."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._pool: httpcore2.AsyncConnectionPool | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer's head; its body is bounded while it is read."""
        target = _target(request, self._bounds)
        pool = await self._opened()
        deadline = asyncio.get_running_loop().time() + self._bounds.seconds
        # A few bytes could become as many as they like.
        request.headers["accept-encoding"] = "identity"
        outgoing = httpcore2.Request(
            request.method,
            httpcore2.URL(
                scheme=target.scheme.encode(),
                host=target.host.encode(),
                port=target.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _translated(request):
            async with asyncio.timeout_at(deadline):
                answer = await pool.handle_async_request(outgoing)
        body = _Body(answer, request, deadline, self._bounds.most)
        try:
            _check(answer, request)
        except httpx2.RequestError:
            await body.aclose()
            raise
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=body, extensions=answer.extensions
        )

    async def aclose(self) -> None:
        """Close every connection."""
        if self._pool is not None:
            await self._pool.aclose()

    async def _opened(self) -> httpcore2.AsyncConnectionPool:
        if self._pool is None:
            # Reading the certificates takes long enough to be felt by everybody else.
            trust = self._bounds.trust or await asyncio.to_thread(ssl.create_default_context)
            self._pool = self._pool or httpcore2.AsyncConnectionPool(
                ssl_context=trust,
                max_connections=_MOST_CONNECTIONS,
                keepalive_expiry=_KEPT_SECONDS,
                network_backend=_Pinned(self._bounds),
            )
        return self._pool


class _Pinned(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were checked, and to nothing by its name."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._plain = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A stream to the first of the host's addresses that answers."""
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in await self._addresses(host, port):
            try:
                return await self._plain.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Never: a file of the host is no address."""
        raise Blocked("Unix sockets are never connected to.")

    async def sleep(self, seconds: float) -> None:
        """Wait, as the pool asks for."""
        await asyncio.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = list(await self._bounds.resolve(host, port))
        except (OSError, UnicodeError):
            raise httpcore2.ConnectError(f"{host} cannot be found") from None
        allow = self._bounds.allow_private_network
        for text in found:
            number = ipaddress.ip_address(text)
            if addresses.problem_with_address(number, allow_private_network=allow):
                # Which address it is would tell strangers how the network looks from inside.
                hint = "" if allow else "; a private one needs allow_private_network: true"
                raise Blocked(f"{host} leads to an address that is out of bounds{hint}.")
        return found


class _Body(httpx2.AsyncByteStream):
    """The bytes of an answer, as long as there is time and room for them."""

    def __init__(
        self, answer: httpcore2.Response, request: httpx2.Request, deadline: float, most: int
    ) -> None:
        self._answer = answer
        self._request = request
        self._deadline = deadline
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks, left = aiter(self._answer.aiter_stream()), self._most
        while True:
            with _translated(self._request):
                async with asyncio.timeout_at(self._deadline):
                    chunk = await anext(chunks, None)
            if chunk is None:
                return
            left -= len(chunk)
            if left < 0:
                message = f"The answer is larger than {self._most} bytes."
                raise TooLarge(message, request=self._request)
            yield chunk

    async def aclose(self) -> None:
        """Give the connection back, or close it."""
        await self._answer.aclose()


def _target(request: httpx2.Request, bounds: Bounds) -> addresses.Address:
    """Where the request goes, as our own parser reads it; `Blocked` when it must not go there."""
    url = request.url
    try:
        target = addresses.check(str(url), allow_private_network=bounds.allow_private_network)
    except Refused as error:
        raise Blocked(error.message, request=request) from None
    default = {"http": 80, "https": 443}[target.scheme]
    read = (url.scheme, url.raw_host.decode("ascii").strip("[]"), url.port or default)
    if read != (target.scheme, target.host, target.port):
        raise Blocked("The address can be read in two ways.", request=request)
    return target


def _check(answer: httpcore2.Response, request: httpx2.Request) -> None:
    headers = httpx2.Headers(answer.headers)
    if 300 <= answer.status < 400 and "location" in headers:
        raise Redirected(answer.status, headers["location"], request)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise TooLarge("The answer is compressed, which was not asked for.", request=request)


@contextlib.contextmanager
def _translated(request: httpx2.Request) -> Iterator[None]:
    """The pool's errors as those of the client, which have the same names."""
    try:
        yield
    except TimeoutError as error:
        raise httpx2.ReadTimeout("The answer took too long.", request=request) from error
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError,
            httpcore2.UnsupportedProtocol) as error:  # fmt: skip
        kind = getattr(httpx2, type(error).__name__, httpx2.TransportError)
        raise kind(str(error), request=request) from error
