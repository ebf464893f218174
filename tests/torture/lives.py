"""The life of one held call, cut short at any point of it, and what must be true afterwards.

async with open_house(stack, zygote, folder, url) as house:
    total = len(await house.whole(Life("stream")))
    for number in range(1, total + 1):
        await house.cut(Life("stream"), number)
    await house.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
from sqlalchemy import text

from gateway import config
from gateway.app import create_services
from gateway.audit import export, verify_evidence
from gateway.audit.live import verify_live
from gateway.identity import people, tokens
from gateway.store import migration
from gateway.store.database import Database, open_database
from gateway.telemetry import utc_now
from tests.support.demo import TOKEN, open_world
from tests.support.gateway import MODEL, OPERATOR, Gateway, environment, furnish
from tests.support.ports import free_port
from tests.torture.mortals import Mortal, Zygote

TWO = """
policies:
  - name: two-people
    match: {server: bank}
    effect: hold
    quorum: 2
"""
OVER = {"completed", "failed", "cancelled", "incomplete"}
CUT = (httpx2.TransportError, httpx2.StreamError)


@dataclass(frozen=True)
class Life:
    """How the app asks, and what people say."""

    mode: str = "plain"  # plain | stream | background
    verdict: str = "approve"
    quorum: int = 1

    @property
    def name(self) -> str:
        return f"{self.mode}-{self.verdict}-{self.quorum}"


@dataclass
class Tally:
    """What was done to the house, and what came of it."""

    kills: int = 0
    survived: int = 0
    acknowledged: int = 0
    executed: int = 0
    unknown: int = 0
    unknown_without_a_byte: int = 0  # marked as being sent, and dead before the first byte
    effects: int = 0
    points: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills at {len(self.points)} kinds of points, {self.survived} survived, "
            f"{self.acknowledged} acknowledged reviews (0 lost), {self.executed} executed, "
            f"{self.unknown} unknown ({self.unknown_without_a_byte} before the first byte), "
            f"{self.effects} effects"
        )


@dataclass
class Case:
    """One call: how it is recognised everywhere, and what its client has heard."""

    amount: float
    body: dict[str, Any]
    over: bool = False
    response_id: str | None = None
    acknowledged: dict[tuple[str, str], str] = field(default_factory=dict)


class House:
    """A gateway that dies and comes back, with everybody around it."""

    def __init__(
        self, gateway: Gateway, mortal: Mortal, settings: config.Settings, second: str
    ) -> None:
        self.gateway, self.mortal, self.settings = gateway, mortal, settings
        self.tally = Tally()
        self._reviewers = (gateway.token, second)
        self._numbers = itertools.count(1)
        self._db: Database = open_database(settings.resolved_database_url)
        self._http = httpx2.AsyncClient(base_url=gateway.url, timeout=60, verify=False)

    # --- one life ---------------------------------------------------------------------------

    async def whole(self, life: Life) -> list[str]:
        """From the request to the answer; the points on the way."""
        case = self._case(life)
        self.mortal.points.write_bytes(b"")
        self.mortal.arm(-1)
        await asyncio.gather(self._ask(case, life), self._decide(case, life))
        await asyncio.sleep(0.15)  # what comes after the answer
        points = self.mortal.passed()
        self.mortal.arm(0)
        assert case.over
        return points

    async def cut(self, life: Life, number: int) -> str | None:
        """The same, but the gateway dies at that point; the name of the point."""
        case = self._case(life)
        self.mortal.points.write_bytes(b"")
        self.mortal.arm(number)
        asking = asyncio.ensure_future(self._ask(case, life))
        deciding = asyncio.ensure_future(self._decide(case, life))
        await asyncio.wait([asking, deciding])
        for task in (asking, deciding):
            task.result()
        await self._rest()
        points = self.mortal.passed()
        point = None
        if not self.mortal.alive:
            point = points[-1]
            await self._come_back(case, life, points, retry=number % 2 == 1)
        else:
            self.tally.survived += 1
        await self._check(case, life)
        return point

    async def decided_twice(self, life: Life, name: str) -> tuple[dict[str, Any], list[int]]:
        """It dies with a decision that nobody was told of: the same again, then the opposite."""
        case = self._case(life)
        while True:
            points = await self.whole(life)
            case = self._case(life)
            self.mortal.points.write_bytes(b"")
            self.mortal.arm(points.index(name) + 1)
            await asyncio.gather(self._ask(case, life), self._decide(case, life))
            await self.mortal.gone()
            there = self.mortal.passed()[-1] == name
            await self.mortal.start()
            if there:
                break
            await self._settle(case, life, None)
        assert not case.acknowledged
        answers = []
        for verdict in ("approve", "deny"):
            [request] = await self._requests(case)
            body = {"verdict": verdict, "reason": "as tested", "digest": request["digest"]}
            path = f"/api/v1/approval-requests/{request['id']}/reviews"
            headers = _bearer(self._reviewers[0])
            answers.append((await self._http.post(path, json=body, headers=headers)).status_code)
        await self._settle(case, life, None)
        return (await self._requests(case))[0], answers

    async def _rest(self) -> None:
        """What comes after the answer may kill as well; nothing does after this."""
        for _ in range(15):
            if not self.mortal.alive:
                return
            await asyncio.sleep(0.01)
        self.mortal.arm(0)
        await asyncio.sleep(0.01)

    async def _come_back(self, case: Case, life: Life, points: list[str], *, retry: bool) -> None:
        self.tally.kills += 1
        self.tally.points[points[-1]] += 1
        await self.mortal.gone()
        marked = await self._marked()
        self._check_ambiguous(marked, points)
        await self.mortal.start()
        again = asyncio.ensure_future(self._retry(case, life)) if retry else None
        await self._settle(case, life, again)
        if again is not None:
            again.result()
        for request in await self._requests(case):
            unknown = request["execution"] == "unknown"
            assert unknown == (request["id"] in marked), (points[-1], request)

    def _check_ambiguous(self, marked: set[str], points: list[str]) -> None:
        """What is marked as being sent was; only a death between mark and byte is in doubt."""
        claims = [n for n, name in enumerate(points) if "release.sending" in name]
        sent = bool(claims) and "azure half sent" in points[claims[0] :]
        if marked and not sent:
            self.tally.unknown_without_a_byte += 1
            assert points[-1] in {
                next(name for name in points if "release.sending" in name).replace(
                    " before", " after"
                ),
                "commit head before", "commit head after", "azure POST not begun",
                "commit rows before", "commit rows after",
            }, points[-1]  # fmt: skip

    def _case(self, life: Life) -> Case:
        amount = next(self._numbers) / 100
        body: dict[str, Any] = {
            "model": MODEL,
            "input": f"Transfer {amount} EUR to account 0815",
            "tools": [self.gateway.tool()],
        }
        if life.mode != "plain":
            body["stream" if life.mode == "stream" else "background"] = True
        return Case(amount, body)

    async def _ask(self, case: Case, life: Life, **headers: str) -> None:
        sent = {"api-key": self.gateway.key, **headers}
        path = "/openai/v1/responses"
        try:
            if life.mode == "stream":
                async with self._http.stream("POST", path, json=case.body, headers=sent) as answer:
                    async for line in answer.aiter_lines():
                        self._hear(case, line.removeprefix("data: "))
                return
            answer = await self._http.post(path, json=case.body, headers=sent)
            self._hear(case, answer.text)
            while not case.over and case.response_id:
                answer = await self._http.get(f"{path}/{case.response_id}", headers=sent)
                self._hear(case, answer.text)
                await asyncio.sleep(0.02)
        except CUT:
            pass

    def _hear(self, case: Case, line: str) -> None:
        with contextlib.suppress(json.JSONDecodeError):
            told = json.loads(line)
            response = told.get("response", told)
            if "error" in told and "status" not in told:
                case.over = True
            if isinstance(response, dict) and "status" in response:
                case.response_id = response["id"]
                case.over = case.over or response["status"] in OVER

    async def _decide(self, case: Case, life: Life) -> None:
        """Everybody who is needed reviews, as soon as there is something to review."""
        try:
            while not case.over and self.mortal.alive:
                waiting = [r for r in await self._requests(case) if r["state"] == "pending"]
                for request in waiting:
                    await self._review(case, life, request)
                if waiting:
                    return
                await asyncio.sleep(0.01)
        except CUT:
            pass

    async def _review(self, case: Case, life: Life, request: dict[str, Any]) -> None:
        body = {"verdict": life.verdict, "reason": "as tested", "digest": request["digest"]}
        for token in self._reviewers[: life.quorum]:
            path = f"/api/v1/approval-requests/{request['id']}/reviews"
            answer = await self._http.post(path, json=body, headers=_bearer(token))
            assert answer.status_code == 201, answer.text
            case.acknowledged[request["id"], token] = life.verdict
            self.tally.acknowledged += 1
            if life.verdict == "deny":
                return

    async def _retry(self, case: Case, life: Life) -> None:
        """What clients do whose connection is cut: those in the background ask for the id."""
        again = Case(case.amount, case.body, response_id=case.response_id)
        if life.mode == "background" and case.response_id:
            async with asyncio.timeout(20):
                path = f"/openai/v1/responses/{case.response_id}"
                headers = {"api-key": self.gateway.key}
                while not again.over:
                    self._hear(again, (await self._http.get(path, headers=headers)).text)
                    await asyncio.sleep(0.02)
            return
        await self._ask(again, life, **{"x-stainless-retry-count": "1"})
        assert again.over

    async def _settle(self, case: Case, life: Life, again: asyncio.Task[None] | None) -> None:
        """Until nothing of it is undecided or on its way."""
        async with asyncio.timeout(30):
            while True:
                requests = await self._requests(case)
                for request in requests:
                    if request["state"] == "pending":
                        await self._review(case, life, request)
                moving = [
                    r for r in requests if r["state"] == "pending"
                    or (r["state"] == "approved" and r["execution"] in {"not_sent", "sending"})
                ]  # fmt: skip
                if not moving and (again is None or again.done()):
                    return
                await asyncio.sleep(0.02)

    # --- what must be true ------------------------------------------------------------------

    async def _check(self, case: Case, life: Life) -> None:
        requests = await self._requests(case)
        states = Counter(request["execution"] for request in requests)
        effects = await self._effects(case)
        self.tally.effects += effects
        self.tally.executed += states["executed"]
        self.tally.unknown += states["unknown"]
        assert states["executed"] <= effects <= states["executed"] + states["unknown"], states
        assert life.verdict == "approve" or effects == 0
        known = {request["id"]: request for request in requests}
        for (approval, _), verdict in case.acknowledged.items():
            reviews = known[approval]["reviews"]
            assert verdict in {review["verdict"] for review in reviews}, "a review is lost"
        given = Counter(approval for approval, _ in case.acknowledged)
        for approval, count in given.items():
            assert len(known[approval]["reviews"]) >= count, "a review is lost"
            if count >= life.quorum or life.verdict == "deny":
                wanted = "approved" if life.verdict == "approve" else "denied"
                assert known[approval]["state"] == wanted, "a decision is lost"

    async def _effects(self, case: Case) -> int:
        """How often the MCP server did it; and that no answer went out twice."""
        found = await self._http.get(f"{self.gateway.world.bank}/effects", headers=_bearer(TOKEN))
        return sum(
            effect["arguments"].get("amount") == case.amount
            for effect in found.json()["effects"]
        )  # fmt: skip

    async def _requests(self, case: Case) -> list[dict[str, Any]]:
        path = "/api/v1/approval-requests"
        answer = await self._http.get(path, headers=_bearer(self._reviewers[0]))
        found: list[dict[str, Any]] = answer.json()["items"]
        return [r for r in found if orjson.loads(r["arguments"]).get("amount") == case.amount]

    async def _marked(self) -> set[str]:
        query = "SELECT id FROM approval_requests WHERE execution = 'sending'"
        async with self._db.reading() as session:
            connection = await session.connection()
            rows = await connection.execute(text(query))
            return set(rows.scalars())

    async def close(self) -> None:
        """The end: nothing was answered twice, and the exported ledger tells it all."""
        sent: Counter[str] = Counter()
        for request in await self.gateway.upstream_requests():
            items = (request.get("body") or {}).get("input")
            for item in items if isinstance(items, list) else []:
                if item.get("type") == "mcp_approval_response" and item["approve"]:
                    sent[item["approval_request_id"]] += 1
        assert not [name for name, count in sent.items() if count > 1], "an approval was sent twice"
        await self._http.aclose()
        await self._db.close()
        await self.mortal.end()
        await verify(self.settings, self.mortal.folder)


async def verify(settings: config.Settings, folder: Path) -> None:
    """Live and as an export, by two programs, grammar and all."""
    services = create_services(settings)
    try:
        await services.ledger.settle()
        report = await verify_live(services.db, services.ledger.signer.verifier)
        assert report.valid, list(map(str, report.findings))
        done = await export.export(
            services.ledger, folder / "evidence", actor=OPERATOR, now=utc_now()
        )
    finally:
        await services.db.close()
    assert verify_evidence.main([str(done.path)]) == 0


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@contextlib.asynccontextmanager
async def open_house(
    zygote: Zygote, folder: Path, url: str | None, *, quorum: int = 1
) -> AsyncIterator[House]:
    """The gateway, its world and its people; SQLite without a `url`."""
    async with AsyncExitStack() as stack:
        world = await open_world(stack)
        changes = {"GATEPASS_KEEPALIVE": "1s"}
        if url is not None:
            changes |= {
                "GATEPASS_DATABASE_URL": url,
                "GATEPASS_MASTER_KEY_FILE": str(folder / "master.key"),
                "GATEPASS_SIGNING_KEY_FILE": str(folder / "signing.key"),
            }
        environ = environment(folder, world, free_port(), **changes)
        settings = config.load(environ)
        await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
        services = create_services(settings)
        key, token = await furnish(services, world.bank, TWO if quorum == 2 else "")
        now, new = utc_now(), people.NewUser("second@example.org", ("reviewer",))
        user = await people.create_user(services.ledger, new, actor=OPERATOR, now=now)
        second = await tokens.create_token(services.ledger, user.id, actor=OPERATOR, now=now)
        await services.ledger.settle()
        await services.db.close()
        mortal = Mortal(zygote, environ, folder)
        gateway = Gateway(world, mortal.url, key, token, folder)
        await mortal.start()
        try:
            yield House(gateway, mortal, settings, second)
        finally:
            await mortal.end()
