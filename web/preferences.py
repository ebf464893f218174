"""How a reader wants pages: language, theme, time zone, shortcuts. Kept in one cookie.

Pure but for the zone database. Nothing here says who somebody is, so a forged cookie gains
nothing.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from urllib.parse import parse_qsl, urlencode

COOKIE = "gatepass_preferences"
MAX_AGE = 365 * 24 * 3600
THEMES = ("", "light", "dark")


@dataclass(frozen=True)
class Preferences:
    """Empty strings mean: as the browser says. `zone` is an IANA name."""

    language: str = ""
    theme: str = ""
    zone: str = ""
    keys: bool = True

    @property
    def tzinfo(self) -> tzinfo:
        """The reader's zone; UTC until the browser has told it."""
        return zoneinfo.ZoneInfo(self.zone) if self.zone else UTC

    def cookie(self) -> str:
        """The cookie's value."""
        keys = "on" if self.keys else "off"
        members = {"language": self.language, "theme": self.theme, "zone": self.zone, "keys": keys}
        return urlencode({name: value for name, value in members.items() if value})


def read(cookie: str) -> Preferences:
    """The preferences in a cookie; whatever is unknown in it counts as not said."""
    return changed(Preferences(), dict(parse_qsl(cookie)))


def changed(preferences: Preferences, members: Mapping[str, str]) -> Preferences:
    """`preferences` with the given members replaced, where they are acceptable."""
    language = members.get("language", preferences.language)
    theme = members.get("theme", preferences.theme)
    zone = members.get("zone", preferences.zone)
    keys = members.get("keys", "on" if preferences.keys else "off")
    return Preferences(
        language=language if language.isalpha() and len(language) == 2 else "",
        theme=theme if theme in THEMES else "",
        zone=zone if _known(zone) else "",
        keys=keys != "off",
    )


def _known(zone: str) -> bool:
    try:
        zoneinfo.ZoneInfo(zone)
    except (ValueError, zoneinfo.ZoneInfoNotFoundError, OSError):
        return False
    return True
