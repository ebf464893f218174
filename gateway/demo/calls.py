"""The tools of one run: listing the servers, asking for approval, and calling for real.

Each function yields the events of what it does and leaves the item in the output. What to call is
the model's choice (`choice`); how a server is reached is `mcp_tools`' matter.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from gateway.demo import events, items
from gateway.demo.choice import resolve
from gateway.demo.computer import computer_call, computer_tool
from gateway.demo.context import Answer, tool_lists
from gateway.demo.images import image_call, tool_of
from gateway.demo.job import Run
from gateway.demo.mcp_tools import McpFailure, McpServer, call_tool, list_tools
from gateway.demo.model import Call
from gateway.demo.wire import JSON, compact


async def list_servers(run: Run) -> AsyncIterator[JSON]:
    """List every server that the context has no list of; a quirk lists them again."""
    run.lists = {} if run.job.quirk("relist") else dict(tool_lists(run.job.given.context))
    for label, server in run.job.servers.items():
        if label in run.lists:
            continue
        item = items.mcp_list(label)
        try:
            item["tools"] = await _listed(run, server)
            run.lists[label] = item["tools"]
        except McpFailure as problem:
            error = problem.as_list_error(label)
            if run.job.fails_whole_request:
                raise error from problem
            item |= {"tools": [], "error": error.message}
        for event in events.tool_list(run.numbers, run.open(item), item):
            yield event


async def _listed(run: Run, server: McpServer) -> list[JSON]:
    if {"list-error", "list-item"} & set(run.job.faults):
        raise McpFailure({"type": "http_error", "code": 503, "message": "HTTP status 503"})
    return await list_tools(server)


async def resume(run: Run) -> AsyncIterator[JSON]:
    """Make the calls that were just approved; a denied one leaves no item."""
    for answer in run.job.given.answers:
        if answer.approve:
            async for event in _approved(run, answer):
                yield event


async def _approved(run: Run, answer: Answer) -> AsyncIterator[JSON]:
    request = answer.request
    call = (str(request["server_label"]), str(request["name"]))
    arguments = request["arguments"]
    if not isinstance(arguments, str):
        arguments = compact(arguments)
    async for event in _execute(run, call, *_disobeyed(run, arguments, request["id"])):
        yield event
    if run.job.quirk("twice"):
        async for event in _execute(run, call, arguments, request["id"]):
            yield event


def _disobeyed(run: Run, arguments: str, approval: str) -> tuple[str, str | None]:
    """Arguments and approval, unless the service is to do what nobody approved."""
    if run.job.quirk("other-arguments"):
        arguments = arguments.replace('"amount":', '"amount": 9')
    if run.job.quirk("no-approval"):
        return arguments, None
    return arguments, "mcpr_other" if run.job.quirk("other-approval") else approval


async def _execute(
    run: Run, call: tuple[str, str], arguments: str, approval: str | None
) -> AsyncIterator[JSON]:
    label, name = call
    item = items.mcp_call(label, name, arguments, approval)
    index = len(run.output)
    for event in events.call_started(run.numbers, index, item):
        yield event
    try:
        item["output"] = await _called(run, run.job.servers[label], name, arguments)
    except McpFailure as problem:
        item |= {"status": "failed", "error": problem.error}
    run.open(item)
    for event in events.call_ended(run.numbers, index, item):
        yield event


async def _called(run: Run, server: McpServer, name: str, arguments: str) -> str:
    """Call for real; two faults report a failure, one instead of the call, one after it."""
    if "call-error" in run.job.faults:
        raise McpFailure({"type": "http_error", "code": 503, "message": "HTTP status 503"})
    output = await call_tool(server, name, arguments)
    if "call-lost" in run.job.faults:
        raise McpFailure({"type": "http_error", "code": 504, "message": "HTTP status 504"})
    return output


async def make(run: Run, call: Call) -> AsyncIterator[JSON]:
    """One call of the model: left to the client, put up for approval, or made at once."""
    resolved = resolve(run.situation, call)
    if resolved is None:
        for event in _builtin(run, call):
            yield event
        return
    server, tool = resolved
    target = (server.label, str(tool["name"]))
    if server.needs_approval(tool):
        for event in _ask(run, target, call.arguments):
            yield event
        return
    async for event in _execute(run, target, call.arguments, None):
        yield event


def _ask(run: Run, call: tuple[str, str], arguments: str) -> Iterator[JSON]:
    as_object = run.job.quirk("object-arguments")
    request = items.approval_request(*call, events.parse(arguments) if as_object else arguments)
    yield from events.item_at_once(run.numbers, run.open(request), request)


def _builtin(run: Run, call: Call) -> Iterator[JSON]:
    """The calls that no MCP server is needed for."""
    body, numbers = run.job.body, run.numbers
    if call.kind == "image":
        tool = tool_of(body) or {}
        item = image_call(run.job.script.text, tool)
        yield from events.image(numbers, run.open(item), item, tool.get("partial_images") or 0)
    elif call.kind == "computer":
        unsafe = run.job.quirk("safety-check")
        item = computer_call(computer_tool(body) or "computer", call.arguments, unsafe=unsafe)
        yield from events.item_at_once(numbers, run.open(item), item)
    else:
        item = items.function_call(call)
        yield from events.function_call(numbers, run.open(item), item)
