"""The sender: one pooled client to Azure. Step 4 of the path, the only place that opens secrets.

Retries nothing that could run twice: only what Azure provably did not start (no connection, a
parent not visible yet, a rejection before the start) is tried again. Redirects are never
followed. A round that releases a call uses a fresh connection, because a kept-alive one that
Azure has closed is a retry in disguise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp
import orjson
from yarl import URL

from gateway.errors import Conflict, GatepassError, Unavailable
from gateway.exchange.document import dump
from gateway.exchange.messages import (
    TERMINAL,
    Binding,
    Broken,
    Event,
    Forward,
    FrameSeen,
    Json,
    Rejected,
)
from gateway.exchange.sse import Frame, FrameReader
from gateway.proxy.multipart import Form
from gateway.registry.directory import Directory, ServerView
from gateway.vault import Vault

#: Headers of Azure's answers that mean something to an app.
PASSED_ON = frozenset(
    {
        "apim-request-id", "openai-processing-ms", "openai-version", "retry-after",
        "retry-after-ms", "x-ms-region", "x-ratelimit-limit-requests",
        "x-ratelimit-limit-tokens", "x-ratelimit-remaining-requests",
        "x-ratelimit-remaining-tokens", "x-ratelimit-reset-requests",
        "x-ratelimit-reset-tokens",
    }
)  # fmt: skip
_REDACTED = b"[redacted]"
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_LONGEST_PAUSE = 60.0
_SHORTEST_SECRET = 6
_DOUBTFUL = frozenset("\"&'+<>`")


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where Azure is and how to sign in there. The key does not print."""

    url: str
    key: str
    timeout: float

    def __repr__(self) -> str:
        return f"Upstream({self.url!r})"


@dataclass(frozen=True, slots=True)
class Wire:
    """What of the app's request line and headers goes along with every round."""

    headers: Mapping[str, str]
    query: Mapping[str, str]

    def document(self) -> Json:
        """As it is saved with a waiting exchange."""
        return {"headers": dict(self.headers), "query": dict(self.query)}


#: JSON, or a file with what belongs to it.
Body: TypeAlias = bytes | Form


