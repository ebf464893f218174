"""The house of the model: the real store, ledger, driver and recovery; an Azure that only counts.

Owns what is true about the world and what must hold of the store. `machine` decides what happens
next. One adapter to production code: whatever is renamed there is renamed here.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.approvals import decisions, exchanges, review
from gateway.approvals.decisions import Approvals
from gateway.approvals.exchanges import Opening
from gateway.approvals.replicas import OPEN, Lease
from gateway.approvals.review import Reviewer, Submission
from gateway.approvals.wakeups import Wakeups
from gateway.audit.ledger import Ledger, Receipt
from gateway.audit.live import verify_live
from gateway.audit.sequencer import Sequencer, Stale
from gateway.errors import GatepassError, Unavailable
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Broken, Event, Forward, Rejected, ServerFacts
from gateway.policy.rules import parse
from gateway.proxy.assignment import Assignment, Tools
from gateway.proxy.azure import Wire
from gateway.proxy.driver import Driver
from gateway.proxy.injection import Prepared
from gateway.proxy.live import Live
from gateway.proxy.recovery import Recovery
from gateway.proxy.scrubbing import Scrubber
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.tables import App, User, metadata
from tests.model.actors import Actor, acting, park
from tests.support.clock import FakeClock
from tests.support.ledger import signer
from tests.support.playbook import a_plan
from tests.support.rounds import SERVER, Round, call, message, request

HOUR = timedelta(hours=1)
EXPIRES = timedelta(minutes=3)
_RECORDS = metadata.tables["audit_records"]
_APPROVALS = metadata.tables["approval_requests"]
_EXCHANGES = metadata.tables["exchanges"]
_REVIEWS = metadata.tables["reviews"]
#: Where the execution of an approved call may go.
EXECUTION = {
    "not_sent": {"sending", "executed", "failed", "unknown"},
    "sending": {"executed", "failed", "unknown", "not_sent"},
}
PEOPLE = ("ann", "ann", "bo", "cy")  # one of them comes back more often


class Stops(Database):
    """The real database; actors stop after each commit and each reading.

    A driver that does not hold the newest claim of its exchange must change nothing of it.
    """

    def __init__(self, house: House, db: Database) -> None:
        super().__init__(db.engine)
        self._house = house

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        actor = acting()
        driver = self._house.drivers.get(actor) if actor else None
        async with super().connection() as connection:
            if driver is None:
                yield connection
            else:
                kept = (driver._kept.state, driver._kept.fence)
                before = await _exchange(connection, driver)
                yield connection
                after = await _exchange(connection, driver)
                if after != before and kept != (stored := (before.state, before.fence)):
                    why = f"a driver that had {kept} changed an exchange at {stored}"
                    self._house.broken.append(why)
        await park("committed")

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        async with super().reading() as session:
            yield session
        await park("read")


async def _exchange(connection: AsyncConnection, driver: Driver) -> Any:
    # Not its response id: whose that is may be said by whoever heard it.
    names = ("state", "fence", "snapshot", "final", "log")
    columns = [_EXCHANGES.c[name] for name in names]
    query = select(*columns).where(_EXCHANGES.c.id == driver._kept.id)
    return (await connection.execute(query)).first()


class Seat:
    """Anybody may sit down at any time: only the stored epoch keeps the ledger whole."""

    async def take(self) -> bool:
        return True

    async def held(self) -> bool:
        return True

    async def leave(self) -> None:
        return None


class HeldLedger(Ledger):
    """The real ledger, whose sealing is held back until the test lets it go."""

    def __init__(self, house: House) -> None:
        super().__init__(house.db, signer(), house.clock)
        self._house = house
        self._sequencer = Sequencer(house.db, self.signer, house.clock, Seat())

    async def sealed(self, record_ids: Any, *, fresh: bool = False) -> Receipt | None:
        if not record_ids:
            return None
        wanted = set(record_ids)
        if acting() is None:
            return Receipt(0, 0)
        told = await park("sealed", lambda: wanted <= self._house.placed)
        while not wanted <= self._house.placed:
            if told == "no seal":
                raise Unavailable("The ledger cannot be sealed.", code="ledger_unavailable")
            told = await park("sealed", lambda: wanted <= self._house.placed)
        return Receipt(0, 0)


class Glances(Wakeups):
    """Whoever waits may look again once anything has been decided."""

    def __init__(self, house: House) -> None:
        super().__init__(house.db)
        self._house = house

    async def wait(self, approval_ids: Any, seconds: float) -> None:
        told = self._house.news
        await park("waits", lambda: self._house.news > told)


class Nothing:
    """A directory with one server and one policy."""

    def __init__(self, quorum: int) -> None:
        rule = {"name": "people", "effect": "hold", "match": {}, "quorum": quorum}
        facts = ServerFacts("srv_1", "crm", SERVER)
        server = SimpleNamespace(facts=lambda: facts, label="crm", url=SERVER, credential=None)
        self.view = SimpleNamespace(
            version=0,
            policy=parse([rule]),
            policy_digest="sha256:" + "1" * 64,
            shadow=None,
            pauses={},
            paused=lambda app, server: None,
            servers={"srv_1": server},
            servers_by_label={"crm": server},
            apps={"app_1": SimpleNamespace(may_use=lambda label: True)},
        )


class Azure:
    """What is sent leaves here. Rounds answer as they are told, or break, or are never answered."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def prepare(self, turn: Forward, *, fresh: bool, user: object = None) -> Prepared:
        return Prepared(turn, b"", Scrubber([]))

    async def round(
        self, prepared: Prepared, wire: Wire, watch: Any = None
    ) -> AsyncIterator[Event]:
        turn = prepared.turn
        if await park("sends") == "unreachable":
            yield Broken("Azure cannot be reached.", sent=False)
            return
        self._house.world.leave(turn)
        await self._house.check_effects(turn)
        match await park("sent"):
            case "broken":
                yield Broken("The connection to Azure broke.", sent=True)
            case "busy":
                self._house.world.never_ran(turn)
                yield Rejected(429, {"error": {"message": "busy"}})
            case "error":
                yield Rejected(500, {"error": {"message": "no"}})
            case _:
                yield self._house.world.answer(turn).plain()


