"""Named risk signals of a call, each with one plain sentence; never a score, never a ruling.

A signal tells a reviewer where to look. What needs memory (first use, a changed definition) is
not found here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.policy.arguments import Arguments, Hazard, read, texts
from gateway.policy.characters import BIDI, invisible, is_confusing, named
from gateway.policy.evaluation import CallFacts

_VERY_LARGE = 16_384
_HOST = re.compile(r"https?://(?:[^\s/@\"'<>]*@)?([^\s/:?#\"'<>\\]+)", re.IGNORECASE)
_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY"
    r"|\b(?:sk|rk|pk)[-_](?:live|test|proj|ant)?[-_]?[A-Za-z0-9_-]{20,}"
    r"|\bgh[opusr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}"
    r"|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    r"|\bgp_(?:app|pat)_[a-z0-9]{8}_[A-Za-z0-9_-]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."
    r"|\bhv[sb]\.[A-Za-z0-9_-]{20,}"
)
_HAZARDS = {
    Hazard.NOT_JSON: "The arguments are not valid JSON; the server may read them in its own way.",
    Hazard.NOT_AN_OBJECT: "The arguments are not a JSON object; tools expect one.",
    Hazard.DUPLICATE_KEYS: "The arguments name a member twice; which one counts is up to the "
    "reader.",
    Hazard.LOOKALIKE_KEYS: "The arguments have members that differ only in letter case or "
    "Unicode form; some readers take them for one.",
    Hazard.PROTOTYPE_KEYS: "The arguments have a member such as __proto__, which changes objects "
    "in some languages.",
    Hazard.INEXACT_NUMBERS: "The arguments hold a number that not every program can keep exactly.",
    Hazard.BROKEN_TEXT: "The arguments hold text with NUL or half a character, which readers cut "
    "or replace.",
    Hazard.DEEP: "The arguments are nested more than 32 levels deep.",
}


@dataclass(frozen=True, slots=True)
class RiskSignal:
    """A named, explained warning. `code` is stable, `sentence` is for people."""

    code: str
    sentence: str


def signals(call: CallFacts) -> tuple[RiskSignal, ...]:
    """Every signal of `call`, in a fixed order; an ordinary call has none."""
    parsed = read(call.arguments)
    found = [
        RiskSignal(str(hazard), _HAZARDS[hazard]) for hazard in _HAZARDS if hazard in parsed.hazards
    ]
    found += _hidden(call, parsed)
    found += _of_tool(call.definition)
    if len(call.arguments) > _VERY_LARGE:
        size = f"{len(call.arguments):,} characters"
        found.append(RiskSignal("very_large", f"The arguments are very large: {size}."))
    shown = _shown(call, parsed)
    if any(_SECRETS.search(text) for text in shown):
        sentence = "The arguments contain what looks like a key, a token or a private key."
        found.append(RiskSignal("secret_like", sentence))
    found += _hosts(shown)
    return tuple(found)


def _shown(call: CallFacts, parsed: Arguments) -> list[str]:
    return [call.arguments] if parsed.value is None else list(texts(parsed.value))


def _hidden(call: CallFacts, parsed: Arguments) -> list[RiskSignal]:
    points = {point for text in (*_shown(call, parsed), call.tool) for point in invisible(text)}
    found = []
    if bidi := points & BIDI:
        sentence = (
            f"The call contains characters that reverse the direction of text ({named(bidi)})."
        )
        found.append(RiskSignal("bidi_characters", sentence))
    if hidden := points - bidi:
        sentence = f"The call contains characters that do not show on a screen ({named(hidden)})."
        found.append(RiskSignal("hidden_characters", sentence))
    return found


def _of_tool(definition: Mapping[str, Any] | None) -> list[RiskSignal]:
    given = (definition or {}).get("annotations")
    annotations = given if isinstance(given, Mapping) else {}
    read_only = _either(annotations, "readOnlyHint", "read_only")
    destructive = _either(annotations, "destructiveHint", "destructive")
    if destructive is True:
        sentence = "The server declares this tool as destructive."
        return [RiskSignal("destructive_tool", sentence)]
    if read_only is False and destructive is None:
        sentence = "The server declares that this tool changes things, and not how much."
        return [RiskSignal("writing_tool", sentence)]
    if read_only is None and destructive is None:
        sentence = "The server does not say whether this tool only reads."
        return [RiskSignal("unannotated_tool", sentence)]
    return []


def _either(annotations: Mapping[str, Any], *names: str) -> bool | None:
    values = [annotations[name] for name in names if isinstance(annotations.get(name), bool)]
    return values[0] if values else None


def _hosts(shown: list[str]) -> list[RiskSignal]:
    hosts = {host for text in shown for host in _HOST.findall(text)}
    if any(_is_unusual(host) for host in hosts):
        sentence = (
            "The arguments hold a web address whose host may look like another one: it mixes "
            "alphabets, imitates Latin letters or is written in punycode."
        )
        return [RiskSignal("lookalike_host", sentence)]
    return []


def _is_unusual(host: str) -> bool:
    if host.isascii():
        return any(label.lower().startswith("xn--") for label in host.split("."))
    if unicodedata.normalize("NFKC", host) != host:
        return True
    return any(is_confusing(label) for label in host.split("."))
