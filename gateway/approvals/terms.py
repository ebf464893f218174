"""What a grant covers: its terms, and whether another call is like the one that was approved. Pure.

Arguments are compared as they are written: `1` is not `1.0`. A text that two readers may read
differently is like nothing but itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson

from gateway.errors import Refused
from gateway.policy import arguments as argument_text
from gateway.policy.difference import step

EXACT, FIELDS, TOOL = "exact", "fields", "tool"
KINDS = (EXACT, FIELDS, TOOL)
APP, END_USER, THREAD = "app", "end_user", "thread"
SCOPES = (APP, END_USER, THREAD)
LONGEST = timedelta(days=30)
MOST_USES = 10_000
_MOST_FIELDS = 50
_ABSENT = object()


@dataclass(frozen=True)
class Terms:
    """What a reviewer remembers: exactly what was shown and chosen.

    `kind` exact: the same argument string; fields: the members at these JSON pointers are equal;
    tool: whatever the arguments. `scope`: for whom. `max_uses` None: as often as it is asked.
    """

    kind: str
    scope: str
    until: datetime
    fields: tuple[str, ...] = ()
    max_uses: int | None = None

    def check(self, now: datetime) -> None:
        """Raises `Refused` for terms that no grant may have."""
        if self.kind not in KINDS:
            raise Refused(f"'kind' must be one of {', '.join(KINDS)}.", param="kind")
        if self.scope not in SCOPES:
            raise Refused(f"'scope' must be one of {', '.join(SCOPES)}.", param="scope")
        if bool(self.fields) != (self.kind == FIELDS) or len(self.fields) > _MOST_FIELDS:
            raise Refused(
                f"Name 1 to {_MOST_FIELDS} fields with kind 'fields', and none otherwise.",
                param="fields",
            )
        if not now < self.until <= now + LONGEST:
            raise Refused(f"A grant ends in the future, within {LONGEST.days} days.", param="until")
        if self.max_uses is not None and not 1 <= self.max_uses <= MOST_USES:
            raise Refused(f"'max_uses' is 1 to {MOST_USES}, or none.", param="max_uses")


@dataclass(frozen=True)
class Pattern:
    """What has to be the same. `nonce` keeps its digest from confirming a guess."""

    kind: str
    exact: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    nonce: str = ""

    @classmethod
    def of(cls, terms: Terms, arguments: str, nonce: str) -> Pattern:
        """What these terms keep of a call; raises `Refused` when it does not have their fields."""
        if terms.kind == EXACT:
            return cls(EXACT, exact=arguments, nonce=nonce)
        value = _plain(arguments)
        if value is _ABSENT:
            raise Refused(
                "These arguments can be read in more than one way: only the exact text can be "
                "remembered.",
                code="not_rememberable",
                param="kind",
            )
        fields = {pointer: at(value, pointer) for pointer in terms.fields}
        if missing := [pointer for pointer, member in fields.items() if member is _ABSENT]:
            raise Refused(f"The call has no argument at {missing[0]!r}.", param="fields")
        return cls(terms.kind, fields=fields, nonce=nonce)

    @classmethod
    def read(cls, document: bytes) -> Pattern:
        """What `document` wrote."""
        return cls(**orjson.loads(document))

    def document(self) -> bytes:
        """To be sealed."""
        return orjson.dumps(
            {
                "kind": self.kind,
                "exact": self.exact,
                "fields": self.fields,
                "nonce": self.nonce,
            },
            option=orjson.OPT_SORT_KEYS,
        )

    def covers(self, arguments: str) -> bool:
        """Whether a call with these arguments is like the one that was approved."""
        if self.kind == EXACT:
            return arguments == self.exact
        value = _plain(arguments)
        if value is _ABSENT:
            return False
        return all(_same(at(value, pointer), member) for pointer, member in self.fields.items())


def at(value: Any, pointer: str) -> Any:
    """The member at a JSON pointer (RFC 6901); a value like no other when there is none."""
    if not pointer.startswith("/"):
        return _ABSENT
    for part in pointer[1:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        match value:
            case dict() if name in value:
                value = value[name]
            case list() if name.isascii() and name.isdigit() and int(name) < len(value):
                value = value[int(name)]
            case _:
                return _ABSENT
    return value


def pointers(arguments: str) -> list[str]:
    """The JSON pointers of the members that a person may choose to keep: every leaf."""
    value = _plain(arguments)
    return [] if value is _ABSENT else list(_leaves(value, ""))[:_MOST_FIELDS]


def digest(facts: Mapping[str, Any], pattern: Pattern) -> str:
    """`sha256:` over everything that is granted, blinded by the pattern's nonce."""
    kept = hashlib.sha256(pattern.document()).hexdigest()
    canonical = orjson.dumps({**facts, "pattern": kept}, option=orjson.OPT_SORT_KEYS)
    return "sha256:" + hashlib.sha256(canonical).hexdigest()


def _plain(arguments: str) -> Any:
    """The arguments, where every reader reads the same; a value like no other elsewhere."""
    read = argument_text.read(arguments)
    return _ABSENT if read.hazards else read.value


def _same(here: Any, there: Any) -> bool:
    if here is _ABSENT or there is _ABSENT:
        return False
    return json.dumps(here, sort_keys=True) == json.dumps(there, sort_keys=True)


def _leaves(value: Any, path: str) -> list[str]:
    match value:
        case dict() if value:
            return [
                leaf
                for name, member in value.items()
                for leaf in _leaves(member, path + step(name))
            ]
        case list() if value:
            return [
                leaf
                for number, member in enumerate(value)
                for leaf in _leaves(member, f"{path}/{number}")
            ]
        case _:
            return [path] if path else []
