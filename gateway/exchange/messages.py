"""What goes into an exchange and what comes out: frozen data, no behaviour, no I/O.

Steps 2 to 9 of the path speak in these words. `Json` is a parsed JSON object; where a member is
the app's or Azure's own, it is kept as it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import NotAllowed

Json = dict[str, Any]

#: Items that exist only between Azure and the gateway; the app never sees one.
HIDDEN_ITEMS = frozenset({"mcp_approval_request", "mcp_approval_response"})
#: Items of MCP that an app may be handed: they come back unchanged, or not at all.
MCP_ITEMS = frozenset({"mcp_list_tools", "mcp_call", "mcp_approval_request"})
#: Items that the app itself must answer before the chain can go on (protocol: mixed rounds).
CLIENT_CALLS = frozenset(
    {
        "function_call",
        "custom_tool_call",
        "computer_call",
        "local_shell_call",
        "shell_call",
        "apply_patch_call",
    }
)
#: The frames that end a round, and the status each stands for.
TERMINAL = {
    "response.completed": "completed",
    "response.failed": "failed",
    "response.incomplete": "incomplete",
    "response.cancelled": "cancelled",
}


class Bypass(NotAllowed):
    """An attempt to get round the gateway: refused, and recorded as a security event."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What enforcement must know of a registered MCP server; no credential among it."""

    id: str
    label: str
    url: str
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """The tool entry at `tool_index` of the body belongs to the registered server `server_id`.

    The sender adds that server's credential there, last, and only if `url` still is its address.
    """

    tool_index: int
    server_label: str
    server_id: str
    url: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call that Azure asks approval for. `arguments` is the exact string to be approved."""

    request_id: str
    server_label: str
    tool: str
    arguments: str
    round: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What Azure is told about one approval request; `reason` is read by the model."""

    approve: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """A call left unanswered by an earlier exchange that this one continues."""

    call: Call
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What an exchange sets out to do: fixed at its start, part of every snapshot.

    `asked` is the app's request as it came, `body` what we are willing to send: servers
    replaced, no secret inside. `mediated`: the answer is ours to number and to watch over; else
    it passes as it comes.
    """

    asked: Json
    body: Json
    bindings: tuple[Binding, ...] = ()
    carried: tuple[Carried, ...] = ()
    show_approvals: bool = False
    max_rounds: int = 25
    mediated: bool = True


# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The app's request has been accepted."""


@dataclass(frozen=True, slots=True)
class FrameSeen:
    """One frame of the running round. A plain response counts as its terminal frame."""

    type: str
    data: Json


@dataclass(frozen=True, slots=True)
class Rejected:
    """Azure answered the round with an HTTP error. Whether it was carried out is for the
    machine to say: some errors come only after the call.
    """

    status: int
    body: Json
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """The round ended without a terminal frame. `sent`: whether Azure may have acted on it.

    `code` and `status` are what the app is told.
    """

    message: str
    sent: bool
    code: str = "upstream_failed"
    status: int = 502


@dataclass(frozen=True, slots=True)
class Decided:
    """The decision on one call is durably recorded."""

    request_id: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Reopened:
    """Not a byte of the round was sent, and the answers to these calls do not stand any more.

    Without any, the same round is to be sent after all.
    """

    request_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody wants the rest: cancelled by the app, or its connection is gone for good."""

    reason: str


Event = Started | FrameSeen | Rejected | Broken | Decided | Reopened | Cancelled

# --- commands -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Emit:
    """Give the app this frame."""

    type: str
    data: Json


@dataclass(frozen=True, slots=True)
class Listed:
    """A server listed its tools: pin them or compare them with their pins."""

    server_label: str
    tools: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """What became of a released call: executed, failed, not_sent or unknown."""

    request_id: str
    outcome: str
    matches: bool | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a call for which the round gave leave beforehand, so that nobody was asked.

    The call has the id of its item for a request id.
    """

    call: Call
    outcome: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Azure reports an execution that nobody approved, or another one than was approved."""

    request_id: str | None
    server_label: str
    tool: str
    why: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Send this round. It answers the approval requests `releases` with yes, `denials` with no.

    `replay` is the round as it can be sent when Azure never finds its parent.
    """

    round: int
    body: Json
    bindings: tuple[Binding, ...]
    releases: tuple[str, ...] = ()
    denials: tuple[str, ...] = ()
    replay: Json | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Have these calls decided. `open` are new; `awaited` were opened by an earlier exchange."""

    open: tuple[Call, ...]
    awaited: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """How a failure looks as an HTTP answer: status, body in the OpenAI error shape."""

    status: int
    body: Json
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Around:
    """What belongs around an item that the app has: hidden items before and after it, in order,
    and the members it has at Azure and not at the app.
    """

    before: list[Json] = field(default_factory=list)
    after: list[Json] = field(default_factory=list)
    members: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """The exchange is over. `left_open` calls were asked for and need an answer later on.

    `undelivered` calls were decided, but their answers cannot be known to have reached Azure:
    whoever goes on from the last round must answer them there, with no. `around` holds, by the id
    of an item that the app was shown, what it was not shown.
    """

    outcome: str  # completed | incomplete | failed | cancelled
    response: Json | None
    fault: Fault | None = None
    left_open: tuple[Call, ...] = ()
    undelivered: tuple[Call, ...] = ()
    around: Mapping[str, Around] = field(default_factory=dict)


Turn = Forward | Hold | Finished
Command = Emit | Listed | Observed | Ran | Mismatch | Forward | Hold | Finished
