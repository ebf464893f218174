"""The response object and its parts: every member the real service sends, in its order.

Pure. It never decides what is in `output`; that is the run's work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.demo import images
from gateway.demo.wire import JSON, bad_request, compact

_INCLUDABLE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
)
_SAFE = {"filtered": False, "severity": "safe"}


def check_include(wanted: Iterable[object]) -> None:
    """ApiError(400) for something that cannot be included."""
    for name in wanted:
        if name not in _INCLUDABLE:
            listed = ", ".join(f"'{known}'" for known in _INCLUDABLE)
            raise bad_request(
                f"Invalid value: '{name}'. Supported values are: {listed}.",
                param="include",
                code="invalid_value",
            )


def is_reasoning_model(body: JSON) -> bool:
    """Deployment names are free; those that name a reasoning model get `reasoning` items."""
    model = str(body.get("model", ""))
    return bool(body.get("reasoning")) or "gpt-5" in model or model[:2] in ("o1", "o3", "o4")


def new_response(body: JSON, response_id: str, created_at: int) -> JSON:
    """The object as `response.created` shows it: no output, no usage, no filters yet."""
    reasoning = body.get("reasoning") or {}
    text = body.get("text") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "queued" if body.get("background") else "in_progress",
        "background": bool(body.get("background")),
        "completed_at": None,
        "content_filters": None,
        "error": None,
        "frequency_penalty": 0.0,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "model": body["model"],
        "output": [],
        "parallel_tool_calls": _or_default(body, "parallel_tool_calls", True),
        "presence_penalty": 0.0,
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "prompt_cache_retention": body.get("prompt_cache_retention"),
        "reasoning": {"effort": None, "summary": None, **reasoning},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "auto",
        "store": body.get("store") is not False,
        "temperature": _or_default(body, "temperature", 1.0),
        "text": {"format": {"type": "text"}, "verbosity": "medium", **text},
        "tool_choice": _or_default(body, "tool_choice", "auto"),
        "tools": [echo_tool(tool) for tool in body.get("tools") or []],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": _or_default(body, "top_p", 1.0),
        "truncation": _or_default(body, "truncation", "disabled"),
        "usage": None,
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def _or_default(body: JSON, name: str, default: Any) -> Any:
    value = body.get(name)
    return default if value is None else value


def echo_tool(tool: JSON) -> JSON:
    """A tool as the response shows it: no credential comes back, whatever was sent."""
    match tool.get("type"):
        case "mcp":
            return {
                "type": "mcp",
                "allowed_tools": tool.get("allowed_tools"),
                "headers": None,
                "require_approval": tool.get("require_approval") or "always",
                "server_description": tool.get("server_description"),
                "server_label": tool["server_label"],
                "server_url": tool.get("server_url"),
            }
        case "image_generation":
            return images.echo(tool)
        case "function":
            return {
                "type": "function",
                "description": tool.get("description"),
                "name": tool.get("name"),
                "parameters": tool.get("parameters"),
                "strict": _or_default(tool, "strict", True),
            }
        case _:
            return dict(tool)


def finish(response: JSON, context: Sequence[JSON], status: str, now: int) -> None:
    """Fill what is only known at the end; `response["output"]` holds the done items already."""
    response["status"] = status
    response["completed_at"] = now if status == "completed" else None
    response["content_filters"] = [_filter("prompt"), _filter("completion")]
    response["service_tier"] = "default"
    response["usage"] = usage(context, response["output"])


def usage(context: Sequence[JSON], output: Sequence[JSON]) -> JSON:
    """Token counts, roughly four characters a token; exact enough to be added up in tests."""
    read = sum(_tokens(item) for item in context) + 8
    written = sum(_tokens(item) for item in output)
    thought = 64 * sum(1 for item in output if item.get("type") == "reasoning")
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written + thought,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": read + written + thought,
    }


def _tokens(item: JSON) -> int:
    return max(1, len(compact(item)) // 4)


def _filter(source: str) -> JSON:
    return {
        "blocked": False,
        "source_type": source,
        "content_filter_raw": [],
        "content_filter_results": content_filter_results(),
        "content_filter_offsets": {"start_offset": 0, "end_offset": 0, "check_offset": 0},
    }


def content_filter_results() -> JSON:
    """The verdict of the content filter on something harmless."""
    return {name: dict(_SAFE) for name in ("hate", "sexual", "violence", "self_harm")}
