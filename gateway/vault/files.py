"""`file:` secrets: one value per file, read anew whenever the file was replaced."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from gateway.errors import Unavailable
from gateway.store.references import SecretRef
from gateway.vault.secret import MAX_LENGTH, Purpose, Secret, opened

#: What changes when a file is written or another one is put in its place.
_Stamp = tuple[int, int, int]


class FileStore:
    """Reads files as mounted by an orchestrator; files below `keep_out` are refused."""

    def __init__(self, keep_out: Sequence[Path] = ()) -> None:
        self._keep_out = tuple(path.resolve() for path in keep_out)
        self._read: dict[str, tuple[_Stamp, Secret]] = {}

    def __repr__(self) -> str:
        return "<FileStore>"

    async def open(self, ref: SecretRef, _purpose: Purpose) -> Secret:
        """The file's text without its last line break; `Unavailable` when it cannot be used."""
        return await asyncio.to_thread(self._open, ref)

    async def ping(self) -> None:
        """Files are looked at one by one when they are opened."""

    def _open(self, ref: SecretRef) -> Secret:
        path = Path(ref.name).resolve()
        if any(path.is_relative_to(place) for place in self._keep_out):
            raise Unavailable(
                f"{ref} is a file of the gateway itself; these are never sent to a server.",
                code="secret_forbidden",
            )
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
                known = self._read.get(ref.name)
                if known is not None and known[0] == stamp:
                    return known[1]
                raw = file.read(MAX_LENGTH + 3)
        except OSError as error:
            self._read.pop(ref.name, None)
            why = error.strerror or type(error).__name__
            raise Unavailable(f"{ref} cannot be read: {why}.", code="secret_missing") from None
        secret = opened(str(ref), _text(ref, raw))
        self._read[ref.name] = (stamp, secret)
        return secret


def _text(ref: SecretRef, raw: bytes) -> str:
    try:
        return raw.decode("ascii").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Unavailable(
            f"{ref} holds bytes that are not ASCII text; put the value itself there.",
            code="secret_unusable",
        ) from None
