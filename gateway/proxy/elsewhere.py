"""Exchanges that another replica drives, as the clients here may see them.

Read from the database: the frames and the end are what has been kept. Whoever asked for the same
once more has the exchange brought here as soon as it waits for people; whoever only reads along
leaves it where it is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from gateway.approvals import exchanges, replicas
from gateway.approvals.replicas import Alike, Sought
from gateway.errors import Refused
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Finished, Plan
from gateway.proxy.assignment import Tools
from gateway.proxy.clients import MOVED
from gateway.proxy.live import GLANCE, GLANCES, LINGER, Hub, Live
from gateway.proxy.recovery import Recovery
from gateway.telemetry import log

_PAUSE = 1.0  # between two looks that nothing has hinted at
_QUIET = 3  # looks without anybody who wants to know, until there are no more
_NO_PLAN = Plan({}, {}, ())


@dataclass(frozen=True)
class Elsewhere:
    """Finds and follows what runs, or ran, at another replica."""

    tools: Tools
    hub: Hub
    recovery: Recovery

    async def twin(self, sought: Sought, plan: Plan) -> Live | None:
        """The exchange that an identical request joins, wherever it is; see `Hub.twin`."""
        found = await self._look_around(sought)
        if found is None:
            return None
        if found.body_digest != sought.body_digest:
            raise Refused(
                "This 'Idempotency-Key' was used for another request.",
                code="idempotency_key_reused",
                status=422,
            )
        if found.state in replicas.OPEN and not found.alive:
            await self.recovery.take(found.id, found.fence)
            if found.state == "forwarding" and self.hub.get(found.id) is None:
                return None  # it was cut off before anybody was asked: this is a new attempt
        return self.hub.get(found.id) or await self.follow(found.id, plan, joins=True)

    async def _look_around(self, sought: Sought) -> Alike | None:
        context, lease = self.tools.context, self.tools.lease
        if not lease.shared:
            return None
        since = self.tools.clock() - timedelta(seconds=LINGER)
        for _ in range(GLANCES):
            found = await replicas.alike(context.db, lease, sought, since)
            # One that somebody waits for is joined only by who says that it is the same.
            if found is None or sought.is_retry or sought.key is not None:
                return found
            if found.state in replicas.OPEN and not (found.attended and found.alive):
                return found
            if found.state not in replicas.OPEN:
                return None
            await asyncio.sleep(GLANCE)
        return None

    async def follow(self, exchange_id: str, plan: Plan = _NO_PLAN, *, joins: bool) -> Live:
        """Read along. `joins`: have it here as soon as it waits for people."""
        context = self.tools.context
        live = self.hub.followed(exchange_id)
        if live is None:
            saved = await exchanges.load(context.db, context.envelope, exchange_id)
            live = Live(saved.kept, Exchange(plan))
            live.detached = True
            live.hold(asyncio.get_running_loop().time())
            self.hub.follow(live, partial(self._watch, live, exchange_id))
        if joins and not live.wanted:
            live.wanted = True
            await replicas.miss(context.db, exchange_id)
        return live

    async def _watch(self, live: Live, exchange_id: str) -> None:
        """Until it is over, runs here, or nobody here wants to know any more."""
        quiet = 0
        while quiet < _QUIET:
            try:
                if await self._look(live, exchange_id):
                    return
            except Exception as error:  # it goes on where it is: so does whoever waits for it here
                log.warning("exchange.not_seen", exchange=exchange_id, error=type(error).__name__)
            quiet = 0 if live.listeners else quiet + 1
            await self.tools.context.wakeups.wait([exchange_id], _PAUSE)
        live.lose()

    async def _look(self, live: Live, exchange_id: str) -> bool:
        """Take in what is kept; whether it is over, or was brought here."""
        if self.hub.get(exchange_id) is live:
            return True
        context = self.tools.context
        saved = await exchanges.load(context.db, context.envelope, exchange_id)
        if saved.kept.state not in replicas.OPEN:
            await self._end(live, saved.kept.state)
            return True
        if saved.document:
            machine = Exchange.restore(saved.document["machine"])
            live.restore(saved.kept, machine, saved.document.get("frames") or [])
        if live.wanted and saved.kept.state == "holding":
            await self.recovery.take(exchange_id, saved.kept.fence)
        return self.hub.get(exchange_id) is live

    async def _end(self, live: Live, state: str) -> None:
        db, envelope = self.tools.context.db, self.tools.context.envelope
        response = await exchanges.final_response(db, envelope, live.kept.id)
        frames = await exchanges.log(db, envelope, live.kept.id)
        await exchanges.until_told(self.tools.context, live.kept.id)
        live.restore(live.kept, live.exchange, frames or [])
        if response is None and frames is None:
            live.finish(Finished("failed", None, MOVED))  # whoever asks again begins anew
        else:
            outcome = {"done": "completed"}.get(state, state)
            live.finish(Finished(outcome, response, None))
