"""What the upstream remembers: stored responses, their event logs, requests received, fault counts.

In memory, bounded, and gone with the process. It never runs anything.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain

from gateway.demo.framing import Framing
from gateway.demo.model import Directive
from gateway.demo.pairs import Pairs
from gateway.demo.wire import JSON, previous_not_found, response_not_found


@dataclass
class Stored:
    """One response that can be fetched, chained from, cancelled and replayed."""

    response: JSON
    context: list[JSON]
    streamed: bool = False
    background: bool = False
    chainable_from: datetime | None = None
    log: list[JSON] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    ended: bool = False
    cancel: Callable[[], object] = lambda: None
    framing: Framing = field(default_factory=Framing)

    async def note(self, event: JSON) -> None:
        """Append to the event log and wake everyone who follows it."""
        async with self.changed:
            self.log.append(event)
            self.changed.notify_all()

    async def end(self) -> None:
        async with self.changed:
            self.ended = True
            self.changed.notify_all()


@dataclass(frozen=True)
class File:
    """One uploaded file: the object that describes it, and its bytes."""

    described: JSON
    content: bytes


@dataclass
class Conversation:
    """One conversation: the object that describes it, and its items, oldest first."""

    described: JSON
    items: list[JSON]


class Memory:
    """All state of one upstream. `keep` bounds the requests and the responses kept."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self.requests: deque[JSON] = deque(maxlen=keep)
        self.served = 0
        self.pairs = Pairs(keep)
        self.files: OrderedDict[str, File] = OrderedDict()
        self.conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._responses: OrderedDict[str, Stored] = OrderedDict()
        self._answered: set[str] = set()
        self._faults: Counter[str] = Counter()

    def put(self, stored: Stored) -> None:
        self._responses[stored.response["id"]] = stored
        while len(self._responses) > self._keep:
            self._responses.popitem(last=False)

    def get(self, response_id: str) -> Stored:
        """ApiError(404) when there is no such response (any more)."""
        if response_id not in self._responses:
            raise response_not_found(response_id)
        return self._responses[response_id]

    def put_file(self, file: File) -> None:
        self.files[file.described["id"]] = file
        while len(self.files) > self._keep:
            self.files.popitem(last=False)

    def put_conversation(self, conversation: Conversation) -> None:
        self.conversations[conversation.described["id"]] = conversation
        while len(self.conversations) > self._keep:
            self.conversations.popitem(last=False)

    def all(self) -> list[Stored]:
        return list(self._responses.values())

    def delete(self, response_id: str) -> None:
        self.get(response_id)
        del self._responses[response_id]

    def previous(self, response_id: object, now: datetime) -> list[JSON]:
        """The items a continuation starts from; ApiError(400) when it cannot be resolved (yet)."""
        stored = self._responses.get(str(response_id))
        late = stored and stored.chainable_from and now < stored.chainable_from
        if stored is None or late or stored.response["status"] in ("queued", "in_progress"):
            raise previous_not_found(str(response_id))
        return [*stored.context, *stored.response["output"]]

    def find(self, item_id: str) -> JSON | None:
        """A stored item by its id, for `item_reference`."""
        responses = reversed(self._responses.values())
        kept = chain(
            (item for s in responses for item in chain(s.response["output"], s.context)),
            (item for conversation in self.conversations.values() for item in conversation.items),
        )
        return next((item for item in kept if item["id"] == item_id), None)

    def claim(self, request_id: str) -> bool:
        """True the first time an approval request is answered, False ever after."""
        if request_id in self._answered:
            return False
        self._answered.add(request_id)
        return True

    def due(self, fault: Directive, key: str) -> bool:
        """Whether a fault happens now; those with a number of times are counted per `key`."""
        if fault.times is None:
            return True
        name = f"{fault.name} {fault.on_resume} {key}"
        self._faults[name] += 1
        return self._faults[name] <= fault.times


def later(now: datetime, seconds: float) -> datetime | None:
    return now + timedelta(seconds=seconds) if seconds else None
