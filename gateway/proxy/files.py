"""Files: uploaded, listed, read and deleted by the app they belong to, and by no other.

Whose a file is stands in the database before the app knows its id. A file of requests (a batch)
would be a way round: only purposes that show a file to a model are passed on.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from sqlmodel import col, delete, select

from gateway.errors import Refused, UpstreamFailed
from gateway.exchange.messages import Bypass, Json
from gateway.proxy import ownership
from gateway.proxy.azure import Wire, passed_on
from gateway.proxy.http import Call
from gateway.proxy.multipart import Form, read_form
from gateway.proxy.relay import Ask, Relay, connected
from gateway.proxy.surface import Target
from gateway.proxy.trace import Trace
from gateway.registry.directory import AppView
from gateway.store.database import Database
from gateway.store.tables import UploadedFile, metadata

_UPLOADED = metadata.tables[str(UploadedFile.__tablename__)]
_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
_PURPOSES = frozenset({"assistants", "vision", "user_data"})
_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_MOST_A_PAGE = 10_000
#: Each may lie on disk in full until Azure has it.
_UPLOADS_AT_ONCE = 4


@dataclass(frozen=True)
class Files:
    """Answers `files`, `file` and `file.content`."""

    relay: Relay
    db: Database
    max_bytes: int
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_UPLOADS_AT_ONCE))

    async def answer(self, call: Call, app: AppView, target: Target, wire: Wire) -> None:
        """Do with the files what method and path say."""
        match call.method, target.name:
            case "POST", _:
                async with self.uploads:
                    await self._upload(call, app, wire)
            case _, "files":
                await self._list(call, app, wire)
            case method, name:
                (file_id,) = target.ids
                await self._check_own(app, file_id)
                path = f"files/{file_id}" + ("/content" if name == "file.content" else "")
                await self._one(call, app, target, Ask(method, path, wire))

    # --- uploading --------------------------------------------------------------------------

    async def _upload(self, call: Call, app: AppView, wire: Wire) -> None:
        form = await read_form(call, _FIELDS, self.max_bytes)
        try:
            _check_purpose(form)
            async with self.relay.tracing(call, app, "files") as trace:
                trace.route = "/files"

                async def deliver(response: aiohttp.ClientResponse) -> None:
                    await self._keep(call, response, trace, form.fields["purpose"])

                await self.relay.send(call, trace, Ask("POST", "files", wire, form), deliver)
        finally:
            await form.file.close()

    async def _keep(
        self, call: Call, response: aiohttp.ClientResponse, trace: Trace, purpose: str
    ) -> None:
        scrubber = await self.relay.azure.thorough()
        raw = scrubber.clean(await response.read())
        file_id = _document(raw).get("id")
        if not isinstance(file_id, str) or not _ID.fullmatch(file_id):
            raise UpstreamFailed("Azure gave the file no id that could be used.")
        now = self.relay.clock()
        trace.outcome, trace.recorded = "completed", True
        row = {
            "file_id": file_id, "app_id": trace.app.id, "purpose": purpose, "created_at": now
        }  # fmt: skip
        await self.relay.ledger.append_all([trace.record(now)], [(_UPLOADED, row)])
        await call.answer(response.status, raw, passed_on(response, scrubber))

    # --- one file ---------------------------------------------------------------------------

    async def _check_own(self, app: AppView, file_id: str) -> None:
        async with self.db.reading() as session:
            await ownership.check_files(session, app.id, [file_id])

    async def _one(self, call: Call, app: AppView, target: Target, ask: Ask) -> None:
        async with self.relay.tracing(call, app, target.name) as trace:
            trace.route = f"/{ask.path}"

            async def deliver(response: aiohttp.ClientResponse) -> None:
                if target.name == "file.content":
                    await self._content(call, response, trace)
                    return
                if ask.method == "DELETE":
                    await self._forget(target.ids[0])
                await self.relay.whole(call, response, trace)

            await self.relay.send(call, trace, ask, deliver)
            if ask.method == "DELETE" and trace.status == 404:
                await self._forget(target.ids[0])

    async def _content(self, call: Call, response: aiohttp.ClientResponse, trace: Trace) -> None:
        """The app's own bytes, unchanged. Never as a page: people's pages live on this host."""
        trace.outcome = "completed"
        await self.relay.record(trace)
        headers = {"content-type": "application/octet-stream", "x-content-type-options": "nosniff"}
        if response.content_length is not None:
            headers["content-length"] = str(response.content_length)
        told = passed_on(response, await self.relay.azure.thorough())
        await call.start(response.status, {**headers, **told})
        async with connected(call):
            async for chunk in response.content.iter_any():
                await call.write(chunk)
        await call.end()

    async def _forget(self, file_id: str) -> None:
        async with self.db.transaction() as session:
            await session.exec(delete(UploadedFile).where(col(UploadedFile.file_id) == file_id))

    # --- all of an app's --------------------------------------------------------------------

    async def _list(self, call: Call, app: AppView, wire: Wire) -> None:
        wanted = _wanted(call)
        owned = await self._owned(app)
        if wanted.after is not None and wanted.after not in owned:
            await self._check_own(app, wanted.after)
        async with self.relay.tracing(call, app, "files") as trace:
            trace.route = "/files"
            found = await self._found(call, trace, wire, owned)
            if found is None:
                return
            page = wanted.page(found)
            trace.outcome, trace.status = "completed", 200
            await self.relay.record(trace)
            await call.answer(200, orjson.dumps(page), {})

    async def _owned(self, app: AppView) -> set[str]:
        mine = select(UploadedFile.file_id).where(UploadedFile.app_id == app.id)
        async with self.db.reading() as session:
            return set((await session.exec(mine)).all())

    async def _found(
        self, call: Call, trace: Trace, wire: Wire, owned: set[str]
    ) -> list[Json] | None:
        """The app's files among all of the resource, as Azure describes them; None when Azure
        refused, and the app has been told.
        """
        found: dict[str, Json] = {}
        query = dict(wire.query)
        while len(found) < len(owned):
            raw = await self.relay.fetch(
                call, trace, Ask("GET", "files", Wire(wire.headers, query))
            )
            if raw is None:
                return None
            listing = _document(raw)
            files = [file for file in listing.get("data") or [] if isinstance(file, dict)]
            found |= {file["id"]: file for file in files if file.get("id") in owned}
            last = files[-1].get("id") if files and listing.get("has_more") else None
            # A service that knows no pages would give the same one again.
            if not isinstance(last, str) or last == query.get("after"):
                break
            query = {**wire.query, "after": last}
        return list(found.values())


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which of its files an app wants to see."""

    purpose: str | None
    after: str | None
    limit: int
    newest_first: bool

    def page(self, files: list[Json]) -> Json:
        """One page of them, as the service itself would cut it."""
        kept = [file for file in files if self.purpose in (None, file.get("purpose"))]
        kept.sort(key=lambda file: (file.get("created_at") or 0, file["id"]))
        if self.newest_first:
            kept.reverse()
        ids = [file["id"] for file in kept]
        if self.after is not None:
            if self.after not in ids:
                raise Refused(
                    f"No such File object: {self.after}",
                    code="not_found",
                    param="after",
                    status=404,
                )
            kept = kept[ids.index(self.after) + 1 :]
        shown = kept[: self.limit]
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(kept) > self.limit,
        }


def _wanted(call: Call) -> _Wanted:
    query = dict(call.query)
    limit = query.get("limit", str(_MOST_A_PAGE))
    if not re.fullmatch(r"[0-9]{1,5}", limit) or not 1 <= int(limit) <= _MOST_A_PAGE:
        raise Refused(f"'limit' must be a number from 1 to {_MOST_A_PAGE}.", param="limit")
    order = query.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise Refused("'order' must be 'asc' or 'desc'.", param="order")
    return _Wanted(query.get("purpose"), query.get("after"), int(limit), order == "desc")


def _check_purpose(form: Form) -> None:
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise Refused(
            "The form needs a 'purpose'.", code="missing_required_parameter", param="purpose"
        )
    if purpose not in _PURPOSES:
        raise Bypass(
            f"Files for the purpose {purpose[:40]!r} are refused: they could hold requests that "
            "nobody looks through.",
            code="purpose_refused",
            param="purpose",
        )


def _document(raw: bytes) -> Json:
    try:
        document: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise UpstreamFailed("Azure did not answer with a JSON object.")
    return document
