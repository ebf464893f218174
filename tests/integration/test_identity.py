"""People, links, sessions and tokens over real databases, with what the ledger says of them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import orjson
import pytest
from sqlmodel import select

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.audit.signing import Signer
from gateway.errors import Conflict, NotAllowed, NotFound, Refused
from gateway.identity import login, people
from gateway.identity.people import NewUser
from gateway.store.database import Database
from gateway.store.tables import (
    AccessToken,
    AuditRecord,
    ReviewerGroup,
    SignInLink,
    WebSession,
)
from tests.support.clock import FakeClock

HOST = Actor("operator", "host", "host")


@pytest.fixture
def ledger(db: Database, clock: FakeClock) -> Ledger:
    return Ledger(db, Signer("test", bytes(32)), clock)


async def _records(db: Database) -> list[dict]:
    async with db.reading() as session:
        rows = await session.exec(select(AuditRecord).order_by(AuditRecord.position))
        return [orjson.loads(row.body) for row in rows]


async def _kinds(db: Database) -> list[str]:
    kinds = [record["type"] for record in await _records(db)]
    return [kind for kind in kinds if not kind.startswith("ledger.")]


async def _user(ledger: Ledger, clock: FakeClock, email: str, *roles: str) -> people.UserView:
    return await people.create_user(ledger, NewUser(email, roles), actor=HOST, now=clock())


async def test_a_user_is_created_once_and_recorded_without_the_address(
    ledger: Ledger, db: Database, clock: FakeClock
) -> None:
    user = await _user(ledger, clock, "  Ann@Example.ORG ", "reviewer", "viewer", "reviewer")
    assert user.id.startswith("usr_")
    assert user.email == "ann@example.org"
    assert user.roles == ("viewer", "reviewer")
    with pytest.raises(Conflict):
        await _user(ledger, clock, "ANN@example.org")
    [record] = [r for r in await _records(db) if r["type"] == "user.created"]
    assert record["subject"] == {"user": user.id}
    assert "ann@" not in orjson.dumps(await _records(db)).decode().lower()


async def test_two_at_once_create_one_user(ledger: Ledger, db: Database, clock: FakeClock) -> None:
    results = await asyncio.gather(
        *(_user(ledger, clock, "ann@example.org") for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, people.UserView) for result in results) == 1
    assert all(isinstance(r, Conflict) for r in results if not isinstance(r, people.UserView))
    assert await _kinds(db) == ["user.created"]


@pytest.mark.parametrize(
    "email", ["", "ann", "@example.org", "ann@", "a@b@c", "a b@c", "a@b\n", "a\u202e@b", "<a@b>"]
)
async def test_what_is_no_address_is_refused(
    sqlite: Database, clock: FakeClock, email: str
) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    email = email if email.strip() == email else email + "x"
    with pytest.raises(Refused):
        await _user(ledger, clock, email)


async def test_an_unknown_role_is_refused(sqlite: Database, clock: FakeClock) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    with pytest.raises(Refused, match="'owner'"):
        await _user(ledger, clock, "ann@example.org", "owner")


async def test_pages_of_users(sqlite: Database, clock: FakeClock) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    for number in range(5):
        await _user(ledger, clock, f"u{number}@example.org", "viewer")
        clock.advance(1)
    first = await people.listing(sqlite, limit=2)
    second = await people.listing(sqlite, after=first.next, limit=2)
    third = await people.listing(sqlite, after=second.next, limit=2)
    seen = [user.email for page in (first, second, third) for user in page.items]
    assert seen == [f"u{number}@example.org" for number in range(5)]
    assert third.next is None


async def test_groups_are_known_by_address(sqlite: Database, clock: FakeClock) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    async with sqlite.transaction() as session:
        session.add(ReviewerGroup(name="treasury", members=["Ann@Example.org", "bo@example.org"]))
        session.add(ReviewerGroup(name="ops", members=["bo@example.org"]))
    ann = await _user(ledger, clock, "ann@example.org", "reviewer")
    assert ann.groups == ("treasury",)
    token = await people.create_token(ledger, ann.id, actor=HOST, now=clock())
    principal = await login.token(sqlite, token, clock())
    assert principal is not None
    assert principal.groups == {"treasury"}
    assert [group.name for group in await people.groups(sqlite)] == ["ops", "treasury"]


# --- the last admin -------------------------------------------------------------------------


async def test_the_last_admin_stays(ledger: Ledger, db: Database, clock: FakeClock) -> None:
    ann = await _user(ledger, clock, "ann@example.org", "admin")
    with pytest.raises(Conflict, match="last admin"):
        await people.set_roles(ledger, ann.id, ["viewer"], actor=HOST, now=clock())
    with pytest.raises(Conflict, match="last admin"):
        await people.disable(ledger, ann.email, actor=HOST, now=clock())
    bo = await _user(ledger, clock, "bo@example.org", "admin")
    await people.disable(ledger, ann.id, actor=HOST, now=clock())
    with pytest.raises(Conflict, match="last admin"):  # a disabled admin does not count
        await people.set_roles(ledger, bo.id, [], actor=HOST, now=clock())


async def test_two_admins_cannot_remove_each_other(
    ledger: Ledger, db: Database, clock: FakeClock
) -> None:
    admins = [await _user(ledger, clock, f"{n}@example.org", "admin") for n in "ab"]
    results = await asyncio.gather(
        *(people.disable(ledger, admin.id, actor=HOST, now=clock()) for admin in admins),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Conflict) for result in results) == 1


# --- links and sessions ---------------------------------------------------------------------


async def test_a_link_signs_in_once(ledger: Ledger, db: Database, clock: FakeClock) -> None:
    ann = await _user(ledger, clock, "ann@example.org", "reviewer")
    code = await login.create_link(ledger, ann.id, actor=HOST, now=clock())
    session = await login.redeem(ledger, code, now=clock())
    principal = await login.session(db, session, clock())
    assert principal is not None
    assert (principal.user_id, principal.auth) == (ann.id, "session")
    assert principal.roles == {"reviewer"}
    assert principal.actor == Actor("user", ann.id, "session")
    with pytest.raises(NotAllowed) as refused:
        await login.redeem(ledger, code, now=clock())
    assert refused.value.status == 401
    assert await _kinds(db) == ["user.created", "link.created", "user.signed_in"]


async def test_many_at_once_use_a_link_once(ledger: Ledger, db: Database, clock: FakeClock) -> None:
    ann = await _user(ledger, clock, "ann@example.org")
    code = await login.create_link(ledger, ann.id, actor=HOST, now=clock())
    results = await asyncio.gather(
        *(login.redeem(ledger, code, now=clock()) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(result, str) for result in results) == 1
    assert sum(isinstance(result, NotAllowed) for result in results) == 9


async def test_only_digests_are_stored(ledger: Ledger, db: Database, clock: FakeClock) -> None:
    ann = await _user(ledger, clock, "ann@example.org")
    unused = await login.create_link(ledger, ann.id, actor=HOST, now=clock())
    code = await login.create_link(ledger, ann.id, actor=HOST, now=clock())
    session_code = await login.redeem(ledger, code, now=clock())
    token = await people.create_token(ledger, ann.id, actor=HOST, now=clock())
    async with db.reading() as session:
        rows = [
            repr(row.model_dump())
            for table in (SignInLink, WebSession, AccessToken, AuditRecord)
            for row in await session.exec(select(table))
        ]
    for secret in (unused, code, session_code, token, token[-43:]):
        assert not any(secret in row for row in rows)


@pytest.mark.parametrize("seconds", [15 * 60, 15 * 60 + 1, 86400])
async def test_a_link_expires(sqlite: Database, clock: FakeClock, seconds: int) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    ann = await _user(ledger, clock, "ann@example.org")
    code = await login.create_link(ledger, ann.id, actor=HOST, now=clock())
    with pytest.raises(NotAllowed):
        await login.redeem(ledger, code, now=clock.advance(seconds))


async def test_unknown_links_and_sessions_are_nobody(sqlite: Database, clock: FakeClock) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    for code in ("", "x" * 43, "\ud800", "' OR 1=1 --"):
        with pytest.raises(NotAllowed):
            await login.redeem(ledger, code, now=clock())
        assert await login.session(sqlite, code, clock()) is None
        assert await login.token(sqlite, code, clock()) is None


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(seconds=-1), timedelta(days=2)])
async def test_a_link_lives_a_day_at_most(
    sqlite: Database, clock: FakeClock, lifetime: timedelta
) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    ann = await _user(ledger, clock, "ann@example.org")
    with pytest.raises(Refused):
        await login.create_link(ledger, ann.id, lifetime=lifetime, actor=HOST, now=clock())
    with pytest.raises(NotFound):
        await login.create_link(ledger, "usr_none", actor=HOST, now=clock())


async def _session(ledger: Ledger, clock: FakeClock, user_id: str) -> str:
    code = await login.create_link(ledger, user_id, actor=HOST, now=clock())
    return await login.redeem(ledger, code, now=clock())


async def test_a_session_ends_when_idle(sqlite: Database, clock: FakeClock) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    ann = await _user(ledger, clock, "ann@example.org")
    code = await _session(ledger, clock, ann.id)
    assert await login.session(sqlite, code, clock.advance(8 * 3600 - 1)) is not None
    assert await login.session(sqlite, code, clock.advance(8 * 3600 - 1)) is not None
    assert await login.session(sqlite, code, clock.advance(8 * 3600)) is None


async def test_a_session_ends_after_a_day_however_busy(sqlite: Database, clock: FakeClock) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    ann = await _user(ledger, clock, "ann@example.org")
    code = await _session(ledger, clock, ann.id)
    for _ in range(23):
        assert await login.session(sqlite, code, clock.advance(3600)) is not None
    assert await login.session(sqlite, code, clock.advance(3600)) is None


async def test_signing_in_makes_a_new_code_and_ends_the_old_session(
    sqlite: Database, clock: FakeClock
) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    ann = await _user(ledger, clock, "ann@example.org")
    planted = await _session(ledger, clock, ann.id)
    link = await login.create_link(ledger, ann.id, actor=HOST, now=clock())
    fresh = await login.redeem(ledger, link, previous=planted, now=clock())
    assert fresh != planted
    assert await login.session(sqlite, planted, clock()) is None
    assert await login.session(sqlite, fresh, clock()) is not None


async def test_signing_out_is_at_once_and_everywhere(
    ledger: Ledger, db: Database, clock: FakeClock
) -> None:
    ann = await _user(ledger, clock, "ann@example.org")
    one, two, three = [await _session(ledger, clock, ann.id) for _ in range(3)]
    await login.sign_out(ledger, one, now=clock())
    assert await login.session(db, one, clock()) is None
    assert await login.session(db, two, clock()) is not None
    await login.sign_out(ledger, one, now=clock())
    await login.sign_out_everywhere(ledger, ann.id, actor=HOST, now=clock())
    assert await login.session(db, two, clock()) is None
    assert await login.session(db, three, clock()) is None
    assert (await _kinds(db)).count("user.signed_out") == 2


# --- tokens and disabled users --------------------------------------------------------------


async def test_a_token_names_its_user_until_revoked(
    ledger: Ledger, db: Database, clock: FakeClock
) -> None:
    ann = await _user(ledger, clock, "ann@example.org", "auditor")
    bo = await _user(ledger, clock, "bo@example.org")
    token = await people.create_token(ledger, ann.email, actor=HOST, now=clock())
    principal = await login.token(db, token, clock())
    assert principal is not None
    assert (principal.user_id, principal.auth, principal.session) == (ann.id, "token", None)
    [seen] = await people.tokens_of(db, ann.id)
    with pytest.raises(NotFound):
        await people.revoke_token(ledger, seen.id, owner=bo.id, actor=HOST, now=clock())
    for _ in range(2):
        await people.revoke_token(ledger, seen.id, owner=ann.id, actor=HOST, now=clock())
    assert await login.token(db, token, clock()) is None
    assert (await _kinds(db))[-2:] == ["token.created", "token.revoked"]


async def test_another_secret_under_a_known_id_is_nobody(
    sqlite: Database, clock: FakeClock
) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    ann = await _user(ledger, clock, "ann@example.org")
    token = await people.create_token(ledger, ann.id, actor=HOST, now=clock())
    last = "A" if token[-1] != "A" else "B"
    assert await login.token(sqlite, token[:-1] + last, clock()) is None
    assert await login.token(sqlite, token + "A", clock()) is None
    assert await login.token(sqlite, token[:-1], clock()) is None


async def test_a_token_expires(sqlite: Database, clock: FakeClock) -> None:
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    ann = await _user(ledger, clock, "ann@example.org")
    token = await people.create_token(
        ledger, ann.id, lifetime=timedelta(days=1), actor=HOST, now=clock()
    )
    assert await login.token(sqlite, token, clock.advance(86399)) is not None
    assert await login.token(sqlite, token, clock.advance(1)) is None
    for lifetime in (timedelta(0), timedelta(days=367)):
        with pytest.raises(Refused):
            await people.create_token(ledger, ann.id, lifetime=lifetime, actor=HOST, now=clock())


async def test_a_disabled_user_is_refused_at_once_and_for_good(
    ledger: Ledger, db: Database, clock: FakeClock
) -> None:
    ann = await _user(ledger, clock, "ann@example.org", "reviewer")
    session = await _session(ledger, clock, ann.id)
    token = await people.create_token(ledger, ann.id, actor=HOST, now=clock())
    link = await login.create_link(ledger, ann.id, actor=HOST, now=clock())
    await people.disable(ledger, ann.id, actor=HOST, now=clock())
    for again in (False, True):
        if again:  # what was ended does not come back with its user
            await people.enable(ledger, ann.id, actor=HOST, now=clock())
        assert await login.session(db, session, clock()) is None
        assert await login.token(db, token, clock()) is None
        with pytest.raises(NotAllowed):
            await login.redeem(ledger, link, now=clock())
    assert await _session(ledger, clock, ann.id)


async def test_only_the_state_of_the_user_row_is_needed_to_refuse(
    sqlite: Database, clock: FakeClock
) -> None:
    """Even with live sessions and tokens left behind, a disabled user is nobody."""
    ledger = Ledger(sqlite, Signer("test", bytes(32)), clock)
    ann = await _user(ledger, clock, "ann@example.org")
    session = await _session(ledger, clock, ann.id)
    token = await people.create_token(ledger, ann.id, actor=HOST, now=clock())
    link = await login.create_link(ledger, ann.id, actor=HOST, now=clock())
    async with sqlite.transaction() as writing:
        from gateway.store.tables import User

        user = await writing.get_one(User, ann.id)
        user.disabled_at = clock()
        writing.add(user)
    assert await login.session(sqlite, session, clock()) is None
    assert await login.token(sqlite, token, clock()) is None
    with pytest.raises(NotAllowed):
        await login.redeem(ledger, link, now=clock())
    with pytest.raises(Refused):
        await login.create_link(ledger, ann.id, actor=HOST, now=clock())
    with pytest.raises(Refused):
        await people.create_token(ledger, ann.id, actor=HOST, now=clock())


def test_the_cookie_is_bound_to_host_and_tls_over_https() -> None:
    assert login.cookie_name("https://gatepass.corp") == "__Host-gatepass"
    assert login.cookie_name("http://127.0.0.1:8080") == "gatepass"
