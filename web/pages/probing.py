"""What a test of a server found, made ready for a page out of the plain mapping that it gives.

A test that could not be carried out is a finding, too. Whatever a server says of itself is text
of a stranger. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from gateway.identity.login import Principal
from gateway.services import Services
from web import words

_MOST_TOOLS = 100


@dataclass(frozen=True)
class Said:
    """A sentence with its code, which may be known in other languages."""

    code: str
    sentence: str


@dataclass(frozen=True)
class FoundTool:
    """A tool as the server listed it now. `effect` is a code of words.CLAIMS."""

    name: str
    effect: str
    description: str


@dataclass(frozen=True)
class Found:
    """What to show. `facts` and `steps` are pairs of a word of words.PROBED and what was found;
    `steps` in milliseconds. `stranger` is what a visitor without the credential was answered.
    """

    outcome: Said
    ok: bool
    facts: tuple[tuple[str, str], ...]
    expires: datetime | None
    steps: tuple[tuple[str, int], ...]
    stranger: Said | None
    warnings: tuple[Said, ...]
    tools: tuple[FoundTool, ...]
    listed: int


async def registered(services: Services, label: str, who: Principal) -> Found:
    """Test a registered server, with its credential and without."""
    return of(asdict(await services.prober.server(label, who.actor)))


async def address(services: Services, url: str, private: bool, who: Principal) -> Found:
    """Test an address that is not registered, without any credential."""
    prober = services.prober
    return of(asdict(await prober.address(url, who.actor, allow_private_network=private)))


def of(report: Mapping[str, Any]) -> Found:
    """Read what a test gives; what is not understood is left out."""
    visit = _inner(report, "visit")
    tls, server = _inner(visit, "tls"), _inner(visit, "server")
    told = {
        "name": " ".join(filter(None, (_text(server, "name"), _text(server, "version")))),
        "protocol": _text(server, "protocol"),
        "instructions": _text(server, "instructions"),
        "address": _text(visit, "address"),
        "tls": ", ".join(filter(None, (_text(tls, "version"), _text(tls, "cipher")))),
        "subject": _text(tls, "subject"),
        "issuer": _text(tls, "issuer"),
        "challenge": _text(visit, "challenge"),
    }
    outcome, took = _said(visit), _inner(visit, "milliseconds")
    tools, expires = _list(visit, "tools"), tls.get("expires")
    return Found(
        outcome=outcome,
        ok=outcome.code == "answered",
        facts=tuple((words.PROBED[name], text) for name, text in told.items() if text),
        expires=expires if isinstance(expires, datetime) else None,
        steps=tuple(
            (words.PROBED[name], took[name])
            for name in ("connect", "tls", "initialize", "list_tools")
            if isinstance(took.get(name), int)
        ),
        stranger=_said(without) if (without := _inner(report, "without_credential")) else None,
        warnings=tuple(map(_said, _list(report, "warnings"))),
        tools=tuple(
            FoundTool(
                _text(tool, "name"),
                words.effect_of(_inner(tool, "definition") or tool),
                _text(tool, "description"),
            )
            for tool in tools[:_MOST_TOOLS]
        ),
        listed=len(tools),
    )


def _said(given: Mapping[str, Any]) -> Said:
    return Said(_text(given, "code") or _text(given, "outcome"), _text(given, "sentence"))


def _inner(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = given.get(name)
    return value if isinstance(value, Mapping) else {}


def _list(given: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    value = given.get(name)
    if not isinstance(value, list | tuple):
        return ()
    return [item for item in value if isinstance(item, Mapping)]


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    return value if isinstance(value, str) else ""
