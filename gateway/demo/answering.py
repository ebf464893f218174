"""POST /responses: the plain, the streamed and the background way of answering, and how they break.

The events come from `run`; here they become a body, a stream or a log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gateway.demo.exchange import begin
from gateway.demo.job import Job
from gateway.demo.retrieval import replay, told
from gateway.demo.run import events_of
from gateway.demo.runner import cut_connection
from gateway.demo.service import Service
from gateway.demo.store import Stored, later
from gateway.demo.wire import JSON, SSE, ApiError, ServiceJSON, compact, parse_object, server_error

_ENDINGS = ("response.completed", "response.incomplete")
_CUT_AFTER = ("response.mcp_call.completed", "response.output_text.delta")


async def create(service: Service, request: Request) -> Response:
    """Answer one POST. ApiError when the request is refused before anything ran."""
    job = begin(
        parse_object(await request.body()), request.headers, service.memory, service.settings
    )
    if "drop-before-bytes" in job.faults:
        return await _lost(service, request, job)
    if job.body.get("background"):
        return await _background(service, job)
    if job.body.get("stream") and job.quirk("goes-on"):
        return StreamingResponse(_kept(service, request, job), headers=SSE)
    if job.body.get("stream"):
        return StreamingResponse(_streamed(service, request, job), headers=SSE)
    return await _plain(service, request, job)


def _remember(service: Service, job: Job, *, streamed: bool) -> None:
    service.memory.pairs.learn(job.response["output"])
    job.join_conversation()
    if not job.response["store"]:
        return
    delay = service.settings.propagation_delay if streamed else 0.0
    available = later(service.settings.clock(), delay)
    stored = Stored(job.response, job.given.context, streamed=streamed, chainable_from=available)
    service.memory.put(stored)


async def _finished(service: Service, job: Job, *, streamed: bool) -> JSON | None:
    """Run to the end without showing it; the error object if it failed."""
    error: JSON | None = None
    async for event in events_of(job):
        error = event["error"] if event["type"] == "error" else error
    if job.response["status"] != "failed":
        _remember(service, job, streamed=streamed)
    return error


async def _plain(service: Service, request: Request, job: Job) -> Response:
    error = await _finished(service, job, streamed=False)
    if error is not None:
        status = 424 if error["type"] == "external_connector_error" else 500
        return JSONResponse({"error": error}, status)
    if "drop-stream" in job.faults:
        return _truncated(request, job.response)
    return ServiceJSON(job.response)


def _truncated(request: Request, response: JSON) -> Response:
    """Half a body under a length that promises all of it."""
    whole = compact(response).encode()

    async def half() -> AsyncIterator[bytes]:
        yield whole[: len(whole) // 2]
        await cut_connection(request.scope)

    headers = {"content-type": "application/json", "content-length": str(len(whole))}
    return StreamingResponse(half(), headers=headers)


async def _lost(service: Service, request: Request, job: Job) -> Response:
    """Everything happens, and nobody hears of it: not a byte is answered."""
    await _finished(service, job, streamed=bool(job.body.get("stream")))
    await cut_connection(request.scope)
    return Response()


async def _streamed(service: Service, request: Request, job: Job) -> AsyncIterator[bytes]:
    framing = job.framing
    async with aclosing(events_of(job)) as events:
        async for event in events:
            if event["type"] in _ENDINGS:
                _remember(service, job, streamed=True)
                if "no-ending" in job.faults:
                    return
            for piece in framing.writes(event):
                yield piece
            if "drop-stream" in job.faults and _is_cut(event):
                await cut_connection(request.scope)
                return
    for piece in framing.end():
        yield piece


async def _kept(service: Service, request: Request, job: Job) -> AsyncIterator[bytes]:
    """The same of one that goes on, and is kept, whatever becomes of the connection."""
    if service.tasks is None:
        raise ApiError(503, "This needs the app's lifespan to be running.")
    stored = Stored(job.response, job.given.context, streamed=True)
    service.memory.put(stored)
    service.tasks.create_task(_work(service, stored, job))
    framing = job.framing
    async for event in told(stored):
        for piece in framing.writes(event):
            yield piece
        if "drop-stream" in job.faults and _is_cut(event):
            await cut_connection(request.scope)
            return
    for piece in framing.end():
        yield piece


def _is_cut(event: JSON) -> bool:
    item = event.get("item") or {}
    return event["type"] in _CUT_AFTER or item.get("type") == "mcp_approval_request"


async def _background(service: Service, job: Job) -> Response:
    if service.tasks is None:
        raise ApiError(503, "Background responses need the app's lifespan to be running.")
    streamed = bool(job.body.get("stream"))
    stored = Stored(job.response, job.given.context, streamed=streamed, background=True)
    stored.framing = job.framing
    service.memory.put(stored)
    queued = dict(job.response)
    stored.cancel = service.tasks.create_task(_work(service, stored, job)).cancel
    if streamed:
        return StreamingResponse(replay(stored, -1, stored.framing), headers=SSE)
    return ServiceJSON(queued)


async def _work(service: Service, stored: Stored, job: Job) -> None:
    """Run to the end whatever happens: a failure here must not take the service down."""
    try:
        async for event in events_of(job):
            if event["type"] in _ENDINGS:
                job.join_conversation()
            await stored.note(event)
    except Exception:
        job.response.update(status="failed", error=server_error().error())
    finally:
        service.memory.pairs.learn(job.response["output"])
        await stored.end()
