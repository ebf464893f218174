"""Plays scripted events to an Exchange and compares the commands, with a diff one can read.

    Playbook(plan).play(Started(), Forward(0, body)).play(Rejected(400, {}), ...)

Every event is also played to a copy that went through a snapshot and JSON: it must answer alike.
"""

from __future__ import annotations

import difflib
import pprint
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
from openai._models import construct_type
from openai._types import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from gateway.exchange.machine import Exchange
from gateway.exchange.messages import (
    Answer,
    Binding,
    Command,
    Decided,
    Emit,
    Event,
    Finished,
    Forward,
    FrameSeen,
    Hold,
    Plan,
    Started,
)
from tests.support.rounds import SERVER, Json, Round

HIDDEN = {"mcp_approval_request", "mcp_approval_response"}
YES, NO = Answer(True), Answer(False, "Wrong record")


def a_plan(*, body: Json | None = None, **asked: Any) -> Plan:
    """The plan of an app that declares the server `crm` its own way; `asked` are more members."""
    own = {
        "type": "mcp",
        "server_label": "crm",
        "server_url": "https://crm.example/mcp",
        "require_approval": "never",
    }
    request = {"model": "gpt-5-deploy", "input": "Change the number.", "tools": [own], **asked}
    sent = {**own, "server_url": SERVER, "require_approval": "always"}
    bindings = (Binding(0, "crm", "srv_1", SERVER),)
    return Plan(request, {**request, "tools": [sent], **(body or {})}, bindings)


def resumed(exchange: Exchange) -> Exchange:
    """The exchange after it was saved and read again."""
    return Exchange.restore(orjson.loads(orjson.dumps(exchange.snapshot())))


class Playbook:
    """An exchange, everything that was played to it, and everything it answered."""

    def __init__(self, plan: Plan) -> None:
        self.exchange = Exchange(plan)
        self.commands: list[Command] = []

    def receive(self, event: Event) -> list[Command]:
        """Play one event, also to a restored copy, which takes over when both answer alike."""
        copy = resumed(self.exchange)
        commands = self.exchange.receive(event)
        compare(copy.receive(event), commands, "after a snapshot")
        compare([resumed(copy).snapshot()], [resumed(self.exchange).snapshot()], "the state")
        self.exchange = copy
        self.commands += commands
        return commands

    def play(self, event: Event, *expected: Command) -> Playbook:
        """Play one event and expect exactly these commands."""
        compare(self.receive(event), expected, repr(event)[:300])
        return self

    def hear(self, round_: Round, *, plain: bool = False) -> list[Command]:
        """Play a whole round; the commands that are not frames."""
        frames = [round_.plain()] if plain else round_.frames()
        return [command for command in self.hear_frames(frames) if not isinstance(command, Emit)]

    def hear_frames(self, frames: Iterable[FrameSeen]) -> list[Command]:
        return [command for frame in frames for command in self.receive(frame)]

    def start(self) -> Forward:
        """Begin, when nothing is carried."""
        return self._turn(Started())

    def decide(self, **answers: Answer) -> Forward:
        """Decide calls, the last of which completes the round."""
        *before, last = [Decided(name, answer) for name, answer in answers.items()]
        for event in before:
            self.play(event)
        return self._turn(last)

    def _turn(self, event: Event) -> Forward:
        (turn,) = self.receive(event)
        assert isinstance(turn, Forward), turn
        return turn

    @property
    def emitted(self) -> list[Emit]:
        """The frames the app has been given."""
        return [command for command in self.commands if isinstance(command, Emit)]

    @property
    def finished(self) -> Finished:
        """How it ended."""
        (last,) = [command for command in self.commands if isinstance(command, Finished)]
        assert last is self.commands[-1]
        return last


def compare(actual: Sequence[Any], expected: Sequence[Any], where: str) -> None:
    """Fail with a unified diff unless both are equal."""
    if list(actual) == list(expected):
        return
    sides = [
        [line for item in side for line in pprint.pformat(item, width=96).splitlines()]
        for side in (expected, actual)
    ]
    diff = difflib.unified_diff(*sides, "expected", "actual", lineterm="", n=6)
    raise AssertionError("\n".join([where, *diff]))


def perform(
    plan: Plan,
    rounds: Sequence[Round],
    decide: Callable[[Hold], Iterable[Decided]],
    tell: Callable[[Round], Iterable[FrameSeen]] = Round.frames,
) -> Playbook:
    """Play rounds to the end: `tell` says how a round arrives, `decide` answers each hold."""
    book, script = Playbook(plan), iter(rounds)
    (turn,) = book.receive(Started())
    while not isinstance(turn, Finished):
        if isinstance(turn, Forward):
            events: Iterable[Event] = tell(next(script))
        else:
            assert isinstance(turn, Hold), turn
            events = decide(turn)
        for event in events:
            commands = book.receive(event)
            turn = commands[-1] if commands else turn
    return book


def approve_all(hold: Hold) -> list[Decided]:
    return [Decided(name, YES) for name in [*(c.request_id for c in hold.open), *hold.awaited]]


def check_stream(emitted: Sequence[Emit]) -> Json:
    """Fail unless the frames are one well-formed stream; the final response object."""
    data = [frame.data for frame in emitted]
    assert [frame.type for frame in emitted] == [frame["type"] for frame in data]
    assert [frame["sequence_number"] for frame in data] == list(range(len(data)))
    kinds = [frame.type for frame in emitted]
    assert kinds[0] == "response.created"
    assert kinds.count("response.created") == 1
    ends = {"response.completed", "response.failed", "response.incomplete"}
    assert [kind for kind in kinds if kind in ends] == kinds[-1:]
    final: Json = data[-1]["response"]
    assert {frame["response"]["id"] for frame in data if "response" in frame} == {final["id"]}
    _check_items(data, final)
    assert not HIDDEN & {str(item["type"]) for item in final["output"]}
    text = orjson.dumps(data).decode()
    assert "s3cret" not in text
    return final


def _check_items(data: Sequence[Json], final: Json) -> None:
    added: list[str] = []
    done: dict[int, Json] = {}
    for frame in data:
        if "output_index" not in frame:
            continue
        index = frame["output_index"]
        if frame["type"] == "response.output_item.added":
            assert index == len(added), "indexes are used in order, without a gap"
            added.append(frame["item"]["id"])
        assert index < len(added), f"{frame['type']} before its item"
        assert index not in done, "nothing comes after done"
        assert frame.get("item_id", added[index]) == added[index]
        if "item" in frame:
            assert frame["item"]["id"] == added[index]
            assert frame["item"]["type"] not in HIDDEN
            if frame["item"]["type"] == "mcp_call":
                assert frame["item"].get("approval_request_id") is None
        if frame["type"] == "response.output_item.done":
            done[index] = frame["item"]
    assert len(set(added)) == len(added)
    if final["status"] == "completed":
        assert [item["id"] for item in final["output"]] == added
        assert all(final["output"][index] == item for index, item in done.items())


def official_client(emitted: Sequence[Emit]) -> Any:
    """What the official client's accumulating helper makes of the stream; raises as it does."""
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of items that its own types do not know
        for frame in emitted:
            state.handle_event(construct_type(type_=ResponseStreamEvent, value=frame.data))
    return state._completed_response
