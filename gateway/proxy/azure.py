"""The sender: one pooled client to Azure. Step 4 of the path; `injection` opens what goes along.

Retries nothing that could run twice: only what Azure provably did not start (no connection, a
parent not visible yet, a rejection before the start) is tried again. Redirects are never
followed. A round that answers approvals uses a connection of its own, because a kept one that
Azure has closed is a retry in disguise.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import aiohttp
from pydantic import SecretStr
from yarl import URL

from gateway.errors import GatepassError, Unavailable, UpstreamFailed
from gateway.exchange.document import dump, read
from gateway.exchange.messages import (
    TERMINAL,
    Broken,
    Event,
    Forward,
    FrameSeen,
    Json,
    Rejected,
)
from gateway.exchange.sse import Frame, FrameReader
from gateway.proxy import retrying
from gateway.proxy.injection import Injection, Prepared
from gateway.proxy.multipart import Form
from gateway.proxy.scrubbing import Seams
from gateway.proxy.signing_in import SignIn, Upstream
from gateway.registry.directory import Directory
from gateway.scrubbing import Scrubber
from gateway.vault import Purpose, Secret, Vault

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


@dataclass(frozen=True, slots=True)
class Wire:
    """What of the app's request line and headers goes along with every round.

    `user` does not: it is the access token of whom the app acts for, to be exchanged for others.
    """

    headers: Mapping[str, str]
    query: Mapping[str, str | list[str]]
    user: SecretStr | None = None

    def document(self) -> Json:
        """As it is saved with a waiting exchange; the user's token is kept apart from it."""
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

    def again(self) -> bool:
        """Whether what Azure did not begin may be sent again now."""
        return self.may() and not self.stopped()


_NOBODY = Watch()
#: JSON, or a file with what belongs to it.
Body: TypeAlias = bytes | Form


class Declined(UpstreamFailed):
    """Azure's own refusal of a request that is simply passed on: the app is told it as it is."""

    def __init__(self, answer: Rejected) -> None:
        super().__init__("Azure refused the request.", code="declined", status=answer.status)
        self.answer = answer


