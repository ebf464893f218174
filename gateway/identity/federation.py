"""People of the identity provider: who arrives becomes one of ours, or stays outside.

Found by issuer and subject, never by e-mail address. The first time somebody comes they are
made, with the roles that the provider gives; whoever has that address here already is joined to
the identity by a one-time link alone. What the provider says of roles and groups holds from
sign-in to sign-in; every change is a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from gateway.audit import records
from gateway.audit.ledger import Ledger, Transaction
from gateway.audit.records import SYSTEM, Actor
from gateway.errors import Conflict, GatepassError
from gateway.identity import codes, login, lookup, people
from gateway.identity.claims import Identity, SignInRefused
from gateway.identity.login import SignedIn
from gateway.store.envelope import Envelope
from gateway.store.ids import new_id
from gateway.store.tables import UsedCode, User, WebSession, metadata
from gateway.telemetry import log

SOURCE = "provider"
_REMEMBERED = timedelta(days=1)
#: Records of what gives or takes authority: nobody goes on before a signed head covers them.
_AUTHORITY = frozenset({"user.created", "user.changed"})
_USED = insert(metadata.tables[str(UsedCode.__tablename__)])


@dataclass(frozen=True)
class Arrival:
    """Somebody who has come back from the provider. `once` is what may be used a single time,
    `link` the digest of the one-time link that they set out with, if any.
    """

    identity: Identity
    signed_in: SignedIn
    once: str
    link: str | None = None


@dataclass(frozen=True)
class Notice:
    """The provider says that a session of its own has ended: of whom, or which."""

    issuer: str
    subject: str | None
    sid: str | None
    once: str


async def sign_in(
    ledger: Ledger,
    envelope: Envelope,
    arrival: Arrival,
    *,
    previous: str | None = None,
    now: datetime,
) -> str:
    """Let somebody in and return the code of a fresh session.

    Raises `SignInRefused` for whom there is no role, for a disabled person, for an address that
    is somebody else's here, and for what was used before.
    """
    code, refusal = None, None
    try:
        async with ledger.transaction() as tx:
            await _once(tx, arrival.once, now)
            user = await _user(tx, arrival, now)
            if user.roles:
                code = await login.begin(
                    tx, user.id, arrival.signed_in, previous=previous, now=now, envelope=envelope
                )
            else:
                # What was taken away stays away, though nobody comes in.
                await lookup.end_sessions(tx.session, user.id, now)
                refusal = no_role(user.id)
    except IntegrityError:
        raise SignInRefused("used_before", "This way in was used already.") from None
    if any(record.kind in _AUTHORITY for record in tx.records):
        await tx.sealed()
    if code is None:
        raise refusal or no_role(None)
    return code


async def sign_out(ledger: Ledger, notice: Notice, *, now: datetime) -> int:
    """End what the provider says has ended; how many sessions that were.

    Raises `Conflict` for a notice that came before.
    """
    try:
        async with ledger.transaction() as tx:
            await _once(tx, notice.once, now)
            people_of = select(User.id).where(User.issuer == notice.issuer)
            if notice.subject is not None:
                people_of = people_of.where(User.subject == notice.subject)
            ending = (
                update(WebSession)
                .where(col(WebSession.ended_at).is_(None), col(WebSession.user_id).in_(people_of))
                .where(col(WebSession.provider) == notice.issuer)
            )
            if notice.sid is not None:
                ending = ending.where(col(WebSession.sid) == notice.sid)
            ended = await tx.session.exec(
                ending.values(ended_at=now)
                .returning(col(WebSession.user_id))
                .execution_options(synchronize_session=False)
            )
            owners = [user_id for (user_id,) in ended.all()]
            for user_id in sorted(set(owners)):
                tx.record(_signed_out(user_id, now))
    except IntegrityError:
        raise Conflict("This notice came before.", code="used_before") from None
    return len(owners)


async def refuse(ledger: Ledger, error: GatepassError, *, now: datetime) -> None:
    """Record a refused sign-in, one of a kind a minute: strangers could fill the ledger."""
    user_id = error.user_id if isinstance(error, SignInRefused) else None
    record = records.make(
        "sign_in.refused",
        now=now,
        actor=SYSTEM,
        subject={"user": user_id} if user_id else {},
        key=f"{error.code} {now:%Y-%m-%dT%H:%M}",
        fields={"code": error.code, "method": "oidc"},
    )
    try:
        await ledger.append_all([record])
    except Conflict:
        pass  # recorded in this minute already
    except GatepassError as failure:
        log.warning("sign_in.not_recorded", code=error.code, error=failure.code)


def no_role(user_id: str | None) -> SignInRefused:
    """The refusal of somebody whom the provider gives no role here."""
    return SignInRefused(
        "no_role", "The identity provider gives you no role here.", user_id=user_id
    )


async def _once(tx: Transaction, what: str, now: datetime) -> None:
    """Raises `IntegrityError` when it was used before."""
    await tx.session.exec(delete(UsedCode).where(col(UsedCode.expires_at) <= now))
    row = {"digest": codes.hex_digest(what), "expires_at": now + _REMEMBERED}
    await tx.session.exec(_USED, params=row)


async def _user(tx: Transaction, arrival: Arrival, now: datetime) -> User:
    """The person who arrives, as they are from now on."""
    identity = arrival.identity
    found = await tx.session.exec(
        select(User)
        .where(User.issuer == identity.issuer, User.subject == identity.subject)
        .with_for_update()
    )
    user = found.first()
    if arrival.link is not None:
        user = await _invited(tx, user, arrival.link, identity, now)
    if user is None:
        return await _made(tx, identity, now)
    if user.disabled_at is not None:
        raise SignInRefused("user_disabled", "This person is disabled here.", user_id=user.id)
    await _refresh(tx, user, identity, now)
    return user


async def _invited(
    tx: Transaction, known: User | None, link: str, identity: Identity, now: datetime
) -> User:
    """Whom the link is for, joined to the identity: the link proves that an admin wants it."""
    user = await login.owner_of(tx.session, link)
    await login.use_up(tx.session, link, now)
    if not identity.roles:
        raise no_role(user.id)
    if known is not None and known.id != user.id:
        raise SignInRefused("identity_taken", "You are somebody else here.", user_id=known.id)
    if user.issuer is not None and known is None:
        raise SignInRefused("identity_taken", "Another identity has this place.", user_id=user.id)
    if user.email != identity.email:
        raise SignInRefused("other_address", "The link is for another address.", user_id=user.id)
    if user.issuer is None:
        if "admin" in user.roles and "admin" not in identity.roles:
            await people.keep_an_admin(tx.session, user)
        user.issuer, user.subject = identity.issuer, identity.subject
        tx.session.add(user)
        tx.record(_changed(user, "identity", now))
    return user


async def _made(tx: Transaction, identity: Identity, now: datetime) -> User:
    if not identity.roles:
        raise no_role(None)
    if await lookup.by_email(tx.session, identity.email) is not None:
        raise SignInRefused(
            "address_taken",
            "Somebody here has this e-mail address: an admin's one-time link joins the two.",
        )
    user = User(
        id=new_id("usr", now),
        email=identity.email,
        name=identity.name,
        roles=list(identity.roles),
        issuer=identity.issuer,
        subject=identity.subject,
        groups=list(identity.groups),
        created_at=now,
    )
    tx.session.add(user)
    await tx.session.flush()
    tx.record(
        records.make(
            "user.created",
            now=now,
            actor=_actor(user),
            subject={"user": user.id},
            fields={"roles": list(user.roles), "source": SOURCE},
        )
    )
    return user


async def _refresh(tx: Transaction, user: User, identity: Identity, now: datetime) -> None:
    """What the provider says now; one record for each member that is another."""
    address = identity.email
    if address != user.email and await lookup.by_email(tx.session, address) is not None:
        raise SignInRefused(
            "address_taken", "Somebody else here has this e-mail address.", user_id=user.id
        )
    said = {
        "email": address,
        "name": identity.name or user.name,
        "roles": list(identity.roles),
        "groups": list(identity.groups),
    }
    for name in _differing(user, said):
        setattr(user, name, said[name])
        tx.session.add(user)
        if name != "name":
            tx.record(_changed(user, name, now))


def _differing(user: User, said: Mapping[str, object]) -> Iterator[str]:
    for name, value in said.items():
        have = getattr(user, name)
        if have != value and (have or value):
            yield name


def _actor(user: User) -> Actor:
    return Actor("user", user.id, "oidc")


def _changed(user: User, change: str, now: datetime) -> records.Record:
    return people.changed(user, change, _actor(user), now, source=SOURCE)


def _signed_out(user_id: str, now: datetime) -> records.Record:
    return records.make(
        "user.signed_out",
        now=now,
        actor=SYSTEM,
        subject={"user": user_id},
        key=new_id("out", now),
        fields={"method": "oidc", "source": SOURCE},
    )
