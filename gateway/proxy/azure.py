"""The sender: one pooled client to Azure. Step 4 of the path, the only place that opens secrets.

Retries nothing that could run twice: only what Azure provably did not start (no connection, a
parent not visible yet, a rejection before the start) is tried again. Redirects are never
followed. A round that answers approvals uses a connection of its own, because a kept one that
Azure has closed is a retry in disguise.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import aiohttp
from yarl import URL

from gateway.errors import Conflict, GatepassError, Unavailable, UpstreamFailed
from gateway.exchange.document import dump, read
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
from gateway.proxy.scrubbing import Seams
from gateway.registry.directory import Directory, ServerView
from gateway.scrubbing import Scrubber
from gateway.vault import Purpose, Vault

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
#: Between tries of what Azure did not begin: a streamed parent has taken half a minute to be seen.
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_LONGEST_PAUSE = 60.0
#: Seconds until credentials are opened anew to be looked for in answers.
_KNOWN_FOR = 60.0
_LOOKED_FOR = Purpose(sent=False)


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
    query: Mapping[str, str | list[str]]

    def document(self) -> Json:
        """As it is saved with a waiting exchange."""
        return {"headers": dict(self.headers), "query": dict(self.query)}


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks on while a round is sent: `heard` is told the headers of the answer that an app may
    see; `may` is asked, just before the bytes leave, whether they may; `stopped` whether what
    Azure did not begin may not be sent again now.
    """

    heard: Callable[[dict[str, str]], None] = lambda _: None
    may: Callable[[], bool] = lambda: True
    stopped: Callable[[], bool] = lambda: False


_NOBODY = Watch()
#: JSON, or a file with what belongs to it.
Body: TypeAlias = bytes | Form


class Declined(UpstreamFailed):
    """Azure's own refusal of a request that is simply passed on: the app is told it as it is."""

    def __init__(self, answer: Rejected) -> None:
        super().__init__("Azure refused the request.", code="declined", status=answer.status)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class _Known:
    """The scrubber of all credentials, as of a version of the configuration, and for how long."""

    version: int
    until: float
    scrubber: Scrubber = field(repr=False)


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
        self._known: _Known | None = None
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

    async def send(
        self, method: str, path: str, wire: Wire, body: Body | None = None, *, once: bool = True
    ) -> aiohttp.ClientResponse:
        """One request below the resource's root, its answer to be used as a context. `path` starts
        without a slash.

        `once`: it must not reach Azure twice, so it takes a connection of its own. Another one
        takes a kept connection, and is sent again where Azure had just closed that.
        """
        if self._fresh is None or self._pooled is None or self._upstream is None:
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
        url = self._address(path, wire.query)
        if not once:
            pooled = self._pooled.request
            try:
                return await pooled(method, url, headers=headers, data=data, allow_redirects=False)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                pass  # Azure had just closed it
        fresh = self._fresh.request
        return await fresh(method, url, headers=headers, data=data, allow_redirects=False)

    def _address(self, path: str, query: Mapping[str, str | list[str]]) -> URL:
        if path == "responses" and not query and self._create is not None:
            return self._create
        root = self._upstream.url if self._upstream else ""
        return URL(root + path).with_query(dict(query))

    async def ask(
        self, method: str, path: str, wire: Wire, body: Json | None = None
    ) -> tuple[Json, dict[str, str]]:
        """A JSON answer and those of its headers that an app may see.

        Raises `Declined` for an error of Azure's own, `UpstreamFailed` when there is no answer.
        """
        raw = None if body is None else dump(body)
        scrubber = await self._thorough()
        try:
            async with await self.send(method, path, wire, raw, once=method == "POST") as response:
                if response.status >= 300:
                    raise Declined(await rejection(response, scrubber))
                document = read(scrubber.clean(await response.read()))
                return document, passed_on(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamFailed(f"Azure did not answer ({type(error).__name__}).") from None
        except ValueError:
            raise UpstreamFailed("Azure's answer cannot be read.") from None

    # --- a round ----------------------------------------------------------------------------

    async def round(
        self, turn: Forward, wire: Wire, watch: Watch = _NOBODY
    ) -> AsyncGenerator[Event, None]:
        """Send one round; its frames, or `Rejected`, or `Broken` as the last event."""
        try:
            document, scrubber = await self._with_credentials(turn.body, turn.bindings)
            raw = dump(document)
        except GatepassError as error:
            yield Broken(error.message, sent=False, code=error.code, status=error.status)
            return
        answers = turn.round > 0 or bool(turn.releases or turn.denials)
        attempt, replay = 0, True
        while True:
            async with contextlib.aclosing(
                self._attempt(raw, wire, scrubber, watch, once=answers)
            ) as events:
                first = await anext(events, None)
                pause = _pause(first, attempt, resumes=answers)
                if pause is None and turn.replay and replay and _is_unseen(first):
                    pause, replay = 0.0, False
                    document, scrubber = await self._with_credentials(turn.replay, turn.bindings)
                    raw = dump(document)
                if pause is None:
                    if first is not None:
                        yield first
                    async for event in events:
                        yield event
                    return
            await asyncio.sleep(pause)
            if first is not None and watch.stopped():
                yield first
                return
            attempt += 1

    async def follow(
        self, response_id: str, turn: Forward, wire: Wire
    ) -> AsyncGenerator[Event, None]:
        """A round that was sent before and runs in the background: its frames from the first on,
        or what became of it where Azure does not tell them any more.
        """
        try:
            _, scrubber = await self._with_credentials(turn.body, turn.bindings)
        except GatepassError:
            scrubber = self.scrubber  # the server is gone: so is what could be shown of it
        path = f"responses/{response_id}"
        streaming = Wire(wire.headers, {**wire.query, "stream": "true"})
        for way in (streaming, wire) if turn.body.get("stream") else (wire,):
            try:
                async with await self.send("GET", path, way, once=False) as response:
                    if response.status >= 300 and way is streaming:
                        continue
                    async for event in self._events(response, wire, scrubber):
                        yield event
                    return
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                yield Broken(f"The connection to Azure broke ({type(error).__name__}).", sent=True)
                return

    async def _attempt(
        self, raw: bytes, wire: Wire, scrubber: Scrubber, watch: Watch, *, once: bool
    ) -> AsyncGenerator[Event, None]:
        answered = False
        if not watch.may():
            message = "The gateway was held up, and did not send this."
            yield Broken(message, sent=False, code="unavailable", status=503)
            return
        try:
            async with await self.send("POST", "responses", wire, raw, once=once) as response:
                answered = True
                watch.heard(passed_on(response))
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
        response = read(raw)
        status = response.get("status")
        if status in {"queued", "in_progress"}:
            yield FrameSeen("response.created", {"response": response})
        pause = 0.5
        while status in {"queued", "in_progress"}:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 5.0)
            async with await self.send(
                "GET", f"responses/{response['id']}", wire, once=False
            ) as answer:
                if answer.status >= 500 or answer.status in {404, 429}:
                    continue  # not readable yet, or busy: the response itself goes on
                if answer.status >= 300:
                    # No answer to the round: whatever it is, the round was begun.
                    message = f"Azure answered {answer.status} when asked how the response goes on."
                    yield Broken(message, sent=True)
                    return
                response = read(scrubber.clean(await answer.read()))
                status = response.get("status")
        kind = f"response.{status}"
        yield FrameSeen(kind if kind in TERMINAL else "response.completed", {"response": response})

    # --- credentials ------------------------------------------------------------------------

    async def _with_credentials(
        self, body: Json, bindings: Sequence[Binding]
    ) -> tuple[Json, Scrubber]:
        """The body with every bound server's credential in it, and what must never come back."""
        scrubber = await self._thorough()
        if not bindings:
            return body, scrubber
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
        return {**body, "tools": tools}, scrubber.with_more(values)

    async def _thorough(self) -> Scrubber:
        """Takes out the credentials of all servers: what one of them once let out may be in a
        context at Azure, and come back in an answer that has nothing to do with it.
        """
        now, version = asyncio.get_running_loop().time(), self._directory.view.version
        known = self._known
        if known is None or known.version != version or known.until <= now:
            values = []
            for server in self._directory.view.servers.values():
                if server.credential is not None:
                    with contextlib.suppress(GatepassError):  # nobody can use it now, either
                        secret = await self._vault.open(server.credential.ref, _LOOKED_FOR)
                        values.append(secret.reveal())
            known = _Known(version, now + _KNOWN_FOR, self.scrubber.with_more(values))
            self._known = known
        return known.scrubber


