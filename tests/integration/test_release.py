"""Releases, observations and what is learned later, on both databases: each guard by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from gateway.approvals import alarms, evidence, late, reading, release, settlement, standing
from gateway.approvals.late import Finding
from gateway.approvals.release import Claimed, Fell, Sending, Stale
from gateway.approvals.review import Reviewer
from gateway.approvals.settlement import Settling
from gateway.approvals.standing import Fallen, Waits
from gateway.audit import reading as records
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict, NotAllowed, NotFound, Refused
from gateway.exchange.messages import Mismatch, Observed
from gateway.registry import pauses
from gateway.registry.pauses import Pausing
from gateway.store.database import Database
from gateway.store.tables import App, ApprovalRequest, Evidence, Exchange, ResponseId, SealedSecret
from gateway.store.tables import Server as ServerRow
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage

OTHER = "https://other.example/mcp"
REVIEWER = Reviewer(
    "usr_rev", "rev@example.org", frozenset({"reviewer"}), frozenset(), "api", "token"
)


@pytest.fixture
async def played(db: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(db, clock) as opened:
        yield opened


async def approved(played: Stage, **wish: object) -> str:
    approval_id = await played.ask(Wish(**wish))  # type: ignore[arg-type]
    await played.decide(approval_id, "approve")
    return approval_id


async def claim(played: Stage, approval_id: str, sending: Sending | None = None) -> release.Claim:
    kept, sending = played.kept[approval_id], sending or played.sending(approval_id)
    return await release.begin_sending(
        played.approvals, kept, sending, played.directory, now=played.clock()
    )


async def unclear(played: Stage, **wish: object) -> str:
    """A call that was sent and whose outcome is not known."""
    approval_id = await approved(played, **wish)
    assert isinstance(await claim(played, approval_id), Claimed)
    await observe(played, approval_id, "unknown")
    return approval_id


async def observe(played: Stage, approval_id: str, outcome: str) -> None:
    kept, observed = played.kept[approval_id], Observed("mcpr", outcome)
    await release.observe(played.approvals, kept, approval_id, observed, now=played.clock())


async def told(played: Stage, kind: str) -> list[dict]:
    await played.ledger.settle()
    found = await records.search(played.db, records.Query(kind=kind, limit=100))
    return [entry.document for entry in reversed(found.items)]


async def settle(played: Stage, approval_id: str, outcome: str, person: Reviewer = REVIEWER) -> str:
    settling = Settling(approval_id, outcome, "Looked it up")
    view = await settlement.settle(played.approvals, person, settling, now=played.clock())
    return view.execution


# --- claiming -------------------------------------------------------------------------------


async def test_one_approval_is_claimed_once_however_many_try(played: Stage):
    approval_id = await approved(played)
    kept = played.kept[approval_id]
    tries = [
        release.begin_sending(
            played.approvals,
            kept.__class__(**vars(kept)),
            played.sending(approval_id),
            played.directory,
            now=played.clock(),
        )
        for _ in range(8)
    ]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, Claimed) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 7
    assert len(await told(played, "release.sending")) == 1


async def nothing_was_sent(played: Stage, approval_id: str) -> None:
    assert (await played.read(approval_id)).execution == "not_sent"
    assert await told(played, "release.sending") == []
    assert played.kept[approval_id].state != "sending"


async def sealed_versions(played: Stage, *versions: int) -> None:
    """The bank's credential is one of our own values, and has these versions."""
    async with played.db.transaction() as session:
        credential = {"header": "Authorization", "from": "sealed:bank"}
        await session.exec(update(ServerRow).values(credential=credential))
        for version in versions:
            session.add(
                SealedSecret(
                    name="srv_bank/bank",
                    version=version,
                    data_key=b"",
                    value=b"",
                    created_at=played.clock(),
                )
            )
    await played.directory.reload()


