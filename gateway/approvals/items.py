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


async def hand_out(
    context: Approvals, kept: Kept, items: Sequence[Json], around: Mapping[str, Around]
) -> None:
    """Remember whose these items are, and what belongs around them, before the app has them."""
    rows = [
        handed_row(item, kept.app_id, kept.id, _sealed(context, kept, item["id"], around))
        for item in named(items)
    ]
    if rows:
        await context.ledger.append_all([], rows)


def named(items: Any) -> list[Json]:
    """The items that have an id, of whatever stands where items should be."""
    if not isinstance(items, list):
        return []
    return [item for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]


def handed_row(
    item: Json, app_id: str, exchange_id: str = "", hidden: bytes | None = None
) -> tuple[Table, dict[str, Any]]:
    """The row by which an item is known as the app's own. Its id must be a text."""
    return _HANDED, {
        "item_id": item["id"],
        "app_id": app_id,
        "exchange_id": exchange_id,
        "digest": item_digest(item) if item.get("type") in MCP_ITEMS else "",
        "hidden": hidden,
    }


def _sealed(
    context: Approvals, kept: Kept, item_id: str, around: Mapping[str, Around]
) -> bytes | None:
    if item_id not in around:
        return None
    document = orjson.dumps(dataclasses.asdict(around[item_id]))
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
