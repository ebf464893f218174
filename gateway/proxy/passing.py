"""Requests without MCP tools: inspected, passed through, recorded. The hot path.

The frames run through the same machine as held ones; here it only watches. One record and one
row are committed before the last byte is handed over, together with those of other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import aiohttp
import orjson

from gateway.approvals import items
from gateway.audit.ledger import Ledger
from gateway.errors import GatepassError, UpstreamFailed
from gateway.exchange.document import dump, read
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import (
    TERMINAL,
    Broken,
    Command,
    Emit,
    Finished,
    FrameSeen,
    Hold,
    Json,
    Plan,
    Rejected,
    Started,
)
from gateway.exchange.sse import Frame, FrameReader, render
from gateway.proxy.azure import (
    Azure,
    Wire,
    parse_frame,
    passed_on,
    rejection,
)
from gateway.proxy.clients import STREAM_HEADERS
from gateway.proxy.http import Call
from gateway.proxy.retrying import PAUSES, parent_unseen
from gateway.proxy.scrubbing import Seams
from gateway.proxy.trace import Trace
from gateway.registry.directory import AppView
from gateway.scrubbing import Scrubber
from gateway.store.database import outage
from gateway.store.tables import ResponseId, metadata
from gateway.telemetry import Clock, requests_total

_RESPONSE_IDS = metadata.tables[str(ResponseId.__tablename__)]


@dataclass(frozen=True)
class Passing:
    """What passing through needs."""

    azure: Azure
    ledger: Ledger
    clock: Clock

    async def create(
        self,
        call: Call,
        app: AppView,
        asked: Json,
        body: Json,
        wire: Wire,
        *,
        patient: bool = False,
    ) -> None:
        """Pass one create request through. `body` is `asked`, with its parent's id resolved.

        `patient`: Azure may not know a parent yet that it has just made; it is asked again.
        """
        exchange = Exchange(Plan(asked, body, mediated=False))
        exchange.receive(Started())
        raw = dump(body)
        trace = _Trace(self.clock(), call.id, app, asked)
        try:
            for pause in (*(PAUSES if patient else ()), None):
                async with await self.azure.send(
                    "POST", "responses", wire, raw, once=False
                ) as response:
                    if response.status < 300:
                        await self._answered(call, response, exchange, trace)
                        break
                    rejected = await rejection(response, await self.azure.thorough())
                    if pause is None or not parent_unseen(rejected):
                        await self._rejected(call, rejected, trace)
                        break
                await asyncio.sleep(pause)
        except aiohttp.ClientConnectorError:
            trace.outcome = "unreachable"
            raise UpstreamFailed("Azure cannot be reached.", code="upstream_unreachable") from None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            trace.outcome = "broken"
            if call.started:
                await self._broken_stream(call, exchange, error)
                return
            raise UpstreamFailed(
                f"The connection to Azure broke ({type(error).__name__})."
            ) from None
        finally:
            requests_total.labels("responses", trace.outcome).inc()
            if not trace.recorded:
                await self._record(trace)

    async def _rejected(self, call: Call, rejected: Rejected, trace: _Trace) -> None:
        trace.outcome, trace.status = "rejected", rejected.status
        await self._record(trace)
        await call.answer(rejected.status, orjson.dumps(rejected.body), rejected.headers)

    async def _answered(
        self, call: Call, response: aiohttp.ClientResponse, exchange: Exchange, trace: _Trace
    ) -> None:
        if response.content_type == "text/event-stream":
            await self._stream(call, response, exchange, trace)
        else:
            await self._whole(call, response, exchange, trace)

    async def _whole(
        self, call: Call, response: aiohttp.ClientResponse, exchange: Exchange, trace: _Trace
    ) -> None:
        scrubber = await self.azure.thorough()
        raw = scrubber.clean(await response.read())
        document = read(raw)
        status = document.get("status")
        trace.outcome, trace.response_id = str(status), document.get("id")
        if status in {"completed", "failed", "incomplete", "cancelled"}:
            data = {"response": document}
            finished = _watch(exchange.receive(FrameSeen(f"response.{status}", data)))
            trace.count(document)
            if finished is not None and finished.response is not document:
                raw = orjson.dumps(finished.response)
        elif exchange.plan.asked.get("previous_response_id") is not None:
            parent = exchange.plan.asked["previous_response_id"]
            raw = orjson.dumps({**document, "previous_response_id": parent})
        await self._record(trace)
        await call.answer(200, raw, passed_on(response, scrubber))

    async def _stream(
        self, call: Call, response: aiohttp.ClientResponse, exchange: Exchange, trace: _Trace
    ) -> None:
        reader, scrubber = FrameReader(), await self.azure.thorough()
        await call.start(200, {**STREAM_HEADERS, **passed_on(response, scrubber)})
        # Other secrets than our key may be in a context, and come back in pieces.
        seams = None if scrubber is self.azure.scrubber else Seams(scrubber)
        async for chunk in response.content.iter_any():
            out: list[bytes] = []
            for frame in reader.feed(chunk):
                if seams is None and frame.event is not None and exchange.passes(frame.event):
                    out.append(render(frame.event, scrubber.clean(frame.data)))
                    continue
                for event in _understood(frame, scrubber, seams):
                    await self._event(call, exchange, event, out, trace)
            if out:
                await call.write(b"".join(out))
        if exchange.state == "forwarding":
            raise aiohttp.ClientPayloadError("the stream ended without an end")
        await call.end()

    async def _event(
        self, call: Call, exchange: Exchange, event: FrameSeen, out: list[bytes], trace: _Trace
    ) -> None:
        """The last frame waits for its record, the ones before it do not."""
        if exchange.state != "forwarding":
            return
        if event.type not in TERMINAL:
            out += _frames(exchange.receive(event))
            return
        if out:
            await call.write(b"".join(out))
            out.clear()
        commands = exchange.receive(event)
        finished = _watch(commands)
        trace.outcome = finished.outcome if finished else "broken"
        trace.response_id = exchange.id
        trace.count(event.data["response"])
        await self._record(trace)
        out += _frames(commands)

    async def _broken_stream(self, call: Call, exchange: Exchange, error: Exception) -> None:
        if exchange.state == "forwarding":
            message = f"The connection to Azure broke ({type(error).__name__})."
            commands = exchange.receive(Broken(message, sent=True))
            await call.write(b"".join(_frames(commands)))
        await call.end()

    async def _record(self, trace: _Trace) -> None:
        trace.recorded = True
        now = self.clock()
        rows = items.handed_rows(trace.items, trace.app.id)
        if trace.response_id is not None:
            rows.append(_row(trace.response_id, trace.app, now))
        await self.ledger.append_all([trace.record(now)], rows)


def _row(response_id: str, app: AppView, now: datetime) -> tuple[Any, dict[str, Any]]:
    row = {
        "response_id": response_id,
        "exchange_id": "",
        "app_id": app.id,
        "round": 0,
        "mediated": False,
        "created_at": now,
    }
    return _RESPONSE_IDS, row


class _Trace(Trace):
    """That of a response, which the app may come back to by its id."""

    def __init__(self, started: datetime, request_id: str, app: AppView, asked: Json) -> None:
        super().__init__(started, request_id, app, "/responses", asked)
        self.stored = asked.get("store") is not False
        self.response_id: str | None = None
        self.items: Any = None

    def count(self, answer: Mapping[str, Any]) -> None:
        """Take over what the finished response has used, and which items it hands to the app."""
        super().count(answer)
        if self.stored:
            self.items = answer.get("output")


def _understood(frame: Frame, scrubber: Scrubber, seams: Seams | None) -> list[FrameSeen]:
    """What may go on because of this frame, without any of our secrets."""
    event = parse_frame(frame, scrubber)
    if event is None:
        return []
    return [event] if seams is None else seams.feed(event)


def _frames(commands: list[Command]) -> list[bytes]:
    return [
        render(command.type, orjson.dumps(command.data))
        for command in commands
        if isinstance(command, Emit)
    ]


def _watch(commands: list[Command]) -> Finished | None:
    """The end, if the commands hold it. An approval request cannot be: no tool was declared."""
    for command in commands:
        if isinstance(command, Hold):
            raise UpstreamFailed(
                "Azure asked for approval of a call on a server that was not in the request.",
                code="unexpected_approval_request",
            )
    return next((command for command in commands if isinstance(command, Finished)), None)


def internal(error: Exception) -> GatepassError:
    """What the app is told when something of ours broke: nothing about what."""
    if isinstance(error, GatepassError):
        return error
    return outage(error) or UpstreamFailed(
        "The gateway could not go on with this request.", code="internal_error", status=500
    )
