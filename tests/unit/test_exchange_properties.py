"""Whatever rounds come, in whatever order they are told and decided: one well-formed response."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.exchange.machine import Exchange
from gateway.exchange.messages import (
    Answer,
    Broken,
    Cancelled,
    Command,
    Decided,
    Emit,
    Event,
    Finished,
    Forward,
    FrameSeen,
    Hold,
    Mismatch,
    Observed,
    Plan,
    Rejected,
    Reopened,
    Started,
)
from gateway.exchange.sse import FrameReader, render
from tests.support.playbook import a_plan, check_stream, compare, official_client, resumed
from tests.support.rounds import (
    Json,
    Round,
    call,
    function_call,
    listing,
    message,
    reasoning,
    request,
)

ANSWERS = st.sampled_from([Answer(True), Answer(False), Answer(False, "no"), Answer(True, "yes")])
ARGUMENTS = st.sampled_from(["{}", '{"id":42}', '{"text":"ä 🙂"}', ""])


@dataclass(frozen=True)
class Script:
    """Rounds, the answer to each request, and how the story is told."""

    plan: Plan
    rounds: tuple[Round, ...]
    answers: dict[str, Answer]
    seed: int


def unknown(item_id: str) -> Json:
    return {"id": item_id, "type": "telepathy_call", "thought": [1, {"deep": None}]}


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Up to four rounds; each but the last asks; what is approved is executed, or not."""
    answers: dict[str, Answer] = {}
    rounds: list[Round] = []
    executed: list[Json] = []
    count = draw(st.integers(1, 4))
    for number in range(count):
        ids = iter(range(100))
        free: list[Callable[[str], Json]] = [
            listing,
            reasoning,
            unknown,
            lambda name: message(name, draw(st.text(max_size=8))),
            lambda name: listing(name, "wiki"),
        ]
        makers = draw(st.lists(st.sampled_from(free), max_size=4))
        items = [*executed, *(make(f"item_{number}_{next(ids)}") for make in makers)]
        asked = [
            request(f"mcpr_{number}_{index}", draw(ARGUMENTS))
            for index in range(draw(st.integers(1, 3)) if number + 1 < count else 0)
        ]
        executed = []
        for item in asked:
            answers[item["id"]] = answer = draw(ANSWERS)
            if answer.approve and draw(st.integers(0, 9)):
                executed.append(call(f"mcp_{item['id']}", item["id"], item["arguments"]))
        places = [draw(st.integers(0, len(items))) for _ in asked]
        for place, item in sorted(zip(places, asked, strict=True), key=lambda pair: -pair[0]):
            items.insert(place, item)
        if number + 1 == count and draw(st.booleans()):
            items.append(function_call(f"fc_{number}"))
        rounds.append(Round(f"resp_{number}", items))
    status = draw(st.sampled_from(["completed", "completed", "incomplete"]))
    rounds[-1] = Round(rounds[-1].id, rounds[-1].items, status)
    store = draw(st.sampled_from([{}, {"store": False}, {"store": True}]))
    return Script(a_plan(**store), tuple(rounds), answers, draw(st.integers(0, 2**32)))


def play(
    script: Script,
    tell: Callable[[Round], Sequence[FrameSeen]],
    save: Callable[[Exchange], Exchange] = lambda exchange: exchange,
) -> list[Command]:
    """All commands of a script; `save` may replace the exchange before every event."""
    random, rounds = Random(script.seed), iter(script.rounds)
    exchange, said = Exchange(script.plan), list[Command]()
    events: list[Event] = [Started()]
    while events:
        exchange = save(exchange)
        commands = exchange.receive(events.pop(0))
        said += commands
        match commands[-1:]:
            case [Forward()]:
                events = list(tell(next(rounds)))
            case [Hold(open=calls)]:
                events = [Decided(c.request_id, script.answers[c.request_id]) for c in calls]
                random.shuffle(events)
    assert next(rounds, None) is None
    return said


def frames_of(said: Sequence[Command]) -> list[Emit]:
    return [command for command in said if isinstance(command, Emit)]


