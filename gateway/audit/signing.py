"""The key that signs the heads of the ledger, and what it remembers having signed.

The key is an Ed25519 seed in a file of mode 0600. Beside it lies the last head it signed
(`….head`): a database that is older than that, or tells another story, is not signed again.
"""

from __future__ import annotations

import contextlib
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
                self._last = self._open(note) if note else None
        return self._last

    def remember(self, note: str) -> None:
        """Keep a head that is committed. A crash before leaves an older one, which is safe."""
        self._last = self._open(note.encode())
        if self._memory is not None:
            draft = self._memory.with_name(self._memory.name + ".new")
            draft.write_text(note)
            draft.replace(self._memory)

    def _open(self, note: bytes) -> Checkpoint:
        try:
            return checkpoint.open_note(note, [self.verifier])
        except checkpoint.Damaged as error:
            raise Unavailable(
                f"The last signed head in {self._memory} cannot be used: {error}",
                code="signer_memory_broken",
            ) from error


def load_signer(path: Path, origin: str = "gatepass") -> Signer:
    """Read the key file, or make it; heads are remembered in the file beside it."""
    return Signer(origin, load_or_create_key(path), path.with_name(path.name + ".head"))
