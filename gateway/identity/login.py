"""Signing in: one-time links, server-side sessions, codes. Tells who is asking, nothing more.

Who comes from an identity provider is `gateway.identity.federation`'s to say; the session is ours.

Every code is kept as its SHA-256 only, every single use is a compare-and-set, and whatever
cannot be matched exactly is nobody: no error path ends in an identity. What the person may do
is `gateway.identity.roles`' to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit import records
from gateway.audit.ledger import Ledger, Transaction
from gateway.audit.records import Actor
from gateway.errors import NotAllowed, NotFound, Refused
from gateway.identity import codes, lookup
from gateway.identity.roles import Permission, allowed
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.ids import new_id
from gateway.store.tables import AccessToken, SignInLink, User, WebSession

LINK_LIFETIME = timedelta(minutes=15)
MAX_LINK_LIFETIME = timedelta(days=1)
IDLE = timedelta(hours=8)
ABSOLUTE = timedelta(hours=24)
_TOUCH = timedelta(minutes=1)


@dataclass(frozen=True)
class Principal:
    """The person who is asking. `session` names the web session (not its code), if it is one."""

    user_id: str
    email: str
    name: str | None
    roles: frozenset[str]
    groups: frozenset[str]
    auth: str  # session | oidc | token
    session: str | None = None
    scopes: frozenset[str] | None = None  # of a token: the permissions it has; None: all
    authenticated_at: datetime | None = None  # when they last proved who they are

    @property
    def actor(self) -> Actor:
        """The same person as audit records name them: without the e-mail address."""
        return Actor("user", self.user_id, self.auth)

    def may(self, permission: Permission) -> bool:
        """Whether a role, and the token if it is one, permits it."""
        within = self.scopes is None or permission.value in self.scopes
        return within and allowed(self.roles, permission)


def cookie_name(public_url: str) -> str:
    """The session cookie: bound to host and TLS by its prefix wherever people come over https."""
    return "__Host-gatepass" if public_url.startswith("https://") else "gatepass"


def link_url(public_url: str, code: str) -> str:
    """Where a one-time link leads. Opening it shows a button; only pressing that signs in."""
    return f"{public_url.rstrip('/')}/sign-in?code={code}"


# --- one-time links -------------------------------------------------------------------------


async def create_link(
    ledger: Ledger,
    user_id: str,
    *,
    lifetime: timedelta = LINK_LIFETIME,
    actor: Actor,
    now: datetime,
) -> str:
    """Make a code that signs this user in once, within `lifetime` (a day at the most).

    Raises `NotFound` for an unknown user, `Refused` for a disabled one.
    """
    if not timedelta(0) < lifetime <= MAX_LINK_LIFETIME:
        raise Refused("A sign-in link may live for at most 24 hours.", param="lifetime")
    code = codes.new_code()
    async with ledger.transaction() as tx:
        user = await tx.session.get(User, user_id)
        if user is None:
            raise NotFound(f"There is no user {user_id!r}.")
        if user.disabled_at is not None:
            raise Refused("This user is disabled.", code="user_disabled")
        tx.session.add(
            SignInLink(
                digest=codes.hex_digest(code),
                user_id=user_id,
                created_at=now,
                expires_at=now + lifetime,
            )
        )
        tx.record(
            records.make(
                "link.created",
                now=now,
                actor=actor,
                subject={"user": user_id},
                key=new_id("lnk", now),
                fields={"expires": records.timestamp(now + lifetime)},
            )
        )
    await tx.sealed()
    return code


async def redeem(
    ledger: Ledger,
    code: str,
    *,
    previous: str | None = None,
    provided: bool = False,
    now: datetime,
) -> str:
    """Use a link up and return the code of a fresh session.

    The session's code is always new, and `previous` (the code of a session the browser still
    holds) ends: nobody can plant a session to be signed in. `provided`: there is an identity
    provider, and who is of it signs in there alone. Raises `NotAllowed` (401), with one sentence
    for every cause, when the link is unknown, used or expired or the user disabled.
    """
    link = codes.hex_digest(code)
    async with ledger.transaction() as tx:
        user = await owner_of(tx.session, link)
        if provided and user.issuer is not None:
            raise NotAllowed(
                "This person signs in through the identity provider; a link alone does not do.",
                code="link_not_enough",
            )
        await use_up(tx.session, link, now)
        return await begin(tx, user.id, SignedIn("link", now), previous=previous, now=now)


async def owner_of(session: AsyncSession, link: str) -> User:
    """Whom the link of this digest is for; raises `NotAllowed` for an unknown or disabled one."""
    row = await session.get(SignInLink, link)
    user = await session.get(User, row.user_id) if row is not None else None
    if user is None or user.disabled_at is not None:
        raise _dead_link()
    return user


async def use_up(session: AsyncSession, link: str, now: datetime) -> None:
    used = await session.exec(
        update(SignInLink)
        .where(
            col(SignInLink.digest) == link,
            col(SignInLink.used_at).is_(None),
            col(SignInLink.expires_at) > now,
        )
        .values(used_at=now)
    )
    if used.rowcount != 1:
        raise _dead_link()


# --- sessions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignedIn:
    """How somebody proved who they are. `at` is when, if that is known for certain.

    The rest is of the identity provider: its name, the name of its session, its ID token.
    """

    method: str  # link | oidc
    at: datetime | None
    provider: str | None = None
    sid: str | None = None
    id_token: str | None = None


async def begin(
    tx: Transaction,
    user_id: str,
    how: SignedIn,
    *,
    previous: str | None,
    now: datetime,
    envelope: Envelope | None = None,
) -> str:
    """Begin a session under a code that nobody has seen; that of `previous` ends with it."""
    code = codes.new_code()
    digest = codes.hex_digest(code)
    if previous is not None:
        await _end(tx, codes.hex_digest(previous), now)
    row = WebSession(
        digest=digest,
        user_id=user_id,
        created_at=now,
        seen_at=now,
        expires_at=now + ABSOLUTE,
        authenticated_at=how.at,
        provider=how.provider,
        sid=how.sid,
    )
    if envelope is not None and how.id_token is not None:
        row.data_key = envelope.new_data_key(digest)
        row.id_token = envelope.seal(row.data_key, digest, "id_token", how.id_token.encode())
    tx.session.add(row)
    tx.record(_signed("user.signed_in", user_id, how.method, now))
    return code


async def id_token(db: Database, envelope: Envelope, code: str) -> str | None:
    """What the provider is shown so that it ends its session too; None where there is nothing."""
    digest = codes.hex_digest(code)
    async with db.reading() as reading:
        row = await reading.get(WebSession, digest)
    if row is None or row.data_key is None or row.id_token is None:
        return None
    return envelope.open(row.data_key, digest, "id_token", row.id_token).decode()


async def session(db: Database, code: str, now: datetime) -> Principal | None:
    """Who holds this session code, or None when it ended, lay idle for 8 h or is 24 h old."""
    digest = codes.hex_digest(code)
    query = (
        select(WebSession, User)
        .where(col(WebSession.user_id) == col(User.id))
        .where(col(WebSession.digest) == digest, col(WebSession.ended_at).is_(None))
    )
    async with db.reading() as reading:
        found = (await reading.exec(query)).first()
        if found is None or not _live(found[0], now):
            return None
        row, user = found
        seen_at = row.seen_at
        principal = await _principal(reading, user, "oidc" if row.provider else "session")
    if principal is None:
        return None
    if now - seen_at > _TOUCH:
        await _touch(db, digest, now)
    return replace(principal, session=digest, authenticated_at=row.authenticated_at)


async def sign_out(ledger: Ledger, code: str, *, now: datetime) -> None:
    """End the session of this code; an unknown or ended one is left alone."""
    async with ledger.transaction() as tx:
        await _end(tx, codes.hex_digest(code), now)


async def sign_out_everywhere(ledger: Ledger, user_id: str, *, actor: Actor, now: datetime) -> None:
    """End every web session of a user at once, on every replica."""
    async with ledger.transaction() as tx:
        await lookup.end_sessions(tx.session, user_id, now)
        tx.record(
            records.make(
                "user.signed_out",
                now=now,
                actor=actor,
                subject={"user": user_id},
                key=new_id("out", now),
            )
        )


def _live(row: WebSession, now: datetime) -> bool:
    return row.expires_at > now and row.seen_at + IDLE > now


async def _touch(db: Database, digest: str, now: datetime) -> None:
    async with db.transaction() as writing:
        await writing.exec(
            update(WebSession)
            .where(
                col(WebSession.digest) == digest,
                col(WebSession.ended_at).is_(None),
                col(WebSession.seen_at) < now,
            )
            .values(seen_at=now)
        )


async def _end(tx: Transaction, digest: str, now: datetime) -> None:
    row = await tx.session.get(WebSession, digest)
    if row is None or row.ended_at is not None:
        return
    row.ended_at = now
    tx.session.add(row)
    tx.record(_signed("user.signed_out", row.user_id, "session", now))


# --- tokens ---------------------------------------------------------------------------------


async def token(db: Database, text: str, now: datetime) -> Principal | None:
    """Who holds this personal access token; None when it is unknown, wrong, expired, revoked.

    An unknown id is compared all the same, so that answers take equal time (constant-time
    comparison over SHA-256).
    """
    token_id = codes.token_id(text)
    query = (
        select(AccessToken, User)
        .where(col(AccessToken.user_id) == col(User.id))
        .where(col(AccessToken.id) == (token_id or ""))
    )
    async with db.reading() as reading:
        found = (await reading.exec(query)).first()
        right = codes.same(text, found[0].digest if found else None)
        if found is None or not right or not _valid(found[0], now):
            return None
        row, user = found
        principal = await _principal(reading, user, "token")
    if principal is None:
        return None
    if row.used_at is None or now - row.used_at > _TOUCH:
        await _note_use(db, row.id, now)
    scopes = None if row.scopes is None else frozenset(row.scopes)
    return replace(principal, scopes=scopes)


async def _note_use(db: Database, token_id: str, now: datetime) -> None:
    async with db.transaction() as writing:
        await writing.exec(
            update(AccessToken)
            .where(col(AccessToken.id) == token_id, col(AccessToken.revoked_at).is_(None))
            .values(used_at=now)
        )


def _valid(row: AccessToken, now: datetime) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now)


async def _principal(reading: AsyncSession, user: User, auth: str) -> Principal | None:
    if user.disabled_at is not None:
        return None
    return Principal(
        user_id=user.id,
        email=user.email,
        name=user.name,
        roles=frozenset(user.roles),
        groups=frozenset(lookup.groups_of(await lookup.groups(reading), user)),
        auth=auth,
    )


def _signed(kind: str, user_id: str, auth: str, now: datetime) -> records.Record:
    return records.make(
        kind,
        now=now,
        actor=Actor("user", user_id, auth),
        subject={"user": user_id},
        key=new_id("sgn", now),
        fields={"method": auth},
    )


def _dead_link() -> NotAllowed:
    return NotAllowed(
        "This sign-in link does not work any more: it was used or has expired. "
        "Ask an admin for a new one.",
        code="link_invalid",
        status=401,
    )
