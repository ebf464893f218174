"""What a kind of record is, and the examples that the documentation shows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from gateway.audit.fields import FIELDS, JSONValue


@dataclass(frozen=True)
class Kind:
    """A kind of record. `subject` and `required` must be there, `optional` may be."""

    meaning: str
    says: str
    subject: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    example: Mapping[str, JSONValue] = field(default_factory=dict)

    @cached_property
    def allowed(self) -> Mapping[str, Callable[[object], bool]]:
        """Every field such a record may have, and whether a value fits it."""
        return {name: FIELDS[name].fits for name in self.required + self.optional}


MARK = "hmac-sha256:" + "5e" * 32
HASH = "sha256:" + "c0" * 32
PUBLIC = "p7c1q9ze"
CALL: Mapping[str, JSONValue] = {
    "exchange": "exc_01",
    "app": "app_01",
    "server": "crm",
    "tool": "send_email",
}
APPROVAL: Mapping[str, JSONValue] = {**CALL, "approval": "apr_01"}
ARGS: Mapping[str, JSONValue] = {"commit": MARK, "bytes": 812, "class": "strict-json"}


def example(subject: Mapping[str, JSONValue], **fields: JSONValue) -> Mapping[str, JSONValue]:
    """An example: what it is about, and its fields."""
    return MappingProxyType({"subject": subject, **fields})


def words(names: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(names.split())