class Azure:
    """One per process. `open` before use, `close` at the end."""

    def __init__(self, upstream: Upstream | None, directory: Directory, vault: Vault) -> None:
        self._upstream = upstream
        self._directory = directory
        self._vault = vault
        # Parsing an address costs as much as parsing a request: the usual one is kept.
        self._create = URL(upstream.url + "responses") if upstream else None
        #: Takes our own key out of answers: some services show it in errors.
        self.scrubber = Scrubber([upstream.key] if upstream else [])
        self._pooled: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the two connection pools."""
        silence = self._upstream.timeout if self._upstream else 600.0
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence)
        for name, close in (("_pooled", False), ("_fresh", True)):
            connector = aiohttp.TCPConnector(limit=0, force_close=close)
            session = aiohttp.ClientSession(
                connector=connector,
                timeout=timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                # A compressed stream would be held back until a block is full.
                headers={"accept-encoding": "identity", "user-agent": "gatepass"},
            )
            setattr(self, name, session)

    async def close(self) -> None:
        """Close what is open."""
        for session in (self._pooled, self._fresh):
            if session is not None:
                await session.close()

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, wire: Wire, body: Body | None = None, *, fresh: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request below the resource's root, exactly once. `path` starts without a slash."""
        session = self._fresh if fresh else self._pooled
        if session is None or self._upstream is None:
            raise Unavailable(
                "No Azure resource is configured: set GATEPASS_UPSTREAM_URL and its key.",
                code="upstream_not_configured",
            )
        headers = {**wire.headers, "api-key": self._upstream.key}
        data: bytes | AsyncIterator[bytes] | None = None
        if isinstance(body, Form):
            headers |= {"content-type": body.content_type, "content-length": str(body.length)}
            data = body.chunks()
        elif body is not None:
            headers["content-type"] = "application/json"
            data = body
        async with session.request(
            method,
            self._address(path, wire.query),
            headers=headers,
            data=data,
            allow_redirects=False,
        ) as response:
            yield response

    def _address(self, path: str, query: Mapping[str, str]) -> URL:
        if path == "responses" and not query and self._create is not None:
            return self._create
        root = self._upstream.url if self._upstream else ""
        return URL(root + path).with_query(dict(query))

    # --- a round ----------------------------------------------------------------------------

    async def round(self, turn: Forward, wire: Wire) -> AsyncGenerator[Event, None]:
        """Send one round; its frames, or `Rejected`, or `Broken` as the last event."""
        try:
            document, scrubber = await self._with_credentials(turn.body, turn.bindings)
            raw = dump(document)
        except GatepassError as error:
            yield Broken(error.message, sent=False)
            return
        attempt = 0
        while True:
            async with contextlib.aclosing(
                self._attempt(raw, wire, scrubber, fresh=bool(turn.releases))
            ) as events:
                first = await anext(events, None)
                answers = turn.round > 0 or bool(turn.releases or turn.denials)
                pause = _pause(first, attempt, resumes=answers)
                if pause is None:
                    if first is not None:
                        yield first
                    async for event in events:
                        yield event
                    return
            await asyncio.sleep(pause)
            attempt += 1

    async def _attempt(
        self, raw: bytes, wire: Wire, scrubber: Scrubber, *, fresh: bool
    ) -> AsyncGenerator[Event, None]:
        answered = False
        try:
            async with self.request("POST", "responses", wire, raw, fresh=fresh) as response:
                answered = True
                async for event in self._events(response, wire, scrubber):
                    yield event
        except aiohttp.ClientConnectorError:
            # Later on it is a poll that finds nobody: the round itself was sent long ago.
            yield Broken("Azure cannot be reached.", sent=answered)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            yield Broken(
                f"The connection to Azure broke ({type(error).__name__}); what it had begun "
                "may have been carried out.",
                sent=True,
            )

    async def _events(
        self, response: aiohttp.ClientResponse, wire: Wire, scrubber: Scrubber
    ) -> AsyncIterator[Event]:
        if response.status >= 300:
            yield await rejection(response, scrubber)
        elif response.content_type == "text/event-stream":
            async for event in _stream(response, scrubber):
                yield event
        else:
            async for event in self._whole(scrubber.clean(await response.read()), wire, scrubber):
                yield event

    async def _whole(self, raw: bytes, wire: Wire, scrubber: Scrubber) -> AsyncIterator[Event]:
        """A plain answer; one that is still running is polled to its end."""
        response = orjson.loads(raw)
        status = response.get("status")
        if status in {"queued", "in_progress"}:
            yield FrameSeen("response.created", {"response": response})
        pause = 0.5
        while status in {"queued", "in_progress"}:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 5.0)
            async with self.request("GET", f"responses/{response['id']}", wire) as answer:
                if answer.status >= 500 or answer.status in {404, 429}:
                    continue  # not readable yet, or busy: the response itself goes on
                if answer.status >= 300:
                    # No answer to the round: whatever it is, the round was begun.
                    message = f"Azure answered {answer.status} when asked how the response goes on."
                    yield Broken(message, sent=True)
                    return
                response = orjson.loads(scrubber.clean(await answer.read()))
                status = response.get("status")
        kind = f"response.{status}"
        yield FrameSeen(kind if kind in TERMINAL else "response.completed", {"response": response})

    # --- credentials ------------------------------------------------------------------------

    async def _with_credentials(
        self, body: Json, bindings: Sequence[Binding]
    ) -> tuple[Json, Scrubber]:
        """The body with every bound server's credential in it, and what must never come back."""
        if not bindings:
            return body, self.scrubber
        tools = list(body["tools"])
        values: list[str] = []
        for binding in bindings:
            server = self._directory.view.servers.get(binding.server_id)
            entry = tools[binding.tool_index]
            if server is None or not server.url == binding.url == entry["server_url"]:
                raise Conflict(
                    f"The server {binding.server_label!r} has been changed or removed.",
                    code="server_changed",
                )
            if server.credential is not None:
                value = (await self._vault.open(server.credential.ref)).reveal()
                tools[binding.tool_index] = {**entry, **_injected(server, value)}
                values.append(value)
        return {**body, "tools": tools}, self.scrubber.with_more(values)


