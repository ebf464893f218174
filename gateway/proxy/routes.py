"""The app-facing endpoint: who asks, where it leads, and how a refusal is told and recorded.

Step 1 of the path. Whatever is not on the list of `surface` is refused in the OpenAI error shape;
what looks like a way round is recorded first.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from gateway.errors import GatepassError
from gateway.exchange.messages import Bypass
from gateway.proxy import refusing, surface
from gateway.proxy.assignment import Tools
from gateway.proxy.azure import Declined, Wire
from gateway.proxy.conversations import Conversations
from gateway.proxy.creating import Creation
from gateway.proxy.credentials import Credentials
from gateway.proxy.files import Files
from gateway.proxy.forwarding import Forwarding
from gateway.proxy.http import Call, ClientGone
from gateway.proxy.passing import internal
from gateway.proxy.retrieval import Retrieval
from gateway.registry.directory import AppView
from gateway.telemetry import failure, log, refusals_total

_FORWARDED = ("user-agent", "x-ms-oai-image-generation-deployment", "x-ms-client-request-id")
_PASSED_QUERY = frozenset(("api-version", value) for value in ("preview", "v1", "latest"))
#: Refusals that are no attempt in themselves, but what two parsers read differently is a way round.
_RECORDED = frozenset(
    {
        "app_paused", "body_too_large", "content_encoding_unsupported", "content_type_unsupported",
        "duplicate_header", "duplicate_member", "invalid_form", "invalid_json", "invalid_type",
        "json_not_representable", "json_too_deep", "json_too_large", "member_misspelt",
        "method_not_allowed",
        "number_out_of_range", "user_token_invalid",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Edge:
    """What the app-facing side works with."""

    tools: Tools
    creation: Creation
    retrieval: Retrieval
    conversations: Conversations
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
            await send({"type": "websocket.close", "code": 1008})
            return
        call = Call(scope, receive, send)
        app: AppView | None = None
        try:
            app = await self._edge.credentials.app_of(call)
            await self._route(call, app)
        except ClientGone:
            return
        except Declined as declined:
            await call.fail_as(declined.answer)
        except GatepassError as error:
            await self._refused(call, app, error)
        except Exception as error:
            log.error("proxy.failed", request=call.id, **failure(error))
            await call.fail(internal(error))

    # --- what is refused --------------------------------------------------------------------

    async def _refused(self, call: Call, app: AppView | None, error: GatepassError) -> None:
        refusals_total.labels(code=error.code).inc()
        if app is not None and (isinstance(error, Bypass) or error.code in _RECORDED):
            try:
                tools = self._edge.tools
                await refusing.record(tools.context.ledger, call, app, error, now=tools.clock())
            except GatepassError as unrecorded:
                error = unrecorded
        await call.fail(error)

    # --- where to ---------------------------------------------------------------------------

    async def _route(self, call: Call, app: AppView) -> None:
        target = surface.find(call.path)
        _refuse_beta(call)
        target.allow(call.method)
        edge, wire = self._edge, wire_of(call)
        match target.name:
            case "responses":
                await edge.creation.create(call, app, wire, target.deployment)
            case "response" | "response.cancel" | "response.input_items":
                await edge.retrieval.answer(call, app, target, wire)
            case name if name.startswith("conversation"):
                await edge.conversations.answer(call, app, target, wire)
            case "chat" | "embeddings" | "models" | "model":
                await edge.forwarding.answer(call, app, target, wire)
            case _:
                await edge.files.answer(call, app, target, wire)


def _refuse_beta(call: Call) -> None:
    if any(name == "beta" for name, _ in call.query):
        raise Bypass("The beta surface of this API is refused.", code="beta_refused")


def wire_of(call: Call) -> Wire:
    """What of the request line and headers goes along to Azure."""
    headers = {name: value for name in _FORWARDED if (value := call.header(name)) is not None}
    query = {name: value for name, value in call.query if (name, value) in _PASSED_QUERY}
    return Wire(headers, query)
