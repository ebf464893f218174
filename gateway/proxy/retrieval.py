"""What an app does with a response id: read, delete, cancel, list the input.

The id is that of the first round and stands for the whole exchange. Ids of other apps do not
exist. Responses without MCP tools live at Azure only; the others are served from here, because
Azure's own object shows rewritten servers and single rounds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from sqlalchemy import update
from sqlmodel import col, select

from gateway.approvals import decisions, exchanges
from gateway.approvals.decisions import Approvals
from gateway.audit.records import Actor
from gateway.errors import Refused, UpstreamFailed
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import HIDDEN_ITEMS, Json
from gateway.proxy import clients, ownership
from gateway.proxy.azure import Azure, Wire, passed_on, rejection
from gateway.proxy.http import Call
from gateway.proxy.live import Hub, Live
from gateway.proxy.surface import Target
from gateway.registry.directory import AppView
from gateway.store.tables import Exchange as ExchangeRow
from gateway.store.tables import ResponseId
from gateway.telemetry import Clock

Shows = Callable[[Json], Json]
_OPEN = frozenset({"forwarding", "holding", "sending"})
_POSITION = re.compile(r"-1|[0-9]{1,9}")
_LIST_QUERY = frozenset({"after", "limit", "order", "include", "include[]", "before"})
_STREAM_QUERY = frozenset(
    {"stream", "starting_after", "include", "include[]", "include_obfuscation"}
)
_READ_QUERY = frozenset({"include", "include[]", "include_obfuscation"})


@dataclass(frozen=True)
class Retrieval:
    """Reads, deletes and cancels by response id."""

    context: Approvals
    azure: Azure
    hub: Hub
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
        if query.get("stream") in {"true", "True", "1"}:
            await self._stream(call, row, query, wire)
        elif not row.mediated:
            await self._pass(
                call, "GET", f"responses/{response_id}", _with(wire, call, _READ_QUERY)
            )
        else:
            response = await self._response(row)
            headers = {"gatepass-exchange": row.exchange_id}
            await call.answer(200, orjson.dumps(response), headers)

    async def _stream(self, call: Call, row: ResponseId, query: dict[str, str], wire: Wire) -> None:
        if not row.mediated:
            await self._pass_stream(call, f"responses/{row.response_id}", wire)
            return
        after = query.get("starting_after", "-1")
        if not _POSITION.fullmatch(after):
            raise Refused("'starting_after' must be a number.", param="starting_after")
        live = self.hub.get(row.exchange_id)
        if live is not None and live.kept.logged:
            await clients.stream(call, live, self.heartbeat, after=int(after))
            return
        database, envelope = self.context.db, self.context.envelope
        frames = await exchanges.log(database, envelope, row.exchange_id)
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

    async def _pass_stream(self, call: Call, path: str, wire: Wire) -> None:
        """Azure itself has the frames of what passed through in the background."""
        wire = _with(wire, call, _STREAM_QUERY)
        try:
            async with self.azure.request("GET", path, wire) as response:
                if response.content_type != "text/event-stream":
                    rejected = await rejection(response, self.azure.scrubber)
                    body = orjson.dumps(rejected.body)
                    await call.answer(rejected.status, body, rejected.headers)
                    return
                await call.start(200, {**clients.STREAM_HEADERS, **passed_on(response)})
                async for chunk in response.content.iter_any():
                    await call.write(chunk)
                await call.end()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamFailed(f"Azure did not answer ({type(error).__name__}).") from None

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
                .values(final=None, snapshot=None)
            )
            for stale in await session.exec(
                select(ResponseId).where(ResponseId.exchange_id == row.exchange_id)
            ):
                await session.delete(stale)
        answer = {"id": response_id, "object": "response", "deleted": True}
        await call.answer(200, orjson.dumps(answer), {})

    async def _delete_round(self, name: str, wire: Wire) -> None:
        async with self.azure.request("DELETE", f"responses/{name}", wire) as response:
            await response.read()
            if response.status >= 400 and response.status != 404:
                raise UpstreamFailed(f"Azure could not delete the response ({response.status}).")

    async def cancel(self, call: Call, app: AppView, response_id: str, wire: Wire) -> None:
        """Cancel a background response; a finished one is answered as it is."""
        row = await self._owned(app, response_id)
        if not row.mediated:
            await self._pass(call, "POST", f"responses/{response_id}/cancel", wire)
            return
        async with self.context.db.reading() as session:
            exchange = await session.get_one(ExchangeRow, row.exchange_id)
        if not exchange.background:
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
        actor = Actor("app", app.id, "key")
        live = self.hub.get(row.exchange_id)
        runs = live is not None and live.finished is None
        if live is not None and runs and live.cancel is not None:
            # First: a driver that is woken by the withdrawal must know why.
            live.cancel("The app cancelled the response.")
        await decisions.cancel(self.context, row.exchange_id, actor=actor, now=self.clock())
        if live is not None and runs:
            await self._cancel_round(live, wire)
            await self.context.wakeups.notify([row.exchange_id])
            with live.reading() as changed:
                await live.wait_for_end(changed)

    async def _cancel_round(self, live: Live, wire: Wire) -> None:
        """Azure stops a round that runs in the background; others end by themselves."""
        exchange = live.exchange
        if exchange.state == "forwarding" and live.kept.background and exchange.upstream_ids:
            path = f"responses/{exchange.upstream_ids[-1]}/cancel"
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self.azure.request("POST", path, wire) as response:
                    await response.read()

    async def input_items(self, call: Call, app: AppView, response_id: str, wire: Wire) -> None:
        """The app's own input: that of the first round."""
        await self._owned(app, response_id)
        shows = _seen if app.wait == "hold" else None
        wire = _with(wire, call, _LIST_QUERY)
        await self._pass(call, "GET", f"responses/{response_id}/input_items", wire, shows)

    # --- parts ------------------------------------------------------------------------------

    async def _owned(self, app: AppView, response_id: str) -> ResponseId:
        async with self.context.db.reading() as session:
            return await ownership.response(session, app.id, response_id)

    async def _response(self, row: ResponseId) -> Json:
        live = self.hub.get(row.exchange_id)
        if live is not None and live.finished is None and (interim := live.interim()) is not None:
            return interim
        database, envelope = self.context.db, self.context.envelope
        final = await exchanges.final_response(database, envelope, row.exchange_id)
        if final is not None:
            return final
        saved = await exchanges.load(database, envelope, row.exchange_id)
        if saved.document:
            return Exchange.restore(saved.document["machine"]).interim()
        raise _not_found(row.response_id)

    async def _rounds(self, exchange_id: str) -> list[str]:
        async with self.context.db.reading() as session:
            found = await session.exec(
                select(ResponseId.response_id).where(ResponseId.exchange_id == exchange_id)
            )
            return list(found.all())

    async def _pass(
        self, call: Call, method: str, path: str, wire: Wire, shows: Shows | None = None
    ) -> None:
        try:
            async with self.azure.request(method, path, wire) as response:
                if response.status >= 300:
                    rejected = await rejection(response, self.azure.scrubber)
                    body = orjson.dumps(rejected.body)
                    await call.answer(rejected.status, body, rejected.headers)
                    return
                raw = self.azure.scrubber.clean(await response.read())
                if shows is not None:
                    raw = orjson.dumps(shows(orjson.loads(raw)))
                await call.answer(200, raw, passed_on(response))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamFailed(f"Azure did not answer ({type(error).__name__}).") from None


def _not_found(response_id: str) -> Refused:
    return Refused(f"Response with id '{response_id}' not found.", code="not_found", status=404)


def _with(wire: Wire, call: Call, names: frozenset[str]) -> Wire:
    query: dict[str, Any] = {name: value for name, value in call.query if name in names}
    return Wire(wire.headers, {**wire.query, **query})


def _seen(listing: Json) -> Json:
    """A page of items without those that exist only between Azure and the gateway."""
    items = [
        {**item, "approval_request_id": None} if item.get("approval_request_id") else item
        for item in listing.get("data") or []
        if item.get("type") not in HIDDEN_ITEMS
    ]
    ends = (items[0].get("id"), items[-1].get("id")) if items else (None, None)
    return {**listing, "data": items, "first_id": ends[0], "last_id": ends[1]}