async def test_E_15_what_was_opened_goes_along_and_is_named(played: Stage):
    approval_id = await approved(played)
    await sealed_versions(played, 1, 2)
    sending = played.sending(approval_id, versions={"srv_bank": "2"})
    assert isinstance(await claim(played, approval_id, sending), Claimed)
    (record,) = await told(played, "release.sending")
    assert record["credential"] == "sealed:bank@2"
    assert (await played.read(approval_id)).credential == "sealed:bank@2"


@pytest.mark.parametrize("opened", ["1", "3", None])
async def test_E_15_a_secret_that_was_rotated_after_it_was_opened_is_not_sent(
    played: Stage, opened: str | None
):
    approval_id = await approved(played)
    await sealed_versions(played, 1, 2)
    versions = {"srv_bank": opened} if opened else {}
    sending = played.sending(approval_id, versions=versions)
    assert isinstance(await claim(played, approval_id, sending), Stale)
    await nothing_was_sent(played, approval_id)


@pytest.mark.parametrize(
    "change",
    [
        {"credential": {"header": "Authorization", "scheme": "Bearer", "from": "env:OTHER"}},
        {"credential": {"header": "X-Key", "scheme": "Bearer", "from": "env:BANK"}},
        {"credential": {"header": "Authorization", "from": "env:BANK"}},
        {"credential": None},
        {"inject": "authorization"},
    ],
)
async def test_E_15_what_was_opened_for_a_server_as_it_was_is_not_sent(played: Stage, change: dict):
    approval_id = await approved(played)
    sending = played.sending(approval_id)
    async with played.db.transaction() as session:
        await session.exec(update(ServerRow).values(**change))
    await played.directory.reload()
    assert isinstance(await claim(played, approval_id, sending), Stale)
    await nothing_was_sent(played, approval_id)


async def test_another_server_of_the_round_that_has_changed_stops_it_too(played: Stage):
    approval_id, _ = await approved(played), await approved(played, server="other", url=OTHER)
    sending = played.sending(approval_id)
    async with played.db.transaction() as session:
        theirs = col(ServerRow.label) == "other"
        await session.exec(update(ServerRow).where(theirs).values(removed_at=played.clock()))
    await played.directory.reload()
    assert isinstance(await claim(played, approval_id, sending), Stale)
    await nothing_was_sent(played, approval_id)


async def test_S_16_without_its_secret_nothing_is_claimed(played: Stage):
    approval_id = await approved(played)
    assert isinstance(await claim(played, approval_id, Sending([approval_id])), Stale)
    await nothing_was_sent(played, approval_id)


async def test_of_other_stores_reference_and_version_are_named(played: Stage):
    one, other = await approved(played), await approved(played)
    await claim(played, one)
    await claim(played, other, played.sending(other, versions={"srv_bank": "7"}))
    sent = [record["credential"] for record in await told(played, "release.sending")]
    assert sent == ["env:BANK", "env:BANK@7"]


async def test_a_long_reference_keeps_its_version_in_the_record(played: Stage):
    approval_id = await approved(played)
    async with played.db.transaction() as session:
        credential = {"header": "Authorization", "from": "file:/" + "x" * 450}
        await session.exec(update(ServerRow).values(credential=credential))
    await played.directory.reload()
    await claim(played, approval_id, played.sending(approval_id, versions={"srv_bank": "7"}))
    (record,) = await told(played, "release.sending")
    assert len(record["credential"]) == 400
    assert record["credential"].endswith("x@7")


@pytest.mark.parametrize(
    ("change", "why", "refused"),
    [
        (update(ServerRow).values(url="https://mcp.bank.example/other"), "server_changed", True),
        (update(ServerRow).values(removed_at=FakeClock()()), "server_removed", True),
        (update(App).values(disabled_at=FakeClock()()), "app_disabled", True),
        (update(App).values(servers=["other"]), "server_not_allowed", True),
        (
            update(standing.ToolDefinition).values(listed_digest="sha256:" + "9" * 64),
            "definition_changed",
            False,
        ),
    ],
)
async def test_E_14_what_has_changed_since_is_noticed(
    played: Stage, change, why: str, refused: bool
):
    approval_id = await approved(played)
    async with played.db.transaction() as session:
        await session.exec(change)
    await played.directory.reload()
    fell = await claim(played, approval_id)
    assert isinstance(fell, Fell)
    (fallen,) = fell.fallen
    assert (fallen.why, fallen.refusal is not None) == (why, refused)
    assert (await played.read(approval_id)).execution == "not_sent"
    assert await told(played, "release.sending") == []


