"""The app-facing endpoint: who asks, where it leads, and how a refusal is told and recorded.

Step 1 of the path. Whatever is not on the list of `surface` is refused in the OpenAI error shape;
what looks like a way round is recorded first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from gateway.audit import records
from gateway.errors import GatepassError, NotFound
from gateway.exchange.messages import Bypass
from gateway.proxy import surface
from gateway.proxy.azure import Wire
from gateway.proxy.creating import Creation
from gateway.proxy.credentials import Credentials
from gateway.proxy.driver import Tools
from gateway.proxy.files import Files
from gateway.proxy.forwarding import Forwarding
from gateway.proxy.http import Call, ClientGone
from gateway.proxy.passing import internal
from gateway.proxy.retrieval import Retrieval
from gateway.registry.directory import AppView
from gateway.telemetry import log, refusals_total

_FORWARDED = ("user-agent", "x-ms-oai-image-generation-deployment", "x-ms-client-request-id")
_PASSED_QUERY = frozenset(("api-version", value) for value in ("preview", "v1", "latest"))
#: Refusals that are no attempt in themselves, but what two parsers read differently is a way round.
_RECORDED = frozenset(
    {
        "body_too_large", "content_encoding_unsupported", "content_type_unsupported",
        "duplicate_header", "duplicate_member", "invalid_form", "invalid_json", "invalid_type",
        "json_not_representable", "json_too_deep", "method_not_allowed", "number_out_of_range",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Edge:
    """What the app-facing side works with."""

    tools: Tools
    creation: Creation
    retrieval: Retrieval
    forwarding: Forwarding
    files: Files
    credentials: Credentials


class Proxy:
    """The ASGI application behind `/openai` and `/v1`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Nothing but a lost connection is ever raised."""
        if scope["type"] == "websocket":
            await _refuse_socket(scope, send)
            return
        call = Call(scope, receive, send)
        app: AppView | None = None
        try:
            app = await self._edge.credentials.app_of(call)
            await self._route(call, app)
        except ClientGone:
            return
        except GatepassError as error:
            await self._refused(call, app, error)
        except Exception as error:
            log.exception("proxy.failed", request=call.id)
            await call.fail(internal(error))

    # --- what is refused --------------------------------------------------------------------

    async def _refused(self, call: Call, app: AppView | None, error: GatepassError) -> None:
        refusals_total.labels(code=error.code).inc()
        if app is not None and (isinstance(error, Bypass) or error.code in _RECORDED):
            try:
                await self._record_refusal(call, app, error)
            except GatepassError as unrecorded:
                error = unrecorded
        await call.fail(error)

    async def _record_refusal(self, call: Call, app: AppView, error: GatepassError) -> None:
        now = self._edge.tools.clock()
        fields: dict[str, Any] = {
            "code": error.code,
            "status": error.status,
            "request": call.id,
            "method": call.method[:16],
            "route": call.path[:200],
        }
        if error.param is not None:
            fields["where"] = error.param[:200]
        record = records.make(
            "security.refused",
            now=now,
            actor=app.actor,
            subject={"app": app.name},
            key=call.id,
            fields=fields,
        )
        await self._edge.tools.context.ledger.append_all([record])

    # --- where to ---------------------------------------------------------------------------

    async def _route(self, call: Call, app: AppView) -> None:
        target = surface.find(call.path)
        _check_surface(call)
        target.allow(call.method)
        edge, wire = self._edge, wire_of(call)
        match target.name:
            case "responses":
                await edge.creation.create(call, app, wire, target.deployment)
            case "response" | "response.cancel" | "response.input_items":
                await edge.retrieval.answer(call, app, target, wire)
            case "chat" | "embeddings" | "models" | "model":
                await edge.forwarding.answer(call, app, target, wire)
            case "files" | "file" | "file.content":
                await edge.files.answer(call, app, target, wire)
            case _:
                raise NotFound("This part of the API is not here yet.", code="route_unknown")


def _check_surface(call: Call) -> None:
    if (call.header("upgrade") or "").lower() == "websocket":
        raise Bypass(surface.NO_SOCKETS, code="websocket_refused")
    if any(name == "beta" for name, _ in call.query):
        raise Bypass("The beta surface of this API is refused.", code="beta_refused")


def wire_of(call: Call) -> Wire:
    """What of the request line and headers goes along to Azure."""
    headers = {name: value for name in _FORWARDED if (value := call.header(name)) is not None}
    query = {name: value for name, value in call.query if (name, value) in _PASSED_QUERY}
    return Wire(headers, query)


async def _refuse_socket(scope: Scope, send: Send) -> None:
    body = orjson.dumps(
        {
            "error": {
                "message": surface.NO_SOCKETS,
                "type": "permission_error",
                "param": None,
                "code": "websocket_refused",
            }
        }
    )
    if "websocket.http.response" in scope.get("extensions", {}):
        headers = [(b"content-type", b"application/json")]
        await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": 1008})
