"""Opening the payloads of approval requests for an export; whoever asks for it is recorded there.

Reads only. What was erased is simply not there any more.
"""

from __future__ import annotations

from gateway.approvals.decisions import Approvals
from gateway.approvals.reading import Opener
from gateway.audit.export import Opening, OpenPayload
from gateway.store.tables import ApprovalRequest, Exchange


def opener(context: Approvals) -> OpenPayload:
    """A function from approval id to the exact argument bytes and the blind of their commitment."""

    async def open_payload(approval_id: str) -> Opening | None:
        async with context.db.reading() as session:
            row = await session.get(ApprovalRequest, approval_id)
            if row is None:
                return None
            exchange = await session.get(Exchange, row.exchange_id)
        if exchange is None or exchange.data_key is None:
            return None
        payload = Opener(context.envelope, exchange.id, exchange.data_key).payload(row)
        return Opening(payload["arguments"].encode(), bytes.fromhex(payload["nonce"]))

    return open_payload
