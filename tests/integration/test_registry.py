"""Servers, apps, keys, groups, policies and tool definitions over real databases."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from sqlmodel import select

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import Conflict, NotFound, Refused, Unavailable
from gateway.policy import CallFacts, Effect, Policy, evaluate, parse
from gateway.registry import accepting, apps, groups, policies, servers, tools
from gateway.registry.changes import By
from gateway.registry.directory import Directory
from gateway.registry.servers import CredentialValue
from gateway.registry.settings import (
    AppSettings,
    CredentialSettings,
    GroupSettings,
    ServerSettings,
)
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.tables import AppKey, AuditRecord, Meta, PolicyVersion, SealedSecret
from gateway.vault import Purpose, open_vault
from tests.support.clock import FakeClock
from tests.support.ledger import make_ledger

ADMIN = Actor("user", "usr_1", "session")
CRM = ServerSettings("crm", "https://crm.example/mcp", description="Contacts")
BOT = AppSettings("bot", owner="team@example.org")
CANARY = "canary-7f3a-9e21"


@pytest.fixture
def ledger(db: Database, clock: FakeClock) -> Ledger:
    return make_ledger(db, clock)


@pytest.fixture
def envelope() -> Envelope:
    return Envelope(bytes(range(32)))


@pytest.fixture
def who(clock: FakeClock) -> dict[str, Any]:
    return {"actor": ADMIN, "now": clock()}


async def bodies(db: Database) -> list[dict[str, Any]]:
    async with db.reading() as session:
        rows = await session.exec(select(AuditRecord).order_by(AuditRecord.position))
        return [orjson.loads(row.body) for row in rows]


async def kinds(db: Database) -> list[str]:
    return [body["type"] for body in await bodies(db)]


async def config_version(db: Database) -> int:
    async with db.reading() as session:
        row = await session.get(Meta, "config_version")
        return int(row.value) if row else 0


async def directory(db: Database) -> Directory:
    found = Directory(db)
    await found.reload()
    return found


# --- servers --------------------------------------------------------------------------------


async def test_a_server_is_registered_changed_and_removed(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    entry = await servers.register(ledger, CRM, **who)
    assert entry.settings == CRM
    assert await config_version(db) == 1
    changed = ServerSettings("crm", "https://crm.example/v2", inject="authorization")
    await servers.change(ledger, changed, **who)
    await servers.change(ledger, changed, **who)
    assert (await servers.read(db, "crm")).settings == changed
    await servers.remove(ledger, "crm", **who)
    assert await servers.listing(db) == []
    assert await kinds(db) == ["server.registered", "server.changed", "server.removed"]
    first, second, third = await bodies(db)
    assert first["subject"] == {"server": "crm", "server_id": entry.id}
    assert first["actor"] == {"kind": "user", "ref": "usr_1", "auth": "session"}
    assert second["changes"] == ["url", "description", "inject"]
    assert second["before"] == first["definition"]
    assert third["before"] == second["definition"]
    with pytest.raises(NotFound):
        await servers.remove(ledger, "crm", **who)
    with pytest.raises(NotFound):
        await servers.read(db, "crm")


async def test_labels_and_addresses_are_taken_once(ledger: Ledger, who: dict[str, Any]) -> None:
    await servers.register(ledger, CRM, **who)
    with pytest.raises(Conflict, match="label 'crm' is registered"):
        await servers.register(ledger, ServerSettings("crm", "https://x.example/"), **who)
    with pytest.raises(Conflict, match="registered as 'crm' already"):
        await servers.register(ledger, ServerSettings("b", CRM.url), **who)
    await servers.register(ledger, ServerSettings("b", "https://x.example/"), **who)
    with pytest.raises(Conflict):
        await servers.change(ledger, ServerSettings("b", CRM.url), **who)


async def test_a_label_can_be_used_again_for_another_server(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    first = await servers.register(ledger, CRM, **who)
    await servers.remove(ledger, "crm", **who)
    second = await servers.register(ledger, CRM, **who)
    assert second.id != first.id
    assert [entry.id for entry in await servers.listing(db)] == [second.id]
    await servers.remove(ledger, "crm", **who)
    await servers.register(ledger, CRM, **who)


async def test_two_at_once_register_one(ledger: Ledger, db: Database, who: dict[str, Any]) -> None:
    outcomes = await asyncio.gather(
        *(servers.register(ledger, CRM, **who) for _ in range(4)), return_exceptions=True
    )
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 3
    assert await config_version(db) == 1


# --- credentials ----------------------------------------------------------------------------


async def test_a_credential_is_stored_bound_and_never_shown(
    ledger: Ledger, db: Database, envelope: Envelope, clock: FakeClock, who: dict[str, Any]
) -> None:
    await servers.register(ledger, CRM, **who)
    by = By(ADMIN, clock())
    given = CredentialValue(CANARY)
    assert CANARY not in repr(given)
    assert await servers.set_credential(ledger, envelope, "crm", given, by) == "sealed:crm"
    entry = await servers.read(db, "crm")
    assert entry.settings.credential == CredentialSettings("Authorization", "Bearer", "sealed:crm")
    assert entry.stored_at == clock()
    view = (await directory(db)).view
    binding = view.servers_by_label["crm"].credential
    assert binding is not None
    opened = await open_vault(db, envelope, {}).open(binding.ref)
    assert opened.reveal() == CANARY
    written = next(body for body in await bodies(db) if body["type"] == "credential.written")
    assert (written["reference"], written["number"]) == ("sealed:crm", 1)
    assert CANARY.encode() not in orjson.dumps(await bodies(db))
    assert CANARY not in repr(view) + repr(entry)


async def test_how_a_credential_travels_can_be_said(
    ledger: Ledger, db: Database, envelope: Envelope, clock: FakeClock, who: dict[str, Any]
) -> None:
    await servers.register(ledger, CRM, **who)
    by = By(ADMIN, clock())
    await servers.set_credential(ledger, envelope, "crm", CredentialValue("v", "X-Key"), by)
    credential = (await servers.read(db, "crm")).settings.credential
    assert credential == CredentialSettings("X-Key", None, "sealed:crm")
    await servers.set_credential(ledger, envelope, "crm", CredentialValue("w"), by)
    assert (await servers.read(db, "crm")).settings.credential == credential


async def test_a_bad_value_changes_nothing(
    ledger: Ledger, db: Database, envelope: Envelope, clock: FakeClock, who: dict[str, Any]
) -> None:
    await servers.register(ledger, CRM, **who)
    value = CredentialValue(f"{CANARY}\r\nX: y")
    with pytest.raises(Refused) as caught:
        await servers.set_credential(ledger, envelope, "crm", value, By(ADMIN, clock()))
    assert "canary" not in str(caught.value)
    assert (await servers.read(db, "crm")).settings.credential is None
    with pytest.raises(NotFound):
        await servers.set_credential(
            ledger, envelope, "x", CredentialValue("v"), By(ADMIN, clock())
        )


async def test_S_17_another_address_or_removal_destroys_the_value(
    ledger: Ledger, db: Database, envelope: Envelope, clock: FakeClock, who: dict[str, Any]
) -> None:
    await servers.register(ledger, CRM, **who)
    by, vault = By(ADMIN, clock()), open_vault(db, envelope, {})
    await servers.set_credential(ledger, envelope, "crm", CredentialValue(CANARY), by)
    settings = (await servers.read(db, "crm")).settings
    moved = ServerSettings("crm", "https://evil.example/mcp", credential=settings.credential)
    await servers.change(ledger, moved, **who)
    entry = await servers.read(db, "crm")
    assert entry.stored_at is None
    binding = (await directory(db)).view.servers_by_label["crm"].credential
    assert binding is not None
    with pytest.raises(Unavailable):
        await vault.open(binding.ref)
    with pytest.raises(Unavailable):  # nor for what is only looked for in answers
        await vault.open(binding.ref, Purpose(sent=False))
    await servers.set_credential(ledger, envelope, "crm", CredentialValue(CANARY), by)
    await servers.remove(ledger, "crm", **who)
    async with db.reading() as session:
        assert (await session.exec(select(SealedSecret))).all() == []


async def test_other_changes_keep_the_value(
    ledger: Ledger, db: Database, envelope: Envelope, clock: FakeClock, who: dict[str, Any]
) -> None:
    await servers.register(ledger, CRM, **who)
    by = By(ADMIN, clock())
    await servers.set_credential(ledger, envelope, "crm", CredentialValue(CANARY), by)
    credential = CredentialSettings("X-Key", None, "sealed:crm")
    await servers.change(
        ledger, ServerSettings("crm", CRM.url, credential=credential), **who, binds="host"
    )
    assert (await servers.read(db, "crm")).stored_at is not None


# --- apps and keys --------------------------------------------------------------------------


async def test_an_app_and_its_keys(ledger: Ledger, db: Database, who: dict[str, Any]) -> None:
    entry, key = await apps.create(ledger, BOT, **who)
    assert [found.id for found in entry.keys] == [key.id]
    known = await directory(db)
    view = known.authenticate(key.text)
    assert view is not None
    assert (view.id, view.name, view.servers) == (entry.id, "bot", None)
    second = await apps.create_key(ledger, "bot", **who)
    await apps.revoke_key(ledger, "bot", key.id, **who)
    await apps.revoke_key(ledger, "bot", key.id, **who)
    await known.refresh()
    assert known.authenticate(key.text) is None
    assert known.authenticate(second.text) is not None
    states = {found.id: found.revoked_at for found in (await apps.read(db, "bot")).keys}
    assert states == {key.id: who["now"], second.id: None}
    assert await kinds(db) == [
        "app.created",
        "app_key.created",
        "app_key.created",
        "app_key.revoked",
    ]
    assert key.text.encode() not in orjson.dumps(await bodies(db))
    async with db.reading() as session:
        rows = (await session.exec(select(AppKey))).all()
    assert all(key.text.encode() not in row.digest and len(row.digest) == 32 for row in rows)


async def test_an_app_is_disabled_and_enabled(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    _, key = await apps.create(ledger, BOT, **who)
    known = await directory(db)
    await apps.disable(ledger, "bot", **who)
    await apps.disable(ledger, "bot", **who)
    await known.refresh()
    assert known.authenticate(key.text) is None
    assert (await apps.read(db, "bot")).disabled_at is not None
    await apps.enable(ledger, "bot", **who)
    await known.refresh()
    assert known.authenticate(key.text) is not None
    assert (await kinds(db)).count("app.changed") == 2


async def test_app_errors(ledger: Ledger, db: Database, who: dict[str, Any]) -> None:
    _, key = await apps.create(ledger, BOT, **who)
    await apps.create(ledger, AppSettings("other"), **who)
    with pytest.raises(Conflict):
        await apps.create(ledger, BOT, **who)
    with pytest.raises(Refused, match="label 'crm'; register it first"):
        await apps.change(ledger, AppSettings("bot", servers=("crm",)), **who)
    with pytest.raises(NotFound):
        await apps.change(ledger, AppSettings("x"), **who)
    with pytest.raises(NotFound):
        await apps.revoke_key(ledger, "other", key.id, **who)
    with pytest.raises(NotFound):
        await apps.create_key(ledger, "x", **who)
    with pytest.raises(NotFound):
        await apps.read(db, "x")
    assert [entry.settings.name for entry in await apps.listing(db)] == ["bot", "other"]


# --- directory ------------------------------------------------------------------------------


async def test_the_view_matches_servers_by_address_then_by_label(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    await servers.register(ledger, CRM, **who)
    await servers.register(ledger, ServerSettings("wiki", "https://wiki.example/mcp"), **who)
    _, key = await apps.create(ledger, AppSettings("bot", servers=("wiki",)), **who)
    known = await directory(db)
    view = known.view
    label = lambda url, name: getattr(view.match_server(url, name), "label", None)  # noqa: E731
    assert label(None, "crm") == "crm"
    assert label("https://CRM.example:443/mcp", "anything") == "crm"
    assert label("https://wiki.example/mcp", "crm") == "wiki"
    assert label("https://crm.example/mcp/", "crm") is None
    assert label("https://crm.example@evil.example/mcp", "crm") is None
    assert label("https://evil.example/mcp", "crm") is None
    assert label("not a url", "crm") is None
    assert label("", "crm") is None
    app = known.authenticate(key.text)
    assert app is not None
    match = view.matcher(app)
    facts = match("https://wiki.example/mcp", "x")
    assert facts is not None
    assert (facts.label, facts.url) == ("wiki", "https://wiki.example/mcp")
    assert match("https://crm.example/mcp", "crm") is None
    assert match(None, "crm") is None


async def test_before_the_first_reload_there_is_no_view(db: Database) -> None:
    with pytest.raises(Unavailable):
        Directory(db).authenticate("x")


async def test_a_refresh_reads_only_when_something_changed(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    known = await directory(db)
    before = known.view
    await known.refresh()
    assert known.view is before
    await servers.register(ledger, CRM, **who)
    assert known.view is before
    await known.refresh()
    assert known.view is not before
    assert "crm" in known.view.servers_by_label


async def test_a_key_made_elsewhere_is_found_by_one_recheck_a_second(
    ledger: Ledger, db: Database, who: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = await directory(db)
    reads = 0
    real = known.refresh

    async def counting() -> None:
        nonlocal reads
        reads += 1
        await real()

    monkeypatch.setattr(known, "refresh", counting)
    _, key = await apps.create(ledger, BOT, **who)
    assert known.authenticate(key.text) is None
    assert await known.recheck(key.text) is not None
    for _ in range(5):
        assert await known.recheck("gp_app_00000000_" + "x" * 43) is None
    assert reads == 1


async def test_an_altered_policy_fails_closed_until_it_is_put_right(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    await policies.save(ledger, parse([{"name": "x", "effect": "deny"}]), **who)
    known = await directory(db)

    async def rewrite(rules: Any) -> None:
        async with db.transaction() as session:
            row = (await session.exec(select(PolicyVersion))).one()
            row.rules = rules
            session.add(row)

    for altered in ([{"name": "x", "effect": "allow"}], [{"nonsense": 1}], []):
        await rewrite(altered)
        with pytest.raises(Unavailable, match="is not what was saved"):
            await known.reload()
        with pytest.raises(Unavailable, match="is not what was saved"):
            _ = known.view
    await rewrite([{"name": "x", "effect": "deny"}])
    await known.refresh()
    assert known.view.policy.rules[0].effect is Effect.DENY


# --- policies and groups --------------------------------------------------------------------


async def test_policy_versions(ledger: Ledger, db: Database, who: dict[str, Any]) -> None:
    assert await policies.read_active(db) is None
    known = await directory(db)
    assert known.view.policy_digest == Policy().digest
    deny = parse([{"name": "x", "effect": "deny"}])
    allow = parse([{"name": "x", "effect": "allow", "when": "args.n > 1"}])
    first = await policies.save(ledger, deny, **who)
    assert (await policies.save(ledger, deny, **who)).id == first.id
    second = await policies.save(ledger, allow, **who)
    assert (first.number, second.number, second.active) == (1, 2, True)
    await known.refresh()
    assert known.view.policy_digest == allow.digest
    call = CallFacts("a", "s", "t", '{"n": 2}')
    assert evaluate(known.view.policy, call, who["now"]).effect is Effect.ALLOW
    back = await policies.activate(ledger, 1, **who)
    assert (back.id, back.active) == (first.id, True)
    assert not (await policies.read(db, 2)).active
    await policies.activate(ledger, 1, **who)
    await known.refresh()
    assert known.view.policy_digest == deny.digest
    found = [body for body in await bodies(db) if body["type"] == "policy.activated"]
    assert [(body["number"], body.get("before")) for body in found] == [
        (1, None),
        (2, deny.digest),
        (1, allow.digest),
    ]
    assert [entry.number for entry in await policies.listing(db)] == [2, 1]
    for attempt in (policies.read(db, 9), policies.activate(ledger, 9, **who)):
        with pytest.raises(NotFound):
            await attempt


async def test_two_at_once_leave_one_policy_in_force(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    drafts = [parse([{"name": f"x{n}", "effect": "deny"}]) for n in range(6)]
    await asyncio.gather(*(policies.save(ledger, draft, **who) for draft in drafts))
    entries = await policies.listing(db)
    assert sorted(entry.number for entry in entries) == [1, 2, 3, 4, 5, 6]
    assert sum(entry.active for entry in entries) == 1


async def test_groups(ledger: Ledger, db: Database, who: dict[str, Any]) -> None:
    rule = {"name": "x", "effect": "hold", "groups": ["treasury"]}
    with pytest.raises(Refused, match="'treasury', which does not exist"):
        await policies.save(ledger, parse([rule]), **who)
    treasury = GroupSettings("treasury", ("ann@example.org", "bo@example.org"))
    await groups.set_members(ledger, treasury, **who)
    await groups.set_members(ledger, treasury, **who)
    await policies.save(ledger, parse([rule]), **who)
    with pytest.raises(Conflict):
        await groups.remove(ledger, "treasury", **who)
    await policies.save(ledger, Policy(), **who)
    assert await groups.listing(db) == [treasury]
    await groups.remove(ledger, "treasury", **who)
    with pytest.raises(NotFound):
        await groups.remove(ledger, "treasury", **who)
    with pytest.raises(Refused):
        await policies.activate(ledger, 1, **who)
    later = {"name": "x", "effect": "hold", "escalate": {"after": "5m", "to": ["managers"]}}
    with pytest.raises(Refused, match="'managers', which does not exist"):
        await policies.save(ledger, parse([later]), **who)
    assert (await kinds(db)).count("group.changed") == 2
    assert b"ann@" not in orjson.dumps(await bodies(db))


# --- tool definitions -----------------------------------------------------------------------

SEND = {
    "name": "send",
    "description": "Sends mail",
    "input_schema": {"type": "object"},
    "annotations": {"read_only": False},
}
EVIL = {**SEND, "description": "Sends mail to everyone"}


async def test_R_12_a_changed_definition_waits_for_a_person(
    ledger: Ledger, db: Database, clock: FakeClock, who: dict[str, Any]
) -> None:
    server = await servers.register(ledger, CRM, **who)
    seen = await tools.observe(ledger, server.id, [SEND, {"name": "get"}], now=clock())
    assert not any(state.changed for state in seen.values())
    again = await tools.observe(ledger, server.id, [SEND], now=clock(), whole=False)
    assert list(again) == ["send"]
    found = await tools.observe(ledger, server.id, [EVIL], now=clock(), whole=False)
    changed = found["send"]
    assert changed.changed
    assert (changed.pinned, changed.listed) == (SEND, EVIL)
    await tools.observe(ledger, server.id, [EVIL], now=clock(), whole=False)
    assert (await servers.read(db, "crm")).changed_tools == 1
    assert [state.name for state in await tools.listing(db, "crm")] == ["send", "get"]
    stale = ("send", changed.pinned_digest)
    with pytest.raises(Conflict):
        await accepting.accept(ledger, "crm", stale, **who)
    accepted = await accepting.accept(ledger, "crm", ("send", changed.listed_digest), **who)
    assert not accepted.changed
    assert accepted.pinned_by == "usr_1"
    assert not (await tools.known(db, server.id))["send"].changed
    found = [body for body in await bodies(db) if body["type"].startswith("tooldef")]
    assert [(body["type"], body["subject"]["tool"]) for body in found] == [
        ("tooldef.pinned", "send"),
        ("tooldef.pinned", "get"),
        ("tooldef.changed", "send"),
        ("tooldef.accepted", "send"),
    ]
    assert found[2]["before"] == found[0]["tooldef"]
    assert found[2]["changes"] == ["description"]


async def test_a_definition_that_changes_back_is_its_pin_again(
    ledger: Ledger, clock: FakeClock, who: dict[str, Any]
) -> None:
    server = await servers.register(ledger, CRM, **who)
    for listed, changed in ((SEND, False), (EVIL, True), (SEND, False), (EVIL, True)):
        state = await tools.observe(ledger, server.id, [listed], now=clock())
        assert state["send"].changed is changed


async def test_member_order_is_no_change(
    ledger: Ledger, clock: FakeClock, who: dict[str, Any]
) -> None:
    server = await servers.register(ledger, CRM, **who)
    await tools.observe(ledger, server.id, [SEND], now=clock())
    turned = dict(reversed(SEND.items()))
    assert not (await tools.observe(ledger, server.id, [turned], now=clock()))["send"].changed


async def test_two_observers_pin_once(
    ledger: Ledger, db: Database, clock: FakeClock, who: dict[str, Any]
) -> None:
    server = await servers.register(ledger, CRM, **who)
    await asyncio.gather(*(tools.observe(ledger, server.id, [SEND], now=clock()) for _ in range(5)))
    assert (await kinds(db)).count("tooldef.pinned") == 1


@pytest.mark.parametrize(
    "definitions",
    [
        [{}],
        [{"name": ""}],
        [{"name": 5}],
        [{"name": "x" * 201}],
        [{"name": "x"}, {"name": "x", "description": "y"}],
        [{"name": "x", "description": "\ud800"}],
        [{"name": "x", "description": "y" * 70_000}],
        [{"name": f"t{n}"} for n in range(501)],
    ],
)
async def test_lists_that_cannot_be_relied_on_pin_nothing(
    sqlite: Database, clock: FakeClock, definitions: list[dict[str, Any]]
) -> None:
    ledger = make_ledger(sqlite, clock)
    server = await servers.register(ledger, CRM, actor=ADMIN, now=clock())
    with pytest.raises(Refused) as caught:
        await tools.observe(ledger, server.id, [SEND, *definitions], now=clock())
    assert caught.value.code == "tool_definition_invalid"
    assert await tools.listing(sqlite, "crm") == []


async def test_tools_of_nobody(ledger: Ledger, db: Database, clock: FakeClock, who: Any) -> None:
    with pytest.raises(NotFound):
        await tools.observe(ledger, "srv_x", [SEND], now=clock())
    with pytest.raises(NotFound):
        await tools.listing(db, "crm")
    with pytest.raises(NotFound):
        await accepting.accept(ledger, "crm", ("send", "sha256:x"), **who)


async def test_a_removed_servers_pins_are_not_the_next_ones(
    ledger: Ledger, db: Database, clock: FakeClock, who: dict[str, Any]
) -> None:
    first = await servers.register(ledger, CRM, **who)
    await tools.observe(ledger, first.id, [SEND], now=clock())
    await servers.remove(ledger, "crm", **who)
    await servers.register(ledger, CRM, **who)
    assert await tools.listing(db, "crm") == []
