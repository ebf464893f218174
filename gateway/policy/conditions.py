"""Conditions of rules in CEL: compiled when a policy is parsed, evaluated on one call.

Owns the variables that a condition sees and the limits of an evaluation. A compiled condition is
immutable and may be used from any thread. An evaluation makes no I/O and takes microseconds as a
rule, but the library holds the interpreter's lock throughout, and what is spent in one iteration
has no limit. `Condition.light` says of which conditions the cost is known beforehand; others are
for a process of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from cel_expr_python import cel

from gateway.policy.arguments import Arguments, Hazard

MAX_SOURCE = 4096
_MAX_ARGUMENTS = 65536
_MAX_LIST = 1000
_MAX_VALUES = 10_000
#: What costs no more than reading each of its operands once.
_LIGHT = frozenset(
    {"contains", "double", "duration", "endsWith", "has", "int", "size", "startsWith", "timestamp"}
    | {"getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours"}
    | {"getMinutes", "getMonth", "getSeconds", "uint"}
)
_CALLED = re.compile(r"([A-Za-z_]\w*)\s*\(")
_POSITION = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")
#: The library's own names of operators: `_==_`, `@in`.
_OPERATOR = re.compile(r"'(?:_|@)([^'\w]{1,2}|in)_?'")
#: How the library's sentences go on here.
_HINTS = {
    "undeclared reference": "; there are args, call, app, server, now and the functions of CEL",
    "found no matching overload": "; compare and combine what is of one type",
    "Syntax error: mismatched input '<EOF>'": "; the condition ends too early",
    "Syntax error: token recognition error at: '= '": "; write == to compare",
    "Syntax error: mismatched input 'and'": "; write && for and",
    "Syntax error: mismatched input 'or'": "; write || for or",
}
#: What makes the value of `args` a matter of opinion: no condition is decided on it.
_UNREADABLE = {
    Hazard.NOT_JSON: "the arguments are not JSON",
    Hazard.NOT_AN_OBJECT: "the arguments are not a JSON object",
    Hazard.DUPLICATE_KEYS: "the arguments name a member twice",
    Hazard.LOOKALIKE_KEYS: "the arguments have members that differ only in case or form",
    Hazard.BROKEN_TEXT: "the arguments contain text that not every reader can read",
    Hazard.DEEP: "the arguments are nested too deeply",
}


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing wrong with a condition; `at` is line and column from 1 within it, where known."""

    message: str
    at: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ConditionError(Exception):
    """A condition that does not compile, and everything that is wrong with it."""

    flaws: tuple[Flaw, ...]


@dataclass(frozen=True, slots=True)
class CannotEvaluate:
    """Neither true nor false. `why` names no value of the call."""

    why: str


