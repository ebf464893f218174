"""`file:` secrets: one value per file, read anew whenever it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from gateway.errors import Unavailable
from gateway.store.references import SecretRef
from gateway.vault.secret import MAX_LENGTH, Purpose, Secret, opened


class FileStore:
    """Reads files as mounted by an orchestrator; files below `keep_out` are refused."""

    def __init__(self, keep_out: Sequence[Path] = ()) -> None:
        self._keep_out = tuple(keep_out)

    def __repr__(self) -> str:
        return "<FileStore>"

    async def open(self, ref: SecretRef, _purpose: Purpose) -> Secret:
        """The file's text without its last line break; `Unavailable` when it cannot be used.

        Its version is the time of its last change.
        """
        return await asyncio.to_thread(self._open, ref)

    async def ping(self) -> None:
        """Files are looked at one by one when they are opened."""

    def _open(self, ref: SecretRef) -> Secret:
        # What is kept out may be links itself, which lead elsewhere once its keeper wants it.
        places = [place.resolve() for place in self._keep_out]

        def allowed(path: Path) -> None:
            if any(path.is_relative_to(place) for place in places):
                raise Unavailable(
                    f"{ref} is a file of the gateway itself; these are never sent to a server.",
                    code="secret_forbidden",
                )

        return read_value(str(ref), Path(ref.name), allowed)


def read_value(name: str, path: Path, allowed: Callable[[Path], None] = lambda _: None) -> Secret:
    """The value in a file, called `name` in sentences. `allowed` may refuse where it leads."""
    try:
        # An orchestrator puts a folder in the place of another (`..data`): what the path led to a
        # moment ago may be gone, and the same path lead to the new file.
        with contextlib.suppress(FileNotFoundError):
            return _read(name, path, allowed)
        return _read(name, path, allowed)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise Unavailable(f"{name} cannot be read: {why}.", code="secret_missing") from None


def _read(name: str, path: Path, allowed: Callable[[Path], None]) -> Secret:
    target = path.resolve()
    allowed(target)
    with target.open("rb") as file:
        changed_at = os.fstat(file.fileno()).st_mtime
        raw = file.read(MAX_LENGTH + 3)
    version = datetime.fromtimestamp(changed_at, UTC).isoformat(timespec="milliseconds")
    return opened(name, _text(name, raw), version.replace("+00:00", "Z"))


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.decode("ascii").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Unavailable(
            f"{name} holds bytes that are not ASCII text; put the value itself there.",
            code="secret_unusable",
        ) from None
