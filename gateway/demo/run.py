"""One response in the making: the model's turns and the events they cause, from first to last.

`events_of` is the only engine: a plain request consumes it silently, a stream forwards it, a
background task logs it. Faults and quirks asked for by the script happen at their place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from gateway.demo import calls, events, items
from gateway.demo.choice import choose
from gateway.demo.job import Job, Run
from gateway.demo.objects import finish, is_reasoning_model
from gateway.demo.turns import Turn
from gateway.demo.wire import JSON, ApiError, server_error

_MAX_ROUNDS = 25
_MULTIBYTE = " Привет, мир! 👋🏽 Zażółć gęślą jaźń, 漢字も。"
_WAITING = ("mcp_approval_request", "function_call", "computer_call")


async def events_of(job: Job) -> AsyncGenerator[JSON, None]:
    """The whole event sequence of one response, ending with its terminal event. Never raises."""
    run = Run(job, events.Numbering())
    yield _lifecycle(run, "created")
    if job.response["status"] == "queued":
        yield _lifecycle(run, "queued")
        job.response["status"] = "in_progress"
    yield _lifecycle(run, "in_progress")
    try:
        async for event in _body(run):
            yield event
            if job.settings.delta_delay and event["type"].endswith(".delta"):
                await asyncio.sleep(job.settings.delta_delay)
    except ApiError as problem:
        for event in _failure(run, problem):
            yield event
        return
    for event in _ending(run):
        yield event


def _lifecycle(run: Run, name: str) -> JSON:
    # A copy: the response goes on changing, and an event says what was true when it was sent.
    snapshot = {**run.job.response, "output": list(run.job.response["output"])}
    return run.numbers.event(f"response.{name}", response=snapshot)


def _failure(run: Run, problem: ApiError) -> list[JSON]:
    response = run.job.response
    response["status"] = "failed"
    code = problem.wire_code or "server_error"
    response["error"] = {"code": code, "message": problem.message}
    error = run.numbers.event("error", error=problem.error())
    return [error, _lifecycle(run, "failed")]


def _ending(run: Run) -> list[JSON]:
    job, status, reason = run.job, "completed", None
    if "incomplete" in job.faults:
        status, reason = "incomplete", "max_output_tokens"
    elif "output-filter" in job.faults:
        status, reason = "incomplete", "content_filter"
    finish(job.response, job.given.context, status, int(job.settings.clock().timestamp()))
    if reason:
        job.response["incomplete_details"] = {"reason": reason}
    return [_lifecycle(run, status)]


async def _body(run: Run) -> AsyncIterator[JSON]:
    async for event in _prelude(run):
        yield event
    async for event in calls.list_servers(run):
        yield event
    async for event in calls.resume(run):
        yield event
    for _ in range(_MAX_ROUNDS):
        turn = choose(run.situation)
        async for event in _perform(run, turn):
            yield event
        if _stops(run, turn):
            return


async def _prelude(run: Run) -> AsyncIterator[JSON]:
    """What the script wants to happen before any work."""
    if run.job.quirk("keepalive"):
        yield run.numbers.event("keepalive")
    if run.job.quirk("unknown-event"):
        yield run.numbers.event("response.from_the_future", note="unknown to every client")
    if slow := run.job.faults.get("slow"):
        await asyncio.sleep(slow.seconds)
    if "mid-stream-error" in run.job.faults:
        raise server_error()


async def _perform(run: Run, turn: Turn) -> AsyncIterator[JSON]:
    for item in _before(run, turn):
        for event in events.item_at_once(run.numbers, run.open(item), item):
            yield event
    if turn.say:
        said = items.message(turn.say + (_MULTIBYTE if run.job.quirk("multibyte") else ""))
        index = len(run.output)
        for event in events.message(run.numbers, index, said):
            yield event
        run.open(said)
    for call in turn.calls:
        async for event in calls.make(run, call):
            yield event


def _before(run: Run, turn: Turn) -> list[JSON]:
    """The items that precede what the model says or calls."""
    found: list[JSON] = []
    after_call = any(i["type"] == "mcp_call" for i in run.output)
    if is_reasoning_model(run.job.body) and (turn.calls or not after_call):
        wanted = run.job.body.get("include") or []
        found.append(items.reasoning(encrypted="reasoning.encrypted_content" in wanted))
    if run.job.quirk("unknown-item") and not turn.calls:
        found.append(items.from_the_future())
    return found


def _stops(run: Run, turn: Turn) -> bool:
    """The response ends with an answer, or when someone else has to act."""
    return not turn.calls or any(i["type"] in _WAITING for i in run.output)