async def supersede(played: Stage, approval_id: str, other: str) -> None:
    async with played.ledger.transaction() as tx:
        fallen = Fallen(approval_id, "definition_changed")
        await standing.supersede(tx, fallen, other, played.clock())


async def test_what_is_superseded_is_never_sent(played: Stage):
    approval_id, other = await approved(played), await approved(played)
    await supersede(played, approval_id, other)
    with pytest.raises(Conflict):
        await claim(played, approval_id)
    with pytest.raises(Conflict):
        await supersede(played, approval_id, other)
    assert (await played.read(approval_id)).superseded_by == other
    assert len(await told(played, "approval.superseded")) == 1


async def test_what_was_sent_cannot_be_superseded(played: Stage):
    approval_id, other = await approved(played), await approved(played)
    assert isinstance(await claim(played, approval_id), Claimed)
    with pytest.raises(Conflict):
        await supersede(played, approval_id, other)


async def test_a_call_left_open_is_known_by_the_request_that_asks_for_it_now(played: Stage):
    approval_id, other = await approved(played), await approved(played)
    await supersede(played, approval_id, other)
    exchange_id = played.kept[approval_id].id
    async with played.db.transaction() as session:
        await session.exec(
            update(Exchange).where(col(Exchange.id) == exchange_id).values(rounds=1, state="done")
        )
    (left,) = await reading.left_open(played.db, played.envelope, exchange_id)
    assert left.approval_id == other


async def test_a_pause_that_outlasts_the_time_of_a_call_ends_in_a_refusal(
    played: Stage, clock: FakeClock
):
    approval_id = await approved(played)
    wanted = Pausing("server", "bank", "maintenance", "operator")
    await pauses.begin(played.ledger, wanted, actor=SYSTEM, now=clock())
    waits = await claim(played, approval_id)
    assert isinstance(waits, Waits)
    assert waits.until == (await played.read(approval_id)).deadline
    clock.advance(3601)
    fell = await claim(played, approval_id)
    assert isinstance(fell, Fell)
    assert [fallen.why for fallen in fell.fallen] == ["paused_too_long"]


async def test_a_call_asked_anew_by_another_exchange_is_left_open_where_azure_asked(
    played: Stage, clock: FakeClock
):
    approval_id, other = await approved(played), await approved(played)
    await supersede(played, approval_id, other)
    went_on = played.kept[other].id
    async with played.db.transaction() as session:
        await session.exec(
            update(ApprovalRequest)
            .where(col(ApprovalRequest.id) == other)
            .values(supersedes=approval_id)
        )
        await session.exec(update(Exchange).values(rounds=1, state="done"))
    assert await reading.left_open(played.db, played.envelope, went_on) == []
    asked = played.kept[approval_id].id
    (left,) = await reading.left_open(played.db, played.envelope, asked)
    assert left.approval_id == other
    async with played.db.transaction() as session:
        await session.exec(
            update(ApprovalRequest)
            .where(col(ApprovalRequest.id) == other)
            .values(execution="unknown", executed_at=clock(), released_by=went_on)
        )
        for number in range(2):
            row = ResponseId(
                response_id=f"resp_{number}",
                exchange_id=went_on,
                app_id="app",
                round=number,
                created_at=clock(),
            )
            session.add(row)
    clock.advance(1)
    (case,) = await evidence.due(played.approvals, now=clock())
    assert case.response_id == "resp_0", "the first round of who went on answered it"


# --- observing ------------------------------------------------------------------------------


