"""App keys: `gp_app_<8 character id>_<43 character secret>`.

The id finds the key, the SHA-256 of the whole string proves it; the key itself is kept nowhere.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field

_FORM = re.compile(r"gp_app_([a-z0-9]{8})_[A-Za-z0-9_-]{43}", re.ASCII)
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at its birth, the only time that it can be read."""

    id: str
    text: str = field(repr=False)


def new_key() -> NewKey:
    """A fresh key with 256 random bits."""
    public = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    return NewKey(public, f"gp_app_{public}_{secrets.token_urlsafe(32)}")


def public_id(key: str) -> str | None:
    """The id part of a key, None when the string has not the form of one."""
    found = _FORM.fullmatch(key)
    return found and found.group(1)


def digest(key: str) -> bytes:
    """SHA-256 of the whole key, whatever bytes a caller sent for one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
