"""Opening an exchange: what an app asks for is looked through, replaced, recorded, and set going.

Steps 1 to 3 of the path, once it is known who asks. Decides nothing itself: inspection and
enforcement are pure, whose an id is stands in the database, and a driver goes on (or `passing`,
where there is nothing to watch over).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import orjson
from sqlalchemy.exc import SQLAlchemyError

from gateway.approvals import exchanges, items, reading
from gateway.approvals.exchanges import Alike, Opening
from gateway.approvals.replicas import Sought
from gateway.errors import GatepassError, NotAllowed, Refused
from gateway.exchange.document import parse
from gateway.exchange.enforcement import Enforced, enforce
from gateway.exchange.inspection import Findings, inspect
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Around, Bypass, Carried, Json, Plan
from gateway.exchange.rehydration import rehydrate, unanswered
from gateway.exchange.resume import as_items
from gateway.proxy import clients, ownership
from gateway.proxy.assignment import Assignment, Tools, saved_document
from gateway.proxy.azure import Wire
from gateway.proxy.clients import Limits
from gateway.proxy.driver import Driver
from gateway.proxy.elsewhere import Elsewhere
from gateway.proxy.http import Call
from gateway.proxy.live import Hub, Live
from gateway.proxy.passing import Passing
from gateway.registry import unknown
from gateway.registry.directory import AppView
from gateway.telemetry import log

_WISH = "mcp_approval_response"  # of an app: it answers nothing
#: Of one request, so many servers that nobody has registered are noted.
_MOST_UNKNOWN = 5
#: For so long after it was made, a response that Azure does not know is waited for.
_YOUNG = timedelta(minutes=2)


@dataclass(frozen=True)
class _Chain:
    """What a request goes on from: the id that Azure knows the end of the chain by, the calls
    that were left open there, and what is hidden around the items that the app sends again.
    `young`: Azure may not see the end of the chain yet. `watched`: what servers said may be in
    it, and a credential of theirs among that. `thread` is that of the exchange it goes on from.
    `shown` are the tool definitions that the model has in front of it, as in `Kept`.
    """

    parent_id: str | None = None
    carried: tuple[reading.LeftOpen, ...] = ()
    around: Mapping[str, Around] = field(default_factory=dict)
    young: bool = False
    watched: bool = False
    thread: str | None = None
    shown: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


_NO_CHAIN = _Chain()


@dataclass(frozen=True)
class _Request:
    """One create request, understood and made safe. `app` waits as it wishes for this request."""

    call: Call
    app: AppView
    wire: Wire
    asked: Json
    findings: Findings
    chain: _Chain
    enforced: Enforced


@dataclass(frozen=True)
class Creation:
    """Answers POST /responses."""

    tools: Tools
    passing: Passing
    hub: Hub
    elsewhere: Elsewhere
    limits: Limits
    heartbeat: float
    max_rounds: int
    max_body: int

    async def create(self, call: Call, app: AppView, wire: Wire, deployment: str | None) -> None:
        """Answer one request. `deployment` is the one that the path names, if it does."""
        app = _as_wished(call, app)
        asked = parse(await call.body(self.max_body))
        if deployment is not None:
            asked.setdefault("model", deployment)
        findings = inspect(asked)
        if app.wait != "return":
            ownership.refuse_approvals(findings, frozenset())
        chain = await self._chain(app, findings, asked) if findings.refers else _NO_CHAIN
        ownership.refuse_approvals(findings, _shown(findings, chain))
        self._refuse_reach(findings)
        carried = tuple(Carried(item.call, item.answer) for item in chain.carried)
        matcher = self.tools.directory.view.matcher(app)
        try:
            enforced = enforce(asked, findings, matcher, carried)
        except Bypass:
            await self._note_unknown(app, findings)
            raise
        body = _continued(enforced.body, chain)
        if findings.mediated or carried or chain.watched:
            enforced = dataclasses.replace(enforced, body=body)
            request = _Request(call, app, wire, asked, findings, chain, enforced)
            await self._mediate(request, carried)
        else:
            await self.passing.create(call, app, asked, body, wire, patient=chain.young)

    async def _note_unknown(self, app: AppView, findings: Findings) -> None:
        """What of it nobody has registered; it is refused whether or not that can be noted."""
        view, db, now = self.tools.directory.view, self.tools.context.db, self.tools.clock()
        named = {
            unknown.shown_address(tool.url, tool.label): None
            for tool in findings.mcp_tools
            if view.match_server(tool.url, tool.label) is None
        }
        try:
            for address in list(named)[:_MOST_UNKNOWN]:
                await unknown.note(db, (app.id, app.name), address, now=now)
        except (GatepassError, SQLAlchemyError) as error:
            log.warning("unknown_server.not_noted", error=type(error).__name__)

    def _refuse_reach(self, findings: Findings) -> None:
        """Hosted code must not get to a registered server past its approvals."""
        for domain in findings.domains:
            if self.tools.directory.view.reaches_server(domain):
                raise Bypass(
                    f"{domain!r} leads to a registered MCP server: its tools are called through "
                    "this gateway only.",
                    code="network_policy_refused",
                    param="tools",
                )

    # --- what it goes on from ---------------------------------------------------------------

    async def _chain(self, app: AppView, findings: Findings, asked: Json) -> _Chain:
        context = self.tools.context
        async with context.db.reading() as session:
            before = await ownership.check_items(session, app.id, findings)
            await ownership.check_files(session, app.id, findings.file_ids)
            parent = None
            if findings.previous_response_id is not None:
                parent = await ownership.parent(session, app.id, findings.previous_response_id)
            if findings.conversation is not None:
                newest = await ownership.conversation(session, app.id, findings.conversation)
                parent = ownership.Parent(newest)
            if parent is not None and parent.exchange_id is not None:
                before |= {parent.exchange_id}
            shown = await ownership.shown(session, before) if before else {}
        watched = bool(before)
        if parent is None:
            chain = await self._sent_chain(app, findings, asked)
            return dataclasses.replace(chain, watched=watched, shown=shown)
        left: list[reading.LeftOpen] = []
        if parent.exchange_id is not None:
            left = await reading.left_open(context.db, context.envelope, parent.exchange_id)
        young = parent.made_at is not None and self.tools.clock() - parent.made_at < _YOUNG
        watched = watched or findings.conversation is not None
        return _Chain(
            parent.last_id,
            tuple(left),
            young=young,
            watched=watched,
            thread=parent.thread,
            shown=shown,
        )

    async def _sent_chain(self, app: AppView, findings: Findings, asked: Json) -> _Chain:
        """The app sends all items itself: what they hide is put back, what is open is asked."""
        context = self.tools.context
        hidden = await items.around(context.db, context.envelope, app.id, findings.item_ids)
        around = {name: what for name, (_, what) in hidden.items()}
        own = [item for item in as_items(asked.get("input")) if item.get("type") != _WISH]
        open_ids = unanswered(rehydrate(own, around))
        if not open_ids:
            return _Chain(None, (), around)
        found: list[reading.LeftOpen] = []
        for exchange_id in await ownership.exchanges_asking(context.db, app.id, open_ids):
            left = await reading.left_open(context.db, context.envelope, exchange_id)
            found += [item for item in left if item.call.request_id in open_ids]
        return _Chain(None, tuple(found), around)

    # --- an exchange of ours ----------------------------------------------------------------

    async def _mediate(self, request: _Request, carried: tuple[Carried, ...]) -> None:
        enforced = request.enforced
        plan = Plan(
            request.asked,
            enforced.body,
            enforced.bindings,
            carried,
            request.app.wait == "return",
            self.max_rounds,
        )
        live = await self._join_or_open(request, plan)
        await self._attend(request, live)

    async def _join_or_open(self, request: _Request, plan: Plan) -> Live:
        call, app = request.call, request.app
        digest = hashlib.sha256(orjson.dumps(plan.asked, option=orjson.OPT_SORT_KEYS)).hexdigest()
        is_retry = (call.header("x-stainless-retry-count") or "0") != "0"
        key = call.header("idempotency-key")
        if not is_retry and key is None:
            await self.hub.watch_alike(app.id, digest)
        # Opening takes a while, and a retry that comes meanwhile must find what is being opened.
        async with self.hub.opening(app.id, key or digest):
            if key is not None:
                key = hashlib.sha256(key.encode("latin-1")).hexdigest()
            sought = Sought(app.id, digest, key, is_retry)
            try:
                return await self._twin(sought, plan) or await self._open(request, plan, sought)
            except Alike:  # another replica was a moment faster
                return await self._twin(sought, plan) or await self._open(request, plan, sought)

    def _refuse_paused(self, plan: Plan, app: AppView) -> None:
        """What goes on already goes on; nothing new that may call a server begins."""
        pause = self.tools.directory.view.app_paused(app.name)
        if pause is not None and (plan.bindings or plan.carried):
            raise NotAllowed(
                "Requests with MCP tools are paused for this app; whoever runs the gateway can "
                "say why and for how long.",
                code="app_paused",
            )

    async def _twin(self, sought: Sought, plan: Plan) -> Live | None:
        if sought.key is not None:
            twin = self.hub.keyed(sought.app_id, sought.key, sought.body_digest)
        else:
            twin = self.hub.twin(sought.app_id, sought.body_digest, is_retry=sought.is_retry)
        return twin or await self.elsewhere.twin(sought, plan)

    async def _open(self, request: _Request, plan: Plan, sought: Sought) -> Live:
        self._refuse_paused(plan, request.app)
        tools, exchange = self.tools, Exchange(plan)
        opening = _opening(request, sought, tools.lease.id)
        assignment = Assignment(
            request.wire,
            request.enforced.strict_tools,
            clients.takes_keepalive(request.call, request.app.heartbeat),
        )
        approvals = {item.call.request_id: item.approval_id for item in request.chain.carried}
        saved = None
        if opening.background:
            # It goes on at Azure whatever happens here: the next process must know it.
            saved = saved_document(exchange, assignment, approvals)
        kept = await exchanges.open_exchange(tools.context, opening, saved, now=tools.clock())
        live = Live(kept, exchange)
        driver = Driver(tools, live, assignment, approvals)
        live.cancel, live.noticed = driver.cancel, self.hub.notice
        self.hub.start(live, driver.run)
        return live

    async def _attend(self, request: _Request, live: Live) -> None:
        call, asked = request.call, request.asked
        if asked.get("stream"):
            await clients.stream(call, live, self.heartbeat)
        elif asked.get("background"):
            await clients.background(call, live)
        else:
            patience = clients.patience(call, request.app.plain, self.limits)
            await clients.plain(call, live, patience)


def _as_wished(call: Call, app: AppView) -> AppView:
    """The app, with the wait mode that it wants for this request."""
    match call.header("gatepass-wait"):
        case None:
            return app
        case "hold" | "return" as wait:
            return dataclasses.replace(app, wait=wait)
        case _:
            raise Refused("'Gatepass-Wait' must be 'hold' or 'return'.", code="invalid_header")


def _shown(findings: Findings, chain: _Chain) -> set[str]:
    """The approval requests that an app which continues by itself has been shown."""
    sent = {sent.id for sent in findings.sent_items if sent.type == "mcp_approval_request"}
    return sent | {item.call.request_id for item in chain.carried}


def _continued(body: Json, chain: _Chain) -> Json:
    """The body with the chain's end as Azure knows it, and its items without holes."""
    if chain.parent_id is not None and chain.parent_id != body.get("previous_response_id"):
        body = {**body, "previous_response_id": chain.parent_id}
    if chain.around:
        body = {**body, "input": rehydrate(as_items(body.get("input")), chain.around)}
    return body


def _opening(request: _Request, sought: Sought, owner: str) -> Opening:
    asked, app, enforced = request.asked, request.app, request.enforced
    user = asked.get("safety_identifier") or asked.get("user")
    return Opening(
        app_id=app.id,
        app_name=app.name,
        model=asked["model"] if isinstance(asked.get("model"), str) else None,
        end_user=user if isinstance(user, str) else None,
        streamed=bool(asked.get("stream")),
        background=bool(asked.get("background")),
        stored=asked.get("store") is not False,
        servers=tuple(binding.server_label[:100] for binding in enforced.bindings),
        overridden=enforced.overridden,
        body_digest=sought.body_digest,
        idempotency=sought.key,
        conversation=request.findings.conversation,
        auth=app.auth,
        thread=request.findings.conversation or request.chain.thread,
        owner=owner,
        shown=request.chain.shown,
    )
