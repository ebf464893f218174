"""The scripted Azure OpenAI upstream: routes, keys, and the three ways of answering a request.

`create_upstream(settings)` is an ASGI app whose state is its own. What the model says comes from
`model`, what happens in a response from `run`; this file only carries it over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.demo.events import encode
from gateway.demo.exchange import Exchange, begin
from gateway.demo.retrieval import cancelled, input_items, replay
from gateway.demo.run import Dropped, events_of
from gateway.demo.runner import cut_connection, run_until_stopped
from gateway.demo.store import Memory, Stored, later
from gateway.demo.wire import (
    JSON,
    ApiError,
    Clock,
    bad_request,
    service_headers,
    unauthorized,
    utc_now,
)

_PREFIXES = ("/openai/v1", "/v1")
_SSE = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


@dataclass(frozen=True)
class UpstreamSettings:
    """How the upstream behaves. Seconds where a duration is meant.

    `list_failures`: a server that cannot be listed fails the whole request (424) or, with "item",
    only its `mcp_list_tools` item. `propagation_delay`: for so long after a streamed response its
    id cannot be continued from. `replayable_approvals`: an approval that was answered once can be
    answered again from the same response, and executes again.
    """

    api_key: str
    region: str = "Sweden Central"
    list_failures: str = "request"
    delta_delay: float = 0.0
    propagation_delay: float = 0.0
    replayable_approvals: bool = False
    keep: int = 1000
    clock: Clock = utc_now


@dataclass(frozen=True)
class _Service:
    settings: UpstreamSettings
    memory: Memory
    tasks: asyncio.TaskGroup


Endpoint = Callable[[_Service, Request], Awaitable[Response]]


def create_upstream(settings: UpstreamSettings) -> Starlette:
    """The upstream as an ASGI app. `app.state.memory` is there for tests in the same process."""
    memory = Memory(settings.keep)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[JSON]:
        async with asyncio.TaskGroup() as tasks:
            yield {"service": _Service(settings, memory, tasks)}
            # Background responses end with the service, as they would with a real restart.
            for stored in memory.all():
                stored.cancel()

    routes = [Route("/_demo/requests", _guarded(_requests), methods=["GET", "DELETE"])]
    for prefix in _PREFIXES:
        one = f"{prefix}/responses/{{response_id}}"
        routes += [
            Route(f"{prefix}/responses", _guarded(_create), methods=["POST"]),
            Route(f"{one}/input_items", _guarded(_input_items), methods=["GET"]),
            Route(f"{one}/cancel", _guarded(_cancel), methods=["POST"]),
            Route(one, _guarded(_retrieve), methods=["GET"]),
            Route(one, _guarded(_delete), methods=["DELETE"]),
        ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: _no_route})
    app.state.memory = memory
    return app


async def _no_route(_: Request, __: Exception) -> Response:
    error = ApiError(404, "Resource not found", code="404")
    return JSONResponse({"error": {"code": "404", "message": error.message}}, status_code=404)


def _guarded(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Key first, then the request is noted, then errors take the service's shape."""

    async def handle(request: Request) -> Response:
        service: _Service = request.state.service
        service.memory.served += 1
        try:
            _authenticate(service.settings.api_key, request)
            if not request.url.path.startswith("/_demo"):
                service.memory.requests.append(await _noted(request))
            response = await endpoint(service, request)
        except ApiError as problem:
            response = JSONResponse(problem.body(), problem.status, headers=problem.headers)
        headers = service_headers(service.settings.region, service.memory.served)
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        return response

    return handle


def _authenticate(key: str, request: Request) -> None:
    given = [request.headers.get("api-key"), request.headers.get("authorization")]
    keys = [value.removeprefix("Bearer ") for value in given if value]
    if not keys or not all(hmac.compare_digest(k.encode(), key.encode()) for k in keys):
        raise unauthorized()


async def _noted(request: Request) -> JSON:
    raw = await request.body()
    try:
        body = json.loads(raw) if raw else None
    except ValueError:
        body = raw.decode(errors="replace")
    return {
        "method": request.method,
        "path": request.url.path,
        "query": request.url.query,
        "headers": dict(request.headers),
        "body": body,
    }


async def _requests(service: _Service, request: Request) -> Response:
    """What was received, oldest first; DELETE forgets it."""
    noted = list(service.memory.requests)
    if request.method == "DELETE":
        service.memory.requests.clear()
    return JSONResponse({"requests": noted})


# ---------------------------------------------------------------------------------------------
# POST /responses


