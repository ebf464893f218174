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
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.demo import catalogue, chat, conversations, files
from gateway.demo.answering import create
from gateway.demo.objects import check_include
from gateway.demo.paging import page
from gateway.demo.retrieval import cancelled, replay
from gateway.demo.runner import run_until_stopped
from gateway.demo.service import Endpoint, Service, UpstreamSettings
from gateway.demo.store import Memory, Stored
from gateway.demo.wire import (
    JSON,
    SSE,
    ApiError,
    ServiceJSON,
    bad_request,
    service_headers,
    unauthorized,
)

__all__ = ["UpstreamSettings", "create_upstream", "main"]

_PREFIXES = ("/openai/v1", "/v1")


def create_upstream(settings: UpstreamSettings) -> Starlette:
    """The upstream as an ASGI app. `app.state.memory` is there for tests in the same process."""
    service = Service(settings, Memory(settings.keep))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as service.tasks:
            yield
            # Background responses end with the service, as they would with a real restart.
            for stored in service.memory.all():
                stored.cancel()
        service.tasks = None

    def guarded(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        return partial(_guarded, service, endpoint)

    extra = conversations.ENDPOINTS if settings.conversations else ()
    endpoints = (*_ENDPOINTS, *extra)
    routes = [Route("/_demo/requests", guarded(_requests), methods=["GET", "DELETE"])]
    for prefix in _PREFIXES:
        routes += [
            Route(prefix + path, guarded(endpoint), methods=[method])
            for method, path, endpoint in endpoints
        ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: _no_route})
    app.state.memory = service.memory
    return app


async def _no_route(_: Request, __: Exception) -> Response:
    error = ApiError(404, "Resource not found", code="404")
    return JSONResponse({"error": {"code": "404", "message": error.message}}, status_code=404)


async def _guarded(service: Service, endpoint: Endpoint, request: Request) -> Response:
    """Key first, then the request is noted, then errors take the service's shape."""
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


async def _requests(service: Service, request: Request) -> Response:
    """What was received, oldest first; DELETE forgets it."""
    noted = list(service.memory.requests)
    if request.method == "DELETE":
        service.memory.requests.clear()
    return JSONResponse({"requests": noted})


# ---------------------------------------------------------------------------------------------
# /responses/{id}


def _stored(service: Service, request: Request) -> Stored:
    return service.memory.get(request.path_params["response_id"])


async def _retrieve(service: Service, request: Request) -> Response:
    stored, query = _stored(service, request), request.query_params
    check_include([*query.getlist("include[]"), *query.getlist("include")])
    if query.get("stream") != "true":
        return ServiceJSON(stored.response)
    if not (stored.background and stored.streamed):
        raise bad_request(
            "This response cannot be streamed because it was not created with background=true "
            "and stream=true.",
            param="stream",
        )
    after = query.get("starting_after", "-1")
    if not after.removeprefix("-").isdigit():
        raise bad_request("Invalid 'starting_after': expected an integer.", param="starting_after")
    padded = query.get("include_obfuscation", "true") != "false"
    framing = replace(stored.framing, obfuscated=padded)
    return StreamingResponse(replay(stored, int(after), framing), headers=SSE)


async def _delete(service: Service, request: Request) -> Response:
    response_id = request.path_params["response_id"]
    service.memory.delete(response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


async def _cancel(service: Service, request: Request) -> Response:
    return ServiceJSON(await cancelled(_stored(service, request)))


async def _input_items(service: Service, request: Request) -> Response:
    return JSONResponse(page(_stored(service, request).context, request.query_params))


_RESPONSES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/responses", create),
    ("GET", "/responses/{response_id}", _retrieve),
    ("DELETE", "/responses/{response_id}", _delete),
    ("GET", "/responses/{response_id}/input_items", _input_items),
    ("POST", "/responses/{response_id}/cancel", _cancel),
)
_ENDPOINTS = (*_RESPONSES, *files.ENDPOINTS, *chat.ENDPOINTS, *catalogue.ENDPOINTS)


def main(arguments: list[str] | None = None) -> None:
    """Run the upstream as a process of its own; prints its address when it is ready."""
    parser = argparse.ArgumentParser(prog="gateway.demo.upstream", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--delta-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--propagation-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--list-failures", choices=("request", "item"), default="request")
    yes_or_no = argparse.BooleanOptionalAction
    parser.add_argument("--strict-pairs", action=yes_or_no, default=True)
    parser.add_argument("--conversations", action=yes_or_no, default=True)
    parser.add_argument("--conversation-resume", choices=("echo", "plain"), default="echo")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    host, port = options.pop("host"), options.pop("port")
    app = create_upstream(UpstreamSettings(**options))
    line = "Scripted upstream ready: {url}/openai/v1/"
    asyncio.run(run_until_stopped(app, host=host, port=port, line=line))


if __name__ == "__main__":
    main()
