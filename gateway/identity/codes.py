"""Codes people carry: how they are made, and the only form of them that is kept.

Owns the shape `gp_pat_<8 character id>_<43 character secret>` and the digests; never stores or
logs a code. A code has 256 random bits, so one SHA-256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string

TOKEN_PREFIX = "gp_pat_"  # noqa: S105  the public start of a token, not one
_SHAPE = re.compile(r"gp_pat_([A-Za-z0-9]{8})_[A-Za-z0-9_-]{43}")
_NOBODY = bytes(32)


def new_code() -> str:
    """43 URL-safe characters from 32 random bytes."""
    return secrets.token_urlsafe(32)


def new_token() -> tuple[str, str]:
    """A fresh personal access token: its public id and the whole token."""
    alphabet = string.ascii_letters + string.digits
    token_id = "".join(secrets.choice(alphabet) for _ in range(8))
    return token_id, f"{TOKEN_PREFIX}{token_id}_{new_code()}"


def token_id(token: str) -> str | None:
    """The public id inside `token`, or None when it does not have the shape of one."""
    found = _SHAPE.fullmatch(token)
    return found.group(1) if found else None


def digest(code: str) -> bytes:
    """SHA-256 over the whole code, 32 bytes."""
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).digest()


def hex_digest(code: str) -> str:
    """The digest as 64 hexadecimal characters: the key of links and sessions."""
    return digest(code).hex()


def same(code: str, kept: bytes | None) -> bool:
    """Constant-time comparison; an unknown id costs the same as a wrong secret."""
    equal = hmac.compare_digest(digest(code), kept if kept is not None else _NOBODY)
    return equal and kept is not None