@given(scripts(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_script_gives_one_well_formed_stream(script: Script, mixed: bool) -> None:
    random = Random(script.seed) if mixed else None
    said = play(script, lambda round_: round_.frames(random))
    final = check_stream(frames_of(said))
    assert final["id"] == "resp_0"
    assert said[-1].response == final
    shown = [item["id"] for item in final["output"]]
    first_listing: set[str] = set()
    expected = []
    for item in (item for round_ in script.rounds for item in round_.items):
        again = item["type"] == "mcp_list_tools" and item["server_label"] in first_listing
        if item["type"] == "mcp_list_tools":
            first_listing.add(item["server_label"])
        if item["type"] != "mcp_approval_request" and not again:
            expected.append(item["id"])
    assert shown == expected
    assert final["usage"]["total_tokens"] == 15 * len(script.rounds)


@given(scripts())
@settings(max_examples=40, deadline=None)
def test_the_official_client_accumulates_any_script(script: Script) -> None:
    emitted = frames_of(play(script, lambda round_: round_.frames(Random(script.seed))))
    response = official_client(emitted)
    if script.rounds[-1].status == "completed":
        assert response.id == "resp_0"
        texts = [
            part["text"]
            for round_ in script.rounds
            for item in round_.items
            if item["type"] == "message"
            for part in item["content"]
        ]
        assert response.output_text == "".join(texts)


@given(scripts())
@settings(max_examples=100, deadline=None)
def test_releases_and_observations_match_the_decisions(script: Script) -> None:
    said = play(script, lambda round_: [round_.plain()])
    released = [name for turn in said if isinstance(turn, Forward) for name in turn.releases]
    denied = [name for turn in said if isinstance(turn, Forward) for name in turn.denials]
    assert set(released) == {name for name, answer in script.answers.items() if answer.approve}
    assert sorted([*released, *denied]) == sorted(script.answers), "each is answered once"
    seen = [command for command in said if isinstance(command, Observed)]
    assert sorted(observed.request_id for observed in seen) == sorted(released)
    executed = {
        item["approval_request_id"]
        for round_ in script.rounds
        for item in round_.items
        if item["type"] == "mcp_call"
    }
    for observed in seen:
        happened = observed.request_id in executed
        assert observed.outcome == ("executed" if happened else "unknown")
        assert observed.matches is (True if happened else None)
    assert not any(isinstance(command, Mismatch) for command in said)


@given(scripts())
@settings(max_examples=60, deadline=None)
def test_a_plain_answer_gives_the_same_final_object_as_a_stream(script: Script) -> None:
    plain = play(script, lambda round_: [round_.plain()])
    streamed = play(script, lambda round_: round_.frames(Random(script.seed)))
    assert plain[-1] == streamed[-1]
    turns = [[c for c in said if not isinstance(c, Emit)] for said in (plain, streamed)]
    in_order = play(script, lambda round_: round_.frames())
    assert turns[0] == [c for c in in_order if not isinstance(c, Emit)]
    assert [c for c in turns[1] if isinstance(c, Forward)] == [
        c for c in turns[0] if isinstance(c, Forward)
    ]


@given(scripts())
@settings(max_examples=40, deadline=None)
def test_saving_and_reading_at_every_step_changes_nothing(script: Script) -> None:
    mixed = [round_.frames(Random(script.seed)) for round_ in script.rounds]
    told = dict(zip((round_.id for round_ in script.rounds), mixed, strict=True))
    direct = play(script, lambda round_: copy.deepcopy(told[round_.id]))
    saved = play(script, lambda round_: copy.deepcopy(told[round_.id]), save=resumed)
    compare(saved, direct, "saved at every step")


@given(scripts())
@settings(max_examples=60, deadline=None)
def test_a_round_taken_back_and_decided_again_is_the_same_round(script: Script) -> None:
    random, times = Random(script.seed), 0

    def take_back(exchange: Exchange) -> Exchange:
        nonlocal times
        begun = len(exchange.upstream_ids) > exchange.stitcher.round
        if exchange.state != "forwarding" or begun or not exchange.told:
            return exchange
        before, names = orjson.dumps(exchange.snapshot()), list(exchange.told)
        some = tuple(random.sample(names, random.randint(0, len(names))))
        commands = exchange.receive(Reopened(some))
        if some:
            (hold,) = commands
            assert isinstance(hold, Hold)
            assert (hold.open, set(hold.awaited)) == ((), set(some))
            exchange = resumed(exchange)
        for name in some:
            commands = exchange.receive(Decided(name, script.answers[name]))
        assert isinstance(commands[-1], Forward)
        assert orjson.dumps(exchange.snapshot()) == before
        times += 1
        return exchange

    direct = play(script, lambda round_: [round_.plain()])
    again = play(script, lambda round_: [round_.plain()], save=take_back)
    compare(again, direct, "taken back before every round")
    assert times == sum(isinstance(turn, Forward) for turn in direct) - 1


@given(scripts())
@settings(max_examples=40, deadline=None)
def test_what_came_in_is_never_changed(script: Script) -> None:
    told = [round_.frames() for round_ in script.rounds]
    before = orjson.dumps([frame.data for frames in told for frame in frames])
    plan = copy.deepcopy(script.plan)
    rest = iter(told)
    play(script, lambda _: next(rest))
    assert orjson.dumps([frame.data for frames in told for frame in frames]) == before
    assert script.plan == plan


@given(scripts(), st.lists(st.integers(1, 400), max_size=20))
@settings(max_examples=30, deadline=None)
def test_the_stream_survives_bytes_in_any_pieces(script: Script, cuts: list[int]) -> None:
    def tell(round_: Round) -> list[FrameSeen]:
        raw = b"".join(render(f.type, orjson.dumps(f.data)) for f in round_.frames())
        reader, frames = FrameReader(), []
        for cut in [*cuts, len(raw)]:
            chunk, raw = raw[:cut], raw[cut:]
            frames += reader.feed(chunk)
        return [FrameSeen(str(f.event), orjson.loads(f.data)) for f in frames]

    assert play(script, tell) == play(script, lambda round_: round_.frames())


@given(scripts(), st.data())
@settings(max_examples=100, deadline=None)
def test_an_exchange_that_ends_anywhere_ends_well(script: Script, data: st.DataObject) -> None:
    """Cut the story at any event; every released call is accounted for exactly once."""
    fatal = data.draw(
        st.sampled_from(
            [
                Broken("reset", sent=True),
                Broken("reset", sent=False),
                Rejected(400, {"error": {"message": "m", "code": "c"}}),
                Rejected(500, {}),
                Cancelled("gone"),
            ]
        )
    )
    after = data.draw(st.integers(1, 60))
    exchange, said = _cut(script, fatal, after)
    released = [name for turn in said if isinstance(turn, Forward) for name in turn.releases]
    observed = [command.request_id for command in said if isinstance(command, Observed)]
    assert sorted(observed) == sorted(released)
    assert isinstance(said[-1], Finished)
    assert sum(isinstance(command, Finished) for command in said) == 1
    emitted = frames_of(said)
    if said[-1].outcome != "cancelled" and exchange.id is not None:
        check_stream(emitted)
        official_client(emitted)
    assert not exchange.released


def _cut(script: Script, fatal: Event, after: int) -> tuple[Exchange, list[Command]]:
    rounds, exchange = iter(script.rounds), Exchange(script.plan)
    said: list[Command] = []
    events: list[Any] = [Started()]
    while exchange.state not in {"done", "failed", "cancelled"}:
        broken = after <= 0 and (exchange.state == "forwarding" or isinstance(fatal, Cancelled))
        event = fatal if broken else events.pop(0)
        commands = exchange.receive(event)
        said += commands
        after -= 1
        match commands[-1:]:
            case [Forward()]:
                events = list(next(rounds).frames())
            case [Hold(open=calls)]:
                events = [Decided(c.request_id, script.answers[c.request_id]) for c in calls]
    return exchange, said
