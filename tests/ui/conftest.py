"""A real server with the pages, and a real Chromium to look at them."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from gateway.store.database import open_database
from gateway.store.tables import metadata
from gateway.telemetry import utc_now
from tests.support.stage import Stage, stage

T = TypeVar("T")
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/ui/" in item.nodeid:
            item.add_marker(pytest.mark.ui)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where a Chromium is. Without one: skipped in one clear line, but required in CI."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("Browser tests are required in CI, and no Chromium was found.")
    if found is None:
        pytest.skip("No Chromium was found: browser tests are skipped.")
    return found


class House:
    """The running server, seen from a test's thread."""

    def __init__(self, url: str, played: Stage, loop: asyncio.AbstractEventLoop) -> None:
        self.url, self.played, self._loop = url, played, loop

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine where the server runs."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def link(self, email: str, *roles: str) -> str:
        """A one-time sign-in link for a new person."""
        return f"{self.url}/sign-in/link?code={self.do(self.played.person(email, *roles))}"


@pytest.fixture
def house() -> Iterator[House]:
    """A server on a free port with an empty database."""
    started: list[House] = []
    ready, stop = threading.Event(), []

    async def serve(folder: Path) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        db = open_database(f"sqlite+aiosqlite:///{folder / 'ui.sqlite3'}")
        async with db.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with stage(db, utc_now, url) as played:
            config = uvicorn.Config(
                played.app, log_level="error", lifespan="off", timeout_graceful_shutdown=1
            )
            server = uvicorn.Server(config)
            started.append(House(url, played, asyncio.get_running_loop()))
            stop.append(lambda: setattr(server, "should_exit", True))
            ready.set()
            await server.serve([listening])
        await db.close()

    with tempfile.TemporaryDirectory() as folder:
        thread = threading.Thread(target=lambda: asyncio.run(serve(Path(folder))))
        thread.start()
        try:
            assert ready.wait(20), "the server did not start"
            yield started[0]
        finally:
            for end in stop:
                end()
            thread.join(20)


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """One Chromium for the whole run."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh profile, 1280×800, English, UTC."""
    opened = browser.new_context(
        viewport={"width": 1280, "height": 800}, locale="en-GB", timezone_id="UTC"
    )
    opened.set_default_timeout(10_000)
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab whose script errors and blocked loads fail the test."""
    tab = context.new_page()
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda said: problems.append(said.text) if "Security" in said.text else None)
    yield tab
    assert problems == []
