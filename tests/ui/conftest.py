"""A real server with the pages, and a real Chromium to look at them, on one event loop."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
import uvicorn
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from gateway.store.database import Database
from gateway.telemetry import utc_now
from tests.support.stage import Stage, stage

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a Chromium one line says so, not one line a test; in CI the tests then fail."""
    ours = [item for item in items if "tests/ui/" in item.nodeid]
    for item in ours:
        item.add_marker(pytest.mark.ui)
    if ours and _find() is None and os.environ.get("CI") != "true":
        reason = f"No Chromium was found: {len(ours)} browser tests are skipped."
        ours[0].add_marker(pytest.mark.skip(reason=reason))
        items[:] = [item for item in items if item not in ours[1:]]
        config.hook.pytest_deselected(items=ours[1:])


def _find() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where a Chromium is."""
    found = _find()
    assert found is not None, "Browser tests are required in CI, and no Chromium was found."
    return found


@dataclass
class House:
    """A running server and what is played on it."""

    url: str
    played: Stage

    async def sign_in(self, page: Page, email: str, *roles: str) -> None:
        """Sign a new person in as people do: open the link, press the button."""
        code = await self.played.person(email, *roles)
        await page.goto(f"{self.url}/sign-in/link?code={code}")
        await page.get_by_role("main").get_by_role("button").click()
        await page.wait_for_url("**/inbox")


@pytest.fixture
async def house(sqlite: Database) -> AsyncIterator[House]:
    """A server on a free port with an empty database."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with stage(sqlite, utc_now, url) as played:
        config = uvicorn.Config(
            played.app, log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        async with asyncio.TaskGroup() as group:
            group.create_task(server._serve([listening]))
            yield House(url, played)
            server.should_exit = True


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """A Chromium of the test's own."""
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        yield launched
        await launched.close()


Open = Callable[..., Awaitable[Page]]


@pytest.fixture
async def opened(house: House, browser: Browser) -> AsyncIterator[Open]:
    """Opens tabs in fresh profiles; what the browser blocks or a script breaks fails the test."""
    problems: list[str] = []
    contexts: list[BrowserContext] = []

    def hear(message: ConsoleMessage) -> None:
        if "Security Policy" in message.text:
            problems.append(message.text)

    async def open_tab(width: int = 1280, height: int = 800, **how: object) -> Page:
        settings = {"locale": "en-GB", "timezone_id": "UTC", **how}
        context = await browser.new_context(viewport={"width": width, "height": height}, **settings)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = await context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", hear)
        return page

    yield open_tab
    for context in contexts:
        await context.close()
    assert problems == []


@pytest.fixture
async def page(opened: Open) -> Page:
    """A tab of 1280×800 in English and UTC."""
    return await opened()
