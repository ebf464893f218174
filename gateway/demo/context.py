"""What a request's input means: items given ids, references resolved, and what is refused.

Pure. It is handed the items of the chain and looks others up through a function; it stores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from gateway.demo.wire import JSON, ApiError, bad_request, new_id

_PREFIX = {
    "message": "msg",
    "mcp_approval_response": "mcpa",
    "mcp_approval_request": "mcpr",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "function_call": "fc",
    "function_call_output": "fco",
    "computer_call": "cu",
    "computer_call_output": "cuo",
    "image_generation_call": "ig",
    "reasoning": "rs",
}
Find = Callable[[str], JSON | None]


@dataclass(frozen=True)
class Answer:
    """An approval request of the context and the response to it in this request's input."""

    request: JSON
    approve: bool


@dataclass(frozen=True)
class Given:
    """The input of one request, understood: `context` is everything the model sees.

    It ends with `new`, the items of this request's input.
    """

    context: list[JSON]
    answers: list[Answer]
    new: list[JSON]

    @property
    def is_resume(self) -> bool:
        return bool(self.answers)


def understand(body: JSON, earlier: Sequence[JSON], find: Find, labels: Collection[str]) -> Given:
    """The whole context of a request, or the refusal (ApiError 400, 404) of the real service."""
    new = [stored_item(item, find) for item in _input_items(body)]
    context = [*earlier, *new]
    refuse_duplicates(context)
    answers = _answers(context, new)
    _refuse_unanswered(context)
    for answer in answers:
        if answer.request["server_label"] not in labels:
            raise bad_request(
                f"MCP server with label '{answer.request['server_label']}' not found in the "
                "'tools' of this request.",
                param="tools",
            )
    return Given(context, answers, new)


def _input_items(body: JSON) -> list[JSON]:
    match body.get("input"):
        case None:
            return []
        case str(text):
            return [{"type": "message", "role": "user", "content": text}]
        case list(items) if all(isinstance(item, dict) for item in items):
            return items
        case _:
            raise bad_request(
                "Invalid type for 'input': expected one of a string or array of objects.",
                param="input",
                code="invalid_type",
            )


def _kind(item: JSON) -> str:
    return str(item.get("type") or ("message" if "role" in item else "item_reference"))


def stored_item(item: JSON, find: Find) -> JSON:
    """An item as it is stored: with an id, a type and content parts. References are resolved."""
    kind = _kind(item)
    if kind == "item_reference":
        item_id = str(item.get("id"))
        return find(item_id) or _unknown_item(item_id)
    stored: JSON = {"id": item.get("id") or new_id(_PREFIX.get(kind, "item")), "type": kind}
    stored |= {name: value for name, value in item.items() if value is not None}
    if kind == "message":
        stored.setdefault("status", "completed")
        stored["content"] = _parts(item)
    if kind == "reasoning" and not item.get("encrypted_content") and not find(stored["id"]):
        _unknown_item(stored["id"])
    return stored


def _parts(item: JSON) -> list[JSON]:
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        return [{"type": kind, "text": content}]
    return list(content or [])


def _unknown_item(item_id: str) -> JSON:
    raise ApiError(
        404,
        f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to "
        "false. Try again with `store` set to true, or remove this item from your input.",
        param="input",
    )


def refuse_duplicates(context: Sequence[JSON]) -> None:
    """ApiError(400) when an id occurs twice."""
    seen: set[str] = set()
    for item in context:
        if item["id"] in seen:
            raise bad_request(
                f"Duplicate item found with id {item['id']}. Remove duplicate items from your "
                "input and try again.",
                param="input",
            )
        seen.add(item["id"])


def _answers(context: Sequence[JSON], new: Sequence[JSON]) -> list[Answer]:
    """The responses of this input that still have to be acted on, in the requests' order."""
    requests = {i["id"]: i for i in context if i["type"] == "mcp_approval_request"}
    given: dict[str, JSON] = {}
    for item in context:
        if item["type"] != "mcp_approval_response":
            continue
        wanted = str(item.get("approval_request_id"))
        if wanted not in requests:
            raise bad_request(f"No approval request found with id '{wanted}'.", param="input")
        if wanted in given:
            raise bad_request(
                f"Approval request '{wanted}' already has an approval response.", param="input"
            )
        given[wanted] = item
    fresh = {item["id"] for item in new}
    return [
        Answer(request, given[request_id].get("approve") is True)
        for request_id, request in requests.items()
        if request_id in given
        and given[request_id]["id"] in fresh
        and not _settled(request_id, given[request_id], context)
    ]


def _settled(request_id: str, response: JSON, context: Sequence[JSON]) -> bool:
    """Whether re-sent items show that this response was acted on in an earlier turn."""
    after = context[context.index(response) + 1 :]
    if response.get("approve") is True:
        return any(i.get("approval_request_id") == request_id for i in after)
    return any(i["type"] == "message" and i.get("role") == "assistant" for i in after)


def _refuse_unanswered(context: Sequence[JSON]) -> None:
    answered = {
        str(i.get("approval_request_id"))
        for i in context
        if i["type"] in ("mcp_approval_response", "mcp_call")
    }
    open_ids = [
        i["id"] for i in context if i["type"] == "mcp_approval_request" and i["id"] not in answered
    ]
    if open_ids:
        raise bad_request(
            "The following MCP approval requests do not have an approval: " + ", ".join(open_ids),
            param="input",
        )
    for kind in ("function", "computer"):
        _refuse_open_calls(kind, context)


def _refuse_open_calls(kind: str, context: Sequence[JSON]) -> None:
    """What the client runs itself: every call has its output, every output its call."""
    outputs = {i.get("call_id") for i in context if i["type"] == f"{kind}_call_output"}
    calls = {i.get("call_id") for i in context if i["type"] == f"{kind}_call"}
    if missing := [c for c in calls if c not in outputs]:
        raise bad_request(f"No tool output found for {kind} call {missing[0]}.", param="input")
    if orphans := [c for c in outputs if c not in calls]:
        raise bad_request(
            f"No tool call found for {kind} call output with call_id {orphans[0]}.",
            param="input",
        )


def resent(given: Given, body: JSON) -> list[JSON]:
    """The new items that must come with their other halves.

    An approval request named by reference is exempt: the service takes it out of its own store.
    """
    named = {i.get("id") for i in _input_items(body) if _kind(i) == "item_reference"}
    return [i for i in given.new if i["type"] != "mcp_approval_request" or i["id"] not in named]


def tool_lists(context: Sequence[JSON]) -> Mapping[str, list[JSON]]:
    """The inventories that the model already has, by label; a failed listing is none."""
    return {
        str(item["server_label"]): item.get("tools") or []
        for item in context
        if item["type"] == "mcp_list_tools" and not item.get("error")
    }