def _injected(server: ServerView, value: str) -> Json:
    credential = server.credential
    if credential is None:
        return {}
    if server.inject == "authorization":
        return {"authorization": value}
    scheme = f"{credential.scheme} " if credential.scheme else ""
    return {"headers": {credential.header: scheme + value}}


def _pause(event: Event | None, attempt: int, *, resumes: bool) -> float | None:
    """How long to wait before trying again; None when it must not, or need not, be tried.

    A busy Azure is waited for only when resuming: before that, the app's own retry is as good.
    """
    if attempt >= len(PAUSES):
        return None
    match event:
        case Broken(sent=False):
            return PAUSES[attempt] if attempt < 2 else None
        case Rejected() if _is_unseen(event):
            return PAUSES[attempt]
        case Rejected(status=429 | 503, headers=headers) if resumes and attempt < 3:
            return _retry_after(headers)
        case _:
            return None


def _is_unseen(event: Event | None) -> bool:
    return isinstance(event, Rejected) and parent_unseen(event)


def parent_unseen(answer: Rejected) -> bool:
    """Whether Azure does not know the parent: one that was just streamed may become visible yet."""
    return answer.status == 400 and _code(answer.body) == "previous_response_not_found"


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
        body = read(raw)
    except ValueError:
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
    return {
        lower: value
        for name, value in response.headers.items()
        if (lower := name.lower()) in PASSED_ON
    }


async def _stream(response: aiohttp.ClientResponse, scrubber: Scrubber) -> AsyncIterator[Event]:
    reader, seams = FrameReader(), Seams(scrubber)
    async for chunk in response.content.iter_any():
        for frame in reader.feed(chunk):
            event = parse_frame(frame, scrubber)
            for ready in () if event is None else seams.feed(event):
                yield ready
                if ready.type in TERMINAL:
                    return
    for ready in seams.end():
        yield ready
    yield Broken("Azure's stream ended without an end.", sent=True)


def parse_frame(frame: Frame, scrubber: Scrubber) -> FrameSeen | None:
    """A frame as an event; None for the end marker that some upstreams send."""
    if frame.data == b"[DONE]":
        return None
    data = read(scrubber.clean(frame.data))
    if not isinstance(data, dict):
        raise ValueError("a frame that is not an object")
    return FrameSeen(str(data.get("type") or frame.event or "unknown"), data)
