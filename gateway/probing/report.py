"""What a probe found, as people and programs are told. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Tls:
    """The encrypted connection, and the certificate that was accepted for it."""

    version: str
    cipher: str
    subject: str
    issuer: str
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server says of itself: claims, no more."""

    name: str | None
    version: str | None
    protocol: str
    instructions: str | None


@dataclass(frozen=True, slots=True)
class SeenTool:
    """A tool as it was listed. `definition` is what would be pinned, `annotations` what it claims.

    `digest` is that of the definition.
    """

    name: str
    title: str | None
    description: str | None
    annotations: Mapping[str, Any]
    definition: Mapping[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds that each step took; None for one that was not reached.

    `initialize` and `list_tools` are whole exchanges, the first one with its connecting.
    """

    connect: int | None = None
    tls: int | None = None
    initialize: int | None = None
    list_tools: int | None = None


@dataclass(frozen=True, slots=True)
class Visit:
    """One session with a server, as far as it went.

    `outcome` is a stable code, `answered` when the tools were listed. `complete` is False when
    there were more tools than a probe reads. `challenge` is the `WWW-Authenticate` of a refusal
    (RFC 9110 §11.6.1).
    """

    outcome: str
    sentence: str
    transport: str = "streamable_http"
    address: str | None = None
    tls: Tls | None = None
    server: Identity | None = None
    tools: tuple[SeenTool, ...] = ()
    complete: bool = True
    challenge: str | None = None
    milliseconds: Timings = Timings()


@dataclass(frozen=True, slots=True)
class Warn:
    """Something that works and should not be so; `code` is stable."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Without:
    """What a visitor without the server's credential is answered."""

    outcome: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Report:
    """A probe. `label` and `credential` (a reference) are those of a registered server.

    `without_credential` is None where no credential is configured: then the visit itself was that.
    `changed_tools` are those whose definition is not the pinned one any more.
    """

    url: str
    label: str | None
    credential: str | None
    visit: Visit
    without_credential: Without | None = None
    changed_tools: tuple[str, ...] = ()
    warnings: tuple[Warn, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether the server listed its tools."""
        return self.visit.outcome == "answered"