@dataclass(frozen=True, slots=True)
class Bindings:
    """What the conditions of one ruling see. `args` is absent when it must not be relied on."""

    activation: Any
    args_problem: str | None


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled condition; equal to another with the same source."""

    source: str
    program: Any = field(repr=False, compare=False)

    @property
    def light(self) -> bool:
        """Whether it reads what it names and builds nothing: no loops, patterns or sums.

        Decided on the text alone; what stands in quotes may make it look heavier, never lighter.
        """
        return "+" not in self.source and _LIGHT.issuperset(_CALLED.findall(self.source))

    def evaluate(self, bindings: Bindings) -> bool | CannotEvaluate:
        """Whether it holds; a missing member, a wrong type or a spent budget is neither."""
        try:
            value = self.program.eval(activation=bindings.activation)
        except Exception:
            # The library raises plain RuntimeErrors for spent budgets and unreadable text.
            return CannotEvaluate(bindings.args_problem or "it took too many steps")
        outcome = value.value()
        if isinstance(outcome, bool):
            return outcome
        return CannotEvaluate(bindings.args_problem or _reason(str(outcome)))


def compile_condition(source: str) -> Condition:
    """Compile and type-check `source`; raises `ConditionError`."""
    if len(source) > MAX_SOURCE:
        raise _error(f"a condition may have at most {MAX_SOURCE} characters")
    if "\0" in source or not _is_utf8(source):
        raise _error("a condition may not contain NUL or half characters")
    try:
        program = _environment().compile(source)
    except RuntimeError as error:
        raise _located(str(error)) from None
    kind = program.return_type()
    if kind not in (cel.Type.BOOL, cel.Type.DYN):
        raise _error(f"a condition must be true or false, this one is {kind.name()}")
    return Condition(source, program)


def bind(
    arguments: Arguments, size: int, call: Mapping[str, Any], names: tuple[str, str], now: datetime
) -> Bindings:
    """The variables for one call: `args`, `call`, `app`, `server` (`names`) and `now`.

    `size` is the length of the raw argument string in characters.
    """
    app, server = names
    variables: dict[str, Any] = {"call": dict(call), "app": app, "server": server, "now": now}
    # CEL ends a string at NUL, so that "a\0b" would equal "a".
    for name in ("app", "server"):
        if "\0" in variables[name]:
            del variables[name]
    if any(isinstance(text, str) and "\0" in text for text in call.values()):
        del variables["call"]
    problem = _problem(arguments, size)
    if problem is None:
        variables["args"] = arguments.value
    return Bindings(_environment().Activation(variables), problem)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


@cache
def _environment() -> Any:
    # One for all: to make one takes longer than to compile a condition.
    kinds = cel.Type
    return cel.NewEnv(
        variables={
            "args": kinds.DYN,
            "call": kinds.Map(kinds.STRING, kinds.DYN),
            "app": kinds.STRING,
            "server": kinds.STRING,
            "now": kinds.TIMESTAMP,
        }
    )


def _error(message: str) -> ConditionError:
    return ConditionError((Flaw(message),))


def _located(message: str) -> ConditionError:
    found = [
        Flaw(_hinted(what), (int(line), int(column)))
        for line, column, what in _POSITION.findall(message)
        if int(line) > 0
    ]
    if not found and "recursion" in message:
        return _error("a condition may not be nested so deeply; take it apart into several rules")
    if not found:
        return _error(message.removesuffix(" [INVALID_ARGUMENT]").strip())
    found.sort(key=lambda flaw: flaw.at or (0, 0))
    # After the first error of syntax the rest is guesswork.
    wrong = [flaw for flaw in found if flaw.message.startswith("Syntax error")]
    return ConditionError(tuple(wrong[:1] or found))


def _hinted(what: str) -> str:
    # The list of every token that could have stood there helps nobody.
    what = what.partition(" expecting ")[0].removesuffix(" (in container '')").strip()
    what = (
        what.removesuffix(" [INVALID_ARGUMENT]")
        .replace("'_", "'")
        .replace("_'", "'")
        .replace("'@", "'")
    )
    return next((what + hint for begins, hint in _HINTS.items() if what.startswith(begins)), what)


def _problem(arguments: Arguments, size: int) -> str | None:
    for hazard, why in _UNREADABLE.items():
        if hazard in arguments.hazards:
            return why
    if size > _MAX_ARGUMENTS:
        return "the arguments are too large"
    return _too_much(arguments.value)


def _too_much(value: Any) -> str | None:
    pending, seen = [value], 0
    while pending:
        node = pending.pop()
        seen += 1
        if seen > _MAX_VALUES:
            return "the arguments hold too many values"
        match node:
            case list():
                if len(node) > _MAX_LIST:
                    return "the arguments hold a list that is too long"
                pending.extend(node)
            case dict():
                pending.extend(node.values())
            case float() if math.isinf(node):
                return "a number is out of range"
            case _:
                pass
    return None


def _reason(outcome: str) -> str:
    # The library's sentences quote values of the call; ours go into the ledger.
    match outcome.partition(":")[0]:
        case "NOT_FOUND":
            return "a member that it names is missing"
        case "OUT_OF_RANGE":
            return "a number is out of range"
        case _:
            return "a value is not of the type that it expects"
