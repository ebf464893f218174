"""The events of each kind of output item, in the order the real service sends them.

Pure: every function takes the finished item and yields its events; `Numbering` gives the sequence
numbers and the padding of deltas. The one step with a side effect between its events, a tool call,
is split in two (`call_started`, `call_ended`).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

from gateway.demo.wire import JSON


class Numbering:
    """Numbers the events of one response from 0, and pads its deltas."""

    def __init__(self) -> None:
        self._next = 0

    def event(self, kind: str, **members: Any) -> JSON:
        event = {"type": kind, "sequence_number": self._next, **members}
        self._next += 1
        return event

    def delta(self, kind: str, delta: str, **members: Any) -> JSON:
        padding = secrets.token_urlsafe(16)[: 16 - len(delta) % 16]
        return self.event(kind, **members, delta=delta, obfuscation=padding)


def item_at_once(numbers: Numbering, index: int, item: JSON) -> Iterator[JSON]:
    """Approval requests and reasoning: `added` carries what `done` carries."""
    yield numbers.event("response.output_item.added", output_index=index, item=item)
    yield numbers.event("response.output_item.done", output_index=index, item=item)


def tool_list(numbers: Numbering, index: int, item: JSON) -> Iterator[JSON]:
    """`added` with no tools, then the verdict, then the whole list."""
    where = {"item_id": item["id"], "output_index": index}
    empty = {name: value for name, value in item.items() if name != "error"} | {"tools": []}
    verdict = "failed" if item.get("error") else "completed"
    yield numbers.event("response.output_item.added", output_index=index, item=empty)
    yield numbers.event("response.mcp_list_tools.in_progress", **where)
    yield numbers.event(f"response.mcp_list_tools.{verdict}", **where)
    yield numbers.event("response.output_item.done", output_index=index, item=item)


def call_started(numbers: Numbering, index: int, item: JSON) -> Iterator[JSON]:
    """Everything before the tool runs; the second `in_progress` is the real service's habit."""
    where = {"item_id": item["id"], "output_index": index}
    fresh = item | {"status": "in_progress", "arguments": "", "output": None, "error": None}
    yield numbers.event("response.output_item.added", output_index=index, item=fresh)
    yield numbers.event("response.mcp_call.in_progress", **where)
    yield numbers.delta("response.mcp_call_arguments.delta", item["arguments"], **where)
    yield numbers.event("response.mcp_call.in_progress", **where)
    yield numbers.event("response.mcp_call_arguments.done", **where, arguments=item["arguments"])


def call_ended(numbers: Numbering, index: int, item: JSON) -> Iterator[JSON]:
    """The tool has run: `completed` or `failed`, then the item with its output or error."""
    where = {"item_id": item["id"], "output_index": index}
    verdict = "failed" if item["error"] else "completed"
    yield numbers.event(f"response.mcp_call.{verdict}", **where)
    yield numbers.event("response.output_item.done", output_index=index, item=item)


def function_call(numbers: Numbering, index: int, item: JSON) -> Iterator[JSON]:
    where = {"item_id": item["id"], "output_index": index}
    fresh = item | {"status": "in_progress", "arguments": ""}
    yield numbers.event("response.output_item.added", output_index=index, item=fresh)
    for part in pieces(item["arguments"]):
        yield numbers.delta("response.function_call_arguments.delta", part, **where)
    yield numbers.event(
        "response.function_call_arguments.done", **where, arguments=item["arguments"]
    )
    yield numbers.event("response.output_item.done", output_index=index, item=item)


def image(numbers: Numbering, index: int, item: JSON, partial: int) -> Iterator[JSON]:
    """A picture on its way; each partial image is the picture itself, which is small enough."""
    where = {"item_id": item["id"], "output_index": index}
    look = {name: item[name] for name in ("background", "output_format", "quality", "size")}
    fresh = {"id": item["id"], "type": item["type"], "status": "in_progress", "result": None}
    yield numbers.event("response.output_item.added", output_index=index, item=fresh)
    yield numbers.event("response.image_generation_call.in_progress", **where)
    yield numbers.event("response.image_generation_call.generating", **where)
    for number in range(partial):
        yield numbers.event(
            "response.image_generation_call.partial_image",
            **where,
            **look,
            partial_image_b64=item["result"],
            partial_image_index=number,
        )
    yield numbers.event("response.image_generation_call.completed", **where)
    yield numbers.event("response.output_item.done", output_index=index, item=item)


def message(numbers: Numbering, index: int, item: JSON) -> Iterator[JSON]:
    """The text in one delta a word."""
    text = item["content"][0]["text"]
    where = {"item_id": item["id"], "output_index": index, "content_index": 0}
    part = {"type": "output_text", "annotations": [], "logprobs": []}
    fresh = item | {"status": "in_progress", "content": []}
    yield numbers.event("response.output_item.added", output_index=index, item=fresh)
    yield numbers.event("response.content_part.added", **where, part=part | {"text": ""})
    for piece in pieces(text):
        yield numbers.delta("response.output_text.delta", piece, **where, logprobs=[])
    yield numbers.event("response.output_text.done", **where, text=text, logprobs=[])
    yield numbers.event("response.content_part.done", **where, part=part | {"text": text})
    yield numbers.event("response.output_item.done", output_index=index, item=item)


def pieces(text: str) -> list[str]:
    """The text cut as a model would stream it; never empty."""
    return re.findall(r"\s*\S+|\s+$", text) or [text]


def parse(arguments: str) -> Any:
    """The arguments as an object, which some versions of the service send instead of text."""
    return json.loads(arguments)
