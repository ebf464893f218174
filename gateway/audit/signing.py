"""The key that signs the heads of the ledger, and what it remembers having signed.

The key is an Ed25519 seed in a file of mode 0600, which may be read-only. In a folder of our own
lies the last head it signed (`….head`): a database that is older than that, or tells another story,
is not signed again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit import checkpoint
from gateway.audit.checkpoint import Checkpoint, VerifierKey
from gateway.errors import Unavailable
from gateway.store.envelope import load_or_create_key


class Signer:
    """Signs heads under one origin. Without `memory`, it remembers only while it lives."""

    def __init__(self, origin: str, seed: bytes, memory: Path | None = None) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._memory = memory
        self._last: Checkpoint | None = None
        self._unsaved: str | None = None
        self._saving = threading.Lock()
        self.origin = origin
        self.verifier = VerifierKey(origin, self._key.public_key().public_bytes_raw())
        try:
            VerifierKey.parse(str(self.verifier))
        except checkpoint.Damaged as error:
            raise Unavailable(
                f"The ledger cannot be named {origin!r}: no spaces and no plus sign.",
                code="ledger_origin_invalid",
            ) from error

    def __repr__(self) -> str:
        return f"<Signer {self.verifier}>"

    def sign(self, size: int, root: bytes) -> str:
        """The signed note of a head."""
        return checkpoint.sign(Checkpoint(self.origin, size, root), self._key, self.verifier)

    def last(self) -> Checkpoint | None:
        """The last head that was signed and kept, also by an earlier process."""
        if self._memory is not None:
            with contextlib.suppress(FileNotFoundError):
                note = self._memory.read_bytes()
                kept = self._open(note) if note else None
                # A command beside us may have signed since, and ours may not be saved yet.
                if kept is not None and (self._last is None or kept.size > self._last.size):
                    self._last = kept
        return self._last

    def remember(self, note: str) -> None:
        """Take note of a head that is committed; `save` keeps it. An older one changes nothing."""
        head = Checkpoint.parse(checkpoint.split(note)[0])
        if self._last is None or head.size > self._last.size:
            self._last, self._unsaved = head, note

    def save(self) -> None:
        """Keep what was remembered, durably. A crash before leaves an older head, which is safe."""
        with self._saving:  # one thread may still be at it when the process stops
            note, self._unsaved = self._unsaved, None
            if self._memory is not None and note is not None:
                _replace(self._memory, note)

    def _open(self, note: bytes) -> Checkpoint:
        try:
            return checkpoint.open_note(note, [self.verifier])
        except checkpoint.Damaged as error:
            raise Unavailable(
                f"The last signed head in {self._memory} cannot be used: {error}",
                code="signer_memory_broken",
            ) from error


def _replace(path: Path, note: str) -> None:
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)  # one that another mode was given to
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(note)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_signer(path: Path, origin: str = "gatepass", folder: Path | None = None) -> Signer:
    """Read the key file, or make it. Heads are remembered in `folder`, else beside the key."""
    memory = (folder or path.parent) / f"{path.name}.head"
    return Signer(origin, load_or_create_key(path), memory)
