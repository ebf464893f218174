"""The deterministic model: reads what to do from plain words in the user's text. Pure.

The grammar is described in docs/demo.md. `read` turns a text into a `Script`; `next_turn` says,
for a script and what has happened since, what the model does now: call tools, or answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway.demo.wire import JSON, compact

_CLAUSE = re.compile(
    r"\b(?P<kind>call|function)\s+(?P<name>[A-Za-z_][\w./-]*)\s*(?=\{|[\s.;,]|$)"
    r"|\bsay\s+(?P<quoted>\"[^\"]*\"|.+?)\s+first\b"
    r"|\b(?P<denied>if denied)\b"
    r"|\b(?P<then>then)\b",
    re.IGNORECASE,
)
_DIRECTIVE = re.compile(
    r"\b(?P<kind>fail|quirk):\s*(?P<name>[a-z]+(?:-[a-z]+)*)"
    r"(?:\s+(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>s|times)\b)?(?P<always>\s+always)?"
    r"(?P<resume>\s+on resume)?",
    re.IGNORECASE,
)
_SPOKEN: tuple[tuple[re.Pattern[str], str, tuple[str, ...]], ...] = (
    (re.compile(r"balance of account (\d+)", re.IGNORECASE), "get_balance", ("account",)),
    (re.compile(r"transfers of account (\d+)", re.IGNORECASE), "list_transfers", ("account",)),
    (
        re.compile(r"transfer (\d+(?:\.\d+)?) ([A-Z]{3}) to account (\d+)", re.IGNORECASE),
        "transfer",
        ("amount", "currency", "to_account"),
    ),
    (
        re.compile(r"phone(?: number)? of (.+?) to (\+?[\d ]+\d)", re.IGNORECASE),
        "update_contact",
        ("name", "phone"),
    ),
    (re.compile(r"contact details of (.+?)[.?!]*$", re.IGNORECASE), "find_contact", ("name",)),
)
_CALLS = ("mcp_approval_request", "function_call")


@dataclass(frozen=True)
class Call:
    """One tool call the model makes. `arguments` is JSON text, kept exactly as it was written."""

    tool: str
    arguments: str
    client_side: bool = False
    explicit: bool = True


@dataclass(frozen=True)
class Round:
    """What the model does at once: optionally says something, then makes its calls."""

    say: str | None = None
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Directive:
    """A fault or a quirk: `times` is None when it holds always; `seconds` only for `slow`."""

    name: str
    on_resume: bool = False
    times: int | None = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Script:
    """All that a user's text asks for."""

    text: str
    rounds: tuple[Round, ...] = ()
    if_denied: tuple[Round, ...] = ()
    faults: tuple[Directive, ...] = ()
    quirks: tuple[Directive, ...] = ()

    def has_quirk(self, name: str, *, resume: bool) -> bool:
        return any(q.name == name and (resume or not q.on_resume) for q in self.quirks)


@dataclass(frozen=True)
class Turn:
    """The next step: `calls` to make after saying `say`, or, without calls, the answer `say`."""

    say: str | None
    calls: tuple[Call, ...] = ()


def read(text: str) -> Script:
    """The script in a user's text. Never fails: a text that asks for nothing is answered."""
    directives = [(m["kind"].lower(), _directive(m)) for m in _DIRECTIVE.finditer(text)]
    words = _DIRECTIVE.sub(" ", text)
    rounds, if_denied = _rounds(words)
    if not rounds:
        rounds = _spoken(words)
    return Script(
        text=" ".join(words.split()),
        rounds=rounds,
        if_denied=if_denied,
        faults=tuple(d for kind, d in directives if kind == "fail"),
        quirks=tuple(d for kind, d in directives if kind == "quirk"),
    )


_LASTING = ("content-filter", "output-filter", "incomplete", "slow", "list-item")


def _directive(match: re.Match[str]) -> Directive:
    name = match["name"].lower()
    times: int | None = 1
    seconds = 0.0
    if match["always"] or name in _LASTING:
        times = None
    if match["unit"] and match["unit"].lower() == "times":
        times = int(float(match["number"]))
    elif match["unit"]:
        seconds = float(match["number"])
    if name == "previous-not-found-twice":
        name, times = "previous-not-found", 2
    return Directive(name, bool(match["resume"]), times, seconds)


