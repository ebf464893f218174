"""Fixtures of the edges: the real parts on SQLite, the API over ASGI, people with roles."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI

from gateway import api
from gateway.api import health
from gateway.approvals.review import Approvals
from gateway.approvals.wakeups import Wakeups
from gateway.audit.ledger import Ledger
from gateway.audit.signing import Signer
from gateway.config import Settings
from gateway.registry.directory import Directory
from gateway.services import Services
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.notifications import Notifications
from gateway.vault import open_vault
from tests.support.clock import FakeClock
from tests.support.house import Somebody, client_of, somebody


@pytest.fixture
async def services(sqlite: Database, clock: FakeClock) -> Services:
    """The real parts; nothing runs in the background, so that every step is the test's."""
    directory = Directory(sqlite)
    await directory.reload()
    envelope = Envelope(bytes(32))
    return Services(
        settings=Settings(upstream_url="https://azure.example/openai/v1/"),
        db=sqlite,
        ledger=Ledger(sqlite, Signer("test", bytes(32)), clock),
        envelope=envelope,
        directory=directory,
        vault=open_vault(sqlite, envelope, {}),
        notifications=Notifications(sqlite),
        wakeups=Wakeups(sqlite),
        clock=clock,
    )


@pytest.fixture
def approvals(services: Services) -> Approvals:
    """The collaborators of reviews."""
    return Approvals(services.ledger, services.envelope, services.wakeups)


@pytest.fixture
async def client(services: Services) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API and the health routes."""
    app = FastAPI(openapi_url=None)
    app.state.services = services
    app.include_router(health.router())
    api.mount(app, services)
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def ann(services: Services, clock: FakeClock) -> Somebody:
    """A reviewer."""
    return await somebody(services, clock, "ann@example.org", ["reviewer"])


@pytest.fixture
async def adm(services: Services, clock: FakeClock) -> Somebody:
    """An admin, who does not review."""
    return await somebody(services, clock, "adm@example.org", ["admin"])
