"""Personal access tokens: made and shown once, with an end and perhaps a scope; listed, revoked.

Owns the rows, one record for each change; never keeps a token, only its digest. Who a token
belongs to when it is presented is `gateway.identity.login`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import col, select

from gateway.audit import records
from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import NotFound, Refused
from gateway.identity import codes, lookup
from gateway.identity.roles import Permission, allowed
from gateway.store.database import Database
from gateway.store.tables import AccessToken

MAX_TOKEN_LIFETIME = timedelta(days=366)
#: What a token for looking may do.
READ_ONLY = tuple(each.value for each in Permission if each.value.endswith(".read"))


@dataclass(frozen=True)
class TokenView:
    """What is known of a token after it was shown once."""

    id: str
    user_id: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None = None
    scopes: tuple[str, ...] | None = None


def lifetime(days: int | None, longest: int) -> timedelta:
    """How long a token lives that was asked for `days`, where `longest` are the most."""
    if days is not None and days > longest:
        raise Refused(f"A token may live for at most {longest} days.", param="expires_in_days")
    return timedelta(days=longest if days is None else days)


def scopes(asked: Iterable[str], roles: Iterable[str]) -> list[str]:
    """Permissions by name; `read` stands for every one of looking that these roles have."""
    held = list(roles)
    reading = [name for name in READ_ONLY if allowed(held, Permission(name))]
    return [name for each in asked for name in (reading if each == "read" else [each])]


async def create_token(
    ledger: Ledger,
    user: str,
    *,
    lifetime: timedelta | None = None,
    scopes: Iterable[str] | None = None,
    actor: Actor,
    now: datetime,
) -> str:
    """Make a token for a user (id or e-mail address) and return it, this once.

    `scopes` are permissions; None means all that its owner has, now and later. Raises `Refused`
    for a disabled user, a lifetime that is not within a year, or a scope the owner has not.
    """
    narrowed = None if scopes is None else sorted(set(scopes))
    if lifetime is not None and not timedelta(0) < lifetime <= MAX_TOKEN_LIFETIME:
        raise Refused("A token may live for at most 366 days.", param="expires_in_days")
    token_id, token = codes.new_token()
    async with ledger.transaction() as tx:
        row = await lookup.find(tx.session, user)
        if row.disabled_at is not None:
            raise Refused("This user is disabled.", code="user_disabled")
        _check(narrowed, row.roles)
        tx.session.add(
            AccessToken(
                id=token_id,
                user_id=row.id,
                digest=codes.digest(token),
                scopes=narrowed,
                created_at=now,
                expires_at=now + lifetime if lifetime else None,
            )
        )
        fields = {} if narrowed is None else {"scopes": narrowed}
        tx.record(_token_record("token.created", row.id, token_id, actor, now, **fields))
    await tx.sealed()
    return token


async def tokens_of(db: Database, user_id: str) -> tuple[TokenView, ...]:
    """A user's tokens, newest first, the revoked ones too."""
    query = select(AccessToken).where(col(AccessToken.user_id) == user_id)
    async with db.reading() as session:
        rows = (await session.exec(query.order_by(col(AccessToken.created_at).desc()))).all()
    return tuple(
        TokenView(
            row.id,
            row.user_id,
            row.created_at,
            row.expires_at,
            row.revoked_at,
            row.used_at,
            None if row.scopes is None else tuple(row.scopes),
        )
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


def _check(scopes: list[str] | None, roles: list[str]) -> None:
    for scope in scopes or ():
        if scope not in tuple(Permission) or not allowed(roles, Permission(scope)):
            raise Refused(f"The user's roles do not include {scope!r}.", param="scopes")
    if scopes == []:
        raise Refused("A token without any scope opens nothing.", param="scopes")


def _token_record(
    kind: str, user_id: str, token_id: str, actor: Actor, now: datetime, **more: list[str]
) -> records.Record:
    return records.make(
        kind,
        now=now,
        actor=actor,
        subject={"user": user_id},
        key=token_id,
        fields={"token_id": token_id, **more},
    )
