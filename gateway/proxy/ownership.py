"""Whose an id is: a response, an item, a file or a conversation belongs to the app it was given to.

Reads only. An id of another app does not exist for this one, and neither does one that was made
past the gateway: what it stands for was never looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals import exchanges, items
from gateway.errors import Refused
from gateway.exchange.inspection import Findings
from gateway.exchange.messages import Bypass
from gateway.store.database import Database
from gateway.store.tables import (
    ApprovalRequest,
    Conversation,
    Exchange,
    HandedItem,
    ResponseId,
    UploadedFile,
)

#: Of so many turns it is read what was shown in them; a chain that is sent whole may be longer.
_MOST_EXCHANGES = 500
_OPEN = ("forwarding", "holding", "sending")


@dataclass(frozen=True, slots=True)
class Parent:
    """What a request continues: `last_id` is the id that Azure knows the chain's end by, None
    for a conversation. `made_at` is when its own id was. `thread` is that of its exchange.
    """

    exchange_id: str | None
    last_id: str | None = None
    made_at: datetime | None = None
    thread: str | None = None


async def parent(session: AsyncSession, app_id: str, response_id: str) -> Parent:
    """The app's own finished response of that id."""
    row = await session.get(ResponseId, response_id)
    if row is None or row.app_id != app_id:
        raise Bypass(
            f"Previous response with id '{response_id}' not found.",
            code="previous_response_not_found",
            param="previous_response_id",
            status=404,
        )
    if not row.mediated:
        return Parent(None, response_id, row.created_at)
    exchange = await session.get(Exchange, row.exchange_id)
    last = await session.exec(
        select(ResponseId)
        .where(ResponseId.exchange_id == row.exchange_id)
        .order_by(col(ResponseId.round).desc())
    )
    if exchange is None or exchange.state in _OPEN:
        raise Refused(
            f"The response '{response_id}' is not finished yet; poll it before going on.",
            code="response_not_ready",
            param="previous_response_id",
        )
    newest = last.first() or row
    thread = exchange.thread or exchange.id
    return Parent(row.exchange_id, newest.response_id, newest.created_at, thread)


async def app_id_of(session: AsyncSession, response_id: str) -> str:
    """The id by which the app knows the exchange of a round; the same where there is none."""
    row = await session.get(ResponseId, response_id)
    if row is None or not row.exchange_id or row.round == 0:
        return response_id
    exchange = await session.get(Exchange, row.exchange_id)
    return (exchange.response_id if exchange else None) or response_id


async def check_items(session: AsyncSession, app_id: str, findings: Findings) -> frozenset[str]:
    """MCP items may come back only from the app they were handed to, unchanged; what is named by
    its id must be the app's own; and no item may bear the id of another app's, for Azure would
    take that one. Returns the exchanges of ours that they are of.
    """
    named = (*findings.references, *findings.containers)
    sent = {item.id for item in findings.sent_items}
    owners = await _owners(session, {*findings.item_ids, *named, *sent})
    for item in findings.sent_items:
        row = owners.get(item.id, {}).get(app_id)
        if row is None or row.digest != items.item_digest(item.item):
            raise Bypass(
                f"input[{item.index}]: this '{item.type}' item was not handed out by "
                "this gateway, or was changed since.",
                code="item_forged",
                param=f"input[{item.index}]",
            )
    foreign = {name for name, found in owners.items() if app_id not in found}
    for name in (*named, *findings.item_ids):
        if name in foreign or (name in named and name not in owners):
            raise Bypass(
                f"The item '{name[:100]}' was not handed to this app by this gateway.",
                code="item_forged",
                param="input",
            )
    rows = (row for found in owners.values() for row in found.values())
    return frozenset(row.exchange_id for row in rows if row.exchange_id)


