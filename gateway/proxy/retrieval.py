"""What an app does with a response id: read, delete, cancel, list the input.

The id is that of the first round and stands for the whole exchange. Ids of other apps do not
exist. Responses without MCP tools live at Azure only; the others are served from here, because
Azure's own object shows rewritten servers and single rounds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import orjson
from sqlalchemy import delete, update
from sqlmodel import col, select

from gateway.approvals import decisions, exchanges, items, replicas
from gateway.approvals.decisions import Approvals
from gateway.errors import Refused
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Json
from gateway.proxy import clients, listings, ownership
from gateway.proxy.azure import Azure, Declined, Wire
from gateway.proxy.elsewhere import Elsewhere
from gateway.proxy.http import Call
from gateway.proxy.live import Hub
from gateway.proxy.surface import Target
from gateway.registry.directory import AppView
from gateway.store.tables import Exchange as ExchangeRow
from gateway.store.tables import HandedItem, ResponseId
from gateway.telemetry import Clock

#: How an answer of Azure reads to the app.
Shows = Callable[[Json], Awaitable[Json]]
_POSITION = re.compile(r"-1|[0-9]{1,9}")
_WITHDRAWN = "The app cancelled the response."
_PAUSE = 1.0  # between two looks whether a cancelled one has ended
_INCLUDE = frozenset({"include", "include[]"})


@dataclass(frozen=True)
class Retrieval:
    """Reads, deletes and cancels by response id."""

    context: Approvals
    azure: Azure
    hub: Hub
    elsewhere: Elsewhere
    clock: Clock
    heartbeat: float

    async def answer(self, call: Call, app: AppView, target: Target, wire: Wire) -> None:
        """Do with the response of the path what method and path say."""
        (response_id,) = target.ids
        match call.method, target.name:
            case "GET", "response":
                await self.read(call, app, response_id, wire)
            case "DELETE", _:
                await self.delete(call, app, response_id, wire)
            case _, "response.cancel":
                await self.cancel(call, app, response_id, wire)
            case _:
                await self.input_items(call, app, response_id, wire)

    async def read(self, call: Call, app: AppView, response_id: str, wire: Wire) -> None:
        """The response object; with `stream`, the frames past `starting_after`."""
        row = await self._owned(app, response_id)
        query = dict(call.query)
        wire = with_query(wire, call, _INCLUDE)
        if query.get("stream") in {"true", "True", "1"}:
            await self._stream(call, row, query)
        elif not row.mediated:
            await self._pass(call, "GET", f"responses/{response_id}", wire, self._own(row))
        else:
            response = await self._response(row)
            if any(name in _INCLUDE for name, _ in call.query):
                response = await self._with_more(row, response, wire)
            headers = {"gatepass-exchange": row.exchange_id}
            await call.answer(200, orjson.dumps(response), headers)

    def _own(self, row: ResponseId) -> Shows:
        """How a response that passed through reads: its parent by the name that the app knows, and
        its items the app's own from now on.
        """

        async def shows(response: Json) -> Json:
            rows = items.handed_rows(response.get("output"), row.app_id)
            if rows:
                await self.context.ledger.append_all([], rows)
            parent_id = response.get("previous_response_id")
            if isinstance(parent_id, str):
                async with self.context.db.reading() as session:
                    known = await ownership.app_id_of(session, parent_id)
                return {**response, "previous_response_id": known}
            return response

        return shows

    async def _with_more(self, row: ResponseId, response: Json, wire: Wire) -> Json:
        """The response with what `include` asks for, which only Azure has, round by round."""
        whole: dict[str, Json] = {}
        for name in await self._rounds(row.exchange_id):
            found, _ = await self.azure.ask("GET", f"responses/{name}", wire)
            for item in listings.visible(items.named(found.get("output"))):
                whole[item["id"]] = item
        output = [whole.get(str(item.get("id")), item) for item in response["output"]]
        return {**response, "output": output}

    async def _stream(self, call: Call, row: ResponseId, query: dict[str, str]) -> None:
        """The log of a background stream is ours: any place in it, as often as wanted."""
        after = query.get("starting_after", "-1")
        if not _POSITION.fullmatch(after):
            raise Refused("'starting_after' must be a number.", param="starting_after")
        live = self.hub.get(row.exchange_id)
        if live is not None and live.kept.logged:
            await clients.stream(call, live, self.heartbeat, after=int(after))
            return
        database, envelope = self.context.db, self.context.envelope
        exchange = await self._exchange(row)
        logged = exchange.background and exchange.streamed
        if logged and exchange.state in replicas.OPEN:
            live = await self.elsewhere.follow(row.exchange_id, joins=False)
            await clients.stream(call, live, self.heartbeat, after=int(after))
            return
        frames = await exchanges.log(database, envelope, row.exchange_id) if logged else None
        if frames is None:
            raise Refused(
                "Only a response that was created with 'background' and 'stream' can be streamed "
                "again; retrieve it without 'stream'.",
                code="stream_not_available",
                param="stream",
            )
        await call.start(200, {**clients.STREAM_HEADERS, "gatepass-exchange": row.exchange_id})
        for frame in frames[int(after) + 1 :]:
            await call.write(frame.encode())
        await call.end()

    async def delete(self, call: Call, app: AppView, response_id: str, wire: Wire) -> None:
        """Delete every round at Azure, and what is kept here of the exchange."""
        row = await self._owned(app, response_id)
        if not row.mediated:
            await self._pass(call, "DELETE", f"responses/{response_id}", wire)
            return
        await self._cancel_open(row, app, wire)
        for name in await self._rounds(row.exchange_id):
            await self._delete_round(name, wire)
        async with self.context.db.transaction() as session:
            await session.exec(
                update(ExchangeRow)
                .where(col(ExchangeRow.id) == row.exchange_id)
                .values(final=None, snapshot=None, log=None)
            )
            for table in (ResponseId, HandedItem):
                await session.exec(delete(table).where(col(table.exchange_id) == row.exchange_id))
        answer = {"id": response_id, "object": "response", "deleted": True}
        await call.answer(200, orjson.dumps(answer), {})

    async def _delete_round(self, name: str, wire: Wire) -> None:
        try:
            await self.azure.ask("DELETE", f"responses/{name}", wire)
        except Declined as declined:
            if declined.status != 404:  # gone is as good as deleted
                raise

    async def cancel(self, call: Call, app: AppView, response_id: str, wire: Wire) -> None:
        """Cancel a background response; a finished one is answered as it is."""
        row = await self._owned(app, response_id)
        if not row.mediated:
            path = f"responses/{response_id}/cancel"
            await self._pass(call, "POST", path, wire, self._own(row))
            return
        if not (await self._exchange(row)).background:
            raise Refused(
                "Only background responses can be cancelled; to cancel another one, close its "
                "connection.",
                code="not_a_background_response",
            )
        await self._cancel_open(row, app, wire)
        response = await self._response(row)
        await call.answer(200, orjson.dumps(response), {"gatepass-exchange": row.exchange_id})

    async def _cancel_open(self, row: ResponseId, app: AppView, wire: Wire) -> None:
        """Withdraw what is held. Whatever was decided before is decided: exactly one wins."""
        live = self.hub.get(row.exchange_id)
        if live is not None and live.cancel is not None and live.finished is None:
            # First: a driver that is woken by the withdrawal must know why.
            live.cancel(_WITHDRAWN)
        await replicas.withdraw(self.context.db, row.exchange_id, _WITHDRAWN)
        await decisions.cancel(self.context, row.exchange_id, actor=app.actor, now=self.clock())
        exchange = await self._exchange(row)
        if exchange.state not in replicas.OPEN:
            return
        if exchange.background and exchange.state != "holding":
            await self._cancel_round(row.exchange_id, wire)
        await self.context.wakeups.notify([row.exchange_id])
        while (await self._exchange(row)).state in replicas.OPEN:
            await self.context.wakeups.wait([row.exchange_id], _PAUSE)
        if live is not None:  # its end is written; it is told in a moment
            with live.reading() as changed:
                await live.wait_for_end(changed)

    async def _cancel_round(self, exchange_id: str, wire: Wire) -> None:
        """Azure stops a round that runs in the background; others end by themselves."""
        name = await exchanges.last_round(self.context.db, exchange_id)
        if name is not None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with await self.azure.send("POST", f"responses/{name}/cancel", wire) as sent:
                    await sent.read()

    async def input_items(self, call: Call, app: AppView, response_id: str, wire: Wire) -> None:
        """The app's own input: that of the first round."""
        await self._owned(app, response_id)
        path = f"responses/{response_id}/input_items"
        wire = with_query(wire, call, listings.LIST_QUERY)

        async def fetch(query: listings.Query) -> Json:
            return (await self.azure.ask("GET", path, Wire(wire.headers, query)))[0]

        page = await listings.visible_page(fetch, wire.query, shows_approvals=app.wait == "return")
        # What the app has seen it may name from now on.
        rows = items.handed_rows(page["data"], app.id)
        if rows:
            await self.context.ledger.append_all([], rows)
        await call.answer(200, orjson.dumps(page), {})

    # --- parts ------------------------------------------------------------------------------

    async def _owned(self, app: AppView, response_id: str) -> ResponseId:
        async with self.context.db.reading() as session:
            return await ownership.response(session, app.id, response_id)

    async def _response(self, row: ResponseId) -> Json:
        live = self.hub.get(row.exchange_id)
        if live is not None and live.finished is None and (interim := live.interim()) is not None:
            return interim
        database, envelope = self.context.db, self.context.envelope
        if (final := await self._final(row)) is not None:
            return final
        saved = await exchanges.load(database, envelope, row.exchange_id)
        if saved.document:
            exchange = Exchange.restore(saved.document["machine"])
            if exchange.id is not None:
                return exchange.interim()
        if saved.kept.state in replicas.OPEN:
            return _begun(row, await self._exchange(row))
        # It may have ended between the two looks.
        if (final := await self._final(row)) is not None:
            return final
        raise _not_found(row.response_id)

    async def _final(self, row: ResponseId) -> Json | None:
        final = await exchanges.final_response(
            self.context.db, self.context.envelope, row.exchange_id
        )
        if final is not None:
            await exchanges.until_told(self.context, row.exchange_id)
        return final

    async def _exchange(self, row: ResponseId) -> ExchangeRow:
        async with self.context.db.reading() as session:
            return await session.get_one(ExchangeRow, row.exchange_id)

    async def _rounds(self, exchange_id: str) -> list[str]:
        async with self.context.db.reading() as session:
            found = await session.exec(
                select(ResponseId.response_id).where(ResponseId.exchange_id == exchange_id)
            )
            return list(found.all())

    async def _pass(
        self, call: Call, method: str, path: str, wire: Wire, shows: Shows | None = None
    ) -> None:
        found, headers = await self.azure.ask(method, path, wire)
        if shows is not None:
            found = await shows(found)
        await call.answer(200, orjson.dumps(found), headers)


def _begun(row: ResponseId, exchange: ExchangeRow) -> Json:
    """The response of a first round that runs at another replica: nothing more is kept of it."""
    return {
        "id": row.response_id,
        "object": "response",
        "created_at": int(row.created_at.timestamp()),
        "status": "in_progress",
        "background": exchange.background,
        "error": None,
        "incomplete_details": None,
        "model": exchange.model,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _not_found(response_id: str) -> Refused:
    return Refused(f"Response with id '{response_id}' not found.", code="not_found", status=404)


def with_query(wire: Wire, call: Call, names: frozenset[str]) -> Wire:
    """The wire with those of the call's query members that are known to be harmless."""
    query: dict[str, str | list[str]] = dict(wire.query)
    for name in {name for name, _ in call.query if name in names}:
        values = [value for known, value in call.query if known == name]
        query[name] = values if name in _INCLUDE else values[-1]
    return Wire(wire.headers, query)
