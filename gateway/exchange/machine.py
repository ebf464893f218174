"""Steps 4 to 8: one exchange as a state machine. Events in, commands out; no I/O, no clock.

`receive` returns what is to be done, in order; at most one of the commands is a *turn* (Forward,
Hold, Finished), and it is the last. The state is plain data: `snapshot` and `restore` lose
nothing, so an exchange that waits for people lives in the database and not in a coroutine.

Transitions (printed from `TRANSITIONS` into ARCHITECTURE.md by a test):

    new        --Started-->   forwarding | holding
    forwarding --FrameSeen--> forwarding | holding | done | failed | cancelled
    forwarding --Rejected | Broken--> failed
    holding    --Decided-->   holding | forwarding
    forwarding --Reopened-->  holding | forwarding
    forwarding | holding --Cancelled--> cancelled
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from gateway.exchange import resume, saved
from gateway.exchange.messages import (
    CLIENT_CALLS,
    TERMINAL,
    Answer,
    Around,
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
    FrameSeen,
    Hold,
    Json,
    Listed,
    Mismatch,
    Observed,
    Plan,
    Ran,
    Rejected,
    Reopened,
    Started,
)
from gateway.exchange.rehydration import around
from gateway.exchange.reports import arguments_text, never_ran, outcome_of
from gateway.exchange.stitching import Stitcher

#: Where each state may go. An event that a state does not know is a programming error.
TRANSITIONS: Mapping[str, frozenset[str]] = {
    "new": frozenset({"forwarding", "holding"}),
    "forwarding": frozenset({"holding", "done", "failed", "cancelled"}),
    "holding": frozenset({"forwarding", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


class Exchange:
    """One app request and its one logical response."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.state = "new"
        self.stitcher = Stitcher(
            plan.asked, show_approvals=plan.show_approvals, transparent=not plan.mediated
        )
        self.calls: dict[str, Call] = {}  # asked for in the running or just ended round
        self.answers: dict[str, Answer | None] = {}  # what the next round will tell Azure
        self.told: dict[str, Call] = {}  # answered by the running round, approved or not
        self.released: dict[str, Call] = {}  # approved and sent; observed ones are taken out
        self.running: dict[str, str] = {}  # begun executions: item id -> approval request id
        self.ended: dict[str, str] = {}  # how they ended, before the item itself says so
        self.leave: dict[str, list[str]] = {}  # label -> tools the running round may just call
        self.begun: dict[str, Call] = {}  # calls made on leave that have not ended
        self.seen: list[str] = []  # keys of the items already looked at
        self.client_calls: list[str] = []  # call ids that only the app can answer
        self.upstream_ids: list[str] = []
        self.transcript: list[Json] = []  # outputs and answers since the app's input, in order
        self.output_tokens = 0
        self.executions = 0
        self.error_told = False

    @property
    def id(self) -> str | None:
        """The response id the app knows, once there is one."""
        return self.stitcher.id

    # --- the one entrance -------------------------------------------------------------------

    def receive(self, event: Event) -> list[Command]:
        """Take one event; raises RuntimeError for an event the state cannot have."""
        match event:
            case Started():
                return self._started()
            case FrameSeen():
                return self._understood(event)
            case Rejected():
                return self._rejected(event)
            case Broken():
                return self._broken(event)
            case Decided() | Reopened():
                return self._decided(event)
            case Cancelled():
                return self._cancelled(event)
            case _:
                assert_never(event)

    def _enter(self, state: str) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"an exchange cannot go from {self.state} to {state}")
        self.state = state

    def _must_be(self, *states: str) -> None:
        if self.state not in states:
            raise RuntimeError(f"an exchange that is {self.state} has no such event")

    # --- starting, deciding, resuming -------------------------------------------------------

    def _started(self) -> list[Command]:
        self._must_be("new")
        self.calls = {carried.call.request_id: carried.call for carried in self.plan.carried}
        self.answers = {carried.call.request_id: carried.answer for carried in self.plan.carried}
        awaited = tuple(name for name, answer in self.answers.items() if answer is None)
        if awaited:
            self._enter("holding")
            return [Hold((), awaited)]
        return [self._forward()]

    def _decided(self, event: Decided | Reopened) -> list[Command]:
        if isinstance(event, Reopened):
            return self._reopened(event)
        self._must_be("holding")
        if self.answers.get(event.request_id, event.answer) is not None:
            # Unknown here, or decided before: the first decision stands.
            return []
        self.answers[event.request_id] = event.answer
        if any(answer is None for answer in self.answers.values()):
            return []
        return [self._forward()]

    def _reopened(self, event: Reopened) -> list[Command]:
        """As before the last answer: a round that was made ready is taken apart again."""
        self._must_be("forwarding")
        begun = len(self.upstream_ids) > self.stitcher.round
        if begun or not self.told or not self.told.keys() >= set(event.request_ids):
            raise RuntimeError("only the answers of a round that was not sent can be taken back")
        here = len(self.transcript) - len(self.told)
        self.transcript, said = self.transcript[:here], self.transcript[here:]
        self.calls, self.told, self.released = self.told, {}, {}
        self.answers = {
            item["approval_request_id"]: Answer(item["approve"], item.get("reason"))
            for item in said
        } | dict.fromkeys(event.request_ids)
        self.stitcher.take_back_round()
        self._enter("holding")
        awaited = tuple(name for name, answer in self.answers.items() if answer is None)
        return [Hold((), awaited)] if awaited else [self._forward()]

    def _forward(self) -> Forward:
        answers = {name: answer for name, answer in self.answers.items() if answer is not None}
        approved = tuple(name for name, answer in answers.items() if answer.approve)
        progress = resume.Progress(
            tuple(self.upstream_ids), list(self.transcript), self.output_tokens, self.executions
        )
        body = resume.next_body(self.plan, answers, progress)
        replay = resume.replay_body(self.plan, body, progress)
        self.transcript += [resume.answer_item(name, answer) for name, answer in answers.items()]
        self.told = self.calls
        self.released = {name: self.calls[name] for name in approved}
        self.running, self.ended, self.leave, self.begun = {}, {}, {}, {}
        self.calls, self.answers, self.client_calls = {}, {}, []
        self.stitcher.begin_round()
        self._enter("forwarding")
        denied = tuple(name for name in answers if name not in approved)
        return Forward(self.stitcher.round, body, self.plan.bindings, approved, denied, replay)

    def give_leave(self, tools: Mapping[str, Sequence[str]]) -> None:
        """The running round was sent with leave to call these tools, by label, without asking."""
        self._must_be("forwarding")
        self.leave = {label: list(names) for label, names in tools.items()}

    # --- a running round --------------------------------------------------------------------

    def passes(self, event: str | None) -> bool:
        """Whether the frame of this name may go to the app byte for byte, unparsed."""
        return self.state == "forwarding" and self.stitcher.passes(event)

    def _understood(self, frame: FrameSeen) -> list[Command]:
        """What a frame leads to; one of another shape than Azure's ends the exchange."""
        self._must_be("forwarding")
        released, begun = dict(self.released), dict(self.begun)
        try:
            return self._frame(frame)
        except _MALFORMED:
            # What this frame has told of released calls so far is lost with it.
            self.released, self.begun = released, begun
            message = "Azure sent something that cannot be understood."
            return self._broken(Broken(message, sent=True))

    def _frame(self, event: FrameSeen) -> list[Command]:
        kind, data = event.type, event.data
        response = data.get("response")
        if isinstance(response, dict) and isinstance(response.get("id"), str):
            self._note_id(response["id"])
        if kind in TERMINAL:
            return self._round_ended(kind, data)
        self.error_told = self.error_told or kind == "error"
        commands = self._observe(kind, data)
        return [*commands, *(Emit(*frame) for frame in self.stitcher.accept(kind, data))]

    def _note_id(self, upstream_id: str) -> None:
        if len(self.upstream_ids) <= self.stitcher.round:
            self.upstream_ids.append(upstream_id)

    def _observe(self, kind: str, data: Json) -> list[Command]:
        item, name = data.get("item"), data.get("item_id")
        if isinstance(item, dict):
            if kind == "response.output_item.done":
                return self._look_at(item, data.get("output_index"))
            if item.get("type") == "mcp_call":
                begun = str(item.get("id"))
                self.running[begun] = str(item.get("approval_request_id"))
                if self._has_leave(item):
                    self.running[begun], self.begun[begun] = begun, self._call(item)
        elif kind == "response.mcp_call_arguments.done" and name in self.begun:
            arguments = arguments_text(data.get("arguments"))
            self.begun[name] = dataclasses.replace(self.begun[name], arguments=arguments)
        elif kind in _ENDED and name in self.running:
            self.ended[self.running[name]] = _ENDED[kind]
        return []

    def _look_at(self, item: Json, index: Any) -> list[Command]:
        kind, name = item.get("type"), str(item.get("id"))
        # Within a round: a call that is reported again later has been made again.
        key = f"{self.stitcher.round}/{item.get('id') or index}"
        if key in self.seen:
            return []
        self.seen.append(key)
        self._note_client_call(item)
        if kind == "mcp_approval_request":
            self.calls[name] = self._call(item)
        if kind == "mcp_call":
            return self._executed(item)
        return self._listed(item) if kind == "mcp_list_tools" else []

    def _call(self, item: Json) -> Call:
        return Call(
            str(item.get("id")),
            str(item.get("server_label")),
            str(item.get("name")),
            arguments_text(item.get("arguments")),
            self.stitcher.round,
        )

    def _has_leave(self, item: Json) -> bool:
        """Whether this call was not asked for because it need not be."""
        if item.get("approval_request_id") is not None or not isinstance(item.get("id"), str):
            return False
        return item.get("name") in self.leave.get(str(item.get("server_label")), ())

    def _note_client_call(self, item: Json) -> None:
        call_id = item.get("call_id")
        if item.get("type") in CLIENT_CALLS:
            self.client_calls.append(str(call_id))
        elif isinstance(call_id, str) and call_id in self.client_calls:
            # A hosted shell: Azure itself has answered this call.
            self.client_calls.remove(call_id)

    def _listed(self, item: Json) -> list[Command]:
        tools = tuple(tool for tool in item.get("tools") or [] if isinstance(tool, dict))
        return [Listed(str(item.get("server_label")), tools)] if not item.get("error") else []

    def _executed(self, item: Json) -> list[Command]:
        request_id = item.get("approval_request_id")
        label, tool = str(item.get("server_label")), str(item.get("name"))
        call = self.released.pop(str(request_id), None)
        self.executions += 1
        if call is None and self._has_leave(item):
            self.begun.pop(item["id"], None)
            return [Ran(self._call(item), outcome_of(item))]
        if call is None:
            why = "executed without an approval" if request_id is None else "not released, or twice"
            return [Mismatch(None if request_id is None else str(request_id), label, tool, why)]
        asked = (call.server_label, call.tool, call.arguments)
        matches = asked == (label, tool, arguments_text(item.get("arguments")))
        commands: list[Command] = [Observed(call.request_id, outcome_of(item), matches)]
        if not matches:
            commands.append(Mismatch(call.request_id, label, tool, "not the call approved"))
        return commands

    def _round_ended(self, kind: str, data: Json) -> list[Command]:
        response = data.get("response")
        if not isinstance(response, dict):
            return self._broken(Broken("Azure ended the round without a response.", sent=True))
        output = response.get("output") or []
        commands: list[Command] = []
        for index, item in enumerate(output):
            commands += self._look_at(item, index)
        commands += self._settle("unknown")
        # Answers go out in the order of the output, whatever order the frames had.
        names = [str(item.get("id")) for item in output]
        self.calls = {name: self.calls[name] for name in names if name in self.calls} | self.calls
        self.stitcher.end_round(response)
        used = (response.get("usage") or {}).get("output_tokens")
        self.output_tokens += used if isinstance(used, int) and 0 <= used < 2**53 else 0
        self.transcript += output
        if kind == "response.completed" and self.calls and not self._left_to_the_app():
            return [*commands, *self._ask()]
        return [*commands, *self._end(kind, data)]

    def _settle(self, otherwise: str) -> list[Command]:
        """What is known of the released calls that no item has told us about."""
        released, self.released = self.released, {}
        begun, self.begun = self.begun, {}
        # What began without being asked for was sent, whatever else was not.
        ran = [Ran(call, self.ended.get(name, "unknown")) for name, call in begun.items()]
        return [*(Observed(name, self.ended.get(name, otherwise)) for name in released), *ran]

    def _left_to_the_app(self) -> bool:
        """The app owes outputs of its own first, or wants to continue by itself."""
        return bool(self.client_calls) or self.plan.show_approvals

    def _ask(self) -> list[Command]:
        if self.stitcher.round + 1 >= self.plan.max_rounds:
            error = _error(
                f"The model asked for approvals in {self.plan.max_rounds} rounds without an end.",
                "too_many_rounds",
            )
            return self._failed(Fault(424, {"error": error}))
        self.answers = dict.fromkeys(self.calls)
        self._enter("holding")
        return [Hold(tuple(self.calls.values()))]

    def _end(self, kind: str, data: Json) -> list[Command]:
        left_open = tuple(self.calls.values())
        ending = self.stitcher.ending(kind, data)
        outcome = TERMINAL[kind]
        self._enter("done" if outcome in {"completed", "incomplete"} else outcome)
        finished = Finished(outcome, ending["response"], None, left_open, around=self._around())
        return [Emit(kind, ending), finished]

    def _around(self) -> dict[str, Around]:
        if self.stitcher.transparent:
            return {}  # nothing was hidden, and nothing changed
        return around(self.transcript, self.stitcher.output())

    # --- failing ----------------------------------------------------------------------------

    def _rejected(self, event: Rejected) -> list[Command]:
        self._must_be("forwarding")
        commands = self._settle("not_sent" if never_ran(event) else "unknown")
        fault = Fault(event.status, event.body, event.headers)
        return commands + self._failed(self._once_only(fault))

    def _broken(self, event: Broken) -> list[Command]:
        self._must_be("forwarding")
        commands = self._settle("unknown" if event.sent else "not_sent")
        body = {"error": _error(event.message, event.code)}
        fault = Fault(event.status, body, _NO_RETRY if event.sent else {})
        return commands + self._failed(self._once_only(fault))

    @property
    def has_asked(self) -> bool:
        """Whether calls have been put up for decision: to start over would ask people again."""
        return self.stitcher.round > 0 or bool(self.told)

    def _once_only(self, fault: Fault) -> Fault:
        """The fault as no client repeats it, where a repetition would ask people once more. Some
        read the status and nothing else.
        """
        if not self.has_asked:
            return fault
        status = 424 if fault.status in _REPEATED or fault.status >= 500 else fault.status
        return Fault(status, fault.body, {**fault.headers, **_NO_RETRY})

    def _failed(self, fault: Fault) -> list[Command]:
        self._enter("failed")
        calls = (tuple(self.calls.values()), self._undelivered())
        if self.id is None:
            return [Finished("failed", None, fault, *calls)]
        error = fault.body.get("error")
        told = self.error_told
        frames = self.stitcher.failure(error if isinstance(error, dict) else {}, told=told)
        response = frames[-1][1]["response"]
        finished = Finished("failed", response, fault, *calls, around=self._around())
        return [*(Emit(*frame) for frame in frames), finished]

    def _cancelled(self, event: Cancelled) -> list[Command]:
        self._must_be("forwarding", "holding")
        calls = (tuple(self.calls.values()), self._undelivered())
        commands = self._settle("unknown")
        self._enter("cancelled")
        response = None if self.id is None else self.stitcher.interim("cancelled")
        fault = Fault(499, {"error": _error(event.reason, "cancelled")})
        return [*commands, Finished("cancelled", response, fault, *calls, around=self._around())]

    def _undelivered(self) -> tuple[Call, ...]:
        """The calls answered by a round of which Azure never gave an id."""
        begun = len(self.upstream_ids) > self.stitcher.round
        return () if begun else tuple(self.told.values())

    def interim(self) -> Json:
        """The response object while the exchange is not over."""
        return self.stitcher.interim("in_progress")

    def keepalive(self) -> Emit:
        """A sign of life as a numbered frame, for clients whose patience comments do not renew."""
        return Emit("keepalive", self.stitcher.keepalive())

    # --- snapshots --------------------------------------------------------------------------

    def snapshot(self) -> Json:
        """Everything, as plain JSON. No secret is in it: none was ever here."""
        return {
            "version": 2,
            "plan": dataclasses.asdict(self.plan),
            "state": self.state,
            "stitcher": self.stitcher.snapshot(),
            "calls": [dataclasses.asdict(call) for call in self.calls.values()],
            "answers": [
                [name, None if answer is None else dataclasses.asdict(answer)]
                for name, answer in self.answers.items()
            ],
            "told": [dataclasses.asdict(call) for call in self.told.values()],
            "released": list(self.released),
            "leave": self.leave,
            "begun": [dataclasses.asdict(call) for call in self.begun.values()],
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Exchange:
        """The exchange as it was; raises ValueError for a snapshot of an unknown version."""
        if state.get("version") == 1:
            state = saved.second_version(state)
        if state.get("version") != 2:
            raise ValueError(f"snapshot version {state.get('version')!r} is not known")
        exchange = cls(saved.plan(state["plan"]))
        exchange.state = state["state"]
        exchange.stitcher = Stitcher.restore(
            exchange.plan.asked, exchange.plan.show_approvals, state["stitcher"]
        )
        exchange.calls = {call["request_id"]: Call(**call) for call in state["calls"]}
        exchange.answers = {name: saved.answer(answer) for name, answer in state["answers"]}
        exchange.told = {call["request_id"]: Call(**call) for call in state["told"]}
        exchange.released = {name: exchange.told[name] for name in state["released"]}
        exchange.leave = state.get("leave", {})
        exchange.begun = {call["request_id"]: Call(**call) for call in state.get("begun", ())}
        for name in _PLAIN:
            setattr(exchange, name, state[name])
        return exchange


_PLAIN = (
    "running", "ended", "seen", "client_calls", "upstream_ids", "transcript", "output_tokens",
    "executions", "error_told",
)  # fmt: skip
#: The frames that tell of an execution's end before the item does.
_ENDED = {"response.mcp_call.completed": "executed", "response.mcp_call.failed": "failed"}
#: What reading a document raises when it is of another shape.
_MALFORMED = (TypeError, AttributeError, KeyError, IndexError, ValueError)
#: Statuses below 500 after which clients send the same request again by themselves.
_REPEATED = frozenset({408, 409, 429})
_NO_RETRY = {"x-should-retry": "false"}


def _error(message: str, code: str) -> Json:
    return {"message": message, "type": "server_error", "param": None, "code": code}
