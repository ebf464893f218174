"""What becomes of exchanges whose gateway is gone: this process takes them up, or ends them.

Held ones go on waiting, here. One in its first round in the background runs on at Azure and is
followed there. One that was being sent may have been carried out: its calls are `unknown`, and
nothing is ever sent again. Another one in its first round had nothing approved: it failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sqlmodel import select

from gateway.approvals import exchanges, release, replicas
from gateway.approvals.exchanges import Ending, Saved
from gateway.errors import GatepassError
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Emit, Observed
from gateway.proxy.assignment import Assignment, Tools
from gateway.proxy.driver import Driver
from gateway.proxy.live import Hub, Live
from gateway.store.tables import ApprovalRequest
from gateway.telemetry import failure, log


@dataclass(frozen=True)
class Recovery:
    """Takes exchanges up: before the process is ready, and whenever one has become free."""

    tools: Tools
    hub: Hub

    async def run(self) -> None:
        """Take up whatever nobody drives; one that cannot be read must not stop the others."""
        for exchange_id, fence in await replicas.free(self.tools.context.db, self.tools.lease):
            await self.take(exchange_id, fence)

    async def take(self, exchange_id: str, fence: int) -> bool:
        """Have an exchange from here on, as it was seen; false when somebody was first."""
        context = self.tools.context
        if not await replicas.take(context.db, self.tools.lease, exchange_id, fence):
            return False
        log.info("exchange.taken", exchange=exchange_id)
        try:
            saved = await exchanges.load(context.db, context.envelope, exchange_id)
        except (GatepassError, ValueError) as error:
            log.error("exchange.not_recovered", exchange=exchange_id, **_told(error))
            return True
        try:
            await self._take_up(saved)
        except (GatepassError, ValueError) as error:
            log.error("exchange.not_recovered", exchange=exchange_id, **_told(error))
        except Exception:
            # The database, most likely: whoever reaches it next may try.
            await replicas.let_go(context.db, saved.kept)
            raise
        await context.wakeups.notify([exchange_id])
        return True

    async def _take_up(self, saved: Saved) -> None:
        if saved.kept.state == "holding":
            self._go_on(saved)
            return
        if saved.kept.state == "forwarding" and saved.kept.background and saved.document:
            response_id = await exchanges.last_round(self.tools.context.db, saved.kept.id)
            if response_id is not None:
                self._go_on(saved, response_id)
                return
        if saved.kept.state == "sending":
            await self._unknown(saved)
        code = "outcome_unknown" if saved.kept.state == "sending" else "interrupted"
        ending = Ending("failed", 0, None, code)
        if saved.document:
            ending = _interrupted(saved, code)
        await exchanges.finish(self.tools.context, saved.kept, ending, now=self.tools.clock())

    def _go_on(self, saved: Saved, running: str | None = None) -> None:
        """Have it driven on; `running` is the round that runs at Azure."""
        exchange = Exchange.restore(saved.document["machine"])
        # Clients may be here before it is.
        live = self.hub.followed(saved.kept.id) or Live(saved.kept, exchange)
        live.restore(saved.kept, exchange, saved.document.get("frames") or [])
        # Its connection went with the old owner: people may decide until the deadline.
        live.detached = live.left = True
        live.noticed = self.hub.notice
        assignment = Assignment.restore(saved.document["forward"], saved.user_token)
        driver = Driver(self.tools, live, assignment, saved.document["approvals"])
        live.cancel = driver.cancel
        if saved.withdrawn is not None:
            driver.cancel(saved.withdrawn)
        self.hub.start(live, partial(driver.follow, running) if running else driver.resume)

    async def _unknown(self, saved: Saved) -> None:
        context = self.tools.context
        async with context.db.reading() as session:
            found = await session.exec(
                select(ApprovalRequest.id, ApprovalRequest.upstream_id).where(
                    ApprovalRequest.execution == "sending",
                    ApprovalRequest.exchange_id == saved.kept.id,
                )
            )
            calls = found.all()
        for approval_id, upstream_id in calls:
            observed = Observed(upstream_id, "unknown")
            await release.observe(
                context, saved.kept, approval_id, observed, now=self.tools.clock()
            )


def _interrupted(saved: Saved, code: str) -> Ending:
    """The end of an exchange that was waiting once, and was cut off after it."""
    exchange = Exchange.restore(saved.document["machine"])
    rounds = len(exchange.upstream_ids)
    if exchange.id is None:
        return Ending("failed", rounds, None, code)
    messages = {
        "outcome_unknown": "The gateway was interrupted while an approved call was being sent; "
        "whether it was carried out is not known.",
        "interrupted": "The gateway was interrupted.",
    }
    error = {"code": "server_error", "message": messages[code]}
    frames = exchange.stitcher.failure(error, told=False)
    live = Live(saved.kept, exchange)
    live.frames = [frame.encode() for frame in saved.document.get("frames") or []]
    return Ending(
        "failed",
        rounds,
        frames[-1][1]["response"],
        code,
        frames=live.log(*(Emit(*frame) for frame in frames)),
    )


def _told(error: GatepassError | ValueError) -> dict[str, str]:
    """Our own sentences hold no payload; those of others may."""
    return {"error": error.message} if isinstance(error, GatepassError) else failure(error)
