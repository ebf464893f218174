"""Words in the reader's language: catalogs read from their `.po` sources when pages are mounted.

Each language has two: `web.po` for the pages, `kinds.po` for the kinds of audit records.
English is the source language and needs none. Foreign text (arguments, tool definitions) never
passes through here.
"""

from __future__ import annotations

import gettext
import io
from collections.abc import Mapping
from pathlib import Path

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

SOURCE = "en"
_LOCALES = Path(__file__).parent / "locales"


def N_(message: str) -> str:  # noqa: N802  the name gettext tools know
    """Mark a sentence for the catalogs where it stands; templates translate it when shown."""
    return message


def catalogs() -> Mapping[str, gettext.NullTranslations]:
    """Every language offered, the source first."""
    found: dict[str, gettext.NullTranslations] = {SOURCE: gettext.NullTranslations()}
    for path in sorted(_LOCALES.glob("*/LC_MESSAGES/web.po")):
        catalog = _read(path)
        catalog.add_fallback(_read(path.with_name("kinds.po")))
        found[path.parent.parent.name] = catalog
    return found


def negotiate(accept_language: str, offered: Mapping[str, object]) -> str:
    """The best language offered for an `Accept-Language` header (RFC 9110 §12.5.4)."""
    ranked = []
    for position, part in enumerate(accept_language.split(",")[:20]):
        tag, _, weight = part.partition(";q=")
        ranked.append((-_weight(weight), position, tag.strip().lower().split("-")[0]))
    for refusal, _, language in sorted(ranked):
        if refusal < 0 and language in offered:
            return language
    return SOURCE


def _weight(text: str) -> float:
    try:
        return min(float(text), 1.0) if text else 1.0
    except ValueError:
        return 0.0


def _read(path: Path) -> gettext.NullTranslations:
    compiled = io.BytesIO()
    with path.open("rb") as source:
        write_mo(compiled, read_po(source))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)
