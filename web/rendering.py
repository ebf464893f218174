"""Templates to HTML: the Jinja environments, one per language, and what every page is told.

Autoescape and strict undefined everywhere. Zones and languages exist only from here outwards.
Reads no database and decides nothing.
"""

from __future__ import annotations

import gettext
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from gateway.identity.login import Principal
from gateway.identity.roles import Permission, allowed
from gateway.registry.pauses import PauseView
from web import preferences, visible, words
from web.assets import Assets
from web.formats import Reader, drawn, seen
from web.preferences import Preferences
from web.translation import negotiate

_TEMPLATES = Path(__file__).parent / "templates"
_HEADERS = {"Cache-Control": "no-store", "Vary": "Cookie, Accept-Language"}


@dataclass(frozen=True)
class Head:
    """The newest signed head, for the foot of every page: size and the start of its root."""

    size: int
    root: str


@dataclass(frozen=True)
class Watch:
    """What every page tells until it is dealt with: open alarms, pauses, unclear outcomes."""

    alarms: int
    overdue: int
    pauses: tuple[PauseView, ...]
    unclear: int


@dataclass(frozen=True)
class Interface:
    """What every template knows as `ui`."""

    language: str
    preferences: Preferences
    path: str
    request_id: str
    reader: Reader
    principal: Principal | None = None
    head: Head | None = None
    alarm: str | None = None
    watch: Watch | None = None

    def may(self, permission: str) -> bool:
        """Whether the reader's roles grant `permission`."""
        return self.principal is not None and allowed(self.principal.roles, Permission(permission))


class Renderer:
    """Holds the environments; makes one page per call."""

    def __init__(self, assets: Assets, catalogs: Mapping[str, gettext.NullTranslations]) -> None:
        self._catalogs = catalogs
        self._environments = {
            language: _environment(assets, catalog) for language, catalog in catalogs.items()
        }

    def language(self, request: Request, chosen: Preferences) -> str:
        """The reader's setting, else the best of `Accept-Language`, else English."""
        if chosen.language in self._catalogs:
            return chosen.language
        return negotiate(request.headers.get("accept-language", ""), self._catalogs)

    def translate(self, language: str, sentence: str) -> str:
        """One sentence in `language`."""
        return self._catalogs[language].gettext(sentence)

    def interface(self, request: Request, now: datetime) -> Interface:
        """What is known of the reader from the request alone."""
        chosen = preferences.read(request.cookies.get(preferences.COOKIE, ""))
        language = self.language(request, chosen)
        return Interface(
            language=language,
            preferences=chosen,
            path=request.url.path,
            request_id=_request_id(request),
            reader=Reader(language, chosen.tzinfo, now),
            principal=getattr(request.state, "principal", None),
        )

    def page(
        self, ui: Interface, template: str, values: Mapping[str, Any], status: int = 200
    ) -> HTMLResponse:
        """Fill `template`; the answer is never cached."""
        text = self._environments[ui.language].get_template(template).render(ui=ui, **values)
        return HTMLResponse(text, status, headers=_HEADERS)


def _environment(assets: Assets, catalog: gettext.NullTranslations) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_translations(catalog, newstyle=True)  # type: ignore[attr-defined]
    environment.globals.update(
        static=assets.url,
        seen=seen,
        seen_text=visible.visible,
        drawn=drawn,
        STATES=words.STATES,
        DECIDERS=words.DECIDERS,
        HAZARDS=words.HAZARDS,
        ALARMS=words.ALARMS,
        FINDINGS=words.FINDINGS,
        SERVER_STATES=words.SERVER_STATES,
        TOOL_STATES=words.TOOL_STATES,
        CLAIMS=words.CLAIMS,
        PROBE_SENTENCES=words.PROBE_SENTENCES,
    )
    return environment


def _request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", "") or "-")