async def _create(service: _Service, request: Request) -> Response:
    body = _object(await request.body())
    settings = service.settings
    exchange = begin(body, service.memory, settings)
    if exchange.delay:
        await asyncio.sleep(exchange.delay)
    if body.get("background"):
        return await _background(service, exchange)
    if body.get("stream"):
        return StreamingResponse(_streamed(service, request, exchange), headers=_SSE)
    return await _plain(service, request, exchange)


def _object(raw: bytes) -> JSON:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise bad_request(
            "We could not parse the JSON body of your request. (HINT: This likely means you "
            "aren't using your HTTP library correctly. The API expects a JSON payload.)"
        )
    return body


def _remember(service: _Service, exchange: Exchange, *, streamed: bool) -> None:
    if not exchange.response["store"]:
        return
    delay = service.settings.propagation_delay if streamed else 0.0
    available = later(service.settings.clock(), delay)
    context = exchange.job.given.context
    stored = Stored(exchange.response, context, streamed=streamed, chainable_from=available)
    service.memory.put(stored)


async def _plain(service: _Service, request: Request, exchange: Exchange) -> Response:
    failure: JSON | None = None
    try:
        async for event in events_of(exchange.job):
            failure = event["error"] if event["type"] == "error" else failure
    except Dropped:
        await cut_connection(request.scope)
        return Response()
    if failure is not None and exchange.response["status"] == "failed":
        status = {"external_connector_error": 424}.get(failure["type"], 500)
        return JSONResponse({"error": failure}, status)
    _remember(service, exchange, streamed=False)
    if "drop-before-bytes" in exchange.job.faults:
        await cut_connection(request.scope)
    return JSONResponse(exchange.response)


async def _streamed(
    service: _Service, request: Request, exchange: Exchange
) -> AsyncIterator[bytes]:
    silent = "drop-before-bytes" in exchange.job.faults
    try:
        async for event in events_of(exchange.job):
            if event["type"] in ("response.completed", "response.incomplete"):
                _remember(service, exchange, streamed=True)
            if not silent:
                yield encode(event)
    except Dropped:
        silent = True
    if silent:
        await cut_connection(request.scope)


async def _background(service: _Service, exchange: Exchange) -> Response:
    streamed = bool(exchange.job.body.get("stream"))
    stored = Stored(
        exchange.response, exchange.job.given.context, streamed=streamed, background=True
    )
    service.memory.put(stored)
    queued = dict(exchange.response)
    task = service.tasks.create_task(_work(stored, exchange))
    stored.cancel = task.cancel
    if streamed:
        return StreamingResponse(replay(stored, -1), headers=_SSE)
    return JSONResponse(queued)


async def _work(stored: Stored, exchange: Exchange) -> None:
    """Run to the end whatever happens: a failure here must not take the service down."""
    try:
        async for event in events_of(exchange.job):
            await stored.note(event)
    except Dropped:
        exchange.response["status"] = "failed"
    finally:
        await stored.end()


# ---------------------------------------------------------------------------------------------
# /responses/{id}


def _stored(service: _Service, request: Request) -> Stored:
    return service.memory.get(request.path_params["response_id"])


async def _retrieve(service: _Service, request: Request) -> Response:
    stored = _stored(service, request)
    if request.query_params.get("stream") != "true":
        return JSONResponse(stored.response)
    if not (stored.background and stored.streamed):
        raise bad_request(
            "This response cannot be streamed because it was not created with background=true "
            "and stream=true.",
            param="stream",
        )
    after = int(request.query_params.get("starting_after", "-1"))
    return StreamingResponse(replay(stored, after), headers=_SSE)


async def _delete(service: _Service, request: Request) -> Response:
    response_id = request.path_params["response_id"]
    service.memory.delete(response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


async def _cancel(service: _Service, request: Request) -> Response:
    return JSONResponse(await cancelled(_stored(service, request)))


async def _input_items(service: _Service, request: Request) -> Response:
    return JSONResponse(input_items(_stored(service, request).context, request.query_params))


def main(arguments: list[str] | None = None) -> None:
    """Run the upstream as a process of its own; prints its address when it is ready."""
    parser = argparse.ArgumentParser(prog="gateway.demo.upstream", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--delta-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--propagation-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--list-failures", choices=("request", "item"), default="request")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    host, port = options.pop("host"), options.pop("port")
    app = create_upstream(UpstreamSettings(**options))
    line = "Scripted upstream ready: {url}/openai/v1/"
    asyncio.run(run_until_stopped(app, host=host, port=port, line=line))


if __name__ == "__main__":
    main()
