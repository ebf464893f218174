"""Declarative configuration over real databases: planned, applied once, idempotent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import func
from sqlmodel import select

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import Conflict, Refused
from gateway.registry import apps, groups, policies, servers
from gateway.registry.apply import apply, plan
from gateway.registry.changes import By
from gateway.registry.declaration import Declaration, load, parse
from gateway.store.database import Database
from gateway.store.tables import AuditRecord, Meta, metadata
from tests.support.clock import FakeClock
from tests.support.ledger import check_ledger, make_ledger

FILE = """
servers:
  - label: crm
    url: https://mcp.crm.example/mcp
    credential: {header: Authorization, scheme: Bearer, from: "sealed:crm"}
  - label: wiki
    url: http://127.0.0.1:4112/mcp
    allow_private_network: true
    inject: authorization
    credential: {header: Authorization, scheme: Bearer, from: "env:WIKI_TOKEN"}
apps:
  - name: support-bot
    owner: team-support@example.org
    wait: hold
    servers: [crm, wiki]
reviewer_groups:
  - name: treasury
    members: [Ann@example.org, bo@example.org]
policies:
  - name: reads-are-fine
    match: {server: crm, tool: "get_*"}
    effect: allow
  - name: big-transfers-need-two
    match: {server: bank, tool: transfer}
    when: "args.amount >= 1000"
    effect: hold
    quorum: 2
    groups: [treasury]
    expires: 30m
"""


@pytest.fixture
def ledger(db: Database, clock: FakeClock) -> Ledger:
    return make_ledger(db, clock)


@pytest.fixture
def by(clock: FakeClock) -> By:
    return By(Actor("operator", "host", "host"), clock())


def declared(text: str = FILE) -> Declaration:
    return parse({"gatepass.yaml": text})


async def bodies(db: Database) -> list[dict[str, Any]]:
    async with db.reading() as session:
        rows = await session.exec(select(AuditRecord).order_by(AuditRecord.position))
        return [orjson.loads(row.body) for row in rows]


async def snapshot(db: Database) -> dict[str, list[Any]]:
    """Every row of every table but the ledger's own."""
    async with db.reading() as session:
        connection = await session.connection()
        return {
            name: sorted(map(repr, (await connection.execute(table.select())).all()))
            for name, table in metadata.tables.items()
            if not name.startswith("audit_")
        }


async def test_a_file_is_applied_and_applying_it_again_changes_nothing(
    ledger: Ledger, db: Database, by: By
) -> None:
    first = await apply(ledger, declared(), by)
    assert first.applied
    assert {(step.section, step.name, step.action) for step in first.steps} == {
        ("reviewer_groups", "treasury", "create"),
        ("servers", "crm", "create"),
        ("servers", "wiki", "create"),
        ("apps", "support-bot", "create"),
        ("policies", "active", "create"),
    }
    found = await bodies(db)
    assert [body["type"] for body in found] == [
        "group.changed",
        "server.registered",
        "credential.bound",
        "server.registered",
        "credential.bound",
        "app.created",
        "policy.activated",
        "config.applied",
    ]
    assert found[-1]["definition"] == declared().digest
    assert found[-1]["changes"] == ["apps", "policies", "reviewer_groups", "servers"]
    before = await snapshot(db)
    again = await apply(ledger, declared(), by)
    assert not again.applied
    assert not again.changes
    assert {step.action for step in again.steps} == {"unchanged"}
    assert await snapshot(db) == before
    assert len(await bodies(db)) == 8
    await ledger.settle()
    await check_ledger(db)


async def test_a_dry_run_says_the_same_and_writes_nothing(
    ledger: Ledger, db: Database, by: By
) -> None:
    before = await snapshot(db)
    dry = await apply(ledger, declared(), by, dry_run=True)
    assert not dry.applied
    assert await snapshot(db) == before
    assert await bodies(db) == []
    real = await apply(ledger, declared(), by)
    assert dry.steps == real.steps
    assert orjson.dumps(dry.document())


async def test_only_differences_are_changed(ledger: Ledger, db: Database, by: By) -> None:
    await apply(ledger, declared(), by)
    changed = FILE.replace("quorum: 2", "quorum: 3").replace("wait: hold", "wait: return")
    planned = await plan(db, declared(changed))
    steps = {step.name: step for step in planned.steps if step.action != "unchanged"}
    assert set(steps) == {"support-bot", "active"}
    [wait] = steps["support-bot"].differences
    assert (wait.member, wait.before, wait.after) == ("wait", "hold", "return")
    [rule] = steps["active"].differences
    assert (rule.member, rule.before["quorum"], rule.after["quorum"]) == (
        "big-transfers-need-two",
        2,
        3,
    )
    already = len(await bodies(db))
    await apply(ledger, declared(changed), by)
    found = [body["type"] for body in (await bodies(db))[already:]]
    assert found == ["app.changed", "policy.activated", "config.applied"]
    active = await policies.read_active(db)
    assert active is not None
    assert active.number == 2


