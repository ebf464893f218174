"""One response in the making: the model's turns, the tool calls, and the events they cause.

`events_of` is the only engine: a plain request consumes it silently, a stream forwards it, a
background task logs it. Faults and quirks asked for by the script happen here, at their place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field

from gateway.demo import events
from gateway.demo.choice import Situation, choose, resolve
from gateway.demo.context import Answer, Given, tool_lists
from gateway.demo.mcp_tools import McpFailure, McpServer, call_tool, list_tools
from gateway.demo.model import Call, Directive, Script, Turn
from gateway.demo.objects import finish, is_reasoning_model
from gateway.demo.service import UpstreamSettings
from gateway.demo.wire import JSON, ApiError, compact, new_id, server_error

_MAX_ROUNDS = 25


@dataclass(frozen=True)
class Job:
    """All that one run needs. `response` is filled in as the run proceeds; `faults` by name."""

    body: JSON
    given: Given
    response: JSON
    servers: Mapping[str, McpServer]
    script: Script
    settings: UpstreamSettings
    faults: Mapping[str, Directive]


@dataclass
class _Run:
    job: Job
    numbers: events.Numbering
    lists: dict[str, list[JSON]] = field(default_factory=dict)

    @property
    def context(self) -> list[JSON]:
        """What the model sees now: the input and what this response has produced so far."""
        return [*self.job.given.context, *self.job.response["output"]]

    def open(self, item: JSON) -> int:
        """Append an item to the output; its index."""
        output: list[JSON] = self.job.response["output"]
        output.append(item)
        return len(output) - 1

    def quirk(self, name: str) -> bool:
        return self.job.script.has_quirk(name, resume=self.job.given.is_resume)


async def events_of(job: Job) -> AsyncGenerator[JSON, None]:
    """The whole event sequence of one response, ending with its terminal event. Never raises."""
    options = job.body.get("stream_options") or {}
    numbers = events.Numbering(obfuscate=options.get("include_obfuscation") is not False)
    run = _Run(job, numbers)
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


def _lifecycle(run: _Run, name: str) -> JSON:
    # A copy: the response goes on changing, and an event says what was true when it was sent.
    snapshot = {**run.job.response, "output": list(run.job.response["output"])}
    return run.numbers.event(f"response.{name}", response=snapshot)


def _failure(run: _Run, problem: ApiError) -> list[JSON]:
    response = run.job.response
    response["status"] = "failed"
    code = problem.wire_code or "server_error"
    response["error"] = {"code": code, "message": problem.message}
    error = run.numbers.event("error", error=problem.error())
    return [error, _lifecycle(run, "failed")]


def _ending(run: _Run) -> list[JSON]:
    job, status, reason = run.job, "completed", None
    if "incomplete" in job.faults:
        status, reason = "incomplete", "max_output_tokens"
    elif "output-filter" in job.faults:
        status, reason = "incomplete", "content_filter"
    finish(job.response, job.given.context, status, int(job.settings.clock().timestamp()))
    if reason:
        job.response["incomplete_details"] = {"reason": reason}
    return [_lifecycle(run, status)]


async def _body(run: _Run) -> AsyncIterator[JSON]:
    async for event in _prelude(run):
        yield event
    async for event in _inventories(run):
        yield event
    async for event in _resumed(run):
        yield event
    for _ in range(_MAX_ROUNDS):
        turn = choose(_situation(run))
        async for event in _perform(run, turn):
            yield event
        if _stops(run, turn):
            return


async def _prelude(run: _Run) -> AsyncIterator[JSON]:
    """What the script wants to happen before any work."""
    if run.quirk("keepalive"):
        yield run.numbers.event("keepalive")
    if run.quirk("unknown-event"):
        yield run.numbers.event("response.from_the_future", note="unknown to every client")
    if slow := run.job.faults.get("slow"):
        await asyncio.sleep(slow.seconds)
    if "mid-stream-error" in run.job.faults:
        raise server_error()


async def _resumed(run: _Run) -> AsyncIterator[JSON]:
    """Make the calls that were just approved; a denied one leaves no item."""
    for answer in run.job.given.answers:
        if answer.approve:
            async for event in _approved(run, answer):
                yield event


async def _inventories(run: _Run) -> AsyncIterator[JSON]:
    """List every server that the context has no list of; a quirk lists them again."""
    run.lists = {} if run.quirk("relist") else dict(tool_lists(run.job.given.context))
    for label, server in run.job.servers.items():
        if label in run.lists:
            continue
        item: JSON = {"id": new_id("mcpl"), "type": "mcp_list_tools", "server_label": label}
        try:
            item["tools"] = await list_tools(server)
            run.lists[label] = item["tools"]
        except McpFailure as problem:
            error = problem.as_list_error(label)
            if run.job.settings.list_failures == "request":
                raise error from problem
            item |= {"tools": [], "error": error.message}
        for event in events.tool_list(run.numbers, run.open(item), item):
            yield event


async def _approved(run: _Run, answer: Answer) -> AsyncIterator[JSON]:
    request = answer.request
    call = (str(request["server_label"]), str(request["name"]))
    arguments = request["arguments"]
    if not isinstance(arguments, str):
        arguments = compact(arguments)
    async for event in _tool_call(run, call, arguments, request["id"]):
        yield event


async def _tool_call(
    run: _Run, call: tuple[str, str], arguments: str, approval: str | None
) -> AsyncIterator[JSON]:
    label, name = call
    item: JSON = {
        "id": new_id("mcp"),
        "type": "mcp_call",
        "status": "completed",
        "approval_request_id": approval,
        "arguments": arguments,
        "error": None,
        "name": name,
        "output": None,
        "server_label": label,
    }
    index = len(run.job.response["output"])
    for event in events.call_started(run.numbers, index, item):
        yield event
    try:
        item["output"] = await call_tool(run.job.servers[label], name, arguments)
    except McpFailure as problem:
        item |= {"status": "failed", "error": problem.error}
    run.open(item)
    for event in events.call_ended(run.numbers, index, item):
        yield event


def _situation(run: _Run) -> Situation:
    output = run.job.response["output"]
    return Situation(run.job.script, run.job.body, run.context, output, run.job.servers, run.lists)


async def _perform(run: _Run, turn: Turn) -> AsyncIterator[JSON]:
    after_call = any(i["type"] == "mcp_call" for i in run.job.response["output"])
    if is_reasoning_model(run.job.body) and (turn.calls or not after_call):
        thought = _reasoning(run.job.body)
        for event in events.item_at_once(run.numbers, run.open(thought), thought):
            yield event
    if turn.say:
        said = _message(turn.say)
        index = len(run.job.response["output"])
        for event in events.message(run.numbers, index, said):
            yield event
        run.open(said)
    for call in turn.calls:
        async for event in _make(run, call):
            yield event


async def _make(run: _Run, call: Call) -> AsyncIterator[JSON]:
    """One call of the model: a function call, an approval request, or a call at once."""
    resolved = resolve(_situation(run), call)
    if resolved is None:
        item = _function_call(call)
        for event in events.function_call(run.numbers, run.open(item), item):
            yield event
        return
    server, tool = resolved
    if not server.needs_approval(tool):
        target = (server.label, str(tool["name"]))
        async for event in _tool_call(run, target, call.arguments, None):
            yield event
        return
    request: JSON = {
        "id": new_id("mcpr"),
        "type": "mcp_approval_request",
        "arguments": call.arguments,
        "name": tool["name"],
        "server_label": server.label,
    }
    if run.quirk("object-arguments"):
        request["arguments"] = events.parse(call.arguments)
    for event in events.item_at_once(run.numbers, run.open(request), request):
        yield event


def _stops(run: _Run, turn: Turn) -> bool:
    """The response ends with an answer, or when someone else has to act."""
    waiting = ("mcp_approval_request", "function_call")
    return not turn.calls or any(i["type"] in waiting for i in run.job.response["output"])


def _reasoning(body: JSON) -> JSON:
    item: JSON = {"id": new_id("rs"), "type": "reasoning", "summary": []}
    if "reasoning.encrypted_content" in (body.get("include") or []):
        item["encrypted_content"] = new_id("gAAAAA")
    return item


def _message(text: str) -> JSON:
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    return {
        "id": new_id("msg"),
        "type": "message",
        "status": "completed",
        "content": [part],
        "role": "assistant",
    }


def _function_call(call: Call) -> JSON:
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "arguments": call.arguments,
        "call_id": new_id("call")[:29],
        "name": call.tool,
    }
