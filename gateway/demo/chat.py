"""/chat/completions: the same scripted model behind the older API, with functions only.

Messages are read as the items they would be in the Responses API; remote MCP servers do not exist
here, and a tool of that type is refused as the real service refuses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gateway.demo.events import pieces
from gateway.demo.exchange import raise_refusals
from gateway.demo.items import new_call_id
from gateway.demo.model import Call, Script, read
from gateway.demo.objects import content_filter_results
from gateway.demo.parts import saw
from gateway.demo.service import Endpoint, Service
from gateway.demo.turns import Turn, next_turn, since_user, user_text
from gateway.demo.wire import JSON, SSE, bad_request, compact, new_id, parse_object

_TOOL_TYPES = ("function", "custom")
_PARTS = {"text": "input_text", "image_url": "input_image"}


@dataclass(frozen=True)
class _Completion:
    """One answer, before it is written plain or as a stream."""

    head: JSON
    turn: Turn
    usage: JSON

    @property
    def tool_calls(self) -> list[JSON]:
        return [
            {
                "id": new_call_id(),
                "type": "function",
                "function": {"name": call.tool, "arguments": call.arguments},
            }
            for call in self.turn.calls
        ]

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.turn.calls else "stop"


async def _complete(service: Service, request: Request) -> Response:
    body = parse_object(await request.body())
    _check(body)
    items = list(_items(body["messages"]))
    _check_tool_messages(items)
    message, after = since_user(items)
    script = replace(read(user_text(message)), saw=saw(message))
    raise_refusals(script, service.memory)
    head = {
        "id": new_id("chatcmpl").replace("_", "-"),
        "created": int(service.settings.clock().timestamp()),
        "model": body["model"],
        "system_fingerprint": "fp_demo",
    }
    turn = _turn(script, after, body)
    completion = _Completion(head, turn, _usage(body, turn))
    if body.get("stream"):
        chunks = _streamed(completion, body, service.settings.delta_delay)
        return StreamingResponse(chunks, headers=SSE)
    return JSONResponse(_plain(completion))


def _check(body: JSON) -> None:
    for name, kind in (("model", str), ("messages", list)):
        if not isinstance(body.get(name), kind) or not body[name]:
            raise bad_request(
                f"Missing required parameter: '{name}'.",
                param=name,
                code="missing_required_parameter",
            )
    for index, tool in enumerate(body.get("tools") or []):
        if tool.get("type") not in _TOOL_TYPES:
            raise bad_request(
                f"Invalid value: '{tool.get('type')}'. Supported values are: 'function' and "
                "'custom'.",
                param=f"tools[{index}].type",
                code="invalid_value",
            )


def _items(messages: Sequence[JSON]) -> Iterator[JSON]:
    """Chat messages as items of the Responses API."""
    for message in messages:
        if message.get("role") == "tool":
            call_id, output = message.get("tool_call_id"), message.get("content")
            yield {"type": "function_call_output", "call_id": call_id, "output": output}
            continue
        yield {"type": "message", "role": message.get("role"), "content": _content(message)}
        for call in message.get("tool_calls") or []:
            yield {"type": "function_call", "call_id": call.get("id"), **call.get("function", {})}


def _content(message: JSON) -> list[JSON]:
    content = message.get("content") or []
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    return [{**part, "type": _PARTS.get(str(part.get("type")), "other")} for part in content]


def _check_tool_messages(items: Sequence[JSON]) -> None:
    calls = [i["call_id"] for i in items if i["type"] == "function_call"]
    outputs = {i["call_id"] for i in items if i["type"] == "function_call_output"}
    if missing := [call for call in calls if call not in outputs]:
        raise bad_request(
            "An assistant message with 'tool_calls' must be followed by tool messages responding "
            "to each 'tool_call_id'. The following tool_call_ids did not have response messages: "
            + ", ".join(missing),
            param="messages",
        )
    if outputs - set(calls):
        raise bad_request(
            "Invalid parameter: messages with role 'tool' must be a response to a preceeding "
            "message with 'tool_calls'.",
            param="messages",
        )


def _turn(script: Script, after: Sequence[JSON], body: JSON) -> Turn:
    """The model's next step with the functions it has; `tool_choice` is honoured."""
    names = [str(t["function"]["name"]) for t in body.get("tools") or [] if "function" in t]
    forced: tuple[Call, ...] = ()
    match body.get("tool_choice"):
        case "none":
            names = []
        case "required":
            forced = tuple(Call(name, "{}", "function") for name in names[:1])
        case {"function": {"name": str(name)}}:
            forced = (Call(name, "{}", "function"),)
        case _:
            pass
    rounds = (
        replace(r, calls=tuple(c for c in r.calls if c.kind == "function" and c.tool in names))
        for r in script.rounds
    )
    turn = next_turn(replace(script, rounds=tuple(r for r in rounds if r.calls)), after)
    has_called = any(item["type"] == "function_call" for item in after)
    return turn if turn.calls or has_called or not forced else Turn(None, forced)


