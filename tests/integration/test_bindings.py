"""S-17: a secret goes to the server and origin it was bound to, whoever changes what."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from sqlmodel import select

from gateway.audit import reading
from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import Conflict, NotAllowed, Unavailable
from gateway.identity import people, roles
from gateway.identity.roles import Permission, Role
from gateway.registry import apply, bindings, servers
from gateway.registry.bindings import Seen
from gateway.registry.changes import By
from gateway.registry.declaration import parse
from gateway.registry.directory import Directory
from gateway.registry.servers import CredentialValue
from gateway.registry.settings import CredentialSettings, ServerSettings
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.tables import BoundCredential, Server
from gateway.vault import Purpose, open_vault
from tests.support.clock import FakeClock
from tests.support.house import somebody
from tests.support.ledger import make_ledger

ADMIN = Actor("user", "usr_1", "session")
ENVIRONMENT = {"CRM_TOKEN": "canary-crm-5b0e", "WIKI_TOKEN": "canary-wiki-77a1"}
EXTERNAL = CredentialSettings("Authorization", "Bearer", "env:CRM_TOKEN")
CRM = ServerSettings("crm", "https://crm.example/mcp", credential=EXTERNAL)
EVIL = "https://evil.example/mcp"
FILE = """
servers:
  - label: crm
    url: {url}
    credential: {{header: Authorization, scheme: Bearer, from: "env:CRM_TOKEN"}}
