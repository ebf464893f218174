"""What waits for the signed head: nothing is shown, acknowledged, sent or in force before it.

The sequencer is held back as soon as a record of a certain kind is committed, and let go on later;
in between, whatever rests on that record must not have happened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gateway.approvals import exchanges
from gateway.audit import sequencer
from gateway.audit.records import SYSTEM, Actor
from gateway.errors import Unavailable
from gateway.policy.rules import parse
from gateway.registry import accepting, policies, servers, tools
from gateway.registry.apply import apply
from gateway.registry.changes import By
from gateway.registry.declaration import parse as declared
from gateway.registry.directory import Directory
from gateway.registry.settings import ServerSettings
from gateway.store.database import Database
from gateway.store.tables import metadata
from tests.support.clock import FakeClock
from tests.support.demo import TRANSFER
from tests.support.gateway import MODEL, Gateway, open_gateway
from tests.support.ledger import Ledger, check_ledger, make_ledger, running
from tests.support.stage import stage

pytestmark = pytest.mark.e2e
RECORDS = metadata.tables["audit_records"]
WHO: dict[str, Any] = {"actor": Actor("user", "usr_1", "session")}
LONG = 0.4  # seconds in which what must not happen would have happened many times


class Hold:
    """Seals nothing from the first record of a kind on, until it is let go on."""

    def __init__(self, db: Database, kind: str) -> None:
        self._db = db
        first = RECORDS.alias()
        self._held = select(first.c.id).where(first.c.index.is_(None), first.c.kind == kind)
        self._waiting = sequencer._WAITING
        before = ~self._held.where(first.c.position <= RECORDS.c.position).exists()
        sequencer._WAITING = self._waiting.where(before)

    async def reached(self) -> None:
        """Return when the record is committed and has been held back for a while."""
        async with asyncio.timeout(20):
            while not await self._is_held():
                await asyncio.sleep(0.02)
        await asyncio.sleep(LONG)
        assert await self._is_held()

    async def _is_held(self) -> bool:
        async with self._db.reading() as session:
            return (await (await session.connection()).execute(self._held)).first() is not None

    def go_on(self) -> None:
        """Seal it, and all that follows."""
        sequencer._WAITING = self._waiting


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    waiting = sequencer._WAITING
    yield
    sequencer._WAITING = waiting


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path)
        yield gateway
        await gateway.verify()


def hold(gateway: Gateway, kind: str) -> Hold:
    assert gateway.services is not None
    return Hold(gateway.services.db, kind)


async def listed(gateway: Gateway) -> list[Any]:
    answer = await gateway.api("GET", "/approval-requests")
    items: list[Any] = answer.json()["items"]
    return items


async def test_a_request_is_shown_to_people_only_then(gateway: Gateway) -> None:
    sealing = hold(gateway, "approval.requested")
    asking = asyncio.ensure_future(gateway.ask(TRANSFER))
    await sealing.reached()
    assert await listed(gateway) == []
    sealing.go_on()
    await gateway.decide()
    await asking
    assert len(await gateway.effects()) == 1


async def test_nothing_goes_on_about_a_request_before_it_is_signed(
    db: Database, clock: FakeClock
) -> None:
    async with stage(db, clock) as played:
        sealing = Hold(db, "approval.requested")
        asking = asyncio.ensure_future(played.ask())
        await sealing.reached()
        assert not asking.done()
        sealing.go_on()
        await asking


@pytest.mark.parametrize("verdict", ["approve", "deny"])
async def test_a_decision_is_acknowledged_and_sent_only_then(
    gateway: Gateway, verdict: str
) -> None:
    asking = asyncio.ensure_future(gateway.ask(TRANSFER))
    request = (await gateway.pending())[0]
    sealing = hold(gateway, "approval.decided")
    reviewing = asyncio.ensure_future(gateway.review(request, verdict))
    await sealing.reached()
    assert not reviewing.done()
    assert not asking.done()
    assert len(await gateway.upstream_requests()) == 1
    sealing.go_on()
    assert (await reviewing).status_code == 201
    await asking


async def test_an_approval_is_sent_only_when_its_release_is_signed(gateway: Gateway) -> None:
    sealing = hold(gateway, "release.sending")
    asking = asyncio.ensure_future(gateway.ask(TRANSFER))
    deciding = asyncio.ensure_future(gateway.decide())
    await sealing.reached()
    assert len(await gateway.upstream_requests()) == 1
    assert await gateway.effects() == []
    sealing.go_on()
    await asyncio.gather(asking, deciding)
    assert len(await gateway.effects()) == 1


async def test_an_executed_result_is_handed_over_only_then(gateway: Gateway) -> None:
    shown: list[Any] = []

    async def ask() -> None:
        async for event in await gateway.ask(TRANSFER, stream=True):
            shown.append(event)

    def done() -> list[Any]:
        ended = [event.item for event in shown if event.type == "response.output_item.done"]
        return [item for item in ended if item.type in {"mcp_call", "message"}]

    sealing = hold(gateway, "execution.observed")
    asking = asyncio.ensure_future(ask())
    await gateway.decide()
    await sealing.reached()
    assert len(await gateway.effects()) == 1  # Azure has done it
    assert done() == []
    sealing.go_on()
    await asking
    assert [item.type for item in done()] == ["mcp_call", "message"]


async def test_an_end_that_another_replica_has_written_is_told_only_then(gateway: Gateway) -> None:
    assert gateway.services is not None
    sealing = hold(gateway, "exchange.finished")
    asking = asyncio.ensure_future(gateway.ask(TRANSFER))
    (request,) = await gateway.pending()
    await gateway.review(request)
    await sealing.reached()
    context, name = gateway.services.approvals, request["exchange_id"]
    assert await exchanges.final_response(context.db, context.envelope, name) is not None
    told = asyncio.ensure_future(exchanges.until_told(context, name))
    await asyncio.sleep(LONG)
    assert not told.done()
    sealing.go_on()
    await asyncio.gather(told, asking)


async def test_a_change_over_the_api_is_acknowledged_and_in_force_only_then(
    gateway: Gateway,
) -> None:
    services = gateway.services
    assert services is not None
    sealing = hold(gateway, "server.registered")
    by = {"actor": SYSTEM, "now": services.clock()}
    wiki = ServerSettings("wiki", "https://wiki.example/mcp")
    changing = asyncio.ensure_future(servers.register(services.ledger, wiki, **by))
    await sealing.reached()
    await asyncio.sleep(1.2)  # the directory has looked again
    assert not changing.done()
    assert "wiki" not in services.directory.view.servers_by_label
    body = {"model": MODEL, "input": "Hello"}
    answer = await gateway.raw("POST", "/openai/v1/responses", json=body)
    assert answer.status_code == 200  # what was in force still is
    sealing.go_on()
    await changing
    await services.directory.refresh()
    assert "wiki" in services.directory.view.servers_by_label


@contextlib.asynccontextmanager
async def sealed_by(db: Database, clock: FakeClock) -> AsyncIterator[Ledger]:
    async with running(make_ledger(db, clock)) as ledger:
        yield ledger


CRM = ServerSettings("crm", "https://crm.example/mcp")
RULE = {"name": "all", "effect": "allow", "match": {}}


async def _register(ledger: Ledger, by: dict[str, Any]) -> None:
    await servers.register(ledger, CRM, **by)


async def _apply(ledger: Ledger, by: dict[str, Any]) -> None:
    document = {"servers": [{"label": "crm", "url": CRM.url}]}
    await apply(ledger, declared({"x.yaml": str(document)}), By(by["actor"], by["now"]))


async def _save(ledger: Ledger, by: dict[str, Any]) -> None:
    await policies.save(ledger, parse([RULE]), **by)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_register, "server.registered"),
        (_apply, "server.registered"),
        (_save, "policy.activated"),
    ],
)
async def test_no_change_of_the_configuration_is_acknowledged_or_in_force_before(
    db: Database, clock: FakeClock, change: Any, kind: str
) -> None:
    async with sealed_by(db, clock) as ledger:
        replica = make_ledger(db, clock)  # asks whoever seals
        replica._running = True  # and does not seal itself
        here, there = Directory(db, ledger.settle), Directory(db, replica.settle)
        for directory in (here, there):
            await directory.reload()
        before = here.view.version, here.view.policy_digest
        sealing = Hold(db, kind)
        changing = asyncio.ensure_future(change(ledger, {**WHO, "now": clock()}))
        await sealing.reached()
        reading = [asyncio.ensure_future(directory.refresh()) for directory in (here, there)]
        await asyncio.sleep(LONG)
        assert not changing.done()
        for directory in (here, there):
            assert (directory.view.version, directory.view.policy_digest) == before
        sealing.go_on()
        await asyncio.gather(changing, *reading)
        for directory in (here, there):
            assert directory.view.version > before[0]
    await check_ledger(db)


async def test_an_accepted_definition_is_acknowledged_only_then(
    db: Database, clock: FakeClock
) -> None:
    async with sealed_by(db, clock) as ledger:
        entry = await servers.register(ledger, CRM, **WHO, now=clock())
        for text in ("Send.", "Send it all."):
            listing = [{"name": "send", "description": text, "input_schema": {"type": "object"}}]
            states = await tools.observe(ledger, entry.id, listing, now=clock())
        sealing = Hold(db, "tooldef.accepted")
        seen = ("send", states["send"].listed_digest)
        answer = accepting.accept(ledger, "crm", seen, **WHO, now=clock())
        answering = asyncio.ensure_future(answer)
        await sealing.reached()
        assert not answering.done()
        sealing.go_on()
        assert not (await answering).changed


async def test_a_change_that_cannot_be_signed_leaves_in_force_what_was(
    db: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sealed_by(db, clock) as ledger:
        directory = Directory(db, ledger.settle)
        await directory.reload()
        monkeypatch.setattr("gateway.audit.ledger._PATIENCE", 0.3)
        monkeypatch.setattr(ledger.signer, "sign", lambda *_: "")
        with pytest.raises(Unavailable):
            await _register(ledger, {**WHO, "now": clock()})
        with pytest.raises(Unavailable):
            await directory.refresh()
        assert directory.view.servers == {}
        fresh = Directory(db, ledger.settle)
        await fresh.start()  # does not fail, and has nothing to rely on
        with pytest.raises(Unavailable):
            _ = fresh.view
        monkeypatch.undo()
        await directory.refresh()
        assert "crm" in directory.view.servers_by_label
