"""Pages about remembering, undoing, standing in and emergencies; all of it without script."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway.approvals import alarms, escalation
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage


@pytest.fixture
async def played(sqlite: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(sqlite, clock) as played:
        yield played


def filled(text: str, **changes: str | list[str]) -> dict[str, str | list[str]]:
    """What a browser would post of the form for terms, with some of it chosen otherwise."""
    found: dict[str, str | list[str]] = {
        name: html.unescape(value)
        for name, value in re.findall(r'name="(digest|max_uses)" value="([^"]*)"', text)
    }
    (found["until"],) = re.findall(r'<option value="([^"]+)" selected', text)
    for name in ("kind", "scope"):
        (found[name],) = re.findall(rf'name="{name}" value="(\w+)" checked', text)
    return found | changes


async def remembered(played: Stage, ann: httpx2.AsyncClient, **changes: str | list[str]) -> str:
    approval_id = await played.ask()
    page = await ann.get(f"/requests/{approval_id}/remember")
    answer = await ann.post(f"/requests/{approval_id}/remember", data=filled(page.text, **changes))
    assert answer.status_code == 303, answer.text
    return approval_id


async def test_an_approval_is_remembered_as_the_form_shows_it(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    first = await remembered(played, ann)
    assert (await played.read(first)).state == "approved"
    second = await played.ask()
    assert (await played.read(second)).state == "approved"
    page = (await ann.get(f"/requests/{second}")).text
    assert "a remembered approval" in page
    listed = (await ann.get("/grants")).text
    assert "answers calls" in listed
    assert "1 of 20" in listed
    assert "ann@example.org" in listed


async def test_chosen_arguments_are_what_has_to_be_the_same(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    await remembered(played, ann, kind="fields", fields=["/to", "/memo"], max_uses="")
    other = '{"to": "DE02 1203 0000 0000 2020 51", "amount": 1, "memo": "Rent May"}'
    assert (await played.read(await played.ask(Wish(arguments=other)))).state == "approved"
    moved = other.replace("Rent", "Gift")
    assert (await played.read(await played.ask(Wish(arguments=moved)))).state == "pending"


async def test_asking_what_it_would_have_covered_decides_nothing(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    approval_id = await played.ask()
    await played.ask()
    await played.ask(Wish(tool="get_rate"))
    page = (await ann.get(f"/requests/{approval_id}/remember")).text
    answer = await ann.post(
        f"/requests/{approval_id}/remember/preview", data=filled(page, kind="tool")
    )
    assert "covered 2 of the last 3" in answer.text
    assert 'value="tool" checked' in answer.text
    assert (await played.read(approval_id)).state == "pending"
    assert "Nothing is remembered" in (await ann.get("/grants")).text


async def test_terms_that_cannot_be_are_told_and_nothing_is_decided(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    approval_id = await played.ask()
    page = (await ann.get(f"/requests/{approval_id}/remember")).text
    for changes in ({"max_uses": "many"}, {"kind": "fields"}, {"scope": "thread"}):
        for path in ("remember", "remember/preview"):
            answer = await ann.post(f"/requests/{approval_id}/{path}", data=filled(page, **changes))
            assert answer.status_code in (200, 400)
            assert changes == {"scope": "thread"} or "banner-alarm" in answer.text
    assert (await played.read(approval_id)).state == "pending"


async def test_what_is_approved_is_remembered_afterwards(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    approval_id = await played.ask()
    await played.decide(approval_id, "approve")
    assert f"/requests/{approval_id}/remember" in (await ann.get(f"/requests/{approval_id}")).text
    page = (await ann.get(f"/requests/{approval_id}/remember")).text
    assert "Remember this approval" in page
    await ann.post(f"/requests/{approval_id}/remember", data=filled(page))
    assert (await played.read(await played.ask())).state == "approved"


async def test_a_rule_that_always_asks_offers_no_remembering(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    approval_id = await played.ask(Wish(rule={"always_ask": True}))
    assert "/remember" not in (await ann.get(f"/requests/{approval_id}")).text
    page = (await ann.get(f"/requests/{approval_id}/remember")).text
    answer = await ann.post(f"/requests/{approval_id}/remember", data=filled(page))
    assert (answer.status_code, "always asks" in answer.text) == (403, True)
    assert (await played.read(approval_id)).state == "pending"


async def test_a_grant_is_revoked_on_its_page(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    await remembered(played, ann)
    viewer = await played.signed_in("vi@example.org", "viewer")
    assert "/revoke" not in (await viewer.get("/grants")).text
    (path,) = re.findall(r'action="(/grants/grt_\w+/revoke)"', (await ann.get("/grants")).text)
    assert (await viewer.post(path)).status_code == 403
    for _ in range(2):
        assert (await ann.post(path)).status_code == 303
    assert "ended: revoked" in (await ann.get("/grants")).text
    assert (await played.read(await played.ask())).state == "pending"


async def test_a_review_is_taken_back_on_the_page(played: Stage) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    approval_id = await played.ask(Wish(rule={"undo_seconds": 30}))
    digest = (await played.read(approval_id)).digest
    await ann.post(
        f"/requests/{approval_id}/reviews", data={"verdict": "approve", "digest": digest}
    )
    page = (await ann.get(f"/requests/{approval_id}")).text
    assert "unless somebody takes a review back" in page
    assert "Take my review back" in page
    answer = await ann.post(f"/requests/{approval_id}/withdraw")
    assert answer.status_code == 303
    view = await played.read(approval_id)
    assert (view.state, view.reviews, view.settles_at) == ("pending", (), None)
    await played.decide(approval_id, "deny")
    await ann.post(f"/requests/{approval_id}/withdraw")


async def test_somebody_stands_in_from_the_page_and_may_decide(
    played: Stage, clock: FakeClock
) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    bo = await played.signed_in("bo@example.org", "reviewer")
    await played.group("desk", "ann@example.org")
    approval_id = await played.ask(Wish(rule={"groups": ["desk"]}))
    assert "Only members of" in (await bo.get(f"/requests/{approval_id}")).text
    today = clock().date().isoformat()
    form = {"to_email": "bo@example.org", "first": today, "last": today}
    assert (await ann.post("/delegations", data=form)).status_code == 303
    assert "bo@example.org" in (await ann.get("/delegations")).text
    page = (await bo.get(f"/requests/{approval_id}")).text
    assert "Only members of" not in page
    digest = (await played.read(approval_id)).digest
    await bo.post(f"/requests/{approval_id}/reviews", data={"verdict": "approve", "digest": digest})
    assert "standing in for" in (await ann.get(f"/requests/{approval_id}")).text
    (path,) = re.findall(r'action="(/delegations/dlg_\w+/revoke)"',
                         (await bo.get("/delegations")).text)  # fmt: skip
    assert (await bo.post(path)).status_code == 303
    assert "revoked" in (await ann.get("/delegations")).text


async def test_standing_in_for_nobody_is_told(played: Stage, clock: FakeClock) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer")
    today = clock().date().isoformat()
    form = {"to_email": "nobody@example.org", "first": today, "last": today}
    answer = await ann.post("/delegations", data=form)
    assert (answer.status_code, "no such user" in answer.text) == (400, True)


async def test_escalation_is_shown(played: Stage, clock: FakeClock) -> None:
    rule = {"groups": ["desk"], "escalate": {"after": "10m", "to": ["chiefs"]}}
    approval_id = await played.ask(Wish(rule=rule))
    ann = await played.signed_in("ann@example.org", "reviewer")
    assert "then also:" in (await ann.get(f"/requests/{approval_id}")).text
    clock.advance(601)
    await escalation.escalate_due(played.approvals, now=clock())
    assert "may decide too" in (await ann.get(f"/requests/{approval_id}")).text


async def test_the_glass_is_broken_on_a_page_of_its_own(played: Stage) -> None:
    approval_id = await played.ask(Wish(rule={"quorum": 3}))
    ann = await played.signed_in("ann@example.org", "reviewer")
    assert "break-glass" not in (await ann.get(f"/requests/{approval_id}")).text
    assert (await ann.get(f"/requests/{approval_id}/break-glass")).status_code == 403
    bo = await played.signed_in("bo@example.org", "break_glass")
    assert "break-glass" in (await bo.get(f"/requests/{approval_id}")).text
    page = (await bo.get(f"/requests/{approval_id}/break-glass")).text
    assert (await played.read(approval_id)).state == "pending"
    (digest,) = re.findall(r'name="digest" value="([^"]+)"', page)
    path = f"/requests/{approval_id}/break-glass"
    refused = await bo.post(path, data={"digest": digest, "reason": " "})
    assert (refused.status_code, (await played.read(approval_id)).state) == (400, "pending")
    answer = await bo.post(path, data={"digest": digest, "reason": "The pumps have stopped"})
    assert answer.status_code == 303
    assert "broke the glass" in (await ann.get(f"/requests/{approval_id}")).text
    assert len(await alarms.listing(played.db)) == 1


@pytest.mark.parametrize("path", ["/grants", "/delegations", "/requests/{}/remember"])
async def test_the_pages_are_in_russian_too(played: Stage, path: str) -> None:
    ann = await played.signed_in("ann@example.org", "reviewer", "admin")
    await remembered(played, ann)
    approval_id = await played.ask(Wish(tool="other"))
    ann.headers["Accept-Language"] = "ru"
    text = (await ann.get(path.format(approval_id))).text
    main = re.sub(r"<[^>]+>", " ", text.partition("<main")[2].partition("</main>")[0])
    assert re.search("[а-яё]{4}", main)
    assert "Remember" not in main
    assert "stand" not in main
