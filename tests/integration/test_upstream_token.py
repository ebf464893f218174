"""Signing in to Azure with tokens: one in memory, renewed before its end, or when refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.demo.runner import serve
from gateway.errors import Unavailable
from gateway.exchange.messages import Broken, Event, Forward, FrameSeen, Rejected
from gateway.proxy import retrying
from gateway.proxy.azure import Azure, Watch, Wire
from gateway.proxy.signing_in import SignIn, Upstream
from gateway.proxy.upstream_token import UpstreamToken
from gateway.registry.directory import View
from gateway.vault import Vault
from tests.support.clock import FakeClock

SCOPE = "https://cognitiveservices.azure.com/.default"


class Given(NamedTuple):
    token: str
    expires_on: int


class Source:
    """Keeps what it gave until five minutes before the end, as azure-identity does."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.kept: Given | None = None
        self.asked = 0
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def get_token(self, *scopes: str) -> Given:
        assert scopes == (SCOPE,)
        now = self.clock().timestamp()
        if self.kept is None or self.kept.expires_on - now < 300:
            await self.gate.wait()
            if self.fails:
                raise ValueError("canary: what Entra wrote")
            self.asked += 1
            self.kept = Given(f"canary-token-{self.asked}", int(now) + 3600)
        return self.kept

    async def close(self) -> None:
        self.kept = None


@pytest.fixture
def source(clock: FakeClock) -> Source:
    return Source(clock)


@pytest.fixture
def token(source: Source, clock: FakeClock) -> UpstreamToken:
    return UpstreamToken(source, SCOPE, clock)


async def test_a_token_in_memory_is_had_without_waiting(
    token: UpstreamToken, source: Source, clock: FakeClock
) -> None:
    assert token.current is None
    assert await token.get() == token.current == "canary-token-1"
    clock.advance(3600 - 31)
    assert await token.get() == "canary-token-1"
    clock.advance(2)  # too late for one more request
    assert token.current is None
    assert await token.get() == "canary-token-2"
    assert "canary" not in repr(token)


async def test_it_is_renewed_before_its_end_without_anybody_waiting(
    token: UpstreamToken, source: Source, clock: FakeClock
) -> None:
    await token.get()
    clock.advance(3600 - 301)
    await token.look()
    assert token.current == "canary-token-1"
    clock.advance(2)
    source.fails = True
    await token.look()
    assert token.current == "canary-token-1"  # still good
    source.fails = False
    await token.look()
    assert token.current == "canary-token-2"
    assert token.values == ("canary-token-2", "canary-token-1")


async def test_many_who_wait_cause_one_request(token: UpstreamToken, source: Source) -> None:
    source.gate.clear()
    waiting = [asyncio.ensure_future(token.get()) for _ in range(50)]
    await asyncio.sleep(0)
    source.gate.set()
    assert set(await asyncio.gather(*waiting)) == {"canary-token-1"}
    assert source.asked == 1


async def test_without_a_token_nothing_is_signed_and_nothing_of_the_reason_repeated(
    token: UpstreamToken, source: Source
) -> None:
    source.fails = True
    with pytest.raises(Unavailable) as caught:
        await SignIn(Upstream("https://azure.example/", "", 10, token)).header()
    assert caught.value.code == "upstream_token_unavailable"
    assert "canary" not in caught.value.message


async def test_a_refused_token_is_renewed_once_for_everybody_who_had_it(
    token: UpstreamToken, source: Source, clock: FakeClock
) -> None:
    first = await token.get()
    assert await asyncio.gather(*(token.renew(first) for _ in range(20))) == [True] * 20
    assert source.asked == 2
    second = await token.get()
    assert not await token.renew(second)  # it was not the token: no storm of requests for more
    clock.advance(31)
    assert await token.renew(second)
    assert source.asked == 3


async def test_a_renewal_that_fails_leaves_the_answer_as_it_is(
    token: UpstreamToken, source: Source
) -> None:
    first = await token.get()
    source.fails = True
    assert not await token.renew(first)


