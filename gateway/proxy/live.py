"""Exchanges with MCP tools that this process is running, and what their clients may read.

A driver writes frames and the end into its `Live`; any number of connections read along, from
any point, so that a retry joins, a reconnecting stream loses nothing, and a driver never depends
on whether somebody listens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any
from weakref import WeakValueDictionary

import orjson

from gateway.approvals.kept import Kept
from gateway.errors import Refused
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import Emit, Fault, Finished, Json
from gateway.exchange.sse import render
from gateway.telemetry import failure, log

#: How often, and after how many seconds each time, it is looked whether a connection is gone.
GLANCES, GLANCE = 5, 0.04
#: How long a finished exchange can still be joined by a late retry, in seconds.
LINGER = 120.0


class Live:
    """One running exchange as its clients see it."""

    def __init__(self, kept: Kept, exchange: Exchange) -> None:
        self.kept = kept
        self.exchange = exchange
        self.frames: list[bytes] = []
        self.finished: Finished | None = None
        self.held_since: float | None = None
        self.deadline: float | None = None
        self.receipt: str | None = None
        self.headers: dict[str, str] = {}  # of Azure's newest answer, as an app may see them
        self.detached = kept.background
        self.joinable = not kept.background
        self.cancel: Callable[[str], None] | None = None
        self.lost = False  # another replica drives it from now on
        self.noticed: Callable[[Live], None] | None = None  # that somebody listens, or nobody
        self.wanted = False  # of one that runs elsewhere: it is to be brought here
        self.left = False  # whether the other replicas know that nobody listens
        self._attached = 0
        self._left_at: float | None = None
        self._waiting: set[asyncio.Event] = set()

    # --- the driver's side ------------------------------------------------------------------

    def emit(self, frame: Emit) -> None:
        """One more frame of the app's stream."""
        self.frames.append(_rendered(frame))
        self.wake()

    def hear(self, headers: dict[str, str]) -> None:
        """Azure has begun to answer a round."""
        self.headers = headers

    def log(self, *coming: Emit) -> list[str] | None:
        """The frames so far and those to come next, to be kept; None unless it is a stream."""
        if not self.kept.streamed:
            return None
        return [frame.decode() for frame in (*self.frames, *map(_rendered, coming))]

    def hold(self, since: float | None, deadline: float | None = None) -> None:
        """The exchange waits for people since then, or (None) goes on."""
        self.held_since, self.deadline = since, deadline
        self.wake()

    def finish(self, finished: Finished) -> None:
        """The exchange is over."""
        self.finished = finished
        self.held_since = None
        self.wake()

    def lose(self) -> None:
        """Another replica has it: whoever reads along is to come again."""
        self.lost = True
        self.wake()

    def restore(self, kept: Kept, exchange: Exchange, frames: list[str]) -> None:
        """Be what is kept of it: the frames that were read already stand at the same places."""
        self.kept, self.exchange = kept, exchange
        self.frames[:] = [frame.encode() for frame in frames]
        self.wake()

    def wake(self) -> None:
        """Whoever reads along looks again."""
        for event in self._waiting:
            event.set()

    def abandoned(self, now: float) -> float | None:
        """For how many seconds nobody has listened; None while somebody does, or need not."""
        if self.detached or self._attached or self._left_at is None:
            return None
        return now - self._left_at

    # --- a connection's side ----------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[asyncio.Event]:
        """Listen. Yields an event that is set whenever there may be something new."""
        event = asyncio.Event()
        self._waiting.add(event)
        self._attached += 1
        self._notice()
        try:
            yield event
        finally:
            self._waiting.discard(event)
            self._attached -= 1
            if not self._attached:
                self._left_at = asyncio.get_running_loop().time()
                self._notice()

    def _notice(self) -> None:
        if self.noticed is not None and self.finished is None and not self.lost:
            self.noticed(self)

    @property
    def listeners(self) -> int:
        """How many connections read along."""
        return self._attached

    @property
    def repeatable(self) -> bool:
        """Whether it failed before anything was begun: a retry is to try, not to hear it again."""
        fault = self.finished.fault if self.finished is not None else None
        return fault is not None and fault.headers.get("x-should-retry") != "false"

    async def wait_for_end(self, changed: asyncio.Event) -> None:
        """Until it is finished, or another replica has it. `changed` comes from `reading`."""
        while self.finished is None and not self.lost:
            changed.clear()
            await changed.wait()

    def interim(self) -> Json | None:
        """The response object while it is not finished, once it has an id."""
        return None if self.exchange.id is None else self.exchange.interim()


def _rendered(frame: Emit) -> bytes:
    return render(frame.type, orjson.dumps(frame.data))