def _rounds(text: str) -> tuple[tuple[Round, ...], tuple[Round, ...]]:
    branches: list[list[Round]] = [[Round()], [Round()]]
    branch, at = 0, 0
    while match := _CLAUSE.search(text, at):
        at = match.end()
        rounds = branches[branch]
        if match["denied"]:
            branch = 1
        elif match["then"]:
            rounds.append(Round())
        elif match["quoted"]:
            rounds[-1] = replace(rounds[-1], say=match["quoted"].strip('"'))
        else:
            call, at = _call(match, text)
            rounds[-1] = replace(rounds[-1], calls=(*rounds[-1].calls, call))
    first, second = (tuple(r for r in rounds if r.calls) for rounds in branches)
    return first, second


def _call(match: re.Match[str], text: str) -> tuple[Call, int]:
    client_side = match["kind"].lower() == "function"
    end = match.end()
    if text[end : end + 1] != "{":
        return Call(match["name"].rstrip("."), "{}", client_side, explicit=False), end
    try:
        _, stop = json.JSONDecoder().raw_decode(text, end)
    except ValueError:
        return Call(match["name"], "{}", client_side, explicit=False), end
    return Call(match["name"], text[end:stop], client_side), stop


def _spoken(text: str) -> tuple[Round, ...]:
    for pattern, tool, names in _SPOKEN:
        if found := pattern.search(text.strip()):
            values = dict(zip(names, found.groups(), strict=True))
            return (Round(calls=(Call(tool, compact(_typed(values)), explicit=False),)),)
    return ()


def _typed(values: dict[str, str]) -> dict[str, object]:
    typed: dict[str, object] = dict(values)
    if "amount" in values:
        amount = float(values["amount"])
        typed["amount"] = int(amount) if amount.is_integer() else amount
    if "currency" in values:
        typed["currency"] = values["currency"].upper()
    return typed


# ---------------------------------------------------------------------------------------------
# The conversation so far


def user_text(item: JSON) -> str:
    """The text of one message item, its parts joined by newlines; "" when it has none."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content or [] if "text" in part)


def since_user(context: Sequence[JSON]) -> tuple[str, list[JSON]]:
    """The last user message's text, and the items after it."""
    for index in range(len(context) - 1, -1, -1):
        item = context[index]
        if item.get("type") == "message" and item.get("role") == "user":
            return user_text(item), list(context[index + 1 :])
    return "", list(context)


def next_turn(script: Script, after: Sequence[JSON], *, parallel: bool = True) -> Turn:
    """What the model does now, given the items `after` the user's message."""
    denials = [i for i, item in enumerate(after) if _is_denial(item)]
    rounds, counted = script.rounds, after
    if denials:
        rounds, counted = script.if_denied, after[denials[0] + 1 :]
    if not parallel:
        rounds = tuple(Round(r.say, (call,)) for r in rounds for call in r.calls)
    made = sum(1 for item in counted if _is_call(item))
    for turn in rounds:
        if made <= 0:
            return Turn(turn.say, turn.calls)
        made -= len(turn.calls)
    return Turn(answer(script, after))


def _is_denial(item: JSON) -> bool:
    return item.get("type") == "mcp_approval_response" and item.get("approve") is False


def _is_call(item: JSON) -> bool:
    # An approved call was counted at its request already.
    if item.get("type") == "mcp_call":
        return not item.get("approval_request_id")
    return item.get("type") in _CALLS


def answer(script: Script, after: Sequence[JSON]) -> str:
    """The closing text: what the tools returned, what was denied and why, or an echo."""
    asked = {item["id"]: item for item in after if item.get("type") == "mcp_approval_request"}
    sentences = [sentence for item in after if (sentence := _sentence(item, asked))]
    return " ".join(sentences) or f"You said: {script.text}"


def _sentence(item: JSON, asked: dict[str, JSON]) -> str:
    match item.get("type"):
        case "mcp_call":
            name = f"{item.get('server_label')}.{item.get('name')}"
            if item.get("error"):
                return f"{name} failed: {compact(item['error'])}."
            return f"{name} returned: {item.get('output')}."
        case "function_call_output":
            output = item.get("output")
            return (
                f"The function returned: {output if isinstance(output, str) else compact(output)}."
            )
        case "mcp_approval_response" if item.get("approve") is False:
            request = asked.get(str(item.get("approval_request_id")), {})
            name = f"{request.get('server_label', '?')}.{request.get('name', '?')}"
            reason = item.get("reason")
            why = f" The reason given: {reason}" if reason else ""
            return f"I did not run {name}: the call was denied.{why}"
        case _:
            return ""