async def test_what_no_file_names_is_left_alone(ledger: Ledger, db: Database, by: By) -> None:
    await apply(ledger, declared(), by)
    only = "apps:\n  - name: other\n    servers: [crm]\n"
    await apply(ledger, declared(only), by)
    assert {entry.settings.label for entry in await servers.listing(db)} == {"crm", "wiki"}
    assert {entry.settings.name for entry in await apps.listing(db)} == {"support-bot", "other"}
    assert len(await groups.listing(db)) == 1
    assert await policies.read_active(db) is not None


async def test_an_empty_policy_section_puts_an_empty_policy_into_force(
    ledger: Ledger, db: Database, by: By
) -> None:
    await apply(ledger, declared(), by)
    await apply(ledger, declared("policies: []\n"), by)
    active = await policies.read_active(db)
    assert active is not None
    assert active.rules == []


async def test_a_disabled_app_stays_disabled(ledger: Ledger, db: Database, by: By) -> None:
    await apply(ledger, declared(), by)
    await apps.disable(ledger, "support-bot", actor=by.actor, now=by.now)
    again = await apply(ledger, declared(), by)
    assert not again.applied
    assert again.warnings == ("the app 'support-bot' is disabled and stays so; enable it by hand",)
    assert (await apps.read(db, "support-bot")).disabled_at is not None


async def test_references_to_nothing_are_refused_with_their_line(
    ledger: Ledger, db: Database, by: By
) -> None:
    text = (
        "apps:\n  - name: bot\n    servers: [crm]\n"
        "policies:\n  - {name: x, effect: hold, groups: [board]}\n"
    )
    for dry_run in (True, False):
        with pytest.raises(Refused) as caught:
            await apply(ledger, declared(text), by, dry_run=dry_run)
        assert caught.value.message.split("\n") == [
            "gatepass.yaml:2: the app 'bot' uses the server 'crm', which is neither declared nor "
            "registered",
            "gatepass.yaml:5: the rule 'x' asks for the reviewer group 'board', which is neither "
            "declared nor known",
        ]
    assert await bodies(db) == []


async def test_all_or_nothing(ledger: Ledger, db: Database, by: By) -> None:
    await apply(ledger, declared("servers:\n  - {label: a, url: 'https://a.example/'}\n"), by)
    before = await snapshot(db)
    text = (
        "apps:\n  - name: bot\nservers:\n  - {label: b, url: 'https://b.example/'}\n"
        "  - {label: c, url: 'https://a.example/'}\n"
    )
    for dry_run in (True, False):
        with pytest.raises(
            Refused, match=r"gatepass\.yaml:5: the server 'c' has the address of 'a'"
        ):
            await apply(ledger, declared(text), by, dry_run=dry_run)
    assert await snapshot(db) == before


async def test_a_failure_half_way_leaves_nothing(ledger: Ledger, db: Database, by: By) -> None:
    two = "servers:\n  - {label: %s, url: 'https://a.example/'}\n  - {label: %s, url: 'https://b.example/'}\n"
    await apply(ledger, declared(two % ("a", "b")), by)
    before = await snapshot(db)
    # Trading addresses needs a step between; the group before it must not stay.
    text = two % ("b", "a") + "reviewer_groups:\n  - {name: g, members: []}\n"
    with pytest.raises(Conflict):
        await apply(ledger, declared(text), by)
    assert await snapshot(db) == before


async def test_warnings_say_what_this_version_does_not_do(sqlite: Database) -> None:
    text = (
        "servers:\n  - label: crm\n    url: https://crm.example/\n"
        "    credential: {from: 'vault:kv/crm#token'}\n"
        "webhooks:\n  - {name: soc, url: 'https://soc.example/'}\n"
    )
    found = (await plan(sqlite, declared(text))).warnings
    assert len(found) == 1
    assert "'soc' was read and checked" in found[0]


async def test_a_changed_version_is_counted_once_per_apply(
    ledger: Ledger, db: Database, by: By, tmp_path: Path
) -> None:
    file = tmp_path / "gatepass.yaml"
    file.write_text(FILE, encoding="utf-8")
    for _ in range(3):
        await apply(ledger, load([file]), by)
    async with db.reading() as session:
        row = await session.get(Meta, "config_version")
        assert row is not None
        assert row.value == "1"
        count = await session.exec(select(func.count()).where(AuditRecord.kind == "config.applied"))
        assert count.one() == 1