async def test_C_15_a_stale_claim_records_no_outcome(played: Stage):
    approval_id = await approved(played)
    await claim(played, approval_id)
    async with played.db.transaction() as session:  # somebody else has claimed it since
        await session.exec(update(Exchange).values(fence=Exchange.fence + 1))
    with pytest.raises(Conflict):
        await observe(played, approval_id, "executed")
    assert (await played.read(approval_id)).execution == "sending"
    assert await told(played, "execution.observed") == []
    (kept,) = await told(played, "execution.evidence")
    assert (kept["finding"], kept["where"]) == ("executed", "a late answer")


async def test_an_outcome_is_recorded_once(played: Stage):
    approval_id = await approved(played)
    await claim(played, approval_id)
    await observe(played, approval_id, "executed")
    with pytest.raises(Conflict):
        await observe(played, approval_id, "failed")
    assert (await played.read(approval_id)).execution == "executed"


async def test_E_19_after_a_mismatch_the_exchange_releases_nothing_more(
    played: Stage, clock: FakeClock
):
    approval_id = await approved(played)
    kept = played.kept[approval_id]
    found = Mismatch(None, "bank", "transfer", "executed without an approval")
    await release.mismatch(played.approvals, kept, found, None, now=clock())
    (pause,) = await pauses.listing(played.db)
    assert (pause.scope, pause.target, pause.begun_by) == ("app", "support-bot", "gateway")
    await release.mismatch(played.approvals, kept, found, None, now=clock())
    assert len(await pauses.listing(played.db)) == 1, "it is paused already"
    assert len(await alarms.listing(played.db)) == 2
    await pauses.end(played.ledger, pause.id, "adm@example.org", actor=SYSTEM, now=clock())
    fell = await claim(played, approval_id)
    assert isinstance(fell, Fell)
    assert [fallen.why for fallen in fell.fallen] == ["stopped"]


# --- what is learned later ------------------------------------------------------------------


async def test_evidence_is_gathered_ever_more_seldom_and_then_no_more(
    played: Stage, clock: FakeClock
):
    approval_id = await unclear(played)
    since, looks = clock(), []
    for _ in range(10):
        for case in await evidence.due(played.approvals, now=clock()):
            looks.append((clock() - since).total_seconds())
            finding = Finding("unavailable", "resp")
            assert await late.note(
                played.approvals, approval_id, finding, number=case.number, now=clock()
            )
        clock.now = since + timedelta(seconds=10 ** (len(looks) / 2 + 0.1) * 1.2)
    assert len(looks) <= len(evidence.LOOKS)
    clock.now = since + timedelta(days=3)
    for _ in evidence.LOOKS:
        for case in await evidence.due(played.approvals, now=clock()):
            finding = Finding("unavailable", "resp")
            await late.note(played.approvals, approval_id, finding, number=case.number, now=clock())
    assert await evidence.due(played.approvals, now=clock()) == []
    view = await played.read(approval_id)
    assert len(view.evidence) == len(evidence.LOOKS)


async def test_nothing_is_looked_for_too_soon_or_after_it_was_found(
    played: Stage, clock: FakeClock
):
    approval_id = await unclear(played)
    assert await evidence.due(played.approvals, now=clock()) == []
    clock.advance(1)
    (case,) = await evidence.due(played.approvals, now=clock())
    assert (case.response_id, case.label, case.tool) == (None, "bank", "transfer")
    await late.note(played.approvals, approval_id, Finding("failed", "resp"), number=0, now=clock())
    clock.advance(100_000)
    assert await evidence.due(played.approvals, now=clock()) == []


async def test_the_round_that_was_sent_is_the_one_to_look_at(played: Stage, clock: FakeClock):
    approval_id = await unclear(played)
    exchange = played.kept[approval_id]
    async with played.db.transaction() as session:
        for number in range(3):
            session.add(
                ResponseId(
                    response_id=f"resp_{number}",
                    exchange_id=exchange.id,
                    app_id=exchange.app_id,
                    round=number,
                    created_at=clock(),
                )
            )
    clock.advance(1)
    (case,) = await evidence.due(played.approvals, now=clock())
    assert case.response_id == "resp_1"
    async with played.db.transaction() as session:  # sent by the exchange that went on from it
        await session.exec(update(ApprovalRequest).values(released_by="exc_other"))
        await session.exec(update(ResponseId).values(exchange_id="exc_other"))
    (case,) = await evidence.due(played.approvals, now=clock())
    assert case.response_id == "resp_0"


