"""The ledger over HTTP: records, proofs, checkpoints, the evidence folder.

Reads only, but for the record that every export leaves behind. Proofs and checkpoints are given
in their own formats (C2SP tlog-proof, signed note), byte for byte.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.access import House, may
from gateway.api.archive import Archive
from gateway.approvals import payloads
from gateway.audit import reading
from gateway.audit.checkpoint import encode64
from gateway.audit.export import export
from gateway.audit.reading import Entry
from gateway.errors import NotFound
from gateway.identity.login import Principal
from gateway.identity.roles import Permission

_LARGEST_INDEX = 2**53


class RecordOut(BaseModel):
    """An audit record; `index` is null until a signed head covers it."""

    index: int | None
    id: str
    kind: str
    ts: datetime
    sentence: str
    leaf_hash: str = Field(description="SHA-256 of the leaf, hexadecimal (RFC 9162 §2.1.1).")
    record: dict[str, Any]
    canonical: str = Field(description="The exact text that is hashed (RFC 8785).")


class RecordPage(BaseModel):
    """Records, newest first."""

    items: list[RecordOut]
    next: str | None


class VerdictOut(BaseModel):
    """What a check made just now has found."""

    model_config = ConfigDict(from_attributes=True)
    state: str = Field(description="verified, not_yet_sealed, cannot_verify or failed")
    reason: str
    index: int | None
    size: int | None


class Filters(BaseModel):
    """Which records to list. `kind` may end in .* for a whole family."""

    model_config = ConfigDict(extra="forbid")
    kind: str | None = Field(None, max_length=100)
    actor: str | None = Field(None, max_length=200)
    app: str | None = Field(None, max_length=200)
    server: str | None = Field(None, max_length=200)
    tool: str | None = Field(None, max_length=200)
    exchange: str | None = Field(None, max_length=200)
    approval: str | None = Field(None, max_length=200)
    since: datetime | None = None
    until: datetime | None = None
    after: str | None = Field(None, max_length=200, description="`next` of the previous page.")
    limit: int = Field(50, ge=1, le=200)


router = APIRouter(tags=["audit"])
Reader = Annotated[Principal, Depends(may(Permission.READ_AUDIT))]
Exporter = Annotated[Principal, Depends(may(Permission.EXPORT_AUDIT))]


@router.get("/audit/records", response_model=RecordPage)
async def list_records(house: House, _who: Reader, filters: Annotated[Filters, Query()]) -> Any:
    """Records, newest first."""
    page = await reading.search(house.db, reading.Query(**filters.model_dump()))
    return {"items": [_out(entry) for entry in page.items], "next": page.next}


@router.get("/audit/records/{index}", response_model=RecordOut)
async def read_record(house: House, _who: Reader, index: str) -> Any:
    """One record, by its index or its id."""
    name = _index(index) if index.isascii() and index.isdigit() else index
    return _out(await reading.record(house.db, name))


@router.get(
    "/audit/records/{index}/proof",
    responses={200: {"content": {"text/plain": {}, "application/json": {}}}},
    response_class=Response,
)
async def read_proof(request: Request, house: House, _who: Reader, index: str) -> Response:
    """The receipt of a record: a C2SP tlog-proof as text, or its parts as JSON by Accept."""
    proof = await reading.proof(house.db, _index(index))
    if "application/json" not in request.headers.get("accept", ""):
        return PlainTextResponse(proof.text())
    parts = {
        "index": proof.index,
        "hashes": [encode64(item) for item in proof.hashes],
        "checkpoint": proof.note,
        "proof": proof.text(),
    }
    return JSONResponse(parts)


@router.get("/audit/records/{index}/verify", response_model=VerdictOut)
async def verify_record(house: House, _who: Reader, index: str) -> Any:
    """Recompute a record from its bytes up to the signed head, now."""
    return await reading.verify_record(house.db, house.ledger.signer.verifier, _index(index))


@router.get("/audit/checkpoint", response_class=PlainTextResponse)
async def read_checkpoint(
    house: House, _who: Reader, size: Annotated[int | None, Query(ge=0, lt=_LARGEST_INDEX)] = None
) -> str:
    """The newest signed head, or that of a size: a C2SP signed note. Keep it elsewhere."""
    head = await (reading.latest(house.db) if size is None else reading.head_at(house.db, size))
    if head is None:
        raise NotFound("The ledger is empty: no head was signed yet.", code="head_not_found")
    return head.note


@router.get("/audit/key", response_class=PlainTextResponse)
async def read_key(house: House, _who: Reader) -> str:
    """The public key that the heads are signed with, as a C2SP verifier key."""
    return f"{house.ledger.signer.verifier}\n"


@router.get(
    "/audit/export",
    response_class=Response,
    responses={200: {"content": {"application/zip": {}}}},
)
async def export_evidence(
    house: House,
    who: Exporter,
    with_payloads: Annotated[
        bool, Query(alias="payloads", description="Open the arguments of approval requests too.")
    ] = False,
) -> Response:
    """The evidence folder as a zip; `gatepass audit verify` needs nothing else. Recorded."""
    folder = Path(tempfile.mkdtemp(prefix="gatepass-evidence-"))
    archive = Archive(folder, "evidence")
    with archive.discarded_on_failure():
        await export(
            house.ledger,
            folder,
            actor=who.actor,
            now=house.clock(),
            open_payload=payloads.opener(house.approvals) if with_payloads else None,
        )
    return archive


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 17) or text != str(int(text)):
        raise NotFound("The ledger has no such record.", code="record_not_found")
    return int(text)


def _out(entry: Entry) -> RecordOut:
    return RecordOut(
        index=entry.index,
        id=entry.id,
        kind=entry.kind,
        ts=entry.ts,
        sentence=entry.sentence,
        leaf_hash=entry.leaf_hash.hex(),
        record=entry.document,
        canonical=entry.body.decode("utf-8", "replace"),
    )
