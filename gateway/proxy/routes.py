"""The app-facing endpoint: an allow-list of routes, and what each of them leads to.

Step 1 of the path: authenticate, read the body once, inspect, enforce, then hand over to
`passing` (no MCP tools) or to a driver. Whatever is not on the list is refused in the OpenAI
error shape; what looks like a way round is recorded first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import orjson
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import Receive, Scope, Send

from gateway.approvals import exchanges, reading
from gateway.approvals.exchanges import Opening
from gateway.audit import records
from gateway.audit.records import Actor
from gateway.errors import GatepassError, NotAllowed, Refused
from gateway.exchange.document import parse
from gateway.exchange.enforcement import Enforced, enforce
from gateway.exchange.inspection import Findings, inspect
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Binding, Bypass, Carried, Json, Plan
from gateway.proxy import clients
from gateway.proxy.azure import Wire
from gateway.proxy.clients import Limits
from gateway.proxy.driver import Assignment, Driver, Tools
from gateway.proxy.http import Call, ClientGone
from gateway.proxy.live import Hub, Live
from gateway.proxy.passing import Passing, internal
from gateway.proxy.retrieval import Retrieval
from gateway.registry.directory import AppView
from gateway.store.tables import ApprovalRequest, HandedItem, ResponseId
from gateway.store.tables import Exchange as ExchangeRow
from gateway.telemetry import log, refusals_total

_ROUTE = re.compile(
    r"^(?:/openai/v1|/v1|/openai|/openai/deployments/[A-Za-z0-9._-]{1,64})"
    r"/responses(?:/(?!(?:compact|input_tokens)$)(?P<id>[A-Za-z0-9_-]{1,256})(?:/(?P<action>cancel|input_items))?)?$"
)
_FORWARDED = ("user-agent", "x-ms-oai-image-generation-deployment", "x-ms-client-request-id")
_PASSED_QUERY = frozenset(("api-version", value) for value in ("preview", "v1", "latest"))
_NEVER = (
    (re.compile(r"/(realtime|live)(/|$)"), "It could call MCP tools that nobody would see."),
    (re.compile(r"/(assistants|threads|agents|chatkit|evals|batches|vaults)(/|$)"),
     "It runs models elsewhere with tools that are not in the request."),
    (re.compile(r"/conversations(/|$)"), "Conversations may hold tools and approvals."),
    (re.compile(r"/responses/(compact|input_tokens)$"), "It takes tools without calling them."),
)  # fmt: skip
_NO_SOCKETS = (
    "WebSocket connections are refused: tools could be called on them unseen. "
    "Use POST /responses with 'stream': true."
)
#: Refusals that are no attempt in themselves, but what two parsers read differently is a way round.
_RECORDED = frozenset(
    {
        "body_too_large", "content_encoding_unsupported", "content_type_unsupported",
        "duplicate_header", "duplicate_member", "invalid_json", "invalid_type",
        "json_not_representable", "json_too_deep", "method_not_allowed", "number_out_of_range",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Edge:
    """What the app-facing side works with."""

    tools: Tools
    passing: Passing
    retrieval: Retrieval
    hub: Hub
    limits: Limits
    heartbeat: float
    max_rounds: int
    max_body: int


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
            app = await self._authenticate(call)
            await self._route(call, app)
        except ClientGone:
            return
        except GatepassError as error:
            await self._refused(call, app, error)
        except Exception as error:
            log.exception("proxy.failed", request=call.id)
            await call.fail(internal(error))

    # --- who asks ---------------------------------------------------------------------------

    async def _authenticate(self, call: Call) -> AppView:
        key = _credential(call)
        directory = self._edge.tools.directory
        app = directory.authenticate(key) or await directory.recheck(key)
        if app is None:
            raise _unauthenticated("The key is not one of this gateway's, or was revoked.")
        return app

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
            actor=Actor("app", app.id, "key"),
            subject={"app": app.name},
            key=call.id,
            fields=fields,
        )
        await self._edge.tools.context.ledger.append_all([record])

    # --- where to ---------------------------------------------------------------------------

    async def _route(self, call: Call, app: AppView) -> None:
        response_id, action = _target(call)
        retrieval = self._edge.retrieval
        match call.method, response_id, action:
            case "POST", None, None:
                await self._create(call, app)
            case "GET", str(), None:
                await retrieval.read(call, app, response_id, _wire(call))
            case "DELETE", str(), None:
                await retrieval.delete(call, app, response_id, _wire(call))
            case "POST", str(), "cancel":
                await retrieval.cancel(call, app, response_id, _wire(call))
            case "GET", str(), "input_items":
                await retrieval.input_items(call, app, response_id, _wire(call))
            case _:
                raise Refused(
                    f"{call.method} is not possible here.", code="method_not_allowed", status=405
                )

    # --- create -----------------------------------------------------------------------------

    async def _create(self, call: Call, app: AppView) -> None:
        app = _as_wished(call, app)
        asked = parse(await call.body(self._edge.max_body))
        findings = inspect(asked)
        if app.wait != "return":
            _refuse_approvals(findings, frozenset())
        parent = await self._parent(app, findings)
        if findings.sent_items or findings.references:
            await self._check_items(app, findings)
        carried = await self._carried(app, parent, findings)
        view = self._edge.tools.directory.view
        enforced = enforce(
            asked, findings, view.matcher(app), tuple(Carried(c.call, c.answer) for c in carried)
        )
        body = enforced.body
        if parent is not None and parent.last_id != findings.previous_response_id:
            body = {**body, "previous_response_id": parent.last_id}
        if not findings.mediated and not carried:
            await self._edge.passing.create(call, app, asked, body, _wire(call))
            return
        approvals = {item.call.request_id: item.approval_id for item in carried}
        plan = Plan(
            asked,
            body,
            enforced.bindings,
            tuple(Carried(item.call, item.answer) for item in carried),
            app.wait == "return",
            self._edge.max_rounds,
        )
        live = await self._join_or_open(call, app, plan, enforced, approvals)
        await self._attend(call, app, live, asked)

    async def _parent(self, app: AppView, findings: Findings) -> _Parent | None:
        """The exchange that is continued: its own app's, finished, under its last round's id."""
        response_id = findings.previous_response_id
        if response_id is None:
            return None
        async with self._edge.tools.context.db.reading() as session:
            row = await session.get(ResponseId, response_id)
            if row is None or row.app_id != app.id:
                raise Bypass(
                    f"Previous response with id '{response_id}' not found.",
                    code="previous_response_not_found",
                    param="previous_response_id",
                    status=404,
                )
            if not row.mediated:
                return _Parent(None, response_id)
            exchange = await session.get(ExchangeRow, row.exchange_id)
            last = await session.exec(
                select(ResponseId)
                .where(ResponseId.exchange_id == row.exchange_id)
                .order_by(ResponseId.round.desc())  # type: ignore[attr-defined]  # a column
            )
            newest = last.first()
        if exchange is None or exchange.state in {"forwarding", "holding", "sending"}:
            raise Refused(
                f"The response '{response_id}' is not finished yet; poll it before going on.",
                code="response_not_ready",
                param="previous_response_id",
            )
        return _Parent(row.exchange_id, newest.response_id if newest else response_id)

    async def _carried(
        self, app: AppView, parent: _Parent | None, findings: Findings
    ) -> list[reading.LeftOpen]:
        carried: list[reading.LeftOpen] = []
        if parent is not None and parent.exchange_id is not None:
            context = self._edge.tools.context
            carried = await reading.left_open(context.db, context.envelope, parent.exchange_id)
        _refuse_approvals(findings, {item.call.request_id for item in carried})
        return carried

    async def _check_items(self, app: AppView, findings: Findings) -> None:
        """MCP items may come back only from the app they were handed to, unchanged."""
        async with self._edge.tools.context.db.reading() as session:
            for sent in findings.sent_items:
                row = await session.get(HandedItem, (sent.id, app.id))
                if row is None or row.digest != exchanges.item_digest(sent.item):
                    raise Bypass(
                        f"input[{sent.index}]: this '{sent.type}' item was not handed out by "
                        "this gateway, or was changed since.",
                        code="item_forged",
                        param=f"input[{sent.index}]",
                    )
            for name in findings.references:
                if await _is_foreign(session, app, name):
                    raise Bypass(
                        f"The item '{name}' was not handed to this app by this gateway.",
                        code="item_forged",
                        param="input",
                    )

    async def _join_or_open(
        self, call: Call, app: AppView, plan: Plan, enforced: Enforced, approvals: dict[str, str]
    ) -> Live:
        digest = hashlib.sha256(orjson.dumps(plan.asked, option=orjson.OPT_SORT_KEYS)).hexdigest()
        is_retry = (call.header("x-stainless-retry-count") or "0") != "0"
        # Opening takes a while, and a retry that comes meanwhile must find what is being opened.
        async with self._edge.hub.opening(app.id, digest):
            twin = self._edge.hub.twin(app.id, digest, is_retry=is_retry)
            if twin is not None:
                return twin
            return await self._open(call, app, plan, enforced, (digest, approvals))

    async def _open(
        self,
        call: Call,
        app: AppView,
        plan: Plan,
        enforced: Enforced,
        known: tuple[str, dict[str, str]],
    ) -> Live:
        digest, approvals = known
        tools = self._edge.tools
        kept = await exchanges.open_exchange(
            tools.context, _opening(app, plan, enforced, digest), now=tools.clock()
        )
        live = Live(kept, Exchange(plan))
        assignment = Assignment(
            _wire(call), enforced.strict_tools, clients.takes_keepalive(call, app.heartbeat)
        )
        driver = Driver(tools, live, assignment, approvals)
        live.cancel = driver.cancel
        self._edge.hub.start(live, driver.run)
        return live

    async def _attend(self, call: Call, app: AppView, live: Live, asked: Json) -> None:
        if asked.get("stream"):
            await clients.stream(call, live, self._edge.heartbeat)
        elif asked.get("background"):
            await clients.background(call, live)
        else:
            await clients.plain(call, live, clients.patience(call, app.plain, self._edge.limits))


async def _is_foreign(session: AsyncSession, app: AppView, name: str) -> bool:
    """Whether a reference names an MCP item that this app was never handed.

    What was held or handed out is known whatever its id looks like; of what was not, only Azure's
    own way to name MCP items tells.
    """
    handed = await session.exec(select(HandedItem.app_id).where(HandedItem.item_id == name))
    owners = handed.all()
    if app.id in owners:
        return False
    held = await session.exec(
        select(ApprovalRequest.id).where(ApprovalRequest.upstream_id == name).limit(1)
    )
    return bool(owners) or held.first() is not None or name.startswith(("mcpr_", "mcpl_", "mcp_"))


@dataclass(frozen=True, slots=True)
class _Parent:
    exchange_id: str | None
    last_id: str


def _as_wished(call: Call, app: AppView) -> AppView:
    """The app, with the wait mode that it wants for this request."""
    match call.header("gatepass-wait"):
        case None:
            return app
        case "hold" | "return" as wait:
            return dataclasses.replace(app, wait=wait)
        case _:
            raise Refused("'Gatepass-Wait' must be 'hold' or 'return'.", code="invalid_header")


def _refuse_approvals(findings: Findings, asked_for: Collection[str]) -> None:
    """An app's own approval is at best a wish, and only about what it has been shown."""
    for sent in findings.sent_approvals:
        if sent.request_id not in asked_for:
            raise Bypass(
                f"input[{sent.index}]: approvals are given to this gateway by people, not by apps.",
                code="approval_forged",
                param=f"input[{sent.index}]",
            )


