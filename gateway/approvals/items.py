"""Items that were handed to apps: whose each is, what it was, and what is hidden around it.

Only what was handed out may come back. What belongs around an item is sealed under the data key
of its exchange, and put back when an app sends its chain again.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Table
from sqlmodel import col, select

from gateway.approvals.decisions import Approvals
from gateway.approvals.kept import Kept
from gateway.exchange.document import read
from gateway.exchange.messages import MCP_ITEMS, Around, Json
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.tables import Exchange, HandedItem, metadata

_HANDED = metadata.tables[str(HandedItem.__tablename__)]
_NOTHING: Mapping[str, bytes] = {}


async def hand_out(
    context: Approvals, kept: Kept, items: Sequence[Json], around: Mapping[str, Around]
) -> None:
    """Remember whose these items are, and what belongs around them, before the app has them."""
    hidden = {name: _sealed(context, kept, name, what) for name, what in around.items()}
    rows = handed_rows(items, kept.app_id, kept.id, hidden)
    if rows:
        await context.ledger.append_all([], rows)


def named(items: Any) -> list[Json]:
    """The items that have an id, of whatever stands where items should be."""
    if not isinstance(items, list):
        return []
    return [item for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]


def handed_rows(
    items: Any, app_id: str, exchange_id: str = "", hidden: Mapping[str, bytes] = _NOTHING
) -> list[tuple[Table, dict[str, Any]]]:
    """The rows by which items, and the containers they ran in, are known as the app's own."""
    rows = []
    for item in named(items):
        digest = item_digest(item) if item.get("type") in MCP_ITEMS else ""
        rows.append(_row(item["id"], digest, app_id, exchange_id, hidden.get(item["id"])))
        if (container := _container_of(item)) is not None:
            rows.append(_row(container, "", app_id, exchange_id, None))
    return rows


def _row(
    item_id: str, digest: str, app_id: str, exchange_id: str, hidden: bytes | None
) -> tuple[Table, dict[str, Any]]:
    return _HANDED, {
        "item_id": item_id,
        "app_id": app_id,
        "exchange_id": exchange_id,
        "digest": digest,
        "hidden": hidden,
    }


def _container_of(item: Json) -> str | None:
    holder = item.get("environment") if "environment" in item else item
    name = holder.get("container_id") if isinstance(holder, dict) else None
    return name if isinstance(name, str) else None


def _sealed(context: Approvals, kept: Kept, item_id: str, what: Around) -> bytes:
    document = orjson.dumps(dataclasses.asdict(what))
    return context.envelope.seal(kept.data_key, kept.id, f"item:{item_id}", document)


def item_digest(item: Mapping[str, Any]) -> str:
    """What an item handed to an app is recognised by when it comes back.

    Some clients write absent members out as null, or 1.0 as 1: that is no change.
    """
    known = _without_nulls(item)
    if isinstance(tools := known.get("tools"), list):
        known["tools"] = [
            _without_nulls(tool) if isinstance(tool, dict) else tool for tool in tools
        ]
    plain = _plain_numbers(orjson.loads(orjson.dumps(known)))
    return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _plain_numbers(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain_numbers(member) for name, member in value.items()}
        case list():
            return [_plain_numbers(member) for member in value]
        case float() if value.is_integer():
            return int(value) if abs(value) < 2**53 else value
        case _:
            return value


def _without_nulls(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


async def around(
    db: Database, envelope: Envelope, app_id: str, item_ids: Sequence[str]
) -> dict[str, tuple[str, Around]]:
    """By item id: the exchange of an item that the app was handed, and what it hides."""
    found: dict[str, tuple[str, Around]] = {}
    async with db.reading() as session:
        for start in range(0, len(item_ids), 500):
            rows = await session.exec(
                select(HandedItem, Exchange.data_key)
                .join(Exchange, col(Exchange.id) == HandedItem.exchange_id)
                .where(
                    col(HandedItem.item_id).in_(item_ids[start : start + 500]),
                    HandedItem.app_id == app_id,
                    col(HandedItem.hidden).is_not(None),
                )
            )
            for row, data_key in rows.all():
                if row.hidden is not None and data_key is not None:
                    name = f"item:{row.item_id}"
                    document = envelope.open(data_key, row.exchange_id, name, row.hidden)
                    found[row.item_id] = (row.exchange_id, Around(**read(document)))
    return found
