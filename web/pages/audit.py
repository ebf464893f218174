"""The ledger, for whoever audits: every record, and what proves it. Read-only by construction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from gateway.audit import reading
from gateway.audit.kinds import KINDS
from gateway.audit.reading import Entry, Query, Verdict
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from web import checks, frame, words
from web.formats import seen
from web.rendering import Interface

router = APIRouter(prefix="/audit")
FILTERS = ("kind", "app", "server", "actor")
Auditing = Annotated[Principal, frame.needs(Permission.READ_AUDIT)]


@dataclass(frozen=True)
class Row:
    """A record as a line of the list."""

    index: int | None
    kind: str
    actor: str
    ts: datetime
    sentence: Markup
    state: str  # of the verdict reached while the page was made


@router.get("")
async def browse(request: Request, _reader: Auditing) -> Response:
    """Records, newest first, filtered by what the address says."""
    said = request.query_params
    filters = {name: said[name] for name in FILTERS if said.get(name)}
    query = Query(
        kind=filters.get("kind"),
        app=filters.get("app"),
        server=filters.get("server"),
        actor=filters.get("actor"),
        after=said.get("after") or None,
    )
    services = frame.web(request).services
    found = await reading.search(services.db, query)
    verdicts = await checks.records(services, found.items)
    ui = await frame.interface(request)
    more = urlencode({**filters, "after": found.next}) if found.next else None
    return await frame.page(
        request,
        "audit.html",
        items=[
            _row(request, ui, entry, verdict)
            for entry, verdict in zip(found.items, verdicts, strict=True)
        ],
        check=checks.worst(verdicts),
        filters=query,
        filtered=bool(filters),
        kinds=sorted(KINDS),
        next=f"/audit?{more}" if more else None,
        first=f"/audit?{urlencode(filters)}" if query.after else None,
    )


@router.get("/{index}")
async def show(request: Request, index: int, _reader: Auditing) -> Response:
    """One record with its bytes, its proof, and a verdict reached just now."""
    services = frame.web(request).services
    entry = await reading.record(services.db, index)
    check = await checks.record(services, index)
    ui = await frame.interface(request)
    kind = KINDS.get(entry.kind)
    return await frame.page(
        request,
        "record.html",
        record=entry,
        sentence=_sentence(request, ui, entry),
        meaning=frame.web(request).renderer.translate(ui.language, kind.meaning) if kind else None,
        check=check,
        fields=list(_fields(entry.document)),
        body=entry.body.decode("utf-8", "backslashreplace"),
        body_digest="sha256:" + hashlib.sha256(entry.body).hexdigest(),
        leaf_hash=entry.leaf_hash.hex(),
        proof=check.proof.text() if check.proof is not None else None,
    )


def _row(request: Request, ui: Interface, entry: Entry, verdict: Verdict) -> Row:
    actor = str(entry.document.get("actor", {}).get("ref", ""))
    sentence = _sentence(request, ui, entry)
    return Row(entry.index, entry.kind, actor, entry.ts, sentence, verdict.state)


def _sentence(request: Request, ui: Interface, entry: Entry) -> Markup:
    """The record in plain words of the reader's language; names in it are foreign text."""
    renderer = frame.web(request).renderer
    kind = KINDS.get(entry.kind)
    if kind is None or not entry.document:
        return seen(entry.sentence)

    def word(value: object) -> Markup:
        match value:
            case {"value": verdict, "by": by}:
                return Markup(", ").join((word(verdict), word(by)))
            case _:
                known = words.VALUES.get(str(value))
                if known is None:
                    return seen(str(value))
                return Markup.escape(renderer.translate(ui.language, known))

    members = _Members({name: word(value) for name, value in entry.document.items()})
    members |= {name: seen(str(value)) for name, value in entry.document["subject"].items()}
    actor = entry.document["actor"]
    members["actor"] = word(actor["kind"] if actor["kind"] == "system" else actor["ref"])
    template = Markup.escape(renderer.translate(ui.language, kind.says))
    return Markup(template.format_map(members))  # noqa: S704  all parts are escaped above


class _Members(dict[str, Markup]):
    def __missing__(self, name: str) -> Markup:
        return Markup("")


def _fields(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Name, value and, where there is one, the page of what the value names."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            for inner, text, address in _fields(value):
                yield f"{name}.{inner}", text, address
        else:
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            yield name, text, _address(name, text)


def _address(name: str, text: str) -> str | None:
    return f"/requests/{text}" if name == "approval" and text.startswith("apr_") else None