def _opening(app: AppView, plan: Plan, enforced: Enforced, digest: str) -> Opening:
    asked = plan.asked
    user = asked.get("safety_identifier") or asked.get("user")
    return Opening(
        app_id=app.id,
        app_name=app.name,
        model=asked["model"] if isinstance(asked.get("model"), str) else None,
        end_user=user if isinstance(user, str) else None,
        streamed=bool(asked.get("stream")),
        background=bool(asked.get("background")),
        stored=asked.get("store") is not False,
        servers=tuple(_label(binding) for binding in plan.bindings),
        overridden=enforced.overridden,
        body_digest=digest,
    )


def _label(binding: Binding) -> str:
    return binding.server_label[:100]


def _wire(call: Call) -> Wire:
    headers = {name: value for name in _FORWARDED if (value := call.header(name)) is not None}
    query = {name: value for name, value in call.query if (name, value) in _PASSED_QUERY}
    return Wire(headers, query)


def _credential(call: Call) -> str:
    """The one key of a request; several are accepted only if they are equal."""
    found: list[str] = []
    bearer = call.header("authorization")
    if bearer is not None:
        scheme, _, value = bearer.partition(" ")
        if scheme.lower() != "bearer" or not value:
            raise _unauthenticated("The 'Authorization' header must be 'Bearer' and a key.")
        found.append(value.strip())
    key = call.header("api-key")
    if key is not None:
        found.append(key)
    if not found:
        raise _unauthenticated("Send your key as 'api-key' or as 'Authorization: Bearer'.")
    if len(set(found)) > 1:
        raise Refused("Two different keys were sent.", code="credentials_differ")
    return found[0]


def _unauthenticated(message: str) -> NotAllowed:
    return NotAllowed(message, code="invalid_api_key", status=401)


def _target(call: Call) -> tuple[str | None, str | None]:
    """The response id and the action that the path names; raises `Bypass` off the list."""
    match = _ROUTE.match(call.path)
    if match is None:
        raise _no_route(call.path)
    if any(name == "beta" for name, _ in call.query):
        raise Bypass("The beta surface of this API is refused.", code="beta_refused")
    if (call.header("upgrade") or "").lower() == "websocket":
        raise Bypass(_NO_SOCKETS, code="websocket_refused")
    return match["id"], match["action"]


def _no_route(path: str) -> GatepassError:
    for pattern, why in _NEVER:
        if pattern.search(path):
            return Bypass(
                f"This part of the API is not available through this gateway. {why} "
                "Use POST /responses with registered servers.",
                code="route_refused",
            )
    return Bypass(
        "This path is not available through this gateway.", code="route_unknown", status=404
    )


async def _refuse_socket(scope: Scope, send: Send) -> None:
    body = orjson.dumps(
        {
            "error": {
                "message": _NO_SOCKETS,
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