async def shown(
    session: AsyncSession, exchange_ids: Collection[str]
) -> dict[str, dict[str, list[str]]]:
    """What the models of these exchanges have been shown of tools, as in `Kept`."""
    found: dict[str, dict[str, list[str]]] = {}
    wanted = sorted(exchange_ids, reverse=True)[:_MOST_EXCHANGES]  # the newest
    rows = await session.exec(select(Exchange.shown).where(col(Exchange.id).in_(wanted)))
    for row in rows:
        for server, tools in (row or {}).items():
            for tool, digests in tools.items():
                seen = found.setdefault(server, {}).setdefault(tool, [])
                seen += [digest for digest in digests if digest not in seen]
    return found


async def _owners(session: AsyncSession, ids: Collection[str]) -> dict[str, dict[str, HandedItem]]:
    """By item id, the apps it was handed to."""
    owners: dict[str, dict[str, HandedItem]] = {}
    wanted = list(ids)
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        found = await session.exec(select(HandedItem).where(col(HandedItem.item_id).in_(some)))
        for row in found:
            owners.setdefault(row.item_id, {})[row.app_id] = row
    return owners


async def check_files(session: AsyncSession, app_id: str, file_ids: Iterable[str]) -> None:
    """Every file that is named must have been uploaded by the app."""
    wanted = list(dict.fromkeys(file_ids))
    owned: set[str] = set()
    for start in range(0, len(wanted), 500):
        found = await session.exec(
            select(UploadedFile.file_id).where(
                col(UploadedFile.file_id).in_(wanted[start : start + 500]),
                UploadedFile.app_id == app_id,
            )
        )
        owned.update(found.all())
    for file_id in wanted:
        if file_id not in owned:
            raise Bypass(
                f"No such File object: {file_id[:100]}. Upload it through this gateway first.",
                code="file_not_found",
                param="file_id",
                status=404,
            )


async def conversation(session: AsyncSession, app_id: str, conversation_id: str) -> str | None:
    """The newest exchange of the app's own conversation, if any was held there."""
    await own_conversation(session, app_id, conversation_id)
    found = await session.exec(
        select(Exchange)
        .where(Exchange.conversation_id == conversation_id, Exchange.app_id == app_id)
        .order_by(col(Exchange.id).desc())
        .limit(1)
    )
    newest = found.first()
    if newest is not None and newest.state in _OPEN:
        raise exchanges.locked()
    return newest.id if newest else None


async def own_conversation(session: AsyncSession, app_id: str, conversation_id: str) -> None:
    """The conversation must have been made by the app."""
    row = await session.get(Conversation, conversation_id)
    if row is None or row.app_id != app_id:
        raise Bypass(
            f"Conversation with id '{conversation_id[:100]}' not found.",
            code="conversation_not_found",
            param="conversation",
            status=404,
        )


async def exchanges_asking(db: Database, app_id: str, request_ids: Collection[str]) -> list[str]:
    """The app's exchanges in which Azure asked for these approvals."""
    async with db.reading() as session:
        found = await session.exec(
            select(ApprovalRequest.exchange_id)
            .where(
                col(ApprovalRequest.upstream_id).in_(list(request_ids)[:500]),
                ApprovalRequest.app_id == app_id,
            )
            .distinct()
        )
        return list(found.all())


async def response(session: AsyncSession, app_id: str, response_id: str) -> ResponseId:
    """The row of the app's own response, by the id that the app knows."""
    row = await session.get(ResponseId, response_id)
    if row is None or row.round != 0:
        raise Refused(f"Response with id '{response_id}' not found.", code="not_found", status=404)
    if row.app_id != app_id:
        raise Bypass(f"Response with id '{response_id}' not found.", code="not_found", status=404)
    return row


def refuse_approvals(findings: Findings, asked_for: Collection[str]) -> None:
    """An app's own approval is at best a wish, and only about what it has been shown."""
    for sent in findings.sent_approvals:
        if sent.request_id not in asked_for:
            raise Bypass(
                f"input[{sent.index}]: approvals are given to this gateway by people, not by apps.",
                code="approval_forged",
                param=f"input[{sent.index}]",
            )
