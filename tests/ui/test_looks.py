"""Every page in both themes and languages: all accessible, nothing cut off or hidden."""

from __future__ import annotations

from datetime import timedelta

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

from gateway.approvals import alarms, grants
from gateway.approvals.alarms import About
from gateway.approvals.terms import Terms
from gateway.audit.records import SYSTEM
from gateway.registry import pauses
from gateway.registry.pauses import Pausing
from tests.support.servers import CHANGED, FIND, SEND, crm, register
from tests.support.stage import Stage, Wish
from tests.ui.conftest import House, Open

pytestmark = pytest.mark.ui
LONG = '{"memo": "' + "a-long-word-without-an-end" * 12 + '", "a": 1, "a": 2, "b": "\u202e"}'


async def addresses(house: House) -> dict[str, str]:
    """One of each page, with much and with little on it."""
    played = house.played
    pending = await played.ask()
    hostile = await played.ask(Wish(tool="t" * 70, arguments=LONG, rule={"quorum": 2}))
    executed = await played.ask(Wish(tool="get_rate"))
    await played.decide(executed, "approve")
    await played.execute(executed)
    wrong = await played.ask(Wish(tool="post", definition=None))
    await played.decide(wrong, "approve")
    await played.execute(wrong, matches=False)
    remembered = await remember(played)
    denied = await played.ask(Wish(tool="wipe", rule={"require_reason": True}))
    await played.decide(denied, "deny", reason="Not now")
    unclear = await played.ask(Wish(tool="push"))
    await played.decide(unclear, "approve")
    await played.execute(unclear, outcome="unknown")
    fresh = await played.ask(Wish(rule={"step_up": True}))
    await trouble(played)
    changed = [CHANGED, {"name": "..", "description": LONG * 3}]
    await crm(played, [SEND, FIND, changed[1]], changed)
    await register(played, "x" * 64, "https://xn--bcher-kva.example/" + "long" * 99)
    return {
        "servers": "/servers",
        "server": "/servers/crm",
        "server hostile": f"/servers/{'x' * 64}",
        "server with calls": "/servers/bank",
        "tool changed": "/servers/crm/tools/send_email",
        "tool hostile": "/servers/crm/tools/~..",
        "tool accepted": "/servers/crm/tools/find_contact",
        "new server": f"/servers/new?url={'y' * 300}",
        "settings": "/servers/crm/settings",
        "credential": "/servers/crm/credential",
        "removing": "/servers/bank/remove",
        "more": "/more",
        "overview": "/",
        "alarms": "/alarms",
        "unclear": "/unclear",
        "unknown": f"/requests/{unclear}",
        "inbox": "/inbox",
        "pending": f"/requests/{pending}",
        "hostile": f"/requests/{hostile}",
        "approve": f"/requests/{pending}/approve",
        "deny": f"/requests/{pending}/deny",
        "executed": f"/requests/{executed}",
        "mismatch": f"/requests/{wrong}",
        "denied": f"/requests/{denied}",
        "history": "/requests",
        "no history": "/requests?app=nobody",
        "audit": "/audit",
        "record": "/audit/3",
        "preferences": "/preferences",
        "account": "/account",
        "fresh": f"/requests/{fresh}",
        "fresh approve": f"/requests/{fresh}/approve",
        "remember": f"/requests/{pending}/remember",
        "remember hostile": f"/requests/{hostile}/remember",
        "remembered": f"/requests/{remembered}",
        "grants": "/grants",
        "standing in": "/delegations",
        "broken glass": f"/requests/{hostile}/break-glass",
        "missing": "/nowhere",
    }


async def remember(played: Stage) -> str:
    """Grants of every kind, and a call that one of them answered."""
    cy = await played.reviewer("cy@example.org")
    wanted = (("exact", ()), ("fields", ("/to", "/memo")), ("tool", ()))
    for kind, fields in wanted:
        approval_id = await played.ask(Wish(tool="pay"))
        if (await played.read(approval_id)).state == "pending":
            await played.decide(approval_id, "approve")
            source = approval_id
        terms = Terms(kind, "end_user", played.clock() + timedelta(days=7), fields, 20)
        await grants.remember_later(played.approvals, cy, source, terms, now=played.clock())
    return await played.ask(Wish(tool="pay"))


