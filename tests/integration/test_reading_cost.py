"""Reading requests costs the same however long the ledger is."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.dialects import sqlite as dialect
from sqlmodel import select

from gateway.approvals.reading import shown
from gateway.store.database import Database
from gateway.store.tables import ApprovalRequest


async def test_the_ledger_is_searched_and_never_scanned(sqlite: Database) -> None:
    statement = select(ApprovalRequest.id).where(ApprovalRequest.id == "apr_1", shown())
    query = statement.compile(dialect=dialect.dialect(), compile_kwargs={"literal_binds": True})
    async with sqlite.reading() as session:
        connection = await session.connection()
        plan = (await connection.execute(text(f"EXPLAIN QUERY PLAN {query}"))).all()
    steps = [row.detail for row in plan]
    assert any(step.startswith("SEARCH audit_records") for step in steps)
    assert not [step for step in steps if step.startswith("SCAN")]
