"""Sortable identifiers: a short prefix, the time in milliseconds, and 80 random bits."""

from __future__ import annotations

import secrets
from datetime import datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str, now: datetime) -> str:
    """`apr_01jd…`: 26 Crockford base-32 characters that sort by time of creation."""
    number = (int(now.timestamp() * 1000) << 80) | secrets.randbits(80)
    digits = []
    for _ in range(26):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(digits))}"


def time_of(name: str) -> int:
    """The second, since 1970, in which an id was made."""
    milliseconds = 0
    for digit in name.rpartition("_")[2][:10]:
        milliseconds = milliseconds * 32 + _ALPHABET.index(digit)
    return milliseconds // 1000