async def trouble(played: Stage) -> None:
    """An alarm and a pause, which every page shows."""
    about = About("mismatch", "arguments_differ", "support-bot", tool="post", server_label="bank")
    now = played.clock()
    async with played.ledger.transaction() as tx:
        alarms.add(tx, about, now=now)
    wanted = Pausing("server", "bank", "Looks odd. " + "a-long-word-without-an-end" * 8, "gateway")
    await pauses.begin(played.ledger, wanted, actor=SYSTEM, now=now)


async def violations(page: Page) -> list[str]:
    """What axe finds, one line each."""
    found = await Axe().run(page)
    assert len(found.response["passes"]) > 10, "axe did not look"
    return [
        f"{item['id']}: {node['html'][:160]}"
        for item in found.response["violations"]
        for node in item["nodes"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_no_page_has_an_accessibility_violation(
    house: House, opened: Open, theme: str, language: str
) -> None:
    pages = await addresses(house)
    page = await opened(locale=language, color_scheme=theme, bypass_csp=True)
    found: dict[str, list[str]] = {}
    await page.goto(f"{house.url}/sign-in")
    found["sign-in"] = await violations(page)
    await house.sign_in(page, "ann@example.org", "reviewer", "auditor", "break_glass", "admin")
    assert await page.locator("html").get_attribute("lang") == language
    for name, path in pages.items():
        await page.goto(house.url + path)
        found[name] = await violations(page)
    await page.goto(house.url + pages["pending"])
    await page.keyboard.press("d")
    found["dialog"] = await violations(page)
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(("width", "language"), [(320, "ru"), (390, "en"), (1280, "ru")])
async def test_nothing_scrolls_sideways(
    house: House, opened: Open, width: int, language: str
) -> None:
    page = await opened(width, 640, locale=language)
    pages = await addresses(house)
    await house.sign_in(
        page, "ann.with.a.long.name@example.org", "reviewer", "auditor", "break_glass", "admin"
    )
    wide = {}
    for name, path in pages.items():
        await page.goto(house.url + path)
        measured = await page.evaluate("document.documentElement.scrollWidth")
        if measured > width:
            wide[name] = measured
    assert wide == {}


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
async def test_what_matters_is_seen_without_scrolling(
    house: House, opened: Open, width: int, height: int
) -> None:
    approval = await house.played.ask()
    page = await opened(width, height)
    await house.sign_in(page, "ann@example.org", "reviewer")
    await page.goto(f"{house.url}/requests/{approval}")
    for selector in ("h1 .tool", "h1 .host", ".act .left", ".signals", ".json", ".decision-bar"):
        box = await page.locator(selector).first.bounding_box()
        assert box is not None, selector
        assert box["y"] >= 0, selector
        assert box["y"] + box["height"] <= height + 1, selector
    for name in ("Approve", "Deny"):
        box = await page.get_by_role("link", name=name).bounding_box()
        assert box is not None
        assert box["height"] >= 44


async def test_focus_is_never_hidden_behind_the_bar(house: House, opened: Open) -> None:
    approval = await house.played.ask(Wish(arguments=LONG))
    page = await opened(390, 600)
    await house.sign_in(page, "ann@example.org", "reviewer")
    await page.goto(f"{house.url}/requests/{approval}")
    for _ in range(30):
        await page.keyboard.press("Tab")
        seen = await page.evaluate(
            """() => { const at = document.activeElement, box = at.getBoundingClientRect();
              if (at === document.body || at.closest('.decision-bar, .rail')) return true;
              const bar = document.querySelector('.decision-bar').getBoundingClientRect();
              return box.bottom <= bar.top + 1 || at.closest('.foot') !== null; }"""
        )
        assert seen, await page.evaluate("document.activeElement.outerHTML")


async def test_russian_counts_like_russians_do(house: House, opened: Open) -> None:
    for _ in range(2):
        await house.played.ask()
    page = await opened(locale="ru")
    await house.sign_in(page, "ann@example.org", "reviewer")
    await page.goto(house.url)
    assert "вызова ждут" in await page.locator(".numbers").inner_text()
