"""Lengths of time as people write them: `90s`, `30m`, `1h30m`, `2d`."""

from __future__ import annotations

import re
from datetime import timedelta

_DURATION = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,7})s)?", re.ASCII)
_LONGEST = timedelta(days=30)


def parse_duration(text: str) -> timedelta | None:
    """`90s`, `30m`, `1h30m`, `2d`; None when it is no duration from 1 second to 30 days."""
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    return length if timedelta(0) < length <= _LONGEST else None


def format_duration(length: timedelta | None) -> str | None:
    """The shortest form that `parse_duration` reads back."""
    if length is None:
        return None
    minutes, seconds = divmod(int(length.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)