class Hub:
    """All live exchanges of this process, and the task group their drivers run in."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}
        self._followed: WeakValueDictionary[str, Live] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._group: asyncio.TaskGroup | None = None
        self.ready = asyncio.Event()
        #: Exchanges that somebody has begun, or ceased, to listen to; None: nobody wants to know.
        self.noticed: dict[str, Live] | None = None
        self.stirred = asyncio.Event()

    @property
    def open(self) -> int:
        """How many exchanges are not finished."""
        return len(self.driven())

    async def run(self, stopping: asyncio.Event) -> None:
        """Be the home of drivers until `stopping`; then they are cancelled where they wait.

        An exchange that waits for people is in the database: the next process goes on with it.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            self.ready.set()
            await stopping.wait()
            self._group = None
            for task in self._tasks:
                task.cancel()

    def start(self, live: Live, drive: Callable[[], Awaitable[None]]) -> None:
        """Run the driver of an exchange."""
        self._live[live.kept.id] = live

        async def run() -> None:
            try:
                await self._carefully(live, drive)
            finally:
                pause = 0 if live.lost else LINGER
                asyncio.get_running_loop().call_later(pause, self._forget, live)

        self._spawn(live, run())

    def follow(self, live: Live, watch: Callable[[], Awaitable[None]]) -> None:
        """Run what tells the clients here of an exchange that another replica drives."""
        self._followed[live.kept.id] = live
        self._spawn(live, self._carefully(live, watch))

    async def _carefully(self, live: Live, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # the group must outlive any one exchange
            log.error("exchange.driver_failed", exchange=live.kept.id, **failure(error))
            live.finish(_broken(error))

    def _spawn(self, live: Live, work: Coroutine[Any, Any, None]) -> None:
        if self._group is None:
            work.close()
            raise RuntimeError("the hub is not running")
        task = self._group.create_task(work, name=live.kept.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _forget(self, live: Live) -> None:
        if self._live.get(live.kept.id) is live:
            del self._live[live.kept.id]

    def get(self, exchange_id: str) -> Live | None:
        """The live exchange of that id, if it runs here."""
        live = self._live.get(exchange_id)
        return None if live is None or live.lost else live

    def notice(self, live: Live) -> None:
        """Somebody has begun, or ceased, to listen to an exchange that runs here."""
        if self.noticed is not None:
            self.noticed[live.kept.id] = live
            self.stirred.set()

    def followed(self, exchange_id: str) -> Live | None:
        """The exchange of that id, if it runs elsewhere and somebody here wants to know."""
        live = self._followed.get(exchange_id)
        return None if live is None or live.lost or live.finished is not None else live

    def driven(self) -> list[Live]:
        """Those that are not finished."""
        return [live for live in self._live.values() if live.finished is None and not live.lost]

    def opening(self, app_id: str, body_digest: str) -> asyncio.Lock:
        """Held while such an exchange is looked for and, if there is none, opened."""
        return self._opening.setdefault((app_id, body_digest), asyncio.Lock())

    async def watch_alike(self, app_id: str, body_digest: str) -> None:
        """Wait a moment while something alike is opened or listened to: its connection may be gone.

        A client that cuts its connection and asks again at once is here before its end is.
        """
        for _ in range(GLANCES):
            lock = self._opening.get((app_id, body_digest))
            attended = any(
                live.finished is None and live.joinable and live.listeners
                for live in self._live.values()
                if (live.kept.app_id, live.kept.body_digest) == (app_id, body_digest)
            )
            if not attended and (lock is None or not lock.locked()):
                return
            await asyncio.sleep(GLANCE)

    def twin(self, app_id: str, body_digest: str, *, is_retry: bool) -> Live | None:
        """The exchange that an identical request joins.

        A request that says it is a retry joins whatever is there; one that does not (some
        clients never say so) joins only an exchange whose own connection is gone. One that failed
        before it began is not joined but tried again.
        """
        for live in reversed(self._live.values()):
            if live.lost or (live.kept.app_id, live.kept.body_digest) != (app_id, body_digest):
                continue
            waits = live.finished is None and live.listeners == 0 and live.joinable
            if is_retry or waits:
                return None if live.repeatable else live
        return None

    def keyed(self, app_id: str, key: str, body_digest: str) -> Live | None:
        """The exchange that the app gave this idempotency key to; raises `Refused` when that was
        another request.
        """
        for live in reversed(self._live.values()):
            if live.lost or (live.kept.app_id, live.kept.idempotency) != (app_id, key):
                continue
            if live.kept.body_digest != body_digest:
                raise Refused(
                    "This 'Idempotency-Key' was used for another request.",
                    code="idempotency_key_reused",
                    status=422,
                )
            return None if live.repeatable else live
        return None


def _broken(error: Exception) -> Finished:
    body = {
        "error": {
            "message": "The gateway could not go on with this request.",
            "type": "server_error",
            "param": None,
            "code": getattr(error, "code", "internal_error"),
        }
    }
    return Finished("failed", None, Fault(500, body, {"x-should-retry": "false"}))
