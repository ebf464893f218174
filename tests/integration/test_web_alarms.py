"""Alarms, pauses and unclear outcomes on the pages: on every one of them, and without script."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway.approvals import alarms, late, release
from gateway.approvals.alarms import About
from gateway.approvals.late import Finding
from gateway.exchange.messages import Observed
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage

PAGES = ("/", "/inbox", "/requests", "/alarms", "/unclear", "/preferences")


@pytest.fixture
async def played(sqlite: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(sqlite, clock) as played:
        yield played


async def unclear(played: Stage) -> str:
    approval_id = await played.ask(Wish())
    await played.decide(approval_id, "approve")
    kept = played.kept[approval_id]
    await played.directory.refresh()
    await release.begin_sending(
        played.approvals, kept, played.sending(approval_id), played.directory, now=played.clock()
    )
    observed = Observed("mcpr", "unknown")
    await release.observe(played.approvals, kept, approval_id, observed, now=played.clock())
    return approval_id


async def post(client: httpx2.AsyncClient, path: str, **data: str) -> httpx2.Response:
    return await client.post(path, data=data)


def words(page: str) -> str:
    """What stands on a page, without its marks."""
    return re.sub(r"<[^>]*>", "", page)


async def test_a_pause_is_begun_shown_everywhere_and_ended_by_an_admin(played: Stage) -> None:
    await played.ask(Wish())
    ann = await played.signed_in("ann@example.org", "reviewer")
    form = {"scope": "app", "app": "support-bot", "reason": "Looks <odd>"}
    assert "Paused:" not in (await ann.get("/")).text
    assert (await post(ann, "/pauses", **form)).headers["location"] == "/alarms"
    for path in PAGES:
        text = (await ann.get(path)).text
        assert "Paused: app support-bot." in words(text), path
        assert "Looks &lt;odd&gt;" in text, path
    text = (await ann.get("/alarms")).text
    assert "End this pause" not in text
    assert "Only an admin can end a pause." in text
    assert (await post(ann, "/pauses", **form)).status_code == 409
    adm = await played.signed_in("adm@example.org", "admin")
    (path,) = [part.split('"')[0] for part in (await adm.get("/alarms")).text.split('action="')
               if part.startswith("/pauses/")]  # fmt: skip
    assert (await post(ann, path)).status_code == 403
    assert (await post(adm, path)).status_code == 303
    assert "Paused:" not in (await ann.get("/")).text
    assert "ended" in (await ann.get("/alarms")).text


async def test_a_viewer_pauses_nothing(played: Stage) -> None:
    vic = await played.signed_in("vic@example.org", "viewer")
    assert 'action="/pauses"' not in (await vic.get("/alarms")).text
    assert (await post(vic, "/pauses", scope="all", reason="x")).status_code == 403


async def test_an_alarm_is_on_every_page_until_it_is_closed(
    played: Stage, clock: FakeClock
) -> None:
    about = About("mismatch", "arguments_differ", "support-bot", tool="transfer", server_label="b")
    async with played.ledger.transaction() as tx:
        alarm_id = alarms.add(tx, about, now=clock())
    await played.directory.reload()
    ann = await played.signed_in("ann@example.org", "reviewer")
    for path in PAGES:
        text = (await ann.get(path)).text
        assert "1 alarm is open." in text, path
        assert "<title>[1 alarm] " in text, path
    assert "arguments_differ" in (await ann.get("/alarms")).text
    assert (await post(ann, f"/alarms/{alarm_id}/close", note=" ")).status_code == 400
    assert (await post(ann, f"/alarms/{alarm_id}/close", note="Azure's bug")).status_code == 303
    assert "alarm is open" not in (await ann.get("/")).text


async def test_an_unclear_outcome_is_listed_with_evidence_and_settled(
    played: Stage, clock: FakeClock
) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    assert 'href="/unclear"' not in (await ann.get("/")).text
    assert "Every outcome is known" in (await ann.get("/unclear")).text
    approval_id = await unclear(played)
    assert "Unclear outcomes (1)" in (await ann.get("/")).text
    assert "Azure has not been asked yet." in (await ann.get("/unclear")).text
    await late.note(played.approvals, approval_id, Finding("absent", "resp_1"), now=clock())
    listed = (await ann.get("/unclear")).text
    assert f"/requests/{approval_id}" in listed
    assert "Azure ended the response without this call." in listed
    page = (await ann.get(f"/requests/{approval_id}")).text
    assert "Settle the outcome" in page
    path = f"/requests/{approval_id}/settlement"
    assert (await post(ann, path, outcome="executed", reason=" ")).status_code == 400
    assert (await post(ann, path, outcome="not_executed", reason="No log")).status_code == 303
    page = (await ann.get(f"/requests/{approval_id}")).text
    assert "not executed as somebody found out" in page
    assert "ann@example.org found out that it was not executed" in words(page)
    assert "No log" in page
    assert "Settle the outcome" not in page
    assert (await post(ann, path, outcome="executed", reason="x")).status_code == 409
    vic = await played.signed_in("vic@example.org", "viewer")
    assert (await post(vic, path, outcome="executed", reason="x")).status_code == 403
