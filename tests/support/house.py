"""The real parts put together without a server process: for tests of edges and commands."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx2

from gateway.approvals import exchanges
from gateway.approvals.decisions import Approvals
from gateway.approvals.exchanges import Opening
from gateway.approvals.holding import Round, Rules, open_hold
from gateway.audit.records import Actor
from gateway.exchange.messages import Call, ServerFacts
from gateway.identity import login, people
from gateway.identity.people import NewUser, UserView
from gateway.policy.rules import Policy
from gateway.registry import tools
from gateway.store.tables import App, Server
from gateway.telemetry import Clock
from tests.support.clock import FakeClock

HOST = Actor("operator", "host", "host")
ORIGIN = "http://127.0.0.1:8080"
WIKI = ServerFacts("srv_1", "wiki", "https://mcp.example/mcp")


@dataclass(frozen=True)
class Somebody:
    """A user with every way in."""

    user: UserView
    token: str
    cookie: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    @property
    def browser(self) -> dict[str, str]:
        return {"cookie": f"gatepass={self.cookie}", "sec-fetch-site": "same-origin"}


async def somebody(services, clock: FakeClock, email: str, roles: Iterable[str]) -> Somebody:
    """Create a user with a token and a web session."""
    new = NewUser(email, tuple(roles))
    user = await people.create_user(services.ledger, new, actor=HOST, now=clock())
    token = await people.create_token(services.ledger, user.id, actor=HOST, now=clock())
    link = await login.create_link(services.ledger, user.id, actor=HOST, now=clock())
    return Somebody(user, token, await login.redeem(services.ledger, link, now=clock()))


@contextlib.asynccontextmanager
async def client_of(app) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that talks to the ASGI application without a socket."""
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url=ORIGIN) as client:
        yield client


@dataclass(frozen=True)
class CallWanted:
    """A call to hold."""

    tool: str = "ask"
    arguments: str = '{"q": "x"}'
    app: str = "check"


async def held_call(approvals: Approvals, clock: Clock, wanted: CallWanted) -> str:
    """Put one call before reviewers, as the proxy does; returns the approval request's id."""
    now = clock()
    app_id = f"app_{wanted.app}"
    async with approvals.db.transaction() as session:
        if await session.get(App, app_id) is None:
            session.add(App(id=app_id, name=wanted.app, created_at=now))
    await _listed(approvals, wanted.tool, now)
    opening = Opening(app_id, wanted.app, "m", None, False, False, True, (WIKI.label,), (), "")
    kept = await exchanges.open_exchange(approvals, opening, now=now)
    call = Call("mcpr_1", WIKI.label, wanted.tool, wanted.arguments, 0)
    ended = Round(kept, [call], {WIKI.label: WIKI}, {}, None)
    rules = Rules(Policy(), Policy().digest, {}, timedelta(hours=1))
    [opened], _ = await open_hold(approvals, ended, rules, now=now)
    return opened.approval_id


async def _listed(approvals: Approvals, tool: str, now: datetime) -> None:
    """The server is registered, and lists the tool, as its list comes before any call."""
    async with approvals.db.transaction() as session:
        if await session.get(Server, WIKI.id) is None:
            session.add(
                Server(id=WIKI.id, label=WIKI.label, url=WIKI.url, created_at=now, changed_at=now)
            )
    # Narrowed to the one tool, so that the next one counts among the first that are seen, too.
    await tools.observe(approvals.ledger, WIKI.id, [{"name": tool}], now=now, whole=False)
