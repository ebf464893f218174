"""What Azure might say, in any order and form, to an exchange: nothing hidden gets out.

An exchange may refuse an event only as it says it does (RuntimeError for one that its state
cannot have); what it emits is numbered without a gap and holds nothing of approvals; what it
releases was approved before.
"""

from __future__ import annotations

import traceback
from random import Random
from typing import Any

import orjson

from gateway.exchange.document import read
from gateway.exchange.machine import Exchange
from gateway.exchange.messages import (
    HIDDEN_ITEMS,
    Answer,
    Broken,
    Cancelled,
    Command,
    Decided,
    Emit,
    Finished,
    Forward,
    FrameSeen,
    Hold,
    Rejected,
    Started,
)
from tests.fuzz.sources import changed, some
from tests.support.playbook import a_plan, resumed
from tests.support.rounds import Round, call, function_call, listing, message, reasoning, request

_OVER = {"done", "failed", "cancelled"}
_ODD = [b"1e2", b"1.10", b"-0", b"9" * 25]


class Told:
    """One exchange, everything it said, and what was decided."""

    def __init__(self, random: Random) -> None:
        self.random = random
        store = random.choice([{}, {"store": False}])
        self.exchange = Exchange(a_plan(**store, stream=True))
        self.said: list[Command] = []
        self.approved: set[str] = set()

    def tell(self, event: Any) -> list[Command]:
        """One event; the exchange may have been saved and read again before."""
        if self.random.random() < 0.05:
            self.exchange = resumed(self.exchange)
        commands = self.exchange.receive(event)
        self.said += commands
        return commands


def make(random: Random, *, contents: bool = True) -> list[list[FrameSeen]]:
    """Some rounds as streams whose frames are lost, repeated and mixed; `contents`: and changed."""
    count = 1 + some(random, 3)
    return [_told(_round(random, number), random, contents) for number in range(count)]


def _round(random: Random, number: int) -> Round:
    last = f"mcpr_{number - 1}"
    makers = [
        listing(f"mcpl_{number}"),
        reasoning(f"rs_{number}"),
        message(f"msg_{number}", "Done."),
        call(f"mcp_{number}", last),
        function_call(f"fc_{number}"),
        {"id": f"x_{number}", "type": "telepathy_call"},
    ]
    items = random.sample(makers, some(random, len(makers)))
    if random.random() < 0.6:
        items.insert(random.randrange(len(items) + 1), request(f"mcpr_{number}"))
    return Round(
        f"resp_{number}", items, random.choice(["completed"] * 4 + ["incomplete", "failed"])
    )


def _told(round_: Round, random: Random, contents: bool) -> list[FrameSeen]:
    if random.random() < 0.2:
        return [_odd(round_.plain(), random) if contents else round_.plain()]
    frames = round_.frames(random if random.random() < 0.5 else None)
    for _ in range(some(random)):
        at, other = random.randrange(len(frames)), random.randrange(len(frames))
        kind = random.randrange(4 if contents else 3)
        if kind == 0 and len(frames) > 1:
            del frames[at]
        elif kind == 1:
            frames.insert(other, frames[at])
        elif kind == 2:
            frames[at], frames[other] = frames[other], frames[at]
        elif contents:
            frames[at] = _odd(frames[at], random)
    return frames


def _odd(frame: FrameSeen, random: Random) -> FrameSeen:
    """A frame as `azure` would make it of changed bytes; numbers may be fragments."""
    raw = orjson.dumps(changed(frame.data, random, some(random)))
    if random.random() < 0.2:
        number = random.choice([b":0,", b":1,", b":10,", b":5,"])
        raw = raw.replace(number, b":%b," % random.choice(_ODD), 1)
    data = read(raw)
    return FrameSeen(str(data.get("type") or frame.type), data)


def check(rounds: list[list[FrameSeen]], random: Random) -> str:
    """Drive an exchange through the rounds as the driver would; judge all it said."""
    told = Told(random)
    turn = told.tell(Started())[-1]
    for frames in rounds:
        turn = _play(told, frames, turn)
        if isinstance(turn, Hold):
            turn = _decide(told, turn)
        if told.exchange.state in _OVER:
            break
    if told.exchange.state not in _OVER:
        ends = [Broken("reset", sent=True), Cancelled("gone"), Rejected(500, {"error": "x"})]
        told.tell(random.choice(ends if told.exchange.state == "forwarding" else ends[1:2]))
    _judge(told, whole=all(_whole(frames) for frames in rounds))
    return told.exchange.state


def _play(told: Told, frames: list[FrameSeen], turn: Command) -> Command:
    for frame in frames:
        commands = told.tell(frame)
        if commands and isinstance(commands[-1], Forward | Hold | Finished):
            return commands[-1]
    if told.exchange.state == "forwarding":
        return told.tell(Broken("Azure's stream ended without an end.", sent=True))[-1]
    return turn


def _decide(told: Told, hold: Hold) -> Command:
    said: list[Command] = [hold]
    for asked in hold.open:
        yes = told.random.random() < 0.7
        if yes:
            told.approved.add(asked.request_id)
        said = told.tell(Decided(asked.request_id, Answer(yes))) or said
    return said[-1]


def _whole(frames: list[FrameSeen]) -> bool:
    """Whether Azure itself has counted without a gap."""
    numbers = [frame.data.get("sequence_number") for frame in frames]
    return numbers == list(range(len(numbers))) or numbers == [None]


def _judge(told: Told, *, whole: bool) -> None:
    emitted = [command for command in told.said if isinstance(command, Emit)]
    for number, frame in enumerate(emitted):
        # A plain answer's last frame has no number, and gets none.
        assert not whole or frame.data.get("sequence_number") in {None, number}, frame
    for frame in emitted:
        _nothing_hidden(frame.data)
    for command in told.said:
        if isinstance(command, Forward):
            assert set(command.releases) <= told.approved
        if isinstance(command, Finished) and command.response is not None:
            _nothing_hidden({"response": command.response})
    assert sum(isinstance(command, Finished) for command in told.said) <= 1
    orjson.dumps([frame.data for frame in emitted])


def _nothing_hidden(data: dict[str, Any]) -> None:
    response = data.get("response")
    output = response.get("output") if isinstance(response, dict) else None
    items = [data.get("item"), *(output if isinstance(output, list) else [])]
    for item in items:
        if isinstance(item, dict):
            kind = item.get("type")
            assert not (isinstance(kind, str) and kind in HIDDEN_ITEMS), item


def fewer(rounds: list[list[FrameSeen]], seed: int) -> list[list[FrameSeen]]:
    """The same failure with as few frames as it takes."""
    place = _place(rounds, seed)
    for number, frames in enumerate(rounds):
        for at in reversed(range(len(frames))):
            shorter = [*rounds]
            shorter[number] = rounds[number][:at] + rounds[number][at + 1 :]
            if _place(shorter, seed) == place:
                rounds = shorter
    return [frames for frames in rounds if frames]


def _place(rounds: list[list[FrameSeen]], seed: int) -> tuple[str, int] | None:
    try:
        check(rounds, Random(seed))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return last.filename, last.lineno or 0
    return None


def shown(rounds: list[list[FrameSeen]]) -> str:
    """Frames as one can read them: without what every response holds."""
    return " | ".join(
        orjson.dumps([{**frame.data, "response": _short(frame)} for frame in frames]).decode()
        for frames in rounds
    )


def _short(frame: FrameSeen) -> Any:
    response = frame.data.get("response")
    if not isinstance(response, dict):
        return response
    telling = ("id", "status", "output", "usage")
    return {name: response[name] for name in telling if name in response}
