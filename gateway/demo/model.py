"""The deterministic model: reads what to do from plain words in the user's text. Pure.

The grammar is described in docs/demo.md. `read` turns a text into a `Script`; what the model
then does with it, turn by turn, is in `turns`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

from gateway.demo.wire import compact

_CLAUSE = re.compile(
    r"\b(?P<kind>call|function)\s+(?P<name>[A-Za-z_][\w./-]*)\s*(?=\{|[\s.;,]|$)"
    r"|\b(?P<image>generate\s+(?:an?|the)\s+(?:[\w-]+\s+)?(?:image|picture)|draw)\b"
    r"|\b(?P<computer>use the computer)\b\s*"
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


@dataclass(frozen=True)
class Call:
    """One tool call the model makes. `arguments` is JSON text, kept exactly as it was written.

    `kind` is "mcp", "function", "image" or "computer". Words that merely look like a call are not
    `explicit`: they count only when such a tool is offered.
    """

    tool: str
    arguments: str
    kind: str = "mcp"
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
    """All that a user's message asks for; `saw` remarks on the images and files in it."""

    text: str
    rounds: tuple[Round, ...] = ()
    if_denied: tuple[Round, ...] = ()
    faults: tuple[Directive, ...] = ()
    quirks: tuple[Directive, ...] = ()
    saw: str = ""

    def has_quirk(self, name: str, *, resume: bool) -> bool:
        return any(q.name == name and (resume or not q.on_resume) for q in self.quirks)


def read(text: str) -> Script:
    """The script in a user's text. Never fails: a text that asks for nothing is answered."""
    directives = [(m["kind"].lower(), _directive(m)) for m in _DIRECTIVE.finditer(text)]
    words = _DIRECTIVE.sub(" ", text)
    rounds, if_denied = _rounds(words)
    if not any(c.kind in ("mcp", "function") for r in rounds for c in r.calls):
        rounds = _with(_spoken(words), rounds)
    return Script(
        text=" ".join(words.split()),
        rounds=rounds,
        if_denied=if_denied,
        faults=tuple(d for kind, d in directives if kind == "fail"),
        quirks=tuple(d for kind, d in directives if kind == "quirk"),
    )


def _with(spoken: tuple[Call, ...], rounds: tuple[Round, ...]) -> tuple[Round, ...]:
    """What was asked for in plain words belongs to the first round."""
    if not spoken:
        return rounds
    first = rounds[0] if rounds else Round()
    return (replace(first, calls=(*first.calls, *spoken)), *rounds[1:])


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
    kind, name = _named(match)
    end = match.end()
    if kind == "image" or text[end : end + 1] != "{":
        return Call(name.rstrip("."), "{}", kind, explicit=False), end
    try:
        _, stop = json.JSONDecoder().raw_decode(text, end)
    except ValueError:
        return Call(name, "{}", kind, explicit=False), end
    return Call(name, text[end:stop], kind, explicit=kind != "computer"), stop


def _named(match: re.Match[str]) -> tuple[str, str]:
    if match["image"]:
        return "image", "image_generation"
    if match["computer"]:
        return "computer", "computer"
    return ("function" if match["kind"].lower() == "function" else "mcp"), match["name"]


def _spoken(text: str) -> tuple[Call, ...]:
    for pattern, tool, names in _SPOKEN:
        if found := pattern.search(text.strip()):
            values = dict(zip(names, found.groups(), strict=True))
            return (Call(tool, compact(_typed(values)), explicit=False),)
    return ()


def _typed(values: dict[str, str]) -> dict[str, object]:
    typed: dict[str, object] = dict(values)
    if "amount" in values:
        amount = float(values["amount"])
        typed["amount"] = int(amount) if amount.is_integer() else amount
    if "currency" in values:
        typed["currency"] = values["currency"].upper()
    return typed