async def test_the_tokens_are_taken_out_of_answers(token: UpstreamToken, clock: FakeClock) -> None:
    sign_in = SignIn(Upstream("https://azure.example/", "", 10, token))
    assert await sign_in.header() == {"authorization": "Bearer canary-token-1"}
    await token.renew("canary-token-1")
    assert sign_in.at_hand == {"authorization": "Bearer canary-token-2"}
    raw = b'{"error": "canary-token-2 after canary-token-1"}'
    assert b"canary" not in sign_in.scrubber.clean(raw)


async def test_a_key_signs_without_waiting() -> None:
    sign_in = SignIn(Upstream("https://azure.example/", "upstream-key", 10))
    assert sign_in.at_hand == {"api-key": "upstream-key"}
    assert not await sign_in.renewed({"api-key": "upstream-key"})
    assert b"upstream-key" not in sign_in.scrubber.clean(b"upstream-key")


# --- at the wire ------------------------------------------------------------------------------


class Upstreams:
    """Answers 401 to the first token, as often as it comes, and a response to any other."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def respond(self, request: Request) -> Response:
        token = request.headers["authorization"].removeprefix("Bearer ")
        assert "api-key" not in request.headers
        self.seen.append(token)
        if token == "canary-token-1":
            return JSONResponse({"error": {"code": "401", "message": f"{token} expired"}}, 401)
        answer = {"id": "resp_1", "status": "completed", "output": [], "metadata": {"by": token}}
        return JSONResponse(answer)


@pytest.fixture
async def upstreams() -> AsyncIterator[tuple[Upstreams, str]]:
    async with AsyncExitStack() as stack:
        found = Upstreams()
        routes = [Route("/responses", found.respond, methods=["POST"])]
        yield found, await stack.enter_async_context(serve(Starlette(routes=routes)))


async def played(
    url: str, token: UpstreamToken, watch: Watch, then: Callable[[], None] = lambda: None
) -> list[Event]:
    directory: Any = SimpleNamespace(view=View())
    azure = Azure(Upstream(f"{url}/", "", 10, token), directory, Vault({}))
    await azure.open()
    try:
        turn = Forward(1, {"model": "m", "input": []}, (), releases=("mcpr_1",))
        prepared = await azure.prepare(turn, fresh=True)
        then()
        return [event async for event in azure.round(prepared, Wire({}, {}), watch)]
    finally:
        await azure.close()


async def test_a_resume_refused_for_its_token_is_sent_once_more(
    upstreams: tuple[Upstreams, str], token: UpstreamToken
) -> None:
    found, url = upstreams
    (event,) = await played(url, token, Watch())
    assert isinstance(event, FrameSeen)
    assert found.seen == ["canary-token-1", "canary-token-2"]
    assert event.data["response"]["metadata"] == {"by": "[redacted]"}


async def test_a_resume_that_may_not_go_any_more_is_not_sent_once_more(
    upstreams: tuple[Upstreams, str], token: UpstreamToken, clock: FakeClock
) -> None:
    """The lease has lapsed, or a pause has begun, while the token was renewed."""
    found, url = upstreams
    for watch in (
        Watch(may=iter([True, False]).__next__),
        Watch(stopped=lambda: True),
    ):
        (event,) = await played(url, token, watch)
        assert isinstance(event, Rejected)
        assert event.status == 401
        assert "canary" not in str(event.body)
        assert set(found.seen) == {"canary-token-1"}
        token = UpstreamToken(Source(clock), SCOPE, clock)


async def test_a_round_without_a_token_is_known_not_to_have_been_sent(
    upstreams: tuple[Upstreams, str], token: UpstreamToken, source: Source, monkeypatch: Any
) -> None:
    monkeypatch.setattr(retrying, "PAUSES", (0.0, 0.0))
    found, url = upstreams
    source.fails = True
    with pytest.raises(Unavailable):  # nothing has been marked as being sent yet
        await played(url, token, Watch())
    source.fails = False

    def over() -> None:
        token._ends, source.kept, source.fails = 0.0, None, True

    (event,) = await played(url, token, Watch(), over)
    assert isinstance(event, Broken)
    assert (event.sent, event.code) == (False, "upstream_token_unavailable")
    assert found.seen == []
