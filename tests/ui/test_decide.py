"""People decide in a real browser: by mouse, by keyboard, without script, too late."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

from tests.support.stage import Wish
from tests.ui.conftest import House, Open

pytestmark = pytest.mark.ui


async def test_a_reviewer_approves_with_the_keyboard_alone(house: House, page: Page) -> None:
    approval = await house.played.ask()
    await house.sign_in(page, "ann@example.org", "reviewer")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/requests/{approval}")
    await page.keyboard.press("a")
    commit = page.get_by_role("button", name="Approve transfer on mcp.bank.example")
    await expect(commit).to_be_visible()
    await page.keyboard.press("Control+Enter")
    await expect(page.get_by_role("heading", name="Approved, not executed yet")).to_be_visible()
    await expect(page.get_by_text("Verified now against checkpoint")).to_be_visible()
    view = await house.played.read(approval)
    assert (view.state, view.reviews[0].channel) == ("approved", "web")


async def test_a_denial_needs_a_reason_that_the_model_will_see(house: House, page: Page) -> None:
    approval = await house.played.ask()
    await house.sign_in(page, "ann@example.org", "reviewer")
    await page.goto(f"{house.url}/requests/{approval}")
    await page.get_by_role("link", name="Deny").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_text("The model and the app will see this text.")).to_be_visible()
    await dialog.get_by_role("button", name="Deny transfer").click()
    assert (await house.played.read(approval)).state == "pending"
    await dialog.get_by_label("Reason").fill("Not on a Sunday")
    await dialog.get_by_label("Internal note").fill("Ask treasury")
    await dialog.get_by_role("button", name="Deny transfer").click()
    await expect(page.get_by_role("heading", name="Denied, not sent")).to_be_visible()
    view = await house.played.read(approval)
    assert view.decision is not None
    assert (view.decision.reason, view.reviews[0].note) == ("Not on a Sunday", "Ask treasury")


async def test_who_comes_second_is_told_who_was_first(house: House, page: Page) -> None:
    approval = await house.played.ask()
    await house.sign_in(page, "ann@example.org", "reviewer")
    await page.goto(f"{house.url}/requests/{approval}")
    await page.keyboard.press("d")
    await page.get_by_role("dialog").get_by_label("Reason").fill("No")
    await house.played.decide(approval, "approve", "bo@example.org")
    await expect(page.get_by_text("Something changed here.")).to_be_visible()
    await page.get_by_role("button", name="Deny transfer").click()
    await expect(page.get_by_role("heading", name="Nothing was done")).to_be_visible()
    await expect(page.get_by_text("bo@example.org")).to_be_visible()
    assert (await house.played.read(approval)).state == "approved"


async def test_without_script_everything_still_works(house: House, opened: Open) -> None:
    approval = await house.played.ask()
    page = await opened(java_script_enabled=False)
    await house.sign_in(page, "ann@example.org", "reviewer")
    await page.get_by_role("link", name="transfer on bank").click()
    await page.get_by_role("link", name="Approve").click()
    await expect(page.get_by_role("heading", name="Approve this call")).to_be_visible()
    await expect(page.get_by_text("1250.00").first).to_be_visible()
    await page.get_by_role("button", name="Approve transfer on mcp.bank.example").click()
    await expect(page.get_by_role("heading", name="Approved, not executed yet")).to_be_visible()
    await page.get_by_role("link", name="Preferences").click()
    await page.get_by_label("Dark").check()
    await page.get_by_role("button", name="Save preferences").click()
    assert await page.locator("html").get_attribute("data-theme") == "dark"
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await page.goto(f"{house.url}/requests/{approval}")
    await expect(page).to_have_url(re.compile(r"/sign-in\?next="))


async def test_a_viewer_sees_why_deciding_is_not_for_them(house: House, page: Page) -> None:
    approval = await house.played.ask()
    await house.sign_in(page, "vi@example.org", "viewer")
    await page.goto(f"{house.url}/requests/{approval}")
    await expect(page.get_by_role("button", name="Approve")).to_be_disabled()
    await expect(page.get_by_text("Deciding needs the reviewer role")).to_be_visible()
    await page.keyboard.press("a")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_the_inbox_follows_what_happens(house: House, page: Page) -> None:
    await house.sign_in(page, "ann@example.org", "reviewer")
    await expect(page.get_by_text("Nothing waits")).to_be_visible()
    await expect(page.locator("#live")).to_have_text("live")
    approval = await house.played.ask()
    await expect(page.get_by_role("link", name="transfer on bank")).to_be_visible()
    assert (await page.title()).startswith("(1)")
    await house.played.decide(approval, "deny")
    await expect(page.get_by_text("Nothing waits")).to_be_visible()


async def test_a_row_under_the_pointer_does_not_jump(house: House, page: Page) -> None:
    await house.played.ask()
    await house.sign_in(page, "ann@example.org", "reviewer")
    await expect(page.locator("#live")).to_have_text("live")
    await page.locator(".rows tbody tr").first.hover()
    await house.played.ask(Wish(tool="get_rate"))
    await expect(page.get_by_text("Something changed here.")).to_be_visible()
    await expect(page.locator(".rows tbody tr")).to_have_count(1)
    await page.get_by_role("button", name="Show").click()
    await expect(page.locator(".rows tbody tr")).to_have_count(2)


async def test_keys_can_be_listed_and_turned_off(house: House, page: Page) -> None:
    await house.sign_in(page, "ann@example.org", "reviewer")
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    await page.keyboard.press("Escape")
    await page.keyboard.press("g")
    await page.keyboard.press("h")
    await page.wait_for_url("**/requests")
    await page.goto(f"{house.url}/preferences")
    await page.get_by_label("Off").check()
    await page.get_by_role("button", name="Save preferences").click()
    await page.keyboard.press("g")
    await page.keyboard.press("i")
    await expect(page).to_have_url(re.compile("/preferences$"))


async def test_the_theme_is_remembered_and_there_before_the_first_paint(
    house: House, opened: Open
) -> None:
    page = await opened(color_scheme="light")
    await house.sign_in(page, "ann@example.org", "reviewer")
    async with page.expect_response("**/preferences"):
        await page.get_by_role("button", name="Theme").click()
    assert 'data-theme="dark"' in await (await page.goto(f"{house.url}/inbox")).text()


async def test_hostile_text_is_drawn_and_does_nothing(house: House, page: Page) -> None:
    hostile = '{"to":"\u202e\u200b","x":"<img src=x onerror=alert(1)>{{7*7}}","a":1,"a":2}'
    approval = await house.played.ask(Wish(tool="<b>pay</b>\u202e", arguments=hostile))
    await house.sign_in(page, "ann@example.org", "reviewer")
    await page.goto(f"{house.url}/requests/{approval}")
    text = await page.locator("main").inner_text()
    for shown in ("⟨U+202E⟩", "⟨U+200B⟩", "<img src=x onerror=alert(1)>{{7*7}}", "<b>pay</b>"):
        assert shown in text
    assert "\u202e" not in text
    assert await page.locator("main img").count() == 0