def _usage(body: JSON, turn: Turn) -> JSON:
    read_, written = len(compact(body["messages"])) // 4 + 8, len(str(turn)) // 8 + 1
    return {
        "prompt_tokens": read_,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
        "completion_tokens": written,
        "completion_tokens_details": {"audio_tokens": 0, "reasoning_tokens": 0},
        "total_tokens": read_ + written,
    }


def _prompt_filters() -> list[JSON]:
    return [{"prompt_index": 0, "content_filter_results": content_filter_results()}]


def _plain(completion: _Completion) -> JSON:
    message: JSON = {"role": "assistant", "content": completion.turn.say, "refusal": None}
    if completion.turn.calls:
        message["tool_calls"] = completion.tool_calls
    choice = {
        "index": 0,
        "finish_reason": completion.finish_reason,
        "logprobs": None,
        "message": message,
        "content_filter_results": content_filter_results() if completion.turn.say else {},
    }
    return {
        **completion.head,
        "object": "chat.completion",
        "choices": [choice],
        "prompt_filter_results": _prompt_filters(),
        "usage": completion.usage,
    }


async def _streamed(completion: _Completion, body: JSON, delay: float) -> AsyncIterator[bytes]:
    """Chunks without event lines; the filter's verdict first, `[DONE]` last, as on Azure."""
    wants_usage = (body.get("stream_options") or {}).get("include_usage") is True
    for chunk in _chunks(completion):
        whole = {**completion.head, "object": "chat.completion.chunk", **chunk}
        if wants_usage:
            whole.setdefault("usage", None)
        yield _data(compact(whole))
        await asyncio.sleep(delay)
    if wants_usage:
        last = {"object": "chat.completion.chunk", "choices": [], "usage": completion.usage}
        yield _data(compact({**completion.head, **last}))
    yield _data("[DONE]")


def _data(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


def _chunks(completion: _Completion) -> Iterator[JSON]:
    yield {"id": "", "model": "", "choices": [], "prompt_filter_results": _prompt_filters()}
    yield _delta({"role": "assistant", "content": "", "refusal": None})
    for piece in pieces(completion.turn.say) if completion.turn.say else []:
        yield _delta({"content": piece})
    for index, call in enumerate(completion.tool_calls):
        named = {"name": call["function"]["name"], "arguments": ""}
        yield _delta({"tool_calls": [{"index": index, **call, "function": named}]})
        for piece in pieces(call["function"]["arguments"]):
            part = {"index": index, "function": {"arguments": piece}}
            yield _delta({"tool_calls": [part]})
    yield _delta({}, completion.finish_reason)


def _delta(delta: JSON, finish_reason: str | None = None) -> JSON:
    choice = {
        "index": 0,
        "delta": delta,
        "finish_reason": finish_reason,
        "logprobs": None,
        "content_filter_results": {},
    }
    return {"choices": [choice]}


ENDPOINTS: tuple[tuple[str, str, Endpoint], ...] = (("POST", "/chat/completions", _complete),)
