"""Runs one exchange with MCP tools: carries out the machine's commands, feeds it events.

Steps 4 to 8 of the path, one after the other. Every decision is the machine's, policy's or a
person's; every record is written by the use case that changes the state. What the driver adds
is order: record before act, and nothing shown to the app before the ledger has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from functools import partial
from typing import assert_never

from gateway.approvals import decisions, exchanges, holding, reading, replicas
from gateway.approvals.exchanges import Ending
from gateway.approvals.kept import Kept, Superseded, claimed
from gateway.approvals.release import Fell
from gateway.approvals.standing import Fallen, Waits
from gateway.errors import GatepassError
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import (
    Answer,
    Broken,
    Call,
    Cancelled,
    Command,
    Decided,
    Emit,
    Event,
    Fault,
    Finished,
    Forward,
    Hold,
    Json,
    Reopened,
    Started,
    Turn,
)
from gateway.proxy.assignment import Assignment, Tools, saved_document
from gateway.proxy.azure import Watch
from gateway.proxy.claiming import Claiming
from gateway.proxy.live import Live
from gateway.proxy.reports import Reports
from gateway.telemetry import failure, holds_open, log

_LATER = 5.0  # seconds until an end that could not be recorded is tried again
_GLANCE = 1.0  # seconds between looks at whether a pause is over
_GONE = "The app's connection was gone for too long."


class Driver:
    """One exchange, from its start or from where it was saved, to its end."""

    def __init__(
        self,
        tools: Tools,
        live: Live,
        assignment: Assignment,
        approvals: Mapping[str, str] | None = None,
    ) -> None:
        self._tools = tools
        self._context = tools.context
        self._live = live
        self._kept: Kept = live.kept
        self._exchange: Exchange = live.exchange
        self._assignment = assignment
        self._reports = Reports(tools, live, approvals or {})
        self._claiming = Claiming(tools, live, self._reports, assignment.wire.user)
        self._named = len(self._exchange.upstream_ids)
        self._cancel: str | None = None
        self._sign_of_life = 0.0  # when the app last got one while it waits
        self._last: list[Emit] = []  # the frames of the end
        self._following: str | None = None  # the round that was sent before this process began

    def cancel(self, reason: str) -> None:
        """The app wants no more of it. Takes effect while the exchange is held."""
        self._cancel = reason

    async def run(self) -> None:
        """Drive from the start to the end."""
        await self._run(self._exchange.receive(Started()))

    async def resume(self) -> None:
        """Go on with an exchange that was saved while it waited."""
        if self._exchange.state == "forwarding":  # for the end of a pause, all of it decided
            await self._run(self._exchange.receive(Reopened()))
        else:
            await self._run([Hold((), tuple(self._exchange.answers))])

    async def follow(self, response_id: str) -> None:
        """Go on with a first round that runs at Azure in the background, from its first frame."""
        self._following = response_id
        await self._run(self._exchange.receive(Started()))

    async def _run(self, commands: list[Command]) -> None:
        try:
            turn = await self._carry_out(commands)
            while not isinstance(turn, Finished):
                match turn:
                    case Forward():
                        turn = await self._forward(turn)
                    case Hold():
                        turn = await self._hold(turn)
                    case _:
                        assert_never(turn)
            await self._finish(turn)
        except Superseded:
            self._step_aside()
        except Exception as error:
            log.error("exchange.failed", exchange=self._kept.id, **failure(error))
            await self._give_up(error)

    def _step_aside(self) -> None:
        """Another replica has it: everything about it is the other's to do."""
        log.info("exchange.handed_over", exchange=self._kept.id)
        self._live.lose()

    # --- commands ---------------------------------------------------------------------------

    async def _feed(self, event: Event) -> Turn | None:
        """One event into the machine; the turn it leads to, if any."""
        commands = self._exchange.receive(event)
        for number in range(self._named, len(self._exchange.upstream_ids)):
            # Before the app can know the id it must be known whose it is.
            await exchanges.name_response(
                self._context,
                self._kept,
                self._exchange.upstream_ids[number],
                number,
                now=self._tools.clock(),
            )
            self._named = number + 1
        return await self._carry_out_some(commands)

    async def _carry_out(self, commands: list[Command]) -> Turn:
        turn = await self._carry_out_some(commands)
        if turn is None:
            raise RuntimeError("the machine did not say how to go on")
        return turn

    async def _carry_out_some(self, commands: list[Command]) -> Turn | None:
        ends = bool(commands) and isinstance(commands[-1], Finished)
        for command in commands:
            match command:
                case Emit():
                    if ends:
                        # The app learns of the end when it can be retrieved, not before.
                        self._last.append(command)
                    else:
                        self._live.emit(command)
                case Forward() | Hold() | Finished():
                    return command
                case _:
                    await self._reports.take(command)
        return None

    # --- turns ------------------------------------------------------------------------------

    async def _forward(self, turn: Forward) -> Turn:
        term = await self._tools.lease.renewed()
        try:
            turn = await self._reports.leave.give(turn, self._reports.servers(), self._rules())
            source = await self._source(turn, term)
        except GatepassError as error:
            if self._exchange.state != "forwarding":
                raise
            broken = Broken(error.message, sent=False, code=error.code, status=error.status)
            return await self._carry_out(self._exchange.receive(broken))
        if not isinstance(source, AsyncGenerator):
            return source
        async with contextlib.aclosing(source) as events:
            async for event in events:
                next_turn = await self._feed(await self._understood(event))
                if next_turn is not None:
                    return next_turn
        broken = Broken("Azure's answer ended without an end.", sent=True)
        return await self._carry_out(self._exchange.receive(broken))

    async def _understood(self, event: Event) -> Event:
        """Azure just closes the stream of a response that is cancelled."""
        if isinstance(event, Broken) and (reason := await self._withdrawn()) is not None:
            return Cancelled(reason)
        return event

    def _rules(self) -> holding.Rules:
        view = self._tools.directory.view
        return holding.Rules(
            view.policy,
            view.policy_digest,
            self._assignment.strict,
            self._tools.approval_expires,
            view.shadow,
            view.pauses,
            tuple(view.servers_by_label),
        )

    def _stopped(self) -> bool:
        """Whether a pause has begun for a call of the running round."""
        view, servers = self._tools.directory.view, self._reports.servers()
        labels = [servers[call.server_label].label for call in self._exchange.released.values()
                  if call.server_label in servers]  # fmt: skip
        return any(view.paused(self._kept.app_name, label) for label in labels)

    async def _source(self, turn: Forward, term: int) -> AsyncGenerator[Event, None] | Turn:
        """Where the events of the round come from, once it may be sent; else what comes instead."""
        azure, wire = self._tools.azure, self._assignment.wire
        following, self._following = self._following, None
        if following is not None:
            return azure.follow(following, turn, wire)
        if self._kept.state == "forwarding" and (turn.releases or turn.denials):
            await self._save()
        while isinstance(ready := await self._claiming.attempt(turn, term), Waits):
            if (reason := await self._sit_out(ready)) is not None:
                return await self._carry_out(self._exchange.receive(Cancelled(reason)))
        if isinstance(ready, Fell):
            return await self._ask_anew(ready.fallen)
        may = partial(self._tools.lease.holds, ready.term)
        return azure.round(ready.prepared, wire, Watch(self._live.hear, may, self._stopped))

    async def _sit_out(self, waits: Waits) -> str | None:
        """Until the pause or the time is over; why nobody wants it any more, if so."""
        tools = self._tools
        with self._held():
            while waits.pause in tools.directory.view.pauses and tools.clock() < waits.until:
                await self._still_ours()
                if self._deserted():
                    return _GONE
                if (reason := await self._withdrawn()) is not None:
                    return reason
                await self._pause([], most=_GLANCE)
        return None

    async def _ask_anew(self, fallen: Sequence[Fallen]) -> Turn:
        """Nothing was sent; what does not stand any more is ruled on under what is in force now."""
        theirs = {ours: name for name, ours in self._reports.approvals.items()}
        named = {theirs[item.approval_id]: item for item in fallen}
        await self._carry_out_some(self._exchange.receive(Reopened(tuple(named))))
        calls = tuple(self._exchange.calls[name] for name in named)
        turn = await self._take(await self._open(calls, fallen=named))
        return turn or Hold((), tuple(named))

    async def _hold(self, turn: Hold) -> Turn:
        next_turn: Turn | None = None
        if turn.open:
            next_turn = await self._take(await self._open(turn.open))
        elif self._kept.state == "forwarding":
            await self._save()
        if next_turn is not None:
            return next_turn
        with self._held():
            return await self._wait()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """While nothing but people can bring it forward."""
        holds_open.inc()
        self._sign_of_life = asyncio.get_running_loop().time()
        self._live.hold(self._sign_of_life)
        try:
            yield
        finally:
            self._live.hold(None)
            holds_open.dec()

    async def _take(self, opened: Sequence[holding.Opened]) -> Turn | None:
        """Tell the machine what policy has settled at once."""
        turn: Turn | None = None
        for item in opened:
            if item.answer is not None:
                turn = await self._feed(Decided(item.call.request_id, item.answer))
        return turn

    async def _open(
        self,
        calls: tuple[Call, ...],
        *,
        waits: bool = True,
        fallen: Mapping[str, Fallen] | None = None,
    ) -> list[holding.Opened]:
        opened, self._reports.approvals = await holding.open_hold(
            self._context,
            holding.Round(
                self._kept,
                calls,
                self._reports.servers(),
                self._reports.approvals,
                self._document() if waits else None,
                fallen or {},
            ),
            self._rules(),
            now=self._tools.clock(),
        )
        return opened

    def _document(self, *coming: Emit) -> Json:
        frames = self._live.log(*coming)
        return saved_document(self._exchange, self._assignment, self._reports.approvals, frames)

    async def _save(self, *coming: Emit) -> None:
        """Keep the exchange as it waits, with the frames that are about to be shown."""
        async with self._context.ledger.transaction() as tx:
            document = self._document(*coming)
            await exchanges.save(
                tx, self._context.envelope, self._kept, document, self._reports.approvals
            )
        self._kept.state = "holding"

    async def _wait(self) -> Turn:
        """Until every awaited call is decided, or nobody wants the answer any more."""
        request_ids = {ours: theirs for theirs, ours in self._reports.approvals.items()}
        while True:
            waiting = [
                self._reports.approvals[name]
                for name, answer in self._exchange.answers.items()
                if answer is None
            ]
            given = await self._given(waiting)
            await self._still_ours()
            # Before the answers: a call that was withdrawn reads as denied.
            if (reason := await self._given_up(waiting, given)) is not None:
                return await self._carry_out(self._exchange.receive(Cancelled(reason)))
            for approval_id, answer in given.items():
                turn = await self._feed(Decided(request_ids[approval_id], answer))
                if turn is not None:
                    return turn
            if not given:
                await self._pause([name for name in waiting if name not in given])

    async def _given(self, waiting: Sequence[str]) -> dict[str, Answer]:
        return await reading.answers(self._context.db, self._context.envelope, waiting)

    async def _given_up(self, waiting: Sequence[str], given: Mapping[str, Answer]) -> str | None:
        """Why nobody wants the answer any more; what people have not decided is withdrawn then.

        Whether they were in time, the database decides: what was decided is carried out, even if
        the grace was over when this process looked.
        """
        reason = await self._withdrawn() if given else self._cancel
        if reason is not None:
            await self._cancel_requests()
            return reason
        if len(given) == len(waiting) or not self._deserted():
            return None
        withdrawn = await self._cancel_requests()
        return _GONE if withdrawn or len(await self._given(waiting)) < len(waiting) else None

    async def _pause(self, approval_ids: list[str], most: float = math.inf) -> None:
        """Until something was decided, a sign of life is due, or nobody came back in time."""
        loop = asyncio.get_running_loop()
        pause = self._tools.keepalive.total_seconds()
        grace = self._tools.grace.total_seconds()
        left = grace - (self._live.abandoned(loop.time()) or 0)
        due = self._sign_of_life + pause - loop.time()
        ids = [*approval_ids, self._kept.id]
        await self._context.wakeups.wait(ids, max(0.01, min(left, due, most)))
        if loop.time() >= self._sign_of_life + pause:
            self._sign_of_life = loop.time()
            await self._keep_alive()

    async def _keep_alive(self) -> None:
        """A numbered frame for whoever listens. What a client may come back from is kept first."""
        listens = self._kept.streamed and self._live.listeners > 0
        if not (self._assignment.keepalive and listens and self._exchange.id is not None):
            return
        frame = self._exchange.keepalive()
        if self._kept.logged:
            await self._save(frame)
        self._live.emit(frame)

    async def _still_ours(self) -> None:
        """Stop waiting where another replica has it, or is to have it."""
        if self._tools.lease.leaving:
            await replicas.let_go(self._context.db, self._kept)
            await self._context.wakeups.notify([self._kept.id])
        if self._tools.lease.leaving or self._live.lost:
            raise claimed(self._kept)

    def _deserted(self) -> bool:
        """Whether nobody has listened for longer than the grace."""
        gone = self._live.abandoned(asyncio.get_running_loop().time())
        return gone is not None and gone >= self._tools.grace.total_seconds()

    async def _withdrawn(self) -> str | None:
        """Why the app wants no more of it, wherever it has said so."""
        return self._cancel or await replicas.withdrawn(self._context.db, self._kept.id)

    async def _cancel_requests(self) -> int:
        now = self._tools.clock()
        return await decisions.cancel(self._context, self._kept.id, kept=self._kept, now=now)

    # --- the end ----------------------------------------------------------------------------

    async def _finish(self, finished: Finished) -> None:
        if finished.left_open and finished.outcome != "cancelled":
            await self._open(finished.left_open, waits=False)
            if finished.outcome != "completed":
                # Nobody is asked about calls of a round that failed; Azure will be told no.
                await self._cancel_requests()
        await self._conclude(finished)

    async def _conclude(self, finished: Finished) -> None:
        """Record the end, then tell it."""
        error = (finished.fault.body.get("error") if finished.fault else None) or {}
        code = error.get("code")
        ending = Ending(
            finished.outcome,
            len(self._exchange.upstream_ids),
            finished.response,
            str(code) if code else None,
            finished.around,
            self._live.log(*self._last),
            # What the app does not want kept is kept only if it has to come back for it.
            self._kept.stored or self._live.detached,
            self._live.listeners > 0,
        )
        await exchanges.finish(self._context, self._kept, ending, now=self._tools.clock())
        await self._context.wakeups.notify([self._kept.id])
        for frame in self._last:
            self._live.emit(frame)
        self._live.finish(finished)

    async def _give_up(self, error: Exception) -> None:
        """Something of ours failed: tell the app, and record as much as can be recorded.

        What cannot be recorded now is recorded later; the next process finds it as it was left.
        """
        known = isinstance(error, GatepassError)
        body = {
            "message": str(error) if known else "The gateway could not go on with this request.",
            "type": "server_error",
            "param": None,
            "code": error.code if isinstance(error, GatepassError) else "internal_error",
        }
        status = 424 if self._exchange.has_asked else 503
        fault = Fault(status, {"error": body}, {"x-should-retry": "false"})
        response = None
        if self._exchange.id is not None:
            frames = self._exchange.stitcher.failure(body, told=False)
            self._last = [Emit(kind, data) for kind, data in frames]
            response = frames[-1][1]["response"]
        finished = Finished("failed", response, fault)
        try:
            await self._settle()
            await self._conclude(finished)
        except Superseded:
            self._step_aside()
        except Exception as error:
            log.error("exchange.end_not_recorded", exchange=self._kept.id, **failure(error))
            for frame in self._last:
                self._live.emit(frame)
            self._last = []
            self._live.finish(finished)
            await self._conclude_later(finished)

    async def _settle(self) -> None:
        """What was sent, or asked, for an exchange that cannot go on."""
        await self._reports.unknown()
        await self._cancel_requests()

    async def _conclude_later(self, finished: Finished) -> None:
        """The app has been told the end; it is recorded as soon as that can be done."""
        while self._kept.state in replicas.OPEN:
            await asyncio.sleep(_LATER)
            try:
                await self._settle()
                await self._conclude(finished)
            except Superseded:
                return
            except Exception as error:
                why = type(error).__name__
                log.warning("exchange.end_not_recorded", exchange=self._kept.id, error=why)