"""


@pytest.fixture
def ledger(db: Database, clock: FakeClock) -> Ledger:
    return make_ledger(db, clock)


@pytest.fixture
def who(clock: FakeClock) -> dict[str, Any]:
    return {"actor": ADMIN, "now": clock()}


async def opened(db: Database, label: str = "crm", purpose: Purpose | None = None) -> str:
    """What is sent to the server as it is configured now."""
    directory = Directory(db)
    await directory.reload()
    credential = directory.view.servers_by_label[label].credential
    assert credential is not None
    vault = open_vault(db, Envelope(bytes(range(32))), ENVIRONMENT)
    return (await vault.open(credential.ref, purpose or Purpose())).reveal()


@contextlib.contextmanager
def shut() -> Iterator[None]:
    """Nothing is opened, and the sentence says what to do."""
    with pytest.raises(Unavailable, match="bind it anew") as caught:
        yield
    assert caught.value.code == "credential_unbound"
    assert "canary" not in caught.value.message


async def told(ledger: Ledger) -> list[dict[str, Any]]:
    """What the ledger says of bindings, oldest first."""
    await ledger.settle()
    found = await reading.search(ledger.db, reading.Query(limit=200))
    documents = [entry.document for entry in reversed(found.items)]
    return [body for body in documents if body["type"].startswith("credential.")]


# --- whose word counts ----------------------------------------------------------------------


async def test_S_17_who_may_only_write_servers_cannot_name_a_credential(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    for settings in (CRM, replace(CRM, label="evil", url=EVIL)):
        with pytest.raises(NotAllowed):
            await servers.register(ledger, settings, **who)
    await servers.register(ledger, replace(CRM, credential=None), **who)
    with pytest.raises(NotAllowed):
        await servers.change(ledger, CRM, **who)
    assert await bindings.uses(db) == []


async def test_S_17_who_may_only_write_servers_cannot_change_how_one_travels(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    await servers.register(ledger, CRM, **who, binds="session")
    for credential in (
        replace(EXTERNAL, header="X-Key"),
        replace(EXTERNAL, source="env:WIKI_TOKEN"),
    ):
        with pytest.raises(NotAllowed):
            await servers.change(ledger, replace(CRM, credential=credential), **who)
    assert await opened(db) == ENVIRONMENT["CRM_TOKEN"]


async def test_S_17_another_origin_ends_the_binding_and_another_path_does_not(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    entry = await servers.register(ledger, CRM, **who, binds="session")
    assert entry.binding is not None
    assert (entry.binding.origin, entry.binding.by) == ("https://crm.example:443", "usr_1")
    entry = await servers.change(ledger, replace(CRM, url="https://crm.example/v2"), **who)
    assert entry.binding is not None
    assert await opened(db) == ENVIRONMENT["CRM_TOKEN"]
    for url in (EVIL, "https://crm.example:8443/mcp"):
        entry = await servers.change(ledger, replace(CRM, url=url), **who, binds="session")
        assert entry.binding is None
        with shut():
            await opened(db)
        # What it may have let out before is still taken out of answers.
        assert await opened(db, purpose=Purpose(sent=False)) == ENVIRONMENT["CRM_TOKEN"]
    entry = await servers.change(ledger, CRM, **who)  # back again: that revives nothing
    assert entry.binding is None
    with shut():
        await opened(db)
    assert [(body["type"], body.get("code")) for body in await told(ledger)] == [
        ("credential.bound", None),
        ("credential.unbound", "origin_changed"),
    ]


async def test_S_17_a_confirmation_counts_for_what_was_seen(
    ledger: Ledger, db: Database, who: dict[str, Any], clock: FakeClock
) -> None:
    await servers.register(ledger, CRM, **who, binds="session")
    moved = "https://new.crm.example/mcp"
    await servers.change(ledger, replace(CRM, url=moved), **who)
    by = By(ADMIN, clock())
    for seen in (
        Seen("env:CRM_TOKEN", "https://crm.example:443"),
        Seen("env:WIKI_TOKEN", "https://new.crm.example:443"),
    ):
        with pytest.raises(Conflict) as caught:
            await servers.bind(ledger, "crm", seen, by)
        assert caught.value.code == "binding_changed"
        with shut():
            await opened(db)
    seen = Seen("env:CRM_TOKEN", "https://new.crm.example:443")
    entry = await servers.bind(ledger, "crm", seen, by)
    assert entry.binding is not None
    assert await opened(db) == ENVIRONMENT["CRM_TOKEN"]
    assert (await told(ledger))[-1]["origin"] == "https://new.crm.example:443"


async def test_S_17_the_label_of_a_removed_server_gives_nothing_back(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    await servers.register(ledger, CRM, **who, binds="session")
    await servers.remove(ledger, "crm", **who)
    async with db.reading() as session:
        assert (await session.exec(select(BoundCredential))).all() == []
    with pytest.raises(NotAllowed):
        await servers.register(ledger, CRM, **who)
    await servers.register(ledger, replace(CRM, url=EVIL, credential=None), **who)
    assert await bindings.uses(db) == []
    assert (await told(ledger))[-1]["code"] == "server_removed"


async def test_S_17_a_row_of_the_configuration_alone_opens_nothing(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    """As somebody would write it who can write that table and not the other."""
    await servers.register(ledger, CRM, **who, binds="session")
    entry = await servers.register(
        ledger, replace(CRM, label="evil", url=EVIL, credential=None), **who
    )
    async with db.transaction() as session:
        row = await session.get_one(Server, entry.id)
        row.credential = EXTERNAL.row()
        session.add(row)
    with shut():
        await opened(db, "evil")
    assert await opened(db) == ENVIRONMENT["CRM_TOKEN"]


async def test_S_17_one_reference_is_bound_for_each_server_by_itself(
    ledger: Ledger, db: Database, who: dict[str, Any]
) -> None:
    other = replace(CRM, label="crm-2", url="https://crm.example/second")
    await servers.register(ledger, CRM, **who, binds="session")
    with pytest.raises(NotAllowed):
        await servers.register(ledger, other, **who)
    await servers.register(ledger, other, **who, binds="token")
    found = await bindings.uses(db)
    assert [(use.server, use.bound and use.bound.how) for use in found] == [
        ("crm", "session"),
        ("crm-2", "token"),
    ]
    await servers.change(ledger, replace(other, url=EVIL), **who)
    assert [use.bound is not None for use in await bindings.uses(db)] == [True, False]
    assert await opened(db) == ENVIRONMENT["CRM_TOKEN"]


async def test_S_17_another_credential_ends_the_binding_of_the_one_before(
    ledger: Ledger, db: Database, who: dict[str, Any], clock: FakeClock
) -> None:
    await servers.register(ledger, CRM, **who, binds="session")
    other = replace(CRM, credential=replace(EXTERNAL, source="env:WIKI_TOKEN"))
    await servers.change(ledger, other, **who, binds="session")
    assert await opened(db) == ENVIRONMENT["WIKI_TOKEN"]
    await servers.change(ledger, replace(CRM, credential=None), **who)
    async with db.reading() as session:
        assert (await session.exec(select(BoundCredential))).all() == []
    with pytest.raises(NotAllowed):
        await servers.change(ledger, CRM, **who)
    envelope, by = Envelope(bytes(range(32))), By(ADMIN, clock())
    await servers.set_credential(ledger, envelope, "crm", CredentialValue("sealed-value"), by)
    assert await opened(db) == "sealed-value"


@pytest.mark.parametrize("label", ["CRM", "Crm", "cRM"])
async def test_S_17_a_label_that_differs_in_case_alone_is_taken(
    ledger: Ledger, who: dict[str, Any], label: str
) -> None:
    await servers.register(ledger, CRM, **who, binds="session")
    with pytest.raises(Conflict, match="letter case") as caught:
        await servers.register(ledger, ServerSettings(label, EVIL), **who)
    assert caught.value.code == "server_exists"


# --- the operator's files -------------------------------------------------------------------


async def test_S_17_a_file_binds_what_it_states_together(
    ledger: Ledger, db: Database, who: dict[str, Any], clock: FakeClock
) -> None:
    by = By(Actor("operator", "uid:0", "host"), clock())
    declared = parse({"a.yaml": FILE.format(url=CRM.url)})
    assert (await apply.apply(ledger, declared, by)).changes
    assert await opened(db) == ENVIRONMENT["CRM_TOKEN"]
    assert (await told(ledger))[-1]["source"] == "file"
    assert not (await apply.apply(ledger, declared, by)).changes
    # Somebody moves the server; the file says otherwise, and its word is the operator's.
    await servers.change(ledger, replace(CRM, url=EVIL), **who)
    with shut():
        await opened(db)
    await servers.change(ledger, CRM, **who)
    with shut():
        await opened(db)
    planned = await apply.plan(db, declared)
    [step] = [step for step in planned.steps if step.section == "servers"]
    [difference] = step.differences
    assert (difference.member, difference.after) == ("binding", "https://crm.example:443")
    assert (await apply.apply(ledger, declared, by)).changes
    assert await opened(db) == ENVIRONMENT["CRM_TOKEN"]
    moved = parse({"a.yaml": FILE.format(url="https://crm.example:8443/mcp")})
    await apply.apply(ledger, moved, by)
    assert await opened(db) == ENVIRONMENT["CRM_TOKEN"]


# --- over the API ---------------------------------------------------------------------------


@pytest.fixture
async def clerk(services: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Somebody who may write servers, and not their credentials."""
    rights = frozenset({Permission.READ_SERVERS, Permission.WRITE_SERVERS})
    known: Mapping[str, Role] = {**roles.ROLES, "clerk": Role("clerk", "Writes servers.", rights)}
    monkeypatch.setattr(roles, "ROLES", known)
    monkeypatch.setattr(people, "ROLES", known)
    return await somebody(services, clock, "cleo@example.org", ["clerk"])


