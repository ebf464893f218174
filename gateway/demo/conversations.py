"""/conversations: state that many responses share, and what a response does to it.

A response reads the conversation's items first and adds its own input and output once it has
completed. How an approval is answered inside one is a setting, because resources differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.demo.context import refuse_duplicates, stored_item
from gateway.demo.paging import page
from gateway.demo.parts import check_parts
from gateway.demo.service import Endpoint, Service, UpstreamSettings
from gateway.demo.store import Conversation, Memory
from gateway.demo.wire import JSON, ApiError, bad_request, new_id, parse_object

_MOST_ITEMS = 20
_ECHOES = ("mcp_approval_request", "item_reference")


def conversation_of(body: JSON, memory: Memory) -> Conversation | None:
    """The conversation that a response is made in; ApiError(404) when there is none of that id."""
    given = body.get("conversation")
    if not given:
        return None
    return _known(str(given.get("id") if isinstance(given, dict) else given), memory)


def _known(conversation_id: str, memory: Memory) -> Conversation:
    if conversation_id not in memory.conversations:
        raise ApiError(404, f"Conversation with id '{conversation_id}' not found.")
    return memory.conversations[conversation_id]


def without_echoes(body: JSON, conversation: Conversation, settings: UpstreamSettings) -> JSON:
    """The body without the approval requests that it repeats from its conversation.

    With `conversation_resume="echo"` each approval response must bring its request along; with
    "plain" nothing is repeated, and a request that is, is a duplicate.
    """
    items = body.get("input")
    if settings.conversation_resume == "plain" or not isinstance(items, list):
        return body
    repeated = {i.get("id") for i in items if i.get("type") in _ECHOES}
    answers = (i for i in items if i.get("type") == "mcp_approval_response")
    answered = [str(i.get("approval_request_id")) for i in answers]
    if missing := [request_id for request_id in answered if request_id not in repeated]:
        raise bad_request(
            "The approval requests of the following MCP approval responses weren't passed as "
            f"input: {', '.join(missing)}",
            param="input",
        )
    there = {item["id"] for item in conversation.items}
    kept = [i for i in items if i.get("type") not in _ECHOES or i.get("id") not in there]
    return {**body, "input": kept}


# --- endpoints --------------------------------------------------------------------------------


async def _body(request: Request) -> JSON:
    return parse_object(await request.body() or b"{}")


def _named(service: Service, request: Request) -> Conversation:
    return _known(request.path_params["conversation_id"], service.memory)


def _new_items(body: JSON, there: list[JSON], memory: Memory) -> list[JSON]:
    given: Any = body.get("items") or []
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise bad_request("Invalid type for 'items': expected an array.", param="items")
    if len(given) > _MOST_ITEMS:
        raise bad_request(
            f"Invalid 'items': array too long. Expected an array with maximum length {_MOST_ITEMS},"
            f" but got an array with length {len(given)} instead.",
            param="items",
            code="array_above_max_length",
        )
    items = [stored_item(item, memory.find) for item in given]
    refuse_duplicates([*there, *items])
    check_parts(items, memory.files)
    return items


async def _create(service: Service, request: Request) -> Response:
    body = await _body(request)
    items = _new_items(body, [], service.memory)
    described: JSON = {
        "id": new_id("conv"),
        "object": "conversation",
        "created_at": int(service.settings.clock().timestamp()),
        "metadata": body.get("metadata") or {},
    }
    service.memory.put_conversation(Conversation(described, items))
    return JSONResponse(described)


async def _retrieve(service: Service, request: Request) -> Response:
    return JSONResponse(_named(service, request).described)


async def _update(service: Service, request: Request) -> Response:
    conversation = _named(service, request)
    conversation.described["metadata"] = (await _body(request)).get("metadata") or {}
    return JSONResponse(conversation.described)


async def _delete(service: Service, request: Request) -> Response:
    conversation_id = _named(service, request).described["id"]
    del service.memory.conversations[conversation_id]
    deleted = {"id": conversation_id, "object": "conversation.deleted", "deleted": True}
    return JSONResponse(deleted)


async def _add_items(service: Service, request: Request) -> Response:
    conversation = _named(service, request)
    items = _new_items(await _body(request), conversation.items, service.memory)
    conversation.items.extend(items)
    return JSONResponse(page(items, {"order": "asc"}))


async def _list_items(service: Service, request: Request) -> Response:
    query: Mapping[str, str] = request.query_params
    return JSONResponse(page(_named(service, request).items, query))


def _item(conversation: Conversation, request: Request) -> JSON:
    item_id = request.path_params["item_id"]
    for item in conversation.items:
        if item["id"] == item_id:
            return item
    raise ApiError(
        404,
        f"Item with id '{item_id}' not found in conversation with id "
        f"'{conversation.described['id']}'.",
    )


async def _retrieve_item(service: Service, request: Request) -> Response:
    return JSONResponse(_item(_named(service, request), request))


async def _delete_item(service: Service, request: Request) -> Response:
    conversation = _named(service, request)
    conversation.items.remove(_item(conversation, request))
    return JSONResponse(conversation.described)


ENDPOINTS: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/conversations", _create),
    ("GET", "/conversations/{conversation_id}", _retrieve),
    ("POST", "/conversations/{conversation_id}", _update),
    ("DELETE", "/conversations/{conversation_id}", _delete),
    ("POST", "/conversations/{conversation_id}/items", _add_items),
    ("GET", "/conversations/{conversation_id}/items", _list_items),
    ("GET", "/conversations/{conversation_id}/items/{item_id}", _retrieve_item),
    ("DELETE", "/conversations/{conversation_id}/items/{item_id}", _delete_item),
)
