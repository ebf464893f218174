"""Runs one exchange with MCP tools: carries out the machine's commands, feeds it events.

Steps 4 to 8 of the path, one after the other. Every decision is the machine's, policy's or a
person's; every record is written by the use case that changes the state. What the driver adds
is order: record before act, and nothing shown to the app before the ledger has it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from typing import assert_never

from gateway.approvals import decisions, exchanges, holding, reading, release, replicas
from gateway.approvals.exchanges import Ending
from gateway.approvals.kept import Kept, Superseded, claimed
from gateway.errors import GatepassError
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import (
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
    Listed,
    Mismatch,
    Observed,
    ServerFacts,
    Started,
    Turn,
)
from gateway.proxy.assignment import Assignment, Tools, saved_document
from gateway.proxy.azure import Sending
from gateway.proxy.live import Live
from gateway.registry import tools as tool_definitions
from gateway.telemetry import holds_open, log

_LATER = 5.0  # seconds until an end that could not be recorded is tried again


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
        self._approvals = dict(approvals or {})
        self._named = len(self._exchange.upstream_ids)
        self._cancel: str | None = None
        self._sign_of_life = 0.0  # when the app last got one while it waits
        self._last: list[Emit] = []  # the frames of the end
        self._sending: set[str] = set()  # marked as being sent, not observed yet
        self._following: str | None = None  # the round that was sent before this process began

    def cancel(self, reason: str) -> None:
        """The app wants no more of it. Takes effect while the exchange is held."""
        self._cancel = reason

    async def run(self) -> None:
        """Drive from the start to the end."""
        await self._run(self._exchange.receive(Started()))

    async def resume(self) -> None:
        """Go on with an exchange that was saved while it waited."""
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
            log.exception("exchange.failed", exchange=self._kept.id)
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
                case Listed():
                    await self._listed(command)
                case Observed():
                    await self._observed(command)
                case Mismatch():
                    await self._mismatch(command)
                case Forward() | Hold() | Finished():
                    return command
                case _:
                    assert_never(command)
        return None

    async def _listed(self, listed: Listed) -> None:
        server = self._servers().get(listed.server_label)
        if server is not None:
            await tool_definitions.observe(
                self._context.ledger, server.id, listed.tools, now=self._tools.clock()
            )

    async def _observed(self, observed: Observed) -> None:
        approval_id = self._approvals.get(observed.request_id)
        if approval_id is not None and approval_id in self._sending:
            await self._observe(approval_id, observed)

    async def _observe(self, approval_id: str, observed: Observed) -> None:
        now = self._tools.clock()
        await release.observe(self._context, self._kept, approval_id, observed, now=now)
        self._sending.discard(approval_id)

    async def _mismatch(self, mismatch: Mismatch) -> None:
        log.error("execution.mismatch", exchange=self._kept.id, why=mismatch.why)
        approval_id = self._approvals.get(mismatch.request_id or "")
        await release.alarm(
            self._context, self._kept, mismatch, approval_id, now=self._tools.clock()
        )

    def _servers(self) -> dict[str, ServerFacts]:
        view = self._tools.directory.view
        return {
            binding.server_label: view.servers[binding.server_id].facts()
            for binding in self._exchange.plan.bindings
            if binding.server_id in view.servers
        }

    # --- turns ------------------------------------------------------------------------------

    async def _forward(self, turn: Forward) -> Turn:
        # Before the claim: what is claimed under a lease that lapses must not be sent any more.
        term = await self._tools.lease.renewed()
        try:
            await self._claim(turn)
        except GatepassError as error:
            broken = Broken(error.message, sent=False, code=error.code, status=error.status)
            return await self._carry_out(self._exchange.receive(broken))
        azure, wire = self._tools.azure, self._assignment.wire
        following, self._following = self._following, None
        sending = Sending(self._live.hear, partial(self._tools.lease.holds, term))
        source = (
            azure.follow(following, turn, wire) if following else azure.round(turn, wire, sending)
        )
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

    async def _claim(self, turn: Forward) -> None:
        """Mark what is about to be sent. A first round without answers needs no mark."""
        released = [self._approvals[name] for name in turn.releases]
        denied = [self._approvals[name] for name in turn.denials]
        if not released and not denied:
            return
        if self._kept.state == "forwarding":
            await self._save()
        self._live.receipt = await release.begin_sending(
            self._context, self._kept, released, denied, now=self._tools.clock()
        )
        self._sending = set(released)

    async def _hold(self, turn: Hold) -> Turn:
        next_turn: Turn | None = None
        if turn.open:
            opened = await self._open(turn.open)
            for item in opened:
                if item.answer is not None:
                    next_turn = await self._feed(Decided(item.call.request_id, item.answer))
        elif self._kept.state == "forwarding":
            await self._save()
        if next_turn is not None:
            return next_turn
        holds_open.inc()
        self._sign_of_life = asyncio.get_running_loop().time()
        self._live.hold(self._sign_of_life)
        try:
            return await self._wait()
        finally:
            self._live.hold(None)
            holds_open.dec()

    async def _open(self, calls: tuple[Call, ...], *, waits: bool = True) -> list[holding.Opened]:
        view = self._tools.directory.view
        opened, self._approvals = await holding.open_hold(
            self._context,
            holding.Round(
                self._kept,
                calls,
                self._servers(),
                self._approvals,
                self._document() if waits else None,
            ),
            holding.Rules(
                view.policy,
                view.policy_digest,
                self._assignment.strict,
                self._tools.approval_expires,
            ),
            now=self._tools.clock(),
        )
        return opened

    def _document(self, *coming: Emit) -> Json:
        frames = self._live.log(*coming)
        return saved_document(self._exchange, self._assignment, self._approvals, frames)

    async def _save(self, *coming: Emit) -> None:
        """Keep the exchange as it waits, with the frames that are about to be shown."""
        async with self._context.ledger.transaction() as tx:
            document = self._document(*coming)
            await exchanges.save(tx, self._context.envelope, self._kept, document, self._approvals)
        self._kept.state = "holding"

    async def _wait(self) -> Turn:
        """Until every awaited call is decided, or nobody wants the answer any more."""
        request_ids = {ours: theirs for theirs, ours in self._approvals.items()}
        while True:
            waiting = [
                self._approvals[name]
                for name, answer in self._exchange.answers.items()
                if answer is None
            ]
            given = await reading.answers(self._context.db, self._context.envelope, waiting)
            await self._still_ours()
            if (reason := await self._unwanted(told=bool(given))) is not None:
                # Before the answers: a call that was withdrawn reads as denied.
                await self._cancel_requests()
                return await self._carry_out(self._exchange.receive(Cancelled(reason)))
            for approval_id, answer in given.items():
                turn = await self._feed(Decided(request_ids[approval_id], answer))
                if turn is not None:
                    return turn
            if not given:
                await self._pause([name for name in waiting if name not in given])

    async def _pause(self, approval_ids: list[str]) -> None:
        """Until something was decided, a sign of life is due, or nobody came back in time."""
        loop = asyncio.get_running_loop()
        pause = self._tools.keepalive.total_seconds()
        grace = self._tools.grace.total_seconds()
        left = grace - (self._live.abandoned(loop.time()) or 0)
        due = self._sign_of_life + pause - loop.time()
        ids = [*approval_ids, self._kept.id]
        await self._context.wakeups.wait(ids, max(0.01, min(left, due)))
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

    async def _unwanted(self, *, told: bool) -> str | None:
        """Why it is to be given up. `told`: something was decided, maybe by a withdrawal."""
        gone = self._live.abandoned(asyncio.get_running_loop().time())
        if gone is not None and gone >= self._tools.grace.total_seconds():
            return "The app's connection was gone for too long."
        return await self._withdrawn() if told else self._cancel

    async def _withdrawn(self) -> str | None:
        """Why the app wants no more of it, wherever it has said so."""
        return self._cancel or await replicas.withdrawn(self._context.db, self._kept.id)

    async def _cancel_requests(self) -> None:
        now = self._tools.clock()
        await decisions.cancel(self._context, self._kept.id, kept=self._kept, now=now)

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
        except Exception:
            log.exception("exchange.end_not_recorded", exchange=self._kept.id)
            for frame in self._last:
                self._live.emit(frame)
            self._last = []
            self._live.finish(finished)
            await self._conclude_later(finished)

    async def _settle(self) -> None:
        """What was sent, or asked, for an exchange that cannot go on."""
        for approval_id in tuple(self._sending):
            await self._observe(approval_id, Observed(approval_id, "unknown"))
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
