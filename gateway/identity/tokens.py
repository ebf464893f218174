"""Personal access tokens: made and shown once, listed, revoked.

Owns the rows, one record for each change; never keeps a token, only its digest. Who a token
belongs to when it is presented is `gateway.identity.login`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import col, select

from gateway.audit import records
from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import NotFound, Refused
from gateway.identity import codes, lookup
from gateway.store.database import Database
from gateway.store.tables import AccessToken

MAX_TOKEN_LIFETIME = timedelta(days=366)


@dataclass(frozen=True)
class TokenView:
    """What is known of a token after it was shown once."""

    id: str
    user_id: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


async def create_token(
    ledger: Ledger,
    user: str,
    *,
    lifetime: timedelta | None = None,
    actor: Actor,
    now: datetime,
) -> str:
    """Make a token for a user (id or e-mail address) and return it, this once.

    Raises `Refused` for a disabled user or a lifetime that is not within a year.
    """
    if lifetime is not None and not timedelta(0) < lifetime <= MAX_TOKEN_LIFETIME:
        raise Refused("A token may live for at most 366 days.", param="expires_in_days")
    token_id, token = codes.new_token()
    async with ledger.transaction() as tx:
        row = await lookup.find(tx.session, user)
        if row.disabled_at is not None:
            raise Refused("This user is disabled.", code="user_disabled")
        tx.session.add(
            AccessToken(
                id=token_id,
                user_id=row.id,
                digest=codes.digest(token),
                created_at=now,
                expires_at=now + lifetime if lifetime else None,
            )
        )
        tx.record(_token_record("token.created", row.id, token_id, actor, now))
    await tx.sealed()
    return token


async def tokens_of(db: Database, user_id: str) -> tuple[TokenView, ...]:
    """A user's tokens, newest first, the revoked ones too."""
    query = select(AccessToken).where(col(AccessToken.user_id) == user_id)
    async with db.reading() as session:
        rows = (await session.exec(query.order_by(col(AccessToken.created_at).desc()))).all()
    return tuple(
        TokenView(row.id, row.user_id, row.created_at, row.expires_at, row.revoked_at)
        for row in rows
    )


async def revoke_token(
    ledger: Ledger, token_id: str, *, owner: str | None, actor: Actor, now: datetime
) -> None:
    """Refuse a token from now on. `owner`: only a token of this user id; None: anybody's.

    Raises `NotFound`. Revoking a revoked token changes nothing.
    """
    async with ledger.transaction() as tx:
        row = await tx.session.get(AccessToken, token_id)
        if row is None or (owner is not None and row.user_id != owner):
            raise NotFound("There is no such token.")
        if row.revoked_at is None:
            row.revoked_at = now
            tx.session.add(row)
            tx.record(_token_record("token.revoked", row.user_id, token_id, actor, now))


def _token_record(
    kind: str, user_id: str, token_id: str, actor: Actor, now: datetime
) -> records.Record:
    return records.make(
        kind,
        now=now,
        actor=actor,
        subject={"user": user_id},
        key=token_id,
        fields={"token_id": token_id},
    )
