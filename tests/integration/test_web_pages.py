"""Pages over a real database: what people see, and that looking decides nothing."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from gateway.approvals import exchanges, reading
from gateway.approvals.exchanges import Ending
from gateway.approvals.reading import Query
from gateway.audit.ledger import Ledger
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage


@pytest.fixture
async def played(sqlite: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(sqlite, clock) as played:
        yield played


# --- lists ----------------------------------------------------------------------------------


async def test_the_inbox_lists_what_waits_soonest_first(played: Stage) -> None:
    late = await played.ask(Wish(rule={"expires": "50m"}))
    soon = await played.ask(Wish(tool="get_rate", rule={"expires": "10m"}))
    ann = await played.signed_in("ann@example.org", "reviewer")
    text = (await ann.get("/inbox")).text
    assert text.index(f"/requests/{soon}") < text.index(f"/requests/{late}")
    assert "(2) Inbox" in text


async def test_an_empty_inbox_says_so_and_when_something_was_last_decided(
    played: Stage, clock: FakeClock
) -> None:
    approval = await played.ask()
    await played.decide(approval, "deny")
    clock.advance(720)
    ann = await played.signed_in("ann@example.org", "reviewer")
    text = (await ann.get("/inbox")).text
    assert "Nothing waits" in text
    assert "12 minutes ago" in text


async def test_the_inbox_pages_by_key(played: Stage) -> None:
    for _ in range(52):
        await played.ask()
    ann = await played.signed_in("ann@example.org", "reviewer")
    first = (await ann.get("/inbox")).text
    (following,) = re.findall(r'rel="next" href="([^"]+)"', first)
    second = (await ann.get(following)).text
    ids = [set(re.findall(r'data-row="(apr_\w+)"', page)) for page in (first, second)]
    assert (len(ids[0]), len(ids[1]), ids[0] & ids[1]) == (50, 2, set())


async def test_history_has_what_was_decided_and_filters_it(played: Stage) -> None:
    waiting = await played.ask()
    approved = await played.ask(Wish(tool="get_rate"))
    await played.decide(approved, "approve")
    denied = await played.ask(Wish(tool="wipe", app="other"))
    await played.decide(denied, "deny")
    ann = await played.signed_in("ann@example.org", "viewer")
    text = (await ann.get("/requests")).text
    assert waiting not in text
    assert approved in text
    assert denied in text
    assert "bo@example.org" in text
    text = (await ann.get("/requests?state=denied&app=other&server=&tool=")).text
    assert approved not in text
    assert denied in text
    assert "None fits" in (await ann.get("/requests?app=nobody")).text


async def test_the_overview_counts(played: Stage) -> None:
    await played.ask(Wish(rule={"expires": "4m"}))
    await played.ask()
    ann = await played.signed_in("ann@example.org", "viewer")
    text = re.sub(r"\s+", " ", (await ann.get("/")).text)
    assert "<b>2</b><span>calls wait</span>" in text
    assert "<b>1</b><span>expire within five minutes</span>" in text


# --- one request ----------------------------------------------------------------------------


async def test_a_request_shows_everything(played: Stage) -> None:
    approval = await played.ask(Wish(rule={"groups": ["treasury"]}))
    ann = await played.signed_in("ann@example.org", "reviewer")
    text = (await ann.get(f"/requests/{approval}")).text
    view = await played.read(approval)
    for fact in (
        "mcp.bank.example",
        "support-bot",
        "customer-17",
        "1250.00",
        "DE02 1203",
        view.digest,
        "money-needs-a-person",
        "treasury",
        "declares this tool as destructive",
        "Send money from the house account.",
        "76 bytes",
        "env:BANK",
    ):
        assert fact in text, fact


async def test_looking_decides_nothing(played: Stage) -> None:
    approval = await played.ask()
    ann = await played.signed_in("ann@example.org", "reviewer")
    for path in ("", "/approve", "/deny", "/reviews"):
        await ann.get(f"/requests/{approval}{path}")
        await ann.head(f"/requests/{approval}{path}")
    view = await played.read(approval)
    assert (view.state, view.reviews) == ("pending", ())


async def test_an_approval_goes_back_to_the_record_of_it(played: Stage, clock: FakeClock) -> None:
    approval = await played.ask()
    digest = (await played.read(approval)).digest
    ann = await played.signed_in("ann@example.org", "reviewer")
    answer = await ann.post(
        f"/requests/{approval}/reviews", data={"verdict": "approve", "digest": digest}
    )
    assert (answer.status_code, answer.headers["location"]) == (303, f"/requests/{approval}")
    text = (await ann.get(f"/requests/{approval}")).text
    assert "Approved, not executed yet" in text
    assert "Verified now against checkpoint" in text
    assert "decision-bar" not in text
    clock.advance(1.2)
    await played.execute(approval)
    text = (await ann.get(f"/requests/{approval}")).text
    assert "Executed 1.2 sec after the decision." in text
    assert "byte for byte" in text


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
async def test_what_is_never_sent_any_more_says_so(played: Stage, outcome: str) -> None:
    """A response that was handed over with the call in it may be gone on with; no other one."""
    approval = await played.ask()
    await played.decide(approval, "approve")
    ending = Ending(outcome, 1, None)
    await exchanges.finish(played.approvals, played.kept[approval], ending, now=played.clock())
    given_up = outcome != "completed"
    ann = await played.signed_in("ann@example.org", "viewer")
    text = (await ann.get(f"/requests/{approval}")).text
    assert ("It will not be sent any more." in text) == given_up
    assert ("Approved, not executed yet" in text) == (not given_up)
    page = await reading.listing(played.db, played.envelope, query=Query())
    seen = [await played.read(approval), *page.items]
    assert [view.given_up for view in seen] == [given_up, given_up]


async def test_what_was_executed_otherwise_is_an_alarm(played: Stage) -> None:
    approval = await played.ask()
    await played.decide(approval, "approve")
    await played.execute(approval, matches=False)
    ann = await played.signed_in("ann@example.org", "viewer")
    text = (await ann.get(f"/requests/{approval}")).text
    assert "Executed, but not as approved" in text
    assert "Approved and executed" not in text


async def test_a_denial_without_a_reason_comes_back_with_what_was_written(played: Stage) -> None:
    approval = await played.ask()
    digest = (await played.read(approval)).digest
    ann = await played.signed_in("ann@example.org", "reviewer")
    form = {"verdict": "deny", "digest": digest, "reason": "  ", "note": "keep <this>"}
    answer = await ann.post(f"/requests/{approval}/reviews", data=form)
    assert answer.status_code == 400
    assert "A reason is needed" in answer.text
    assert "keep &lt;this&gt;" in answer.text
    assert (await played.read(approval)).state == "pending"


async def test_a_stale_digest_does_nothing_and_says_so(played: Stage) -> None:
    approval = await played.ask()
    ann = await played.signed_in("ann@example.org", "reviewer")
    form = {"verdict": "approve", "digest": "sha256:" + "0" * 64}
    answer = await ann.post(f"/requests/{approval}/reviews", data=form)
    assert answer.status_code == 409
    assert "not the one you were shown" in answer.text
    assert (await played.read(approval)).state == "pending"
    shown = await ann.get(f"/requests/{approval}/approve?digest=sha256:{'0' * 64}")
    assert shown.status_code == 409


async def test_a_request_altered_in_the_database_cannot_be_decided(played: Stage) -> None:
    approval = await played.ask()
    digest = (await played.read(approval)).digest
    ann = await played.signed_in("ann@example.org", "reviewer")
    async with played.db.connection() as connection:
        await connection.execute(text("UPDATE approval_requests SET tool = 'wipe'"))
    form = {"verdict": "approve", "digest": digest}
    answer = await ann.post(f"/requests/{approval}/reviews", data=form)
    assert answer.status_code == 409
    assert "Nobody can approve it" in answer.text
    assert (await played.read(approval)).state == "pending"


async def test_after_the_deadline_it_is_too_late(played: Stage, clock: FakeClock) -> None:
    approval = await played.ask()
    digest = (await played.read(approval)).digest
    ann = await played.signed_in("ann@example.org", "reviewer")
    clock.advance(3601)
    form = {"verdict": "approve", "digest": digest}
    answer = await ann.post(f"/requests/{approval}/reviews", data=form)
    assert answer.status_code == 409
    assert "The deadline has passed." in answer.text


async def test_who_comes_second_learns_who_was_first(played: Stage) -> None:
    approval = await played.ask()
    digest = (await played.read(approval)).digest
    ann = await played.signed_in("ann@example.org", "reviewer")
    await played.decide(approval, "deny", "bo@example.org")
    form = {"verdict": "approve", "digest": digest, "note": "my words"}
    answer = await ann.post(f"/requests/{approval}/reviews", data=form)
    assert answer.status_code == 409
    for fact in ("bo@example.org", "already settled", "my words", "already_decided"):
        assert fact in answer.text


@pytest.mark.parametrize(
    ("wish", "roles", "sentence"),
    [
        (Wish(), ("viewer",), "Deciding needs the reviewer role"),
        (Wish(), ("admin",), "Deciding needs the reviewer role"),
        (Wish(owner="ann@example.org"), ("reviewer",), "You own the app that asks"),
        (Wish(end_user="ANN@example.org"), ("reviewer",), "You are named as the end user"),
        (Wish(rule={"groups": ["treasury"]}), ("reviewer",), "may decide."),
    ],
)
async def test_who_may_not_decide_is_told_why_and_cannot(
    played: Stage, wish: Wish, roles: tuple[str, ...], sentence: str
) -> None:
    approval = await played.ask(wish)
    digest = (await played.read(approval)).digest
    ann = await played.signed_in("ann@example.org", *roles)
    text = (await ann.get(f"/requests/{approval}")).text
    assert sentence in text
    assert 'disabled aria-describedby="objection"' in text
    answer = await ann.post(
        f"/requests/{approval}/reviews", data={"verdict": "approve", "digest": digest}
    )
    assert answer.status_code == 403
    assert (await played.read(approval)).reviews == ()


async def test_two_reviewers_are_counted(played: Stage) -> None:
    approval = await played.ask(Wish(rule={"quorum": 2}))
    digest = (await played.read(approval)).digest
    ann = await played.signed_in("ann@example.org", "reviewer")
    form = {"verdict": "approve", "digest": digest}
    await ann.post(f"/requests/{approval}/reviews", data=form)
    text = (await ann.get(f"/requests/{approval}")).text
    assert "1 of 2" in text
    assert "it waits for another reviewer" in text
    await played.decide(approval, "approve", "bo@example.org")
    assert "Approved, not executed yet" in (await ann.get(f"/requests/{approval}")).text


async def test_hostile_text_stays_text(played: Stage) -> None:
    hostile = "<script>alert(1)</script>{{7*7}}\u202e\u200b⟨x⟩"
    wish = Wish(
        tool=f"t{hostile}",
        arguments=f'{{"a": "{hostile}", "a": 9007199254740993}}',
        app=f"app{hostile}",
        end_user=hostile,
        server="bank",
        url="https://b\u0430nk.example/mcp",
        definition={"name": "t", "description": hostile, "annotations": "x"},
    )
    approval = await played.ask(wish)
    await played.decide(approval, "deny", reason=hostile)
    ann = await played.signed_in("ann@example.org", "reviewer", "auditor")
    for path in (f"/requests/{approval}", "/requests", "/", "/audit"):
        answer = await ann.get(path)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
        assert "\u202e" not in answer.text
        assert "\u200b" not in answer.text
    text = (await ann.get(f"/requests/{approval}")).text
    assert "⟨U+202E⟩" in text
    assert "⟨U+27E8⟩" in text
    assert "xn--" in text
    assert "more than once" in text


async def test_a_megabyte_is_shown_to_its_end(played: Stage) -> None:
    approval = await played.ask(Wish(arguments='{"x":"' + "a" * 1_000_000 + 'THE END"}'))
    ann = await played.signed_in("ann@example.org", "reviewer")
    assert "THE END" in (await ann.get(f"/requests/{approval}")).text


# --- the ledger -----------------------------------------------------------------------------


async def test_every_record_has_a_page_with_its_proof(played: Stage) -> None:
    approval = await played.ask()
    await played.decide(approval, "approve")
    eve = await played.signed_in("eve@example.org", "auditor")
    text = (await eve.get("/audit?kind=approval.decided")).text
    (address,) = re.findall(r'href="(/audit/\d+)"', text)
    text = (await eve.get(address)).text
    for fact in ("Verified now against checkpoint", "c2sp.org/tlog-proof@v1", "approval.decided"):
        assert fact in text
    assert f"/requests/{approval}" in text


async def test_an_altered_row_shows_the_red_badge(played: Stage) -> None:
    approval = await played.ask()
    view = await played.decide(approval, "approve")
    async with played.db.connection() as connection:
        forged = "CAST(replace(CAST(body AS TEXT), 'approve', 'approvf') AS BLOB)"
        await connection.execute(
            text(f'UPDATE audit_records SET body = {forged} WHERE "index" = :at'),
            {"at": view.record.decided},
        )
    eve = await played.signed_in("eve@example.org", "auditor")
    for path in (f"/audit/{view.record.decided}", f"/requests/{approval}"):
        shown = (await eve.get(path)).text
        assert "badge-failed" in shown
        assert "FAILED:" in shown
        assert "badge-verified" not in shown


async def test_the_foot_names_the_newest_checkpoint(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "viewer")
    assert re.search(r"Ledger checkpoint \d+, root [0-9a-f]{12}", (await ann.get("/inbox")).text)


async def test_a_ledger_in_trouble_is_said_on_every_page(
    played: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await played.signed_in("ann@example.org", "viewer")
    # Not its `problem`: the sequencer, which is running, would soon find that there is none.
    monkeypatch.setattr(Ledger, "healthy", property(lambda _: False))
    assert "Nothing is released until it can." in (await ann.get("/preferences")).text


async def test_only_auditors_open_the_ledger(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    assert 'href="/audit"' not in (await ann.get("/inbox")).text
    for path in ("/audit", "/audit/0"):
        answer = await ann.get(path)
        assert answer.status_code == 403
        assert "role_missing" in answer.text


async def test_the_list_of_records_says_which_of_them_are_sound(played: Stage):
    await played.ask()
    auditor = await played.signed_in("aud@example.org", "auditor")
    page = (await auditor.get("/audit")).text
    assert "Verified now against checkpoint" in page
    assert "verdict-failed" not in page
    async with played.db.connection() as connection:
        await connection.execute(
            text('UPDATE audit_records SET body = :body WHERE "index" = 1'), {"body": b"{}"}
        )
    page = (await auditor.get("/audit")).text
    assert page.count("verdict-failed") == 1
    assert "FAILED" in page
