"""Servers in a real browser: added, given a credential, looked at when their tools change."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from gateway.registry import servers, tools
from tests.support.servers import CHANGED, CRM, FIND, SEND, crm
from tests.ui.conftest import House, Open
from tests.ui.test_looks import violations

pytestmark = pytest.mark.ui
VALUE = "canary-7f3a9b1c"


async def test_without_script_a_server_is_added_and_its_changed_tool_accepted(
    house: House, opened: Open
) -> None:
    played = house.played
    await played.directory.reload()
    page = await opened(java_script_enabled=False)
    await house.sign_in(page, "adm@example.org", "admin")
    await page.get_by_role("link", name="Servers").click()
    await page.get_by_role("link", name="Add a server").click()
    await page.get_by_label("Address", exact=True).fill("https://127.0.0.1/mcp")
    await page.get_by_label("Label").fill("crm")
    await page.get_by_role("button", name="Add the server").click()
    await expect(page.get_by_role("alert")).to_be_visible()
    await page.get_by_label("Address", exact=True).fill(CRM)
    await page.get_by_role("button", name="Add the server").click()
    await expect(page.get_by_role("heading", name="crm at mcp.crm.example")).to_be_visible()
    await page.get_by_role("link", name="Set the credential").click()
    await page.get_by_label("Value", exact=True).fill(VALUE)
    await page.get_by_role("button", name="Save the credential").click()
    await expect(page.get_by_text("sealed:crm")).to_be_visible()
    assert VALUE not in await page.content()

    entry = await servers.read(played.db, "crm")
    assert entry.stored_at is not None
    for listed in ([SEND, FIND], [CHANGED, FIND]):
        await tools.observe(played.ledger, entry.id, listed, now=played.clock())
    await page.reload()
    await page.get_by_role("link", name="send_email").click()
    await expect(page.get_by_text("Every call is held.")).to_be_visible()
    side = page.get_by_role("table", name="Both definitions, line by line")
    await expect(side.get_by_text("⟨U+200B⟩")).to_have_count(1)
    await page.get_by_role("button", name="Accept this definition").click()
    await expect(page.get_by_text("What the server lists is what was accepted.")).to_be_visible()
    assert not any(tool.changed for tool in await tools.listing(played.db, "crm"))


async def test_a_value_is_not_in_the_browser_after_it_was_stored(house: House, page: Page) -> None:
    await crm(house.played)
    await house.sign_in(page, "adm@example.org", "admin")
    await page.goto(f"{house.url}/servers/crm/credential")
    value = page.get_by_label("Value", exact=True)
    assert await value.get_attribute("type") == "password"
    await value.fill(VALUE)
    await page.get_by_role("button", name="Save the credential").click()
    await page.wait_for_url("**/servers/crm#credential")
    await page.go_back()
    assert await page.get_by_label("Value", exact=True).input_value() == ""
    kept = await page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert VALUE not in kept + await page.content()


async def test_a_form_that_was_not_taken_is_accessible(house: House, opened: Open) -> None:
    await crm(house.played)
    page = await opened(bypass_csp=True)
    await house.sign_in(page, "adm@example.org", "admin")
    await page.goto(f"{house.url}/servers/new")
    await page.get_by_label("Address", exact=True).fill("https://10.0.0.1/mcp")
    await page.get_by_label("Label").fill("other")
    await page.get_by_role("button", name="Add the server").click()
    await expect(page.get_by_role("alert")).to_be_visible()
    assert await violations(page) == []


async def test_servers_are_reached_by_keys_alone(house: House, page: Page) -> None:
    await crm(house.played, [SEND, FIND])
    await house.sign_in(page, "ann@example.org", "reviewer")
    for key in ("g", "s"):
        await page.keyboard.press(key)
    await page.wait_for_url("**/servers")
    for key in ("j", "Enter"):
        await page.keyboard.press(key)
    await page.wait_for_url("**/servers/crm")
    for key in ("j", "Enter"):
        await page.keyboard.press(key)
    await page.wait_for_url("**/servers/crm/tools/find_contact")
    await page.keyboard.press("Escape")
    await page.wait_for_url("**/servers/crm")


async def test_on_a_phone_the_bar_leads_to_every_page(house: House, opened: Open) -> None:
    await house.played.directory.reload()
    page = await opened(390, 844)
    await house.sign_in(page, "adm@example.org", "admin", "reviewer")
    for link in await page.locator(".rail a:visible").all():
        box = await link.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 44
    await page.get_by_role("link", name="More").click()
    await page.get_by_role("main").get_by_role("link", name="Servers").click()
    await expect(page.get_by_role("heading", name="Servers and credentials")).to_be_visible()