class Azure:
    """One per process. `open` before use, `close` at the end."""

    def __init__(self, upstream: Upstream | None, directory: Directory, vault: Vault) -> None:
        self._upstream = upstream
        # Parsing an address costs as much as parsing a request: the usual one is kept.
        self._create = URL(upstream.url + "responses") if upstream else None
        self.sign_in = SignIn(upstream)
        self._injection = Injection(directory, vault, self.sign_in)
        self._pooled: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    @property
    def scrubber(self) -> Scrubber:
        """Takes what we sign in with out of answers."""
        return self.sign_in.scrubber

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
        await self.sign_in.close()

    async def send(
        self,
        method: str,
        path: str,
        wire: Wire,
        body: Body | None = None,
        *,
        once: bool = True,
        may: Callable[[], bool] = _NOBODY.may,
    ) -> aiohttp.ClientResponse:
        """One request below the resource's root, its answer to be used as a context. `path` starts
        without a slash.

        `once`: it must not reach Azure twice, so it takes a connection of its own. Another one
        takes a kept connection, and is sent again where Azure had just closed that. What was
        refused only for its token is sent with a new one, if `may` allows it then.
        """
        signed = self.sign_in.at_hand or await self.sign_in.header()
        url = self._address(path, wire.query)
        response = await self._send(method, url, {**wire.headers, **signed}, body, once=once)
        if response.status != 401 or isinstance(body, Form):
            return response
        if not await self.sign_in.renewed(signed) or not may():
            return response
        response.release()
        return await self.send(method, path, wire, body, once=once, may=may)

    async def _send(
        self, method: str, url: URL, headers: dict[str, str], body: Body | None, *, once: bool
    ) -> aiohttp.ClientResponse:
        if self._fresh is None or self._pooled is None or self._upstream is None:
            raise Unavailable(
                "No Azure resource is configured: set GATEPASS_UPSTREAM_URL and how to sign in.",
                code="upstream_not_configured",
            )
        data: bytes | AsyncIterator[bytes] | None = None
        if isinstance(body, Form):
            headers |= {"content-type": body.content_type, "content-length": str(body.length)}
            data = body.chunks()
        elif body is not None:
            headers["content-type"] = "application/json"
            data = body
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
        scrubber = await self.thorough()
        try:
            async with await self.send(method, path, wire, raw, once=method == "POST") as response:
                scrubber = self.sign_in.with_own(scrubber)
                if response.status >= 300:
                    raise Declined(await rejection(response, scrubber))
                document = read(scrubber.clean(await response.read()))
                return document, passed_on(response, scrubber)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamFailed(f"Azure did not answer ({type(error).__name__}).") from None
        except ValueError:
            raise UpstreamFailed("Azure's answer cannot be read.") from None

    # --- a round ----------------------------------------------------------------------------

    async def prepare(
        self, turn: Forward, *, fresh: bool, user: SecretStr | None = None
    ) -> Prepared:
        """Open what the round takes, before anything is marked as being sent. `fresh`: approved
        calls go out with it, so every vault is asked now. `user` is the access token of whom the
        app acts for. Raises when a credential cannot be had.
        """
        if self.sign_in.at_hand is None:
            await self.sign_in.header()
        return await self._injection.prepare(turn, Purpose(fresh, _end_user(user)))

    async def round(
        self, prepared: Prepared, wire: Wire, watch: Watch = _NOBODY
    ) -> AsyncGenerator[Event, None]:
        """Send one round; its frames, or `Rejected`, or `Broken` as the last event."""
        turn, raw = prepared.turn, prepared.body
        answers = turn.round > 0 or bool(turn.releases or turn.denials)
        attempt, replay = 0, True
        while True:
            async with contextlib.aclosing(
                self._attempt(raw, wire, prepared.scrubber, watch, once=answers)
            ) as events:
                first = await anext(events, None)
                pause = retrying.pause(first, attempt, resumes=answers)
                if pause is None and turn.replay and replay and retrying.is_unseen(first):
                    pause, replay, raw = 0.0, False, prepared.replay()
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
            scrubber = (await self.prepare(turn, fresh=False, user=wire.user)).scrubber
        except GatepassError:  # the server is gone, or its vault: what was known of them is left
            scrubber = await self._injection.scrubber(_end_user(wire.user))
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
            except (aiohttp.ClientError, TimeoutError, ValueError, GatepassError) as error:
                yield Broken(f"The connection to Azure broke ({type(error).__name__}).", sent=True)
                return

    async def _attempt(
        self, raw: bytes, wire: Wire, scrubber: Scrubber, watch: Watch, *, once: bool
    ) -> AsyncGenerator[Event, None]:
        answered = False
        try:
            if self.sign_in.at_hand is None:
                await self.sign_in.header()  # before it is asked whether it may go
            if not watch.may():
                raise Unavailable("The gateway was held up, and did not send this.")
            send = self.send("POST", "responses", wire, raw, once=once, may=watch.again)
            async with await send as response:
                answered = True
                scrubber = self.sign_in.with_own(scrubber)
                watch.heard(passed_on(response, scrubber))
                async for event in self._events(response, wire, scrubber):
                    yield event
        except aiohttp.ClientConnectorError:
            # Later on it is a poll that finds nobody: the round itself was sent long ago.
            yield Broken("Azure cannot be reached.", sent=answered)
        except GatepassError as error:
            yield Broken(error.message, sent=answered, code=error.code, status=error.status)
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

    async def thorough(self) -> Scrubber:
        """Takes out our key and the credentials of all servers."""
        return await self._injection.scrubber()


def _end_user(token: SecretStr | None) -> Secret | None:
    return None if token is None else Secret("the end user's token", token.get_secret_value())


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
    return Rejected(status, body, passed_on(response, scrubber))


def passed_on(response: aiohttp.ClientResponse, scrubber: Scrubber) -> dict[str, str]:
    """The headers of an answer that the app may see."""
    return {
        lower: scrubber.clean(value.encode("utf-8", "surrogateescape")).decode("ascii", "replace")
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
