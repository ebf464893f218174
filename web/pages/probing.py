"""What a test of a server found, made ready for a page out of the plain mapping that it gives.

A test that could not be carried out is a finding, too. Reads nothing and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.errors import NotFound
from gateway.services import Services
from web import words


@dataclass(frozen=True)
class Found:
    """What to show. `facts` are pairs of a word (of words.PROBED) and what was found."""

    ok: bool
    sentence: str
    facts: tuple[tuple[str, str], ...] = ()
    steps: tuple[tuple[str, float], ...] = ()
    tools: tuple[tuple[str, str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def possible(services: Services) -> bool:
    """Whether this gateway tests servers."""
    return services.probe is not None


def possible_for_strangers(services: Services) -> bool:
    """Whether it tests addresses that are not registered."""
    return False


async def registered(services: Services, label: str) -> Found:
    """Test a registered server."""
    if services.probe is None:
        raise NotFound("Testing is not available here.", code="not_available")
    return of(await services.probe(label))


async def address(services: Services, url: str, private: bool) -> Found:
    """Test an address that is not registered, without any credential."""
    raise NotFound("Testing is not available here.", code="not_available")


def of(result: Mapping[str, Any]) -> Found:
    """Read what a test gives; what is not understood is left out."""
    return Found(
        ok=result.get("ok") is True,
        sentence=_text(result.get("sentence")),
        facts=tuple(
            (word, _text(result[name])) for name, word in words.PROBED.items() if result.get(name)
        ),
        steps=tuple(
            (_text(step.get("name")), float(step.get("ms") or 0))
            for step in _mappings(result.get("steps"))
        ),
        tools=tuple(
            (_text(tool.get("name")), words.effect_of(tool), _text(tool.get("description")))
            for tool in _mappings(result.get("tools"))
        ),
        warnings=tuple(_text(item) for item in result.get("warnings") or ()),
    )


def _mappings(value: object) -> Sequence[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
