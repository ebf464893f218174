"""The pages on a stage: real database, ledger and use cases, people to sign in, calls to decide.

async with stage(db, clock) as played:
    approval = await played.ask(Wish(tool="transfer"))
    client = await played.signed_in("ann@example.org", "reviewer")
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx2
from fastapi import FastAPI

import web
from gateway.approvals import exchanges, holding, reading, release, review
from gateway.approvals.decisions import Approvals
from gateway.approvals.exchanges import Opening
from gateway.approvals.holding import Round, Rules
from gateway.approvals.kept import Kept
from gateway.approvals.release import Claimed, Sending
from gateway.approvals.review import Reviewer, Submission
from gateway.approvals.standing import Opened
from gateway.approvals.views import ApprovalView
from gateway.approvals.wakeups import Wakeups
from gateway.audit.records import SYSTEM
from gateway.config import Settings
from gateway.exchange.messages import Call, Observed, ServerFacts
from gateway.identity import login, people
from gateway.policy.rules import Policy, parse
from gateway.probing.probes import Prober, Turns
from gateway.registry.directory import Directory
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.tables import App, ReviewerGroup, Server, ToolDefinition, User
from gateway.telemetry import Clock
from gateway.vault import open_vault
from tests.support.ledger import make_ledger, running

URL = "http://127.0.0.1:8080"
BANK = "https://mcp.bank.example/mcp"
TRANSFER = '{"to": "DE02 1203 0000 0000 2020 51", "amount": 1250.00, "memo": "Rent May"}'
DEFINITION = {
    "name": "transfer",
    "description": "Send money from the house account.",
    "annotations": {"readOnlyHint": False, "destructiveHint": True},
    "input_schema": {"type": "object", "properties": {"amount": {"type": "number"}}},
}


@dataclass(frozen=True)
class Wish:
    """A call that an app wants to make."""

    tool: str = "transfer"
    arguments: str = TRANSFER
    server: str = "bank"
    url: str = BANK
    app: str = "support-bot"
    owner: str | None = None
    end_user: str | None = "customer-17"
    thread: str | None = None
    rule: dict[str, Any] = field(default_factory=dict)
    definition: dict[str, Any] | None = field(default_factory=lambda: DEFINITION)


class Stage:
    """What tests and pages share."""

    def __init__(self, db: Database, clock: Clock, url: str = URL) -> None:
        self.db, self.clock, self.url = db, clock, url
        self.ledger = make_ledger(db, clock)
        self.envelope = Envelope(bytes(range(32)))
        self.vault = open_vault(db, self.envelope, {"BANK": "canary-bank-token"})
        self.wakeups = Wakeups(db)
        self.directory = Directory(db)
        self.approvals = Approvals(self.ledger, self.envelope, self.wakeups)
        self.kept: dict[str, Kept] = {}
        self.shadow: Policy | None = None
        self._calls = 0
        self._introducing = asyncio.Lock()
        self.services = SimpleNamespace(
            settings=Settings(public_url=url, listen=url.removeprefix("http://")),
            db=db,
            ledger=self.ledger,
            envelope=self.envelope,
            wakeups=self.wakeups,
            approvals=self.approvals,
            clock=clock,
            directory=self.directory,
            prober=Prober(self.ledger, self.directory, self.vault, clock, Turns()),
            sign_in=None,
        )
        self.app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        web.mount(self.app, self.services)

    # --- people -----------------------------------------------------------------------------

    async def person(self, email: str, *roles: str) -> str:
        """Create a person; returns the code of a one-time link."""
        now = self.clock()
        new = people.NewUser(email, roles)
        user = await people.create_user(self.ledger, new, actor=SYSTEM, now=now)
        return await login.create_link(self.ledger, user.id, actor=SYSTEM, now=now)

    async def signed_in(self, email: str, *roles: str) -> httpx2.AsyncClient:
        """A browser on which a new person has signed in."""
        client = self.client()
        code = await self.person(email, *roles)
        answer = await client.post("/sign-in/link", data={"code": code})
        assert answer.status_code == 303, answer.text
        return client

    def client(self, **headers: str) -> httpx2.AsyncClient:
        """A browser that nobody has signed in on; it sends what browsers send."""
        sent = {"Origin": self.url, "Sec-Fetch-Site": "same-origin", **headers}
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url=self.url, headers=sent)

    async def reviewer(self, email: str, *roles: str, groups: tuple[str, ...] = ()) -> Reviewer:
        """Somebody who reviews over the API; with the reviewer role, unless others are named."""
        user_id = f"usr_{email}".replace("@", "_")
        async with self._introducing, self.db.transaction() as session:
            if await session.get(User, user_id) is None:
                named = list(roles or ("reviewer",))
                session.add(User(id=user_id, email=email, roles=named, created_at=self.clock()))
        for name in groups:
            await self.group(name, email)
        user = await people.read(self.db, user_id)
        return Reviewer(
            user.id,
            user.email,
            frozenset(user.roles),
            frozenset(user.groups),
            channel="api",
            auth="token",
        )

    async def group(self, name: str, *emails: str) -> None:
        """Put people into a reviewer group."""
        async with self.db.transaction() as session:
            group = await session.get(ReviewerGroup, name)
            members = {*(group.members if group else ()), *emails}
            await session.merge(ReviewerGroup(name=name, members=sorted(members)))

    # --- calls ------------------------------------------------------------------------------

    async def ask(self, wish: Wish | None = None) -> str:
        """Hold a call; returns the id of the approval request."""
        wish, now = wish or Wish(), self.clock()
        self._calls += 1
        await self._register(wish)
        opening = Opening(
            app_id=f"app_{wish.app}",
            app_name=wish.app,
            model="gpt-4.1",
            end_user=wish.end_user,
            streamed=True,
            background=False,
            stored=True,
            servers=(wish.server,),
            overridden=(),
            body_digest="sha256:" + "0" * 64,
            thread=wish.thread,
        )
        kept = await exchanges.open_exchange(self.approvals, opening, now=now)
        server = ServerFacts(f"srv_{wish.server}", wish.server, wish.url)
        call = Call(f"mcpr_{self._calls}", wish.server, wish.tool, wish.arguments, 0)
        rule = {"name": "money-needs-a-person", "effect": "hold", "match": {}, **wish.rule}
        saved = {"machine": {"stitcher": {"round": 0}}}
        ended = Round(kept, [call], {wish.server: server}, {}, saved)
        rules = Rules(parse([rule]), "sha256:" + "1" * 64, {}, timedelta(hours=1), self.shadow)
        opened, _ = await holding.open_hold(self.approvals, ended, rules, now=now)
        self.kept[opened[0].approval_id] = kept
        await self.directory.reload()
        return opened[0].approval_id

    async def _register(self, wish: Wish) -> None:
        now = self.clock()
        async with self.db.transaction() as session:
            await session.merge(
                App(id=f"app_{wish.app}", name=wish.app, owner=wish.owner, created_at=now)
            )
            await session.merge(
                Server(
                    id=f"srv_{wish.server}",
                    label=wish.server,
                    url=wish.url,
                    credential={"header": "Authorization", "scheme": "Bearer", "from": "env:BANK"},
                    created_at=now,
                    changed_at=now,
                )
            )
            await session.flush()
            if wish.definition is not None:
                await session.merge(
                    ToolDefinition(
                        server_id=f"srv_{wish.server}",
                        name=wish.tool,
                        pinned_digest="sha256:" + "2" * 64,
                        pinned=wish.definition,
                        listed_digest="sha256:" + "2" * 64,
                        listed=wish.definition,
                        pinned_at=now,
                        pinned_by="first use",
                        listed_at=now,
                    )
                )

    async def read(self, approval_id: str) -> ApprovalView:
        """The request as it stands."""
        return await reading.read(self.db, self.envelope, approval_id)

    async def decide(
        self, approval_id: str, verdict: str, email: str = "bo@example.org", reason: str = "Checked"
    ) -> ApprovalView:
        """A review by somebody else, over the API."""
        reviewer = await self.reviewer(email)
        digest = (await self.read(approval_id)).digest
        submission = Submission(approval_id, verdict, digest, reason, None)
        return await review.review(self.approvals, reviewer, submission, now=self.clock())

    def sending(self, *approval_ids: str, versions: Mapping[str, str] | None = None) -> Sending:
        """These approvals, with the secrets of all servers opened; `versions` by server id."""
        servers, known = self.directory.view.servers, versions or {}
        opened = {name: Opened(server, known.get(name)) for name, server in servers.items()}
        return Sending(approval_ids, opened=opened)

    async def execute(
        self, approval_id: str, *, matches: bool | None = True, outcome: str = "executed"
    ) -> None:
        """What Azure reports after the release."""
        kept = self.kept[approval_id]
        await self.directory.refresh()
        claim = await release.begin_sending(
            self.approvals, kept, self.sending(approval_id), self.directory, now=self.clock()
        )
        assert isinstance(claim, Claimed), claim
        observed = Observed("mcpr", outcome, matches if outcome == "executed" else None)
        await release.observe(self.approvals, kept, approval_id, observed, now=self.clock())


@contextlib.asynccontextmanager
async def stage(db: Database, clock: Clock, url: str = URL) -> AsyncIterator[Stage]:
    """A stage whose ledger and wake-ups run."""
    played = Stage(db, clock, url)
    async with running(played.ledger), asyncio.TaskGroup() as group:
        watching = group.create_task(played.wakeups.run())
        try:
            yield played
        finally:
            watching.cancel()
            played.approvals.rulings.close()