@dataclass
class World:
    """What Azure has been sent and what has been carried out, whatever the store says."""

    wants: dict[str, list[int]] = field(default_factory=dict)  # input → calls asked per round
    left: Counter[str] = field(default_factory=Counter)
    claims: Counter[str] = field(default_factory=Counter)
    asked: dict[str, tuple[str, int]] = field(default_factory=dict)  # response → input, round
    numbers: int = 0

    def leave(self, turn: Forward) -> None:
        """The first byte of a round: from now on its calls may be carried out."""
        self.left.update(turn.releases)

    def never_ran(self, turn: Forward) -> None:
        """Azure says that it began nothing."""
        self.left.subtract(turn.releases)

    def answer(self, turn: Forward) -> Round:
        """The round as Azure tells it."""
        self.numbers += 1
        name = turn.body["metadata"]["test"]
        plan, at = self.wants[name], turn.round
        count = plan[at] if at < len(plan) else 0
        items = [
            call(f"mcp_{self.numbers}_{n}", asked, arguments=f'{{"id":"{asked}"}}')
            for n, asked in enumerate(turn.releases)
        ]
        asking = [f"mcpr_{name}_{self.numbers}_{n}" for n in range(count)]
        items += [request(asked, f'{{"id":"{asked}"}}') for asked in asking]
        items += [] if count else [message(f"msg_{self.numbers}")]
        return Round(f"resp_{name}_{self.numbers}", items)


class Home:
    """The hub of a process: drivers become actors."""

    def __init__(self, house: House, process: int) -> None:
        self._house, self._process = house, process

    notice = None

    def followed(self, exchange_id: str) -> None:
        """Nobody listens here."""

    def start(self, live: Live, drive: Callable[[], Awaitable[None]]) -> None:
        self._house.drive(self._process, live, drive)


@dataclass
class Seen:
    """One approval request as it was at the last look."""

    state: str
    execution: str


