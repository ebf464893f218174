"""The output items that the model and its tools produce, as the real service shapes them. Pure."""

from __future__ import annotations

from gateway.demo.model import Call
from gateway.demo.wire import JSON, new_id


def reasoning(*, encrypted: bool) -> JSON:
    """A thought; its content travels only when `include` asked for it."""
    item: JSON = {"id": new_id("rs"), "type": "reasoning", "summary": []}
    if encrypted:
        item["encrypted_content"] = new_id("gAAAAA")
    return item


def message(text: str) -> JSON:
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    return {
        "id": new_id("msg"),
        "type": "message",
        "status": "completed",
        "content": [part],
        "role": "assistant",
    }


def function_call(call: Call) -> JSON:
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "arguments": call.arguments,
        "call_id": new_call_id(),
        "name": call.tool,
    }


def new_call_id() -> str:
    return new_id("call")[:29]


def approval_request(label: str, name: str, arguments: object) -> JSON:
    return {
        "id": new_id("mcpr"),
        "type": "mcp_approval_request",
        "arguments": arguments,
        "name": name,
        "server_label": label,
    }


def mcp_call(label: str, name: str, arguments: str, approval: str | None) -> JSON:
    """A call that went well but has no output yet."""
    return {
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


def from_the_future() -> JSON:
    """An item of a type that no client knows."""
    return {
        "id": new_id("ftf"),
        "type": "item_from_the_future",
        "status": "completed",
        "payload": {"note": "unknown to every client", "levels": [1, [2, {}]]},
    }


def mcp_list(label: str) -> JSON:
    """An inventory without its tools; `error` is absent unless the listing failed."""
    return {"id": new_id("mcpl"), "type": "mcp_list_tools", "server_label": label}
