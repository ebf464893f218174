"""Conversations: made, read and added to through the gateway, by the app that made them.

What is put into a conversation is looked through as any input is, because a later turn acts on
it; what is read out of one is shown without approvals. A conversation made past the gateway does
not exist here: nobody has looked at what is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.approvals import items
from gateway.approvals.decisions import Approvals
from gateway.errors import Refused
from gateway.exchange.document import parse
from gateway.exchange.inspection import inspect_items
from gateway.exchange.messages import HIDDEN_ITEMS, Bypass, Json
from gateway.exchange.rehydration import rehydrate, unanswered
from gateway.proxy import listings, ownership
from gateway.proxy.azure import Azure, Wire
from gateway.proxy.http import Call
from gateway.proxy.retrieval import with_query
from gateway.proxy.surface import Target
from gateway.proxy.trace import Trace
from gateway.registry.directory import AppView
from gateway.store.tables import Conversation, HandedItem, metadata
from gateway.telemetry import Clock

_CONVERSATIONS = metadata.tables[str(Conversation.__tablename__)]


@dataclass(frozen=True)
class Conversations:
    """Answers what is asked below `/conversations`."""

    context: Approvals
    azure: Azure
    clock: Clock
    max_body: int

    async def answer(self, call: Call, app: AppView, target: Target, wire: Wire) -> None:
        """Do with the conversation of the path what method and path say."""
        if target.name == "conversations":
            await self._create(call, app, wire)
            return
        async with self.context.db.reading() as session:
            await ownership.own_conversation(session, app.id, target.ids[0])
        path = f"conversations/{target.ids[0]}"
        match call.method, target.name:
            case "POST", "conversation":
                body = await self._body(call, {"metadata"})
                await self._relay(call, "POST", path, wire, body)
            case "POST", _:
                await self._add(call, app, target.ids[0], wire)
            case "GET", "conversation.items":
                await self._list(call, app, f"{path}/items", wire)
            case "GET", "conversation.item":
                await self._read_item(call, app, f"{path}/items/{target.ids[1]}", wire)
            case "DELETE", "conversation.item":
                await self._owned_item(app, target.ids[1])
                await self._relay(call, "DELETE", f"{path}/items/{target.ids[1]}", wire)
            case _:
                await self._relay(call, call.method, path, wire)

    # --- writing ----------------------------------------------------------------------------

    async def _create(self, call: Call, app: AppView, wire: Wire) -> None:
        body = await self._body(call, {"items", "metadata"})
        if body.get("items") is not None:
            body["items"] = await self._checked(app, body["items"])
        made, headers = await self.azure.ask("POST", "conversations", wire, body)
        row = {
            "conversation_id": str(made.get("id")),
            "app_id": app.id,
            "created_at": self.clock(),
        }
        await self._record(call, app, "/conversations", [(_CONVERSATIONS, row)])
        await call.answer(200, orjson.dumps(made), headers)

    async def _add(self, call: Call, app: AppView, conversation_id: str, wire: Wire) -> None:
        async with self.context.db.reading() as session:
            # Not while a round runs there: what it hears last must not change under it.
            await ownership.conversation(session, app.id, conversation_id)
        body = await self._body(call, {"items"})
        body["items"] = await self._checked(app, body.get("items"))
        path = f"conversations/{conversation_id}/items"
        wire = with_query(wire, call, listings.LIST_QUERY)
        added, headers = await self.azure.ask("POST", path, wire, body)
        shown = listings.visible(added.get("data") or [])
        ends = (shown[0].get("id"), shown[-1].get("id")) if shown else (None, None)
        await self._record(call, app, "/conversations/items", _rows(shown, app))
        page = {**added, "data": shown, "first_id": ends[0], "last_id": ends[1]}
        await call.answer(200, orjson.dumps(page), headers)

    async def _body(self, call: Call, known: set[str]) -> Json:
        body = parse(await call.body(self.max_body))
        if unknown := sorted(set(body) - known):
            raise Refused(
                f"The member {unknown[0][:80]!r} is not known here.",
                code="unknown_parameter",
                param=unknown[0][:80],
            )
        return body

    async def _checked(self, app: AppView, value: Any) -> list[Json]:
        """The items, looked through, the app's own, and without holes."""
        if not isinstance(value, list):
            raise Refused("'items' must be a list.", code="invalid_type", param="items")
        findings = inspect_items(value)
        ownership.refuse_approvals(findings, frozenset())
        database = self.context.db
        async with database.reading() as session:
            await ownership.check_items(session, app.id, findings)
            await ownership.check_files(session, app.id, findings.file_ids)
        hidden = await items.around(database, self.context.envelope, app.id, findings.item_ids)
        whole = rehydrate(value, {name: what for name, (_, what) in hidden.items()})
        if unanswered(whole):
            raise Bypass(
                "A call among these items still waits for approval; finish its response first.",
                code="approval_open",
                param="items",
            )
        return whole

    # --- reading ----------------------------------------------------------------------------

    async def _list(self, call: Call, app: AppView, path: str, wire: Wire) -> None:
        wire = with_query(wire, call, listings.LIST_QUERY)

        async def fetch(query: listings.Query) -> Json:
            return (await self.azure.ask("GET", path, Wire(wire.headers, query)))[0]

        page = await listings.visible_page(fetch, wire.query, shows_approvals=app.wait == "return")
        await self._hand_out(page["data"], app)
        await call.answer(200, orjson.dumps(page), {})

    async def _read_item(self, call: Call, app: AppView, path: str, wire: Wire) -> None:
        wire = with_query(wire, call, listings.LIST_QUERY)
        item, headers = await self.azure.ask("GET", path, wire)
        if app.wait != "return":
            if item.get("type") in HIDDEN_ITEMS:
                raise _no_item()
            (item,) = listings.visible([item])
        await self._hand_out([item], app)
        await call.answer(200, orjson.dumps(item), headers)

    async def _owned_item(self, app: AppView, item_id: str) -> None:
        async with self.context.db.reading() as session:
            if await session.get(HandedItem, (item_id, app.id)) is None:
                raise _no_item()

    async def _hand_out(self, shown: list[Json], app: AppView) -> None:
        if rows := _rows(shown, app):
            await self.context.ledger.append_all([], rows)

    # --- parts ------------------------------------------------------------------------------

    async def _relay(
        self, call: Call, method: str, path: str, wire: Wire, body: Json | None = None
    ) -> None:
        found, headers = await self.azure.ask(method, path, wire, body)
        await call.answer(200, orjson.dumps(found), headers)

    async def _record(self, call: Call, app: AppView, route: str, rows: list[Any]) -> None:
        trace = Trace(self.clock(), call.id, app, route)
        trace.outcome = "completed"
        await self.context.ledger.append_all([trace.record(self.clock())], rows)


def _rows(shown: list[Json], app: AppView) -> list[Any]:
    return items.handed_rows(shown, app.id)


def _no_item() -> Bypass:
    return Bypass("There is no such item here.", code="item_not_found", status=404)
