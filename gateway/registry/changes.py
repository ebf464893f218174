"""One change of the configuration by somebody: the transaction, the actor and the time.

Use cases that are one transaction each build on functions that take a `Change`, so that a
declarative file can make many changes in one transaction of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger, Transaction
from gateway.audit.records import Actor, JSONValue, make
from gateway.registry.versions import bump_config
from gateway.store.ids import new_id


@dataclass(frozen=True, slots=True)
class By:
    """Who does something, and when."""

    actor: Actor
    now: datetime


@dataclass(frozen=True, slots=True)
class Difference:
    """One member that differs, as plain data that may be shown."""

    member: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Change:
    """Who changes what is configured, when, and in which transaction."""

    tx: Transaction
    actor: Actor
    now: datetime

    @property
    def session(self) -> AsyncSession:
        """The session of the transaction."""
        return self.tx.session

    def record(
        self, kind: str, subject: Mapping[str, str], fields: Mapping[str, JSONValue]
    ) -> None:
        """Write an audit record with this change."""
        record = make(
            kind,
            now=self.now,
            actor=self.actor,
            subject=subject,
            key=new_id("chg", self.now),
            fields=fields,
        )
        self.tx.record(record)


@contextlib.asynccontextmanager
async def changing(ledger: Ledger, actor: Actor, now: datetime) -> AsyncIterator[Change]:
    """One transaction that changes the configuration; every process will read it anew.

    Ends when a signed head covers the change: nobody is told before that it is made. Raises
    `Unavailable` when it cannot be signed now; it stays written, and counts once it is.
    """
    async with ledger.transaction() as tx:
        await bump_config(tx.session)
        yield Change(tx, actor, now)
    await tx.sealed()


def differences(before: Any, after: Any) -> tuple[Difference, ...]:
    """The members in which two settings of one kind differ; all that are set when one is None."""
    either = after if after is not None else before
    found = []
    for member in fields(either):
        old = None if before is None else _plain(getattr(before, member.name))
        new = None if after is None else _plain(getattr(after, member.name))
        if old != new:
            found.append(Difference(member.name, old, new))
    return tuple(found)


def names(found: Sequence[Difference]) -> list[str]:
    """The names of the members that differ, for records."""
    return [difference.member for difference in found]


def digest_of(settings: Any) -> str:
    """`sha256:…` over settings as sorted JSON: tells two configurations apart in records."""
    return digest_of_json(asdict(settings))


def digest_of_json(value: Any) -> str:
    """`sha256:…` over JSON with sorted members and no spaces, in UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(inner) for name, inner in asdict(value).items()}
    return list(value) if isinstance(value, tuple) else value