def _injected(server: ServerView, value: str) -> Json:
    credential = server.credential
    if credential is None:
        return {}
    if server.inject == "authorization":
        return {"authorization": value}
    scheme = f"{credential.scheme} " if credential.scheme else ""
    return {"headers": {credential.header: scheme + value}}


class Scrubber:
    """Takes injected secrets out of everything Azure sends back: the last line of defence."""

    def __init__(self, values: Sequence[str]) -> None:
        forms: set[str] = set()
        for value in values:
            if len(value) >= _SHORTEST_SECRET:
                once = _spellings(value)
                forms |= {value, *once, *(twice for text in once for twice in _spellings(text))}
        self._values = tuple(values)
        self._forms = tuple(form.encode() for form in sorted(forms, key=len, reverse=True))

    def with_more(self, values: Sequence[str]) -> Scrubber:
        """One that takes these out, too."""
        return Scrubber([*self._values, *values])

    def clean(self, raw: bytes) -> bytes:
        """`raw` without any of the secrets."""
        for form in self._forms:
            if form in raw:
                raw = raw.replace(form, _REDACTED)
        return raw


def _spellings(text: str) -> set[str]:
    """How serialisers write a text inside of a JSON string; a plain text is written in one way."""
    forms = {orjson.dumps(text).decode()[1:-1], json.dumps(text)[1:-1], _cautious(text)}
    return forms | {form.replace("/", "\\/") for form in forms}


def _cautious(text: str) -> str:
    """As .NET writes it by default: what could mean something in HTML by its number."""
    return "".join(
        f"\\u{ord(letter):04X}" if letter in _DOUBTFUL else json.dumps(letter)[1:-1]
        for letter in text
    )


def _pause(event: Event | None, attempt: int, *, resumes: bool) -> float | None:
    """How long to wait before trying again; None when it must not, or need not, be tried.

    A busy Azure is waited for only when resuming: before that, the app's own retry is as good.
    """
    if attempt >= len(_PAUSES):
        return None
    match event:
        case Broken(sent=False):
            return _PAUSES[attempt] if attempt < 2 else None
        case Rejected(status=400, body=body) if _code(body) == "previous_response_not_found":
            return _PAUSES[attempt]
        case Rejected(status=429 | 503, headers=headers) if resumes and attempt < 3:
            return _retry_after(headers)
        case _:
            return None


def _code(body: Json) -> Any:
    error = body.get("error")
    return error.get("code") if isinstance(error, dict) else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit
            return seconds if seconds <= _LONGEST_PAUSE else None
    return None


async def rejection(response: aiohttp.ClientResponse, scrubber: Scrubber) -> Rejected:
    """An HTTP error of Azure, its body kept as it came where it is JSON."""
    raw = scrubber.clean(await response.read())
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        message = f"Azure answered {response.status} without a readable body."
        body = {
            "error": {
                "message": message, "type": "server_error", "param": None, "code": "upstream_failed"
            }
        }  # fmt: skip
    # A redirect would lead the app past the gateway: it is shown as a failure.
    status = response.status if response.status >= 400 else 502
    return Rejected(status, body, passed_on(response))


def passed_on(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers of an answer that the app may see."""
    found = {name.lower(): value for name, value in response.headers.items()}
    return {name: value for name, value in found.items() if name in PASSED_ON}


async def _stream(response: aiohttp.ClientResponse, scrubber: Scrubber) -> AsyncIterator[Event]:
    reader = FrameReader()
    async for chunk in response.content.iter_any():
        for frame in reader.feed(chunk):
            event = parse_frame(frame, scrubber)
            if event is None:
                continue
            yield event
            if event.type in TERMINAL:
                return
    yield Broken("Azure's stream ended without an end.", sent=True)


def parse_frame(frame: Frame, scrubber: Scrubber) -> FrameSeen | None:
    """A frame as an event; None for the end marker that some upstreams send."""
    if frame.data == b"[DONE]":
        return None
    data = orjson.loads(scrubber.clean(frame.data))
    if not isinstance(data, dict):
        raise ValueError("a frame that is not an object")
    return FrameSeen(str(data.get("type") or frame.event or "unknown"), data)