class House:
    """Several processes on one database."""

    def __init__(self, db: Database, processes: int = 3, quorum: int = 1) -> None:
        self.db = Stops(self, db)
        self.clock = FakeClock()
        self.envelope = Envelope(bytes(32))
        self.world = World()
        self.placed: set[str] = set()
        self.actors: list[Actor] = []
        self.drivers: dict[Actor, Driver] = {}
        self.quorum = quorum
        self.acknowledged: list[tuple[str, str, str]] = []  # approval, person, verdict
        self.seen: dict[str, Seen] = {}
        self.errors: list[BaseException] = []
        self.broken: list[str] = []
        self.directory = Nothing(quorum)
        self.ledgers = [HeldLedger(self) for _ in range(processes)]
        self.rows: dict[str, Any] = {}
        self.count = 0
        self.epoch = 0
        self.news = 0  # decisions and cancellations so far

    async def furnish(self, spoil: str = "") -> None:
        """The one app, and the people; `spoil` is a statement that takes something away."""
        async with self.db.transaction() as session:
            session.add(App(id="app_1", name="bot", created_at=self.clock()))
            for name in sorted(set(PEOPLE)):
                email, now = f"{name}@example.org", self.clock()
                user = User(id=f"usr_{name}", email=email, roles=["reviewer"], created_at=now)
                session.add(user)
            if spoil:
                await (await session.connection()).exec_driver_sql(spoil)

    # --- what happens -----------------------------------------------------------------------

    def context(self, process: int) -> Approvals:
        """The collaborators of the use cases in a process."""
        return Approvals(self.ledgers[process], self.envelope, Glances(self))

    def tools(self, process: int) -> Tools:
        """What the drivers of a process work with."""
        return Tools(
            context=self.context(process),
            lease=Lease(self.db),
            azure=Azure(self),  # type: ignore[arg-type]
            directory=self.directory,  # type: ignore[arg-type]
            clock=self.clock,
            approval_expires=EXPIRES,
            grace=HOUR,
            keepalive=HOUR,
        )

    def open(self, process: int, calls: list[int], *, background: bool = False) -> None:
        """An app asks; the model will want so many calls in each round."""
        self.count += 1
        name = f"e{self.count}"
        self.world.wants[name] = calls

        async def work() -> None:
            plan = a_plan(metadata={"test": name})
            opening = Opening("app_1", "bot", "m", None, False, background, True, ("crm",), (), "")
            kept = await exchanges.open_exchange(self.context(process), opening, now=self.clock())
            live = Live(kept, Exchange(plan))
            live.detached = True
            driver = Driver(self.tools(process), live, Assignment(Wire({}, {}), {}, False), {})
            self.drivers[actor] = driver
            await driver.run()

        actor = self.act(process, f"driver {name}", work)

    def drive(self, process: int, live: Live, drive: Callable[[], Awaitable[None]]) -> None:
        """An exchange that recovery found is driven on."""
        actor = self.act(process, "driver", drive)
        self.drivers[actor] = live.cancel.__self__  # type: ignore[union-attr]

    def act(self, process: int, name: str, work: Callable[[], Awaitable[object]]) -> Actor:
        """Something begins in a process; it stands before its first step."""

        async def careful() -> None:
            try:
                await work()
            except GatepassError:
                pass  # refused: the person or the job is told so
            except Exception as error:
                self.errors.append(error)

        actor = Actor(process, name, careful)
        self.actors.append(actor)
        return actor

    def review(self, process: int, approval: str, person: str, verdict: str) -> None:
        """Somebody hands in a review; an answer is an acknowledgement."""
        reviewer = Reviewer(
            f"usr_{person}", f"{person}@example.org", frozenset({"reviewer"}), frozenset(), "api",
            "token",
        )  # fmt: skip
        submission = Submission(approval, verdict, self.rows[approval].digest, "as tested")

        async def work() -> None:
            now = self.clock()
            await park("thinks")
            await review.review(self.context(process), reviewer, submission, now=now)
            self.acknowledged.append((approval, reviewer.user_id, verdict))
            await self._check_acknowledged(approval, reviewer.user_id)

        self.act(process, f"review {person}", work)

    def expire(self, process: int) -> None:
        """The job that denies what nobody decided."""
        self.act(process, "expiry", lambda: decisions.expire_due(
            self.context(process), now=self.clock()))  # fmt: skip

    def recover(self, process: int) -> None:
        """A process takes up what is open, as where the lease of its owner has run out."""
        recovery = Recovery(self.tools(process), Home(self, process))  # type: ignore[arg-type]

        async def work() -> None:
            async with Database.connection(self.db) as connection:
                columns = (_EXCHANGES.c.id, _EXCHANGES.c.fence)
                query = select(*columns).where(_EXCHANGES.c.state.in_(OPEN))
                rows = (await connection.execute(query.order_by(_EXCHANGES.c.id))).all()
            for row in rows:
                await recovery.take(row.id, row.fence)

        self.act(process, "recovery", work)

    async def crash(self, process: int) -> None:
        """Everything that is only in memory is gone."""
        for actor in [actor for actor in self.actors if actor.process == process]:
            await actor.die()
            self.actors.remove(actor)
            self.drivers.pop(actor, None)
        self.ledgers[process] = HeldLedger(self)

    async def seal(self, process: int) -> None:
        """A process seals what is committed; one that was superseded must be refused."""
        sequencer = self.ledgers[process]._sequencer
        if not sequencer.elected:
            await sequencer.elect(announce=True)
        self.epoch = max(self.epoch, sequencer.epoch)
        stale = sequencer.epoch != self.epoch
        try:
            while (sealed := await sequencer.seal()) is not None and sealed.more:
                pass
        except Stale:
            assert stale, "the newest election was refused"
            await sequencer.resign()
        except IntegrityError as error:
            raise AssertionError("a sequencer of an older epoch wrote over others") from error
        else:
            assert not stale, "a sequencer of an older epoch sealed"
        async with self.db.connection() as connection:
            rows = await connection.execute(
                select(_RECORDS.c.id).where(_RECORDS.c.index.is_not(None))
            )
            self.placed = set(rows.scalars())

    # --- what must hold ---------------------------------------------------------------------

    async def look(self) -> None:
        """After every step."""
        async with self.db.connection() as connection:
            rows = (await connection.execute(select(_APPROVALS))).all()
            reviews = (await connection.execute(select(_REVIEWS))).all()
            found = await connection.execute(
                select(_RECORDS.c.id, _RECORDS.c.kind, _RECORDS.c.approval)
            )
            records = found.all()
        self.rows = {row.id: row for row in rows}
        ids = {record.id for record in records}
        decided = Counter(row.approval for row in records if row.kind == "approval.decided")
        marked = {row.approval for row in records if row.kind == "release.sending"}
        approving = Counter(
            (row.approval_id, row.user_id) for row in reviews if row.verdict == "approve"
        )
        given = {(row.approval_id, row.user_id, row.verdict) for row in reviews}
        assert not self.errors, self.errors
        assert not self.broken, self.broken
        for row in rows:
            self._follow(row)
            assert (row.state == "pending") == (decided[row.id] == 0), "decision without its record"
            assert decided[row.id] <= 1, "decided twice"
            if row.state != "pending":
                assert row.decision_record_id in ids, "the record of the decision is missing"
            if row.state == "expired":
                assert row.decided_at >= row.deadline, "expired before its deadline"
            if row.decided_by == "reviewers":
                assert row.decided_at < row.deadline, "decided after its deadline"
            if row.state == "approved":
                people = {who for (approval, who) in approving if approval == row.id}
                assert len(people) >= row.quorum_needed, "approved below its quorum"
            if row.execution != "not_sent":
                assert row.state == "approved", "sent although it was not approved"
                assert row.id in marked, "sent without a record of it"
            assert self.world.left[row.upstream_id] <= 1, "carried out twice"
            if self.world.left[row.upstream_id]:
                assert row.execution != "not_sent", "what had left counts as not sent"
        for approval, person, verdict in self.acknowledged:
            assert (approval, person, verdict) in given, "an acknowledged review is lost"

    def _follow(self, row: Any) -> None:
        before = self.seen.get(row.id)
        if before is not None:
            self.news += row.state != before.state
            assert row.state == before.state or before.state == "pending", (
                f"{before.state} became {row.state}"
            )
            assert row.execution == before.execution or row.execution in EXECUTION.get(
                before.execution, ()
            ), f"{before.execution} became {row.execution}"
        self.seen[row.id] = Seen(row.state, row.execution)

    async def check_effects(self, turn: Forward) -> None:
        """At the first byte: decided and marked, and both in the signed head."""
        async with Database.connection(self.db) as connection:
            columns = (_APPROVALS.c.state, _APPROVALS.c.id, _APPROVALS.c.decision_record_id)
            query = select(*columns).where(_APPROVALS.c.upstream_id.in_(turn.releases))
            rows = (await connection.execute(query)).all()
            signed = _RECORDS.c.index.is_not(None)
            query = select(_RECORDS.c.id, _RECORDS.c.kind, _RECORDS.c.approval).where(signed)
            records = (await connection.execute(query)).all()
        ids = {record.id for record in records}
        marked = {record.approval for record in records if record.kind == "release.sending"}
        for row in rows:
            if row.state != "approved":
                self.broken.append("a call left that was not approved")
            if row.decision_record_id not in ids:
                self.broken.append("a call left before its decision was in the signed head")
            if row.id not in marked:
                self.broken.append("a call left before its mark was in the signed head")

    async def _check_acknowledged(self, approval: str, user: str) -> None:
        async with Database.connection(self.db) as connection:
            query = select(_RECORDS.c.index).where(
                _RECORDS.c.kind == "approval.reviewed",
                _RECORDS.c.approval == approval,
                _RECORDS.c.actor == user,
            )
            if None in (await connection.execute(query)).scalars().all():
                self.broken.append("a review was acknowledged before the signed head had it")

    async def verify(self) -> None:
        """The whole ledger, its grammar included."""
        for process in range(len(self.ledgers)):
            await self.seal(process)
        report = await verify_live(self.db, signer().verifier)
        assert report.valid, list(map(str, report.findings))