async def test_two_processes_that_look_at_once_count_one_look(played: Stage, clock: FakeClock):
    approval_id = await unclear(played)
    notes = [
        late.note(played.approvals, approval_id, Finding("absent", "resp"), number=0, now=clock())
        for _ in range(4)
    ]
    assert sorted(await asyncio.gather(*notes)) == [False, False, False, True]
    assert len(await told(played, "execution.evidence")) == 1
    async with played.db.reading() as session:
        assert len((await session.exec(select(Evidence))).all()) == 1


async def test_E_12_what_was_settled_as_not_executed_and_then_shows_is_an_alarm(
    played: Stage, clock: FakeClock
):
    approval_id = await unclear(played)
    assert await settle(played, approval_id, "not_executed") == "failed"
    clock.advance(1)
    assert len(await evidence.due(played.approvals, now=clock())) == 1, "it may turn out wrong"
    await late.note(played.approvals, approval_id, Finding("absent", "resp"), now=clock())
    assert await alarms.listing(played.db) == []
    with pytest.raises(Conflict):  # a late frame
        await observe(played, approval_id, "executed")
    (alarm,) = await alarms.listing(played.db)
    assert (alarm.about.kind, alarm.about.approval_id) == ("late_execution", approval_id)
    assert [pause.target for pause in await pauses.listing(played.db)] == ["support-bot"]
    assert (await played.read(approval_id)).execution == "failed", "what was settled stands"


@pytest.mark.parametrize("outcome", ["executed", "not_executed"])
async def test_an_outcome_is_settled_once(played: Stage, outcome: str):
    approval_id = await unclear(played)
    results = await asyncio.gather(
        *(settle(played, approval_id, outcome) for _ in range(4)), return_exceptions=True
    )
    assert sum(isinstance(result, Conflict) for result in results) == 3
    view = await played.read(approval_id)
    assert view.settlement is not None
    assert (view.settlement.outcome, view.settlement.by) == (outcome, "rev@example.org")
    assert view.settlement.reason == "Looked it up"
    observed = await told(played, "execution.observed")
    assert [entry.get("reconciled") for entry in observed] == [None, True]
    assert "Looked" not in str(observed)


async def test_only_what_is_unknown_can_be_settled_and_not_by_everybody(played: Stage):
    known = await approved(played)
    with pytest.raises(Conflict, match="not unknown"):
        await settle(played, known, "executed")
    approval_id = await unclear(played, owner="owner@example.org", end_user="me@example.org")
    for email in ("owner@example.org", "me@example.org"):
        person = Reviewer(email, email, REVIEWER.roles, frozenset(), "api", "token")
        with pytest.raises(NotAllowed):
            await settle(played, approval_id, "executed", person)
    admin = Reviewer("a", "a@example.org", frozenset({"admin"}), frozenset(), "api", "token")
    with pytest.raises(NotAllowed):
        await settle(played, approval_id, "executed", admin)
    with pytest.raises(Refused):
        await settle(played, approval_id, "perhaps")
    with pytest.raises(NotFound):
        await settle(played, "apr_none", "executed")
    settling = Settling(approval_id, "executed", " ")
    with pytest.raises(Refused):
        await settlement.settle(played.approvals, REVIEWER, settling, now=played.clock())
    assert (await played.read(approval_id)).execution == "unknown"


async def test_what_azure_shows_is_not_settled_otherwise(played: Stage, clock: FakeClock):
    approval_id = await unclear(played)
    finding = Finding("executed", "resp", matches=True)
    await late.note(played.approvals, approval_id, finding, now=clock())
    with pytest.raises(Conflict, match="evidence"):
        await settle(played, approval_id, "not_executed")
    assert await settle(played, approval_id, "executed") == "executed"