BODY = {
    "url": CRM.url,
    "credential": {"header": "Authorization", "scheme": "Bearer", "from": "env:CRM_TOKEN"},
}


async def test_S_17_an_attempt_without_the_right_is_refused_and_recorded(
    client: Any, services: Any, adm: Any, clerk: Any
) -> None:
    path = "/api/v1/servers"
    tried = await client.post(path, headers=clerk.bearer, json={"label": "crm", **BODY})
    assert (tried.status_code, tried.json()["code"]) == (403, "missing_permission")
    assert tried.json()["param"] == "credentials.write"
    assert (await client.get(path, headers=clerk.bearer)).json()["items"] == []
    made = await client.post(path, headers=adm.bearer, json={"label": "crm", **BODY})
    assert made.json()["binding"]["origin"] == "https://crm.example:443"
    body = {**BODY, "credential": {"from": "env:WIKI_TOKEN"}}
    assert (await client.put(f"{path}/crm", headers=clerk.bearer, json=body)).status_code == 403
    seen = {"reference": "env:CRM_TOKEN", "origin": "https://crm.example:443"}
    tried = await client.post(f"{path}/crm/binding", headers=clerk.bearer, json=seen)
    assert tried.status_code == 403
    await services.ledger.settle()
    found = await reading.search(services.db, reading.Query(kind="security.refused", limit=9))
    assert {
        (entry.document["code"], entry.document["method"], entry.document["route"])
        for entry in found.items
    } == {("missing_permission", method, "credentials.write") for method in ("POST", "PUT")}
    assert {entry.document["actor"]["ref"] for entry in found.items} == {clerk.user.id}


async def test_S_17_who_may_write_servers_may_move_one_without_its_secret(
    client: Any, services: Any, adm: Any, clerk: Any
) -> None:
    path = "/api/v1/servers"
    await client.post(path, headers=adm.bearer, json={"label": "crm", **BODY})
    moved = await client.put(f"{path}/crm", headers=clerk.bearer, json={**BODY, "url": EVIL})
    assert (moved.status_code, moved.json()["binding"]) == (200, None)
    ref = services.directory.view.servers_by_label["crm"].credential.ref
    with shut():
        await services.vault.open(ref)
    listed = (await client.get("/api/v1/credentials", headers=clerk.bearer)).json()["items"]
    assert listed == [
        {
            "reference": "env:CRM_TOKEN",
            "server": "crm",
            "origin": "https://evil.example:443",
            "bound": None,
        }
    ]
    stale = {"reference": "env:CRM_TOKEN", "origin": "https://crm.example:443"}
    refused = await client.post(f"{path}/crm/binding", headers=adm.bearer, json=stale)
    assert (refused.status_code, refused.json()["code"]) == (409, "binding_changed")
    seen = {**stale, "origin": "https://evil.example:443"}
    bound = await client.post(f"{path}/crm/binding", headers=adm.bearer, json=seen)
    assert bound.json()["binding"]["by"] == adm.user.id
    assert services.directory.view.servers_by_label["crm"].credential.ref.is_bound
