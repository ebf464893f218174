"""Upstream rounds for the exchange core: items, the frames Azure sends for them, the final object.

A `Round` is what one upstream response holds; `frames` tells it as a stream in the recorded
order, `plain` as one object. Both say the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from gateway.exchange.messages import FrameSeen

Json = dict[str, Any]
SERVER = "https://mcp.crm.example/mcp"


# --- items ----------------------------------------------------------------------------------


def listing(item_id: str = "mcpl_1", label: str = "crm", **more: Any) -> Json:
    tools = [{"name": "update_contact", "input_schema": {"type": "object"}, "annotations": {}}]
    return {"id": item_id, "type": "mcp_list_tools", "server_label": label, "tools": tools, **more}


def reasoning(item_id: str = "rs_1", **more: Any) -> Json:
    return {"id": item_id, "type": "reasoning", "summary": [], **more}


def request(
    item_id: str = "mcpr_1", arguments: Any = '{"id":42}', label: str = "crm", **more: Any
) -> Json:
    return {
        "id": item_id,
        "type": "mcp_approval_request",
        "server_label": label,
        "name": "update_contact",
        "arguments": arguments,
        **more,
    }


def call(
    item_id: str = "mcp_1",
    approval: str | None = "mcpr_1",
    arguments: Any = '{"id":42}',
    label: str = "crm",
    **more: Any,
) -> Json:
    return {
        "id": item_id,
        "type": "mcp_call",
        "status": "completed",
        "server_label": label,
        "name": "update_contact",
        "arguments": arguments,
        "approval_request_id": approval,
        "output": "done",
        "error": None,
        **more,
    }


def message(item_id: str = "msg_1", text: str = "All done.") -> Json:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


def function_call(item_id: str = "fc_1", call_id: str = "call_1") -> Json:
    return {
        "id": item_id,
        "type": "function_call",
        "status": "completed",
        "call_id": call_id,
        "name": "look_up",
        "arguments": '{"q":1}',
    }


# --- rounds ---------------------------------------------------------------------------------


def usage(read: int = 10, written: int = 5) -> Json:
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 1},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": read + written,
    }


@dataclass(frozen=True)
class Round:
    """What one upstream response holds. `echo` overrides members of the response object."""

    id: str
    items: Sequence[Json]
    status: str = "completed"
    echo: Mapping[str, Any] = field(default_factory=dict)

    def response(self, status: str, output: Sequence[Json]) -> Json:
        """The response object at some time; Azure's own numbers, ids and secrets in it."""
        over = status == self.status
        return copy.deepcopy(
            {
                "id": self.id,
                "object": "response",
                "created_at": 1_700_000_000 + len(self.id),
                "status": status,
                "completed_at": 1_700_000_009 if over else None,
                "error": {"code": "server_error", "message": "no"} if status == "failed" else None,
                "incomplete_details": (
                    {"reason": "max_output_tokens"} if status == "incomplete" else None
                ),
                "model": "gpt-5-deploy",
                "output": list(output),
                "parallel_tool_calls": True,
                "previous_response_id": None,
                "tool_choice": "auto",
                "tools": [
                    {
                        "type": "mcp",
                        "server_label": "crm",
                        "server_url": SERVER,
                        "headers": {"Authorization": "Bearer s3cret"},
                        "authorization": "s3cret",
                        "allowed_tools": None,
                        "server_description": "ours",
                        "require_approval": "always",
                    }
                ],
                "usage": usage() if over else None,
                "content_filters": [{"blocked": False, "round": self.id}] if over else None,
                **self.echo,
            }
        )

    def plain(self) -> FrameSeen:
        """The round as one answer that was not streamed."""
        return FrameSeen(
            f"response.{self.status}", {"response": self.response(self.status, self.items)}
        )

    def frames(self, random: Random | None = None) -> list[FrameSeen]:
        """The round as a stream; `random` mixes the frames of different items."""
        bodies = [list(_item_frames(index, item)) for index, item in enumerate(self.items)]
        numbered = [
            _frame("response.created", response=self.response("in_progress", [])),
            _frame("response.in_progress", response=self.response("in_progress", [])),
            *_mixed(bodies, random),
            _frame(f"response.{self.status}", response=self.response(self.status, self.items)),
        ]
        return [
            FrameSeen(frame.type, {**frame.data, "sequence_number": number})
            for number, frame in enumerate(copy.deepcopy(numbered))
        ]


def _mixed(bodies: list[list[FrameSeen]], random: Random | None) -> list[FrameSeen]:
    if random is None:
        return [frame for frames in bodies for frame in frames]
    # Items are added in the order of their indexes; afterwards their frames may come mixed.
    waiting, running, mixed = [iter(frames) for frames in bodies], [], []
    while waiting or running:
        if waiting and (not running or random.random() < 0.5):
            body = waiting.pop(0)
            running.append(body)
        else:
            body = random.choice(running)
        frame = next(body, None)
        if frame is None:
            running.remove(body)
        else:
            mixed.append(frame)
    return mixed


def _frame(kind: str, **data: Any) -> FrameSeen:
    return FrameSeen(kind, {"type": kind, "sequence_number": 0, **data})


def _item_frames(index: int, item: Json) -> Iterator[FrameSeen]:
    def frame(kind: str, **data: Any) -> FrameSeen:
        return _frame(kind, output_index=index, **data)

    def of(kind: str, **data: Any) -> FrameSeen:
        return frame(kind, item_id=item["id"], **data)

    begun, between = dict(item), []
    match item["type"]:
        case "mcp_list_tools":
            begun["tools"] = []
            between = [
                of("response.mcp_list_tools.in_progress"),
                of("response.mcp_list_tools.completed"),
            ]
        case "mcp_call":
            begun |= {"status": "in_progress", "arguments": "", "output": None, "error": None}
            ended = "failed" if item["status"] == "failed" else "completed"
            between = [
                of("response.mcp_call.in_progress"),
                of("response.mcp_call_arguments.delta", delta=item["arguments"], obfuscation="x"),
                of("response.mcp_call.in_progress"),
                of("response.mcp_call_arguments.done", arguments=item["arguments"]),
                of(f"response.mcp_call.{ended}"),
            ]
        case "message":
            begun |= {"status": "in_progress", "content": []}
            between = list(_text_frames(item, of))
        case "function_call":
            begun |= {"status": "in_progress", "arguments": ""}
            between = [
                of("response.function_call_arguments.delta", delta=item["arguments"]),
                of("response.function_call_arguments.done", arguments=item["arguments"]),
            ]
    yield frame("response.output_item.added", item=begun)
    yield from between
    yield frame("response.output_item.done", item=item)


def _text_frames(item: Json, of: Any) -> Iterator[FrameSeen]:
    for index, part in enumerate(item["content"]):
        text = part["text"]
        yield of("response.content_part.added", content_index=index, part={**part, "text": ""})
        half = len(text) // 2
        for piece in (text[:half], text[half:]):
            yield of("response.output_text.delta", content_index=index, delta=piece, logprobs=[])
        yield of("response.output_text.done", content_index=index, text=text, logprobs=[])
        yield of("response.content_part.done", content_index=index, part=part)
