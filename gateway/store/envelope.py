"""Envelope encryption: a data key per exchange or secret, wrapped by the master key.

AES-256-GCM throughout; the associated data binds every sealed value to what it belongs to, so
that a value moved to another row does not open. Whoever destroys a data key destroys what it
sealed.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.errors import Unavailable

_NONCE = 12


class Envelope:
    """Seals and opens payloads under wrapped data keys. Holds the master key, shows it nowhere."""

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != 32:
            raise Unavailable("The master key must be exactly 32 bytes.", code="master_key_invalid")
        self._master = AESGCM(master_key)

    def __repr__(self) -> str:
        return "<Envelope>"

    def new_data_key(self, owner: str) -> bytes:
        """A fresh data key, wrapped for `owner` (an id); store it beside what it seals."""
        return _encrypt(self._master, secrets.token_bytes(32), f"key:{owner}")

    def seal(self, wrapped: bytes, owner: str, name: str, plain: bytes) -> bytes:
        """Seal `plain` as the value `name` of `owner`."""
        return _encrypt(self._open_key(wrapped, owner), plain, f"{owner}:{name}")

    def open(self, wrapped: bytes, owner: str, name: str, sealed: bytes) -> bytes:
        """Open what `seal` made; raises `Unavailable` when a byte or its place was changed."""
        return _decrypt(self._open_key(wrapped, owner), sealed, f"{owner}:{name}")

    def _open_key(self, wrapped: bytes, owner: str) -> AESGCM:
        return AESGCM(_decrypt(self._master, wrapped, f"key:{owner}"))


def _encrypt(key: AESGCM, plain: bytes, associated: str) -> bytes:
    nonce = secrets.token_bytes(_NONCE)
    return nonce + key.encrypt(nonce, plain, associated.encode())


def _decrypt(key: AESGCM, sealed: bytes, associated: str) -> bytes:
    try:
        return key.decrypt(sealed[:_NONCE], sealed[_NONCE:], associated.encode())
    except InvalidTag:
        raise Unavailable(
            f"The sealed value {associated.rpartition(':')[2]!r} cannot be opened: "
            "it was altered, or the master key is another one.",
            code="sealed_value_broken",
        ) from None


def load_or_create_key(path: Path) -> bytes:
    """Read a 32-byte key file, or make one with mode 0600 when there is none."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_key(path)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    if path.stat().st_mode & 0o007:
        raise Unavailable(
            f"{path} is open to every user of this machine: run 'chmod 600 {path}'.",
            code="key_file_mode",
        )
    key = path.read_bytes()
    if len(key) != 32:
        raise Unavailable(f"{path} must hold exactly 32 bytes.", code="key_file_invalid")
    return key
