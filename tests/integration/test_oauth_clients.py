"""OAuth clients as configuration: by file and by API, recorded, their secrets bound to them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from sqlmodel import select

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import Conflict, NotFound, Refused, Unavailable
from gateway.registry import oauth_clients
from gateway.registry.apply import apply
from gateway.registry.changes import By
from gateway.registry.declaration import parse
from gateway.registry.directory import Directory
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.oauth import OAuthClient
from gateway.store.tables import AuditRecord, SealedSecret
from gateway.vault import open_vault
from tests.support.clock import FakeClock
from tests.support.house import Somebody, somebody
from tests.support.ledger import check_ledger, make_ledger

SECRET = "canary-7f3a-client"
CRM = OAuthClient(
    "crm",
    "client_credentials",
    "gatepass",
    token_url="https://login.example/token",
    client_secret="sealed:crm",
)
FILE = """
oauth_clients:
  - name: crm
    grant: {grant}
    token_url: https://login.example/token
    client_id: gatepass
    client_secret: {{from: "env:CRM_SECRET"}}
servers:
  - label: crm
    url: https://mcp.crm.example/mcp
    credential: {{header: Authorization, scheme: Bearer, from: "oauth:{name}"}}
"""


@pytest.fixture
def ledger(db: Database, clock: FakeClock) -> Ledger:
    return make_ledger(db, clock)


@pytest.fixture
def by(clock: FakeClock) -> By:
    return By(Actor("operator", "host", "host"), clock())


async def kinds(db: Database) -> list[str]:
    async with db.reading() as session:
        rows = await session.exec(select(AuditRecord).order_by(AuditRecord.position))
        return [orjson.loads(row.body)["type"] for row in rows]


async def test_files_make_clients_before_the_servers_that_use_them(
    db: Database, ledger: Ledger, by: By
) -> None:
    declared = parse({"x.yaml": FILE.format(grant="token_exchange", name="crm")})
    done = await apply(ledger, declared, by)
    assert done.warnings == ()
    assert not (await apply(ledger, declared, by)).applied
    assert await kinds(db) == [
        "oauth_client.registered", "server.registered", "credential.bound", "config.applied",
    ]  # fmt: skip
    directory = Directory(db)
    await directory.reload()
    (server,) = directory.view.servers.values()
    client = directory.view.for_user(server.id)
    assert client == directory.oauth_client("crm") == declared.oauth_clients[0]
    other = parse({"x.yaml": FILE.format(grant="client_credentials", name="crm")})
    assert [step.differences[0].member for step in (await apply(ledger, other, by)).steps[:1]] == [
        "grant"
    ]
    await directory.refresh()
    assert directory.view.for_user(server.id) is None
    await check_ledger(db)


async def test_a_server_cannot_name_a_client_that_is_not_there(ledger: Ledger, by: By) -> None:
    declared = parse({"x.yaml": FILE.format(grant="client_credentials", name="crn")})
    with pytest.raises(Refused, match=r"x.yaml:9: the credential of 'crm' is oauth:crn, and no"):
        await apply(ledger, declared, by)


async def test_a_sealed_secret_goes_to_one_token_server(
    db: Database, ledger: Ledger, by: By
) -> None:
    envelope = Envelope(bytes(range(32)))
    await oauth_clients.register(ledger, CRM, by)
    assert await oauth_clients.set_secret(ledger, envelope, "crm", SECRET, by) == "sealed:crm"
    vault, ref = open_vault(db, envelope, {}), CRM.secret_ref()
    assert ref is not None
    assert (await vault.open(ref)).reveal() == SECRET
    moved = OAuthClient(
        "crm", "client_credentials", "gatepass",
        token_url="https://evil.example/token", client_secret="sealed:crm",
    )  # fmt: skip
    elsewhere = moved.secret_ref()
    assert elsewhere is not None
    with pytest.raises(Unavailable, match="does not open"):
        await vault.open(elsewhere)
    await oauth_clients.change(ledger, moved, by)
    async with db.reading() as session:
        assert (await session.exec(select(SealedSecret))).all() == []
    await check_ledger(db)


async def test_a_client_in_use_is_not_removed(db: Database, ledger: Ledger, by: By) -> None:
    declared = parse({"x.yaml": FILE.format(grant="client_credentials", name="crm")})
    await apply(ledger, declared, by)
    with pytest.raises(Conflict, match="The credential of crm is oauth:crm"):
        await oauth_clients.remove(ledger, "crm", by)
    unused = OAuthClient(**{**CRM.row(), "name": "unused"})
    await oauth_clients.register(ledger, unused, by)
    await oauth_clients.set_secret(ledger, Envelope(bytes(32)), "unused", SECRET, by)
    await oauth_clients.remove(ledger, "unused", by)
    assert (await kinds(db))[-3:] == [
        "oauth_client.registered",
        "credential.written",
        "oauth_client.removed",
    ]
    async with db.reading() as session:
        assert (await session.exec(select(SealedSecret))).all() == []
    with pytest.raises(NotFound):
        await oauth_clients.read(db, "unused")


# --- the API ----------------------------------------------------------------------------------

BODY: dict[str, Any] = {
    "name": "crm",
    "grant": "token_exchange",
    "token_url": "https://login.example/token",
    "client_id": "gatepass",
    "client_secret": {"from": "env:CRM_SECRET"},
}


async def test_the_api_registers_changes_and_removes(client, adm: Somebody, services) -> None:
    async def call(method: str, path: str = "", body: Any = None) -> Any:
        where = f"/api/v1/oauth-clients{path}"
        return await client.request(method, where, headers=adm.bearer, json=body)

    made = await call("POST", body=BODY)
    assert made.status_code == 201, made.text
    assert (made.json()["for_user"], made.json()["client_secret"]) == (
        True,
        {"from": "env:CRM_SECRET"},
    )
    assert services.directory.oauth_client("crm") is not None
    assert (await call("POST", body=BODY)).json()["code"] == "oauth_client_exists"
    change = {name: value for name, value in BODY.items() if name != "name"}
    changed = await call("PUT", "/crm", {**change, "scope": "crm.read"})
    assert changed.json()["scope"] == "crm.read"
    stored = await call("PUT", "/crm/secret", {"value": SECRET})
    assert stored.json() == {"reference": "sealed:crm"}
    shown = await call("GET", "/crm")
    assert shown.json()["client_secret"] == {"from": "sealed:crm"}
    assert "canary" not in shown.text
    assert [item["name"] for item in (await call("GET")).json()["items"]] == ["crm"]
    assert (await call("DELETE", "/crm")).status_code == 204
    assert (await call("GET", "/crm")).json()["code"] == "oauth_client_unknown"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"token_url": "http://login.example/token"}, "token_url"),
        ({"client_secret": {"from": "canary-7f3a"}}, "from"),
        ({"issuer": "https://login.example"}, "oauth_client"),
        ({"assertion": "workload_identity"}, "oauth_client"),
    ],
)
async def test_what_is_not_a_client_is_refused(client, adm: Somebody, change, param) -> None:
    answer = await client.post("/api/v1/oauth-clients", headers=adm.bearer, json={**BODY, **change})
    assert answer.status_code == 400
    assert answer.json()["param"].endswith(param)
    assert "canary" not in answer.text


async def test_who_gets_tokens_is_for_those_who_may_write_credentials(
    client, services, clock: FakeClock
) -> None:
    viewer = await somebody(services, clock, "vi@example.org", ["viewer"])
    answer = await client.post("/api/v1/oauth-clients", headers=viewer.bearer, json=BODY)
    assert (answer.status_code, answer.json()["param"]) == (403, "credentials.write")
    assert (await client.get("/api/v1/oauth-clients", headers=viewer.bearer)).status_code == 200
