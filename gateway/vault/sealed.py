"""`sealed:` secrets: values in our own database, each under a data key of its own.

A value is bound to its scope (a server's id and address): moved to another row, version or
server, it does not open. Writing happens in the caller's transaction; nothing here shows a value.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.errors import Unavailable
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.references import SecretRef
from gateway.store.tables import SealedSecret
from gateway.vault.secret import Purpose, Secret, check_value, opened

_KEPT = 2


class SealedStore:
    """Opens the newest version of a value, from the database at every call."""

    def __init__(self, db: Database, envelope: Envelope) -> None:
        self._db = db
        self._envelope = envelope

    def __repr__(self) -> str:
        return "<SealedStore>"

    async def open(self, ref: SecretRef, _purpose: Purpose) -> Secret:
        """The current value; `Unavailable` when there is none or it belongs to another scope."""
        newest = (
            select(col(SealedSecret.data_key), col(SealedSecret.value), col(SealedSecret.version))
            .where(col(SealedSecret.name) == ref.stored_as)
            .order_by(col(SealedSecret.version).desc())
            .limit(1)
        )
        async with self._db.reading() as session:
            row = (await session.exec(newest)).first()
        if row is None:
            raise Unavailable(
                f"No value has been stored for {ref}: run '{_command(ref)}'.",
                code="secret_missing",
            )
        data_key, sealed, version = row
        return self._unseal(ref, data_key, sealed, version)

    def _unseal(self, ref: SecretRef, data_key: bytes, sealed: bytes, version: int) -> Secret:
        try:
            plain = self._envelope.open(data_key, ref.stored_as, _bound(ref, version), sealed)
        except Unavailable:
            raise Unavailable(
                f"The value of {ref} does not open: it was stored for another address of the "
                "server, was altered, or the master key is another one. Store it again with "
                f"'{_command(ref)}'.",
                code="sealed_value_broken",
            ) from None
        return opened(str(ref), plain.decode(), str(version))

    async def ping(self) -> None:
        """Read the table, and seal and open a value of no meaning."""
        async with self._db.reading() as session:
            await session.exec(select(func.count()).select_from(SealedSecret))
        data_key = self._envelope.new_data_key("ping")
        sealed = self._envelope.seal(data_key, "ping", "ping", b"ping")
        self._envelope.open(data_key, "ping", "ping", sealed)


async def write(
    session: AsyncSession, envelope: Envelope, ref: SecretRef, value: str, now: datetime
) -> int:
    """Store `value` as the next version of `ref` in the caller's transaction; its number.

    Raises `Refused` for a value that cannot travel in a header. The version before stays, older
    ones are destroyed.
    """
    check_value(str(ref), value)
    name = ref.stored_as
    highest = select(func.max(col(SealedSecret.version))).where(col(SealedSecret.name) == name)
    version = ((await session.exec(highest)).one() or 0) + 1
    data_key = envelope.new_data_key(name)
    session.add(
        SealedSecret(
            name=name,
            version=version,
            data_key=data_key,
            value=envelope.seal(data_key, name, _bound(ref, version), value.encode()),
            created_at=now,
        )
    )
    await session.flush()
    old = col(SealedSecret.version) <= version - _KEPT
    await session.exec(delete(SealedSecret).where(col(SealedSecret.name) == name, old))
    return version


async def destroy(session: AsyncSession, ref: SecretRef) -> None:
    """Destroy every version of `ref` in the caller's transaction."""
    await session.exec(delete(SealedSecret).where(col(SealedSecret.name) == ref.stored_as))


def _command(ref: SecretRef) -> str:
    client = (ref.scope or "").startswith("oauth/")
    return f"gatepass credentials {'set-client NAME' if client else 'set SERVER'}"


def _bound(ref: SecretRef, version: int) -> str:
    return f"{version} {ref.scope or ''}"
