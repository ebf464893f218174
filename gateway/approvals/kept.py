"""An open exchange in the hands of this process: what every use case must know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.records import Actor
from gateway.errors import Conflict
from gateway.store.tables import Exchange


class Superseded(Conflict):
    """Another process has the exchange now: this one does nothing about it any more."""

    default_code = "exchange_claimed"


@dataclass
class Kept:
    """An open exchange in the hands of this process.

    `fence` is that of its last claim; `released` the fence under which its approved calls were
    sent, None where another process did that, or nobody. `shown` are the tool definitions that its
    model has been shown, as digests by server id and tool; those of the servers in `inherited` come
    from what it goes on from.
    """

    id: str
    app_id: str
    app_name: str
    end_user: str | None
    data_key: bytes
    state: str
    fence: int = 0
    streamed: bool = False
    background: bool = False
    body_digest: str | None = None
    idempotency: str | None = None
    auth: str = "key"
    stored: bool = True
    released: int | None = None
    shown: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    inherited: set[str] = field(default_factory=set)

    def note_shown(self, server_id: str, listed: Mapping[str, str]) -> None:
        """Its model is shown these tools of a server, by name and digest.

        What it has inherited is not in front of it any more; else everything listed counts.
        """
        if server_id in self.inherited:
            self.inherited.discard(server_id)
            self.shown.pop(server_id, None)
        tools = self.shown.setdefault(server_id, {})
        for name, digest in listed.items():
            seen = tools.setdefault(name, [])
            if digest not in seen:
                seen.append(digest)

    @property
    def logged(self) -> bool:
        """Whether its frames are kept: a background stream can be taken up at any point."""
        return self.streamed and self.background

    @property
    def subject(self) -> dict[str, str]:
        """How audit records name it."""
        return {"exchange": self.id, "app": self.app_name}

    @property
    def actor(self) -> Actor:
        """The app, as audit records name it."""
        return Actor("app", self.app_id, self.auth)


def claimed(kept: Kept) -> Superseded:
    """Another process has it now."""
    return Superseded(f"The exchange {kept.id} is in other hands.")


async def hold_on(session: AsyncSession, kept: Kept) -> None:
    """Inside a transaction that writes about the exchange: nobody takes it before the commit.

    Raises `Superseded` when somebody has.
    """
    found = await session.exec(
        select(Exchange.id)
        .where(col(Exchange.id) == kept.id, col(Exchange.fence) == kept.fence)
        .with_for_update()
    )
    if found.first() is None:
        raise claimed(kept)
