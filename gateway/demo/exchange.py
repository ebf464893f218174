"""From a request's body to a job that can run: everything the service refuses before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gateway.demo.computer import check_acknowledged, check_computer_tool
from gateway.demo.context import Given, resent, understand
from gateway.demo.conversations import conversation_of, without_echoes
from gateway.demo.images import check_image_tool
from gateway.demo.job import Job
from gateway.demo.mcp_tools import servers
from gateway.demo.model import Directive, Script, read
from gateway.demo.objects import check_include, new_response
from gateway.demo.parts import check_parts, saw
from gateway.demo.service import UpstreamSettings
from gateway.demo.store import Conversation, Memory
from gateway.demo.turns import since_user, user_text
from gateway.demo.wire import (
    JSON,
    UNKNOWN_NUMBERS,
    bad_request,
    content_filtered,
    new_id,
    previous_not_found,
    rate_limited,
    server_error,
)


def begin(
    body: JSON, headers: Mapping[str, str], memory: Memory, settings: UpstreamSettings
) -> Job:
    """Check a body and prepare its run. ApiError with the service's texts when it is refused."""
    _check_parameters(body)
    known = servers(body.get("tools") or [])
    check_image_tool(body, headers, memory.files)
    check_computer_tool(body)
    conversation = conversation_of(body, memory)
    given = _given(body, conversation, memory, settings)
    script = _script(given.context)
    faults = _faults(script, given, memory, body.get("previous_response_id"))
    if not settings.replayable_approvals:
        _claim(given, memory)
    response = _response(body, script, given, settings)
    if conversation is not None:
        response["conversation"] = {"id": conversation.described["id"]}
    return Job(body, given, response, known, script, settings, faults, conversation)


def _response(body: JSON, script: Script, given: Given, settings: UpstreamSettings) -> JSON:
    """The object to be filled in, with the oddities that the script wants in it."""
    response = new_response(body, new_id("resp"), int(settings.clock().timestamp()))
    if script.has_quirk("echo-headers", resume=given.is_resume):
        response["tools"] = [dict(tool) for tool in body.get("tools") or []]
    if script.has_quirk("big-numbers", resume=given.is_resume):
        response = {"x_unknown": UNKNOWN_NUMBERS, **dict(reversed(response.items()))}
    return response


def _given(
    body: JSON, conversation: Conversation | None, memory: Memory, settings: UpstreamSettings
) -> Given:
    """The whole context: what was before, from wherever it is kept, and what is new."""
    earlier: list[JSON] = []
    if conversation is not None:
        earlier, body = conversation.items, without_echoes(body, conversation, settings)
    elif previous := body.get("previous_response_id"):
        earlier = memory.previous(previous, settings.clock())
    given = understand(body, earlier, memory.find, servers(body.get("tools") or []))
    memory.pairs.check(given.context, resent(given, body), approvals=settings.strict_pairs)
    check_parts(given.new, memory.files)
    check_acknowledged(given.context)
    return given


def _script(context: Sequence[JSON]) -> Script:
    """What the last user message asks for, and what it shows."""
    message, _ = since_user(context)
    return replace(read(user_text(message)), saw=saw(message))


def _check_parameters(body: JSON) -> None:
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise bad_request(
            "Missing required parameter: 'model'.",
            param="model",
            code="missing_required_parameter",
        )
    if body.get("previous_response_id") and body.get("conversation"):
        raise bad_request(
            "Mutually exclusive parameters: 'previous_response_id', 'conversation'. Ensure you "
            "are only providing one of: 'previous_response_id' or 'conversation'.",
            code="mutually_exclusive_parameters",
        )
    check_include(body.get("include") or [])
    if body.get("background") and body.get("store") is False:
        raise bad_request("Background mode requires 'store' to be true.", param="background")
    if not any(body.get(name) for name in ("input", "previous_response_id", "conversation")):
        raise bad_request(
            "One of \"input\" or \"previous_response_id\" or 'prompt' or 'conversation' must be "
            "provided.",
            code="missing_required_parameter",
        )


def _faults(script: Script, given: Given, memory: Memory, previous: object) -> dict[str, Directive]:
    """The faults due for this request; those that refuse it are raised here, before any work."""
    key = f"{script.text} {previous}"
    due = [f for f in script.faults if f.on_resume == given.is_resume and memory.due(f, key)]
    for fault in due:
        _refuse(fault, previous)
    return {fault.name: fault for fault in due}


def raise_refusals(script: Script, memory: Memory) -> None:
    """The refusals that a script asks for, where there is nothing to resume."""
    for fault in script.faults:
        if not fault.on_resume and memory.due(fault, script.text):
            _refuse(fault, None)


def _refuse(fault: Directive, previous: object) -> None:
    match fault.name:
        case "rate-limit":
            raise rate_limited()
        case "server-error":
            raise server_error()
        case "content-filter":
            raise content_filtered()
        case "previous-not-found":
            raise previous_not_found(str(previous))
        case _:
            return


def _claim(given: Given, memory: Memory) -> None:
    for answer in given.answers:
        request_id = answer.request["id"]
        if not memory.claim(request_id):
            raise bad_request(
                f"Approval request '{request_id}' already has an approval response.",
                param="input",
            )
