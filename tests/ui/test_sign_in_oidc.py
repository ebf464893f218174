"""Signing in with a certified identity provider in a real Chromium: in, again, and out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from gateway.identity import codes
from gateway.identity.claims import Rules
from gateway.openid.flow import SignIn
from gateway.openid.provider import Client, Provider
from gateway.store.tables import WebSession
from tests.clients.environments import bring_programs, command, missing
from tests.support.clients import PROVIDER
from tests.support.ports import free_port
from tests.support.stage import Wish
from tests.ui.conftest import House

pytestmark = pytest.mark.ui
PEOPLE = {
    "ann": {"email": "ann@example.org", "name": "Ann", "roles": ["reviewers"], "groups": ["g1"]},
    "eve": {"email": "eve@example.org", "name": "Eve", "roles": [], "groups": []},
}


@dataclass
class Elsewhere:
    """The provider that was started."""

    issuer: str

    async def prove(self, page: Page, who: str) -> None:
        """Fill in its form."""
        await page.locator("input[name=login]").fill(who)
        await page.locator("input[name=password]").fill("any will do")
        await page.get_by_role("button", name="Sign-in").click()

    async def enter(self, page: Page, who: str) -> None:
        """The form, and the consent that the first time asks for."""
        await self.prove(page, who)
        await page.get_by_role("button", name="Continue").click()


@pytest.fixture
async def elsewhere(house: House) -> AsyncIterator[Elsewhere]:
    """The provider, made known to the house."""
    if (reason := missing(PROVIDER)) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    bring_programs()
    registered = {
        "client_id": "gatepass",
        "client_secret": "only-for-this-test",
        "redirect_uris": [f"{house.url}/sign-in/callback"],
        "post_logout_redirect_uris": [f"{house.url}/sign-in"],
        "backchannel_logout_uri": f"{house.url}/sign-in/backchannel-logout",
        "backchannel_logout_session_required": True,
    }
    port = free_port()
    settings = {"port": port, "client": registered, "people": PEOPLE}
    started = await asyncio.create_subprocess_exec(
        *command(PROVIDER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert started.stdin is not None
    assert started.stdout is not None
    started.stdin.write(json.dumps(settings).encode() + b"\n")
    await started.stdin.drain()
    issuer = (await started.stdout.readline()).decode().strip()
    assert issuer, "the identity provider did not start"
    client = Client(issuer, "gatepass", "only-for-this-test", "openid email profile", house.url)
    rules = Rules("roles", "groups", {"reviewers": ("reviewer",)}, {"g1": ("treasury",)})
    played = house.played
    played.services.sign_in = SignIn(
        Provider(client, played.clock), rules, played.ledger, played.envelope, timedelta(minutes=5)
    )
    yield Elsewhere(issuer)
    started.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        started.kill()
    await started.wait()


async def test_a_person_signs_in_reviews_after_a_fresh_sign_in_and_signs_out(
    house: House, elsewhere: Elsewhere, page: Page
) -> None:
    played = house.played
    approval_id = await played.ask(Wish(rule={"step_up": True, "groups": ["treasury"]}))
    await page.goto(f"{house.url}/requests/{approval_id}")
    await page.get_by_role("link", name="Sign in with single sign-on").click()
    await elsewhere.enter(page, "ann")
    await page.wait_for_url(f"**/requests/{approval_id}")
    # As if it had been an hour ago.
    await _grow_old(house, page)
    await page.reload()
    await page.get_by_role("link", name="Sign in again").click()
    await elsewhere.prove(page, "ann")
    await page.wait_for_url(f"**/requests/{approval_id}")
    await page.get_by_role("link", name="Approve").click()
    await page.locator("dialog[open] [data-commit]").click()
    await expect(page.get_by_text("Approved").first).to_be_visible()
    assert (await played.read(approval_id)).state == "approved"

    await page.goto(f"{house.url}/account")
    await expect(page.get_by_text("treasury")).to_be_visible()
    assert (await Axe().run(page)).violations_count == 0
    await page.get_by_role("button", name="Sign out", exact=True).click()
    await page.get_by_role("button", name="Yes, sign me out").click()
    await page.wait_for_url("**/sign-in*")
    await page.goto(f"{house.url}/inbox")
    await page.get_by_role("link", name="Sign in with single sign-on").click()
    await expect(page.locator("input[name=login]")).to_be_visible()  # out there, too


async def test_who_signs_out_there_is_out_here(
    house: House, elsewhere: Elsewhere, page: Page
) -> None:
    await page.goto(f"{house.url}/sign-in")
    await page.get_by_role("link", name="Sign in with single sign-on").click()
    await elsewhere.enter(page, "ann")
    await page.wait_for_url("**/inbox")
    await page.goto(f"{elsewhere.issuer}/session/end")
    await page.get_by_role("button", name="Yes, sign me out").click()
    await page.wait_for_url("**/session/end/success*")
    await page.goto(f"{house.url}/inbox")
    await expect(page.get_by_role("heading", name="Sign in", exact=True)).to_be_visible()


async def test_without_a_role_the_page_says_what_to_do(
    house: House, elsewhere: Elsewhere, page: Page
) -> None:
    await house.played.person("boss@example.org", "admin")
    await page.goto(f"{house.url}/sign-in")
    await page.get_by_role("link", name="Sign in with single sign-on").click()
    await elsewhere.enter(page, "eve")
    await expect(page.get_by_text("you have no role here")).to_be_visible()
    await expect(page.get_by_text("boss@example.org")).to_be_visible()
    await expect(page.get_by_text("no_role")).to_be_visible()
    assert (await Axe().run(page)).violations_count == 0


async def _grow_old(house: House, page: Page) -> None:
    [cookie] = [c for c in await page.context.cookies() if c["name"] == "gatepass"]
    digest = codes.hex_digest(cookie["value"])
    async with house.played.db.transaction() as session:
        row = await session.get_one(WebSession, digest)
        row.authenticated_at = house.played.clock() - timedelta(hours=1)
        session.add(row)
