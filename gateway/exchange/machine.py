"""Steps 4 to 8: one exchange as a state machine. Events in, commands out; no I/O, no clock.

`receive` returns what is to be done, in order; at most one of the commands is a *turn* (Forward,
Hold, Finished), and it is the last. The state is plain data: `snapshot` and `restore` lose
nothing, so an exchange that waits for people lives in the database and not in a coroutine.

Transitions (printed from `TRANSITIONS` into ARCHITECTURE.md by a test):

    new        --Started-->   forwarding | holding
    forwarding --FrameSeen--> forwarding | holding | done | failed
    forwarding --Rejected | Broken--> failed
    holding    --Decided-->   holding | forwarding
    forwarding | holding --Cancelled--> cancelled
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, assert_never

import orjson

from gateway.exchange import resume
from gateway.exchange.messages import (
    CLIENT_CALLS,
    TERMINAL,
    Answer,
    Binding,
    Broken,
    Call,
    Cancelled,
    Carried,
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
    Rejected,
    Started,
)
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
        self.stitcher = Stitcher(plan.asked, show_approvals=plan.show_approvals)
        self.calls: dict[str, Call] = {}  # asked for in the running or just ended round
        self.answers: dict[str, Answer | None] = {}  # what the next round will tell Azure
        self.released: dict[str, Call] = {}  # approved and sent; observed ones are taken out
        self.seen: list[str] = []  # ids of MCP items already looked at
        self.client_calls = False
        self.upstream_ids: list[str] = []
        self.context: list[Json] = []  # stateless chains: everything so far, in order
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
                return self._frame(event)
            case Rejected():
                return self._rejected(event)
            case Broken():
                return self._broken(event)
            case Decided():
                return self._decided(event)
            case Cancelled():
                return self._cancelled(event)
            case _:
                assert_never(event)

    def _enter(self, state: str) -> None:
        if state != self.state:
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
        if self.plan.body.get("store") is False:
            self.context = resume.as_items(self.plan.body.get("input"))
        awaited = tuple(name for name, answer in self.answers.items() if answer is None)
        if awaited:
            self._enter("holding")
            return [Hold((), awaited)]
        return [self._forward()]

    def _decided(self, event: Decided) -> list[Command]:
        self._must_be("holding")
        if self.answers.get(event.request_id, event.answer) is not None:
            # Unknown here, or decided before: the first decision stands.
            return []
        self.answers[event.request_id] = event.answer
        if any(answer is None for answer in self.answers.values()):
            return []
        return [self._forward()]

    def _forward(self) -> Forward:
        answers = {name: answer for name, answer in self.answers.items() if answer is not None}
        approved = tuple(name for name, answer in answers.items() if answer.approve)
        body = resume.next_body(
            self.plan,
            answers,
            resume.Progress(
                tuple(self.upstream_ids), self.context, self.output_tokens, self.executions
            ),
        )
        if self.context:
            self.context = body["input"]
        self.released = {name: self.calls[name] for name in approved if name in self.calls}
        self.calls, self.answers, self.client_calls = {}, {}, False
        self.stitcher.begin_round()
        self._enter("forwarding")
        return Forward(self.stitcher.round, body, self.plan.bindings, approved)

    # --- a running round --------------------------------------------------------------------

    def passes(self, event: str | None) -> bool:
        """Whether the frame of this name may go to the app byte for byte, unparsed."""
        return self.state == "forwarding" and self.stitcher.passes(event)

    def _frame(self, event: FrameSeen) -> list[Command]:
        self._must_be("forwarding")
        kind, data = event.type, event.data
        response = data.get("response")
        if isinstance(response, dict) and isinstance(response.get("id"), str):
            self._note_id(response["id"])
        if kind in TERMINAL:
            return self._round_ended(kind, data)
        self.error_told = self.error_told or kind == "error"
        commands: list[Command] = []
        if kind == "response.output_item.done" and isinstance(data.get("item"), dict):
            commands += self._look_at(data["item"])
        shown = self.stitcher.accept(kind, data)
        return commands if shown is None else [*commands, Emit(kind, shown)]

    def _note_id(self, upstream_id: str) -> None:
        if len(self.upstream_ids) <= self.stitcher.round:
            self.upstream_ids.append(upstream_id)

    def _look_at(self, item: Json) -> list[Command]:
        kind, name = item.get("type"), str(item.get("id"))
        if kind in CLIENT_CALLS:
            self.client_calls = True
        if kind not in {"mcp_approval_request", "mcp_call", "mcp_list_tools"}:
            return []
        if name in self.seen:
            return []
        self.seen.append(name)
        if kind == "mcp_approval_request":
            self.calls[name] = Call(
                name,
                str(item.get("server_label")),
                str(item.get("name")),
                arguments_text(item.get("arguments")),
                self.stitcher.round,
            )
            return []
        if kind == "mcp_call":
            return self._executed(item)
        tools = tuple(tool for tool in item.get("tools") or [] if isinstance(tool, dict))
        return [Listed(str(item.get("server_label")), tools)] if not item.get("error") else []

    def _executed(self, item: Json) -> list[Command]:
        request_id = item.get("approval_request_id")
        label, tool = str(item.get("server_label")), str(item.get("name"))
        call = self.released.pop(str(request_id), None)
        self.executions += 1
        if call is None:
            why = "executed without an approval" if request_id is None else "not released, or twice"
            return [Mismatch(None if request_id is None else str(request_id), label, tool, why)]
        asked = (call.server_label, call.tool, call.arguments)
        matches = asked == (label, tool, arguments_text(item.get("arguments")))
        failed = bool(item.get("error")) or item.get("status") == "failed"
        commands: list[Command] = [
            Observed(call.request_id, "failed" if failed else "executed", matches)
        ]
        if not matches:
            commands.append(Mismatch(call.request_id, label, tool, "not the call approved"))
        return commands

    def _round_ended(self, kind: str, data: Json) -> list[Command]:
        response = data["response"]
        commands: list[Command] = []
        for item in response.get("output") or []:
            commands += self._look_at(item)
        commands += [Observed(name, "unknown") for name in self.released]
        self.released = {}
        self.stitcher.end_round(response)
        self.output_tokens += (response.get("usage") or {}).get("output_tokens") or 0
        if self.plan.body.get("store") is False:
            self.context = [*self.context, *(response.get("output") or [])]
        pending = tuple(self.calls.values())
        if kind == "response.completed" and pending and self._can_resume():
            self.answers = {call.request_id: None for call in pending}
            self._enter("holding")
            return [*commands, Hold(pending)]
        return [*commands, *self._end(kind, data, pending)]

    def _can_resume(self) -> bool:
        """Not while the app owes outputs of its own, continues by itself, or went too far."""
        return (
            not self.client_calls
            and not self.plan.show_approvals
            and self.stitcher.round + 1 < self.plan.max_rounds
        )

    def _end(self, kind: str, data: Json, pending: tuple[Call, ...]) -> list[Command]:
        too_far = (
            kind == "response.completed"
            and pending
            and not self.client_calls
            and not self.plan.show_approvals
        )
        if too_far:
            error = _error(
                f"The model asked for approvals in {self.plan.max_rounds} rounds without an end.",
                "too_many_rounds",
            )
            return self._failed(Fault(424, {"error": error}), pending)
        ending = self.stitcher.ending(kind, data)
        outcome = TERMINAL[kind]
        self._enter("done" if outcome in {"completed", "incomplete"} else outcome)
        return [Emit(kind, ending), Finished(outcome, ending["response"], None, pending)]

    # --- failing ----------------------------------------------------------------------------

    def _rejected(self, event: Rejected) -> list[Command]:
        self._must_be("forwarding")
        commands: list[Command] = [Observed(name, "not_sent") for name in self.released]
        headers = dict(event.headers)
        if self.stitcher.round:
            # A client's retry would start over with round one and ask people once more.
            headers["x-should-retry"] = "false"
        return commands + self._failed(Fault(event.status, event.body, headers))

    def _broken(self, event: Broken) -> list[Command]:
        self._must_be("forwarding")
        outcome = "unknown" if event.sent else "not_sent"
        commands: list[Command] = [Observed(name, outcome) for name in self.released]
        error = _error(event.message, "upstream_failed")
        return commands + self._failed(
            Fault(502, {"error": error}, {"x-should-retry": "false"} if event.sent else {})
        )

    def _failed(self, fault: Fault, pending: tuple[Call, ...] = ()) -> list[Command]:
        left_open = pending or tuple(self.calls.values())
        self._enter("failed")
        if self.id is None:
            return [Finished("failed", None, fault, left_open)]
        error = fault.body.get("error")
        told = self.error_told
        frames = self.stitcher.failure(error if isinstance(error, dict) else {}, told=told)
        response = frames[-1][1]["response"]
        emitted: list[Command] = [Emit(kind, data) for kind, data in frames]
        return [*emitted, Finished("failed", response, fault, left_open)]

    def _cancelled(self, event: Cancelled) -> list[Command]:
        self._must_be("forwarding", "holding")
        left_open = tuple(self.calls.values())
        commands: list[Command] = [Observed(name, "unknown") for name in self.released]
        self._enter("cancelled")
        response = None if self.id is None else self.stitcher.interim("cancelled")
        error = _error(event.reason, "cancelled")
        return [*commands, Finished("cancelled", response, Fault(499, {"error": error}), left_open)]

    def interim(self) -> Json:
        """The response object while the exchange is not over."""
        return self.stitcher.interim("in_progress")

    # --- snapshots --------------------------------------------------------------------------

    def snapshot(self) -> Json:
        """Everything, as plain JSON. No secret is in it: none was ever here."""
        return {
            "version": 1,
            "plan": dataclasses.asdict(self.plan),
            "state": self.state,
            "stitcher": self.stitcher.snapshot(),
            "calls": [dataclasses.asdict(call) for call in self.calls.values()],
            "answers": [
                [name, None if answer is None else dataclasses.asdict(answer)]
                for name, answer in self.answers.items()
            ],
            "released": [dataclasses.asdict(call) for call in self.released.values()],
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Exchange:
        """The exchange as it was; raises ValueError for a snapshot of another version."""
        if state.get("version") != 1:
            raise ValueError(f"snapshot version {state.get('version')!r} is not known")
        exchange = cls(_plan(state["plan"]))
        exchange.state = state["state"]
        exchange.stitcher = Stitcher.restore(
            exchange.plan.asked, exchange.plan.show_approvals, state["stitcher"]
        )
        exchange.calls = {call["request_id"]: Call(**call) for call in state["calls"]}
        exchange.answers = {name: _answer(answer) for name, answer in state["answers"]}
        exchange.released = {call["request_id"]: Call(**call) for call in state["released"]}
        for name in _PLAIN:
            setattr(exchange, name, state[name])
        return exchange


_PLAIN = (
    "seen", "client_calls", "upstream_ids", "context", "output_tokens", "executions", "error_told",
)  # fmt: skip


def arguments_text(arguments: Any) -> str:
    """The arguments as one string: as Azure sent it, or compact JSON where it sent an object."""
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()


def _plan(state: Mapping[str, Any]) -> Plan:
    return Plan(
        **{
            **state,
            "bindings": tuple(Binding(**binding) for binding in state["bindings"]),
            "carried": tuple(
                Carried(Call(**carried["call"]), _answer(carried["answer"]))
                for carried in state["carried"]
            ),
        }
    )


def _answer(state: Mapping[str, Any] | None) -> Answer | None:
    return None if state is None else Answer(**state)


def _error(message: str, code: str) -> Json:
    return {"message": message, "type": "server_error", "param": None, "code": code}
