"""Every kind of audit record: its fields, its meaning in plain words, an example.

Owns the vocabulary of the ledger; docs/audit.md is checked against it. Pure data and lookups.
A field that is not listed here cannot be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gateway.audit.fields import FIELDS, JSONValue
from gateway.audit.kind import Kind
from gateway.audit.kinds_calls import APPROVALS, LEDGER, TRAFFIC
from gateway.audit.kinds_house import CONFIGURATION, PEOPLE
from gateway.audit.kinds_people import GRANTS, REVIEWING, STANDING_IN

__all__ = ["FIELDS", "KINDS", "JSONValue", "Kind", "say"]

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        **TRAFFIC,
        **APPROVALS,
        **REVIEWING,
        **GRANTS,
        **CONFIGURATION,
        **PEOPLE,
        **STANDING_IN,
        **LEDGER,
    }
)


def say(document: Mapping[str, Any]) -> str:
    """One plain sentence about a record, from the members of its body."""
    kind = KINDS.get(str(document.get("type")))
    if kind is None:
        return "A record of a kind this version does not know."
    words = _Words({name: _word(value) for name, value in document.items()})
    words.update({name: str(value) for name, value in document.get("subject", {}).items()})
    words["actor"] = _actor(document.get("actor", {}))
    return " ".join(kind.says.format_map(words).split())


class _Words(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return ""


def _word(value: object) -> str:
    match value:
        case {"value": verdict, "by": by}:
            return f"{verdict}, by {by}"
        case _:
            return str(value)


def _actor(actor: Mapping[str, Any]) -> str:
    return "The gateway" if actor.get("kind") == "system" else str(actor.get("ref", "Someone"))
