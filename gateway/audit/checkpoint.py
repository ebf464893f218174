"""Signed heads of the ledger: C2SP signed-note, tlog-checkpoint and tlog-proof.

Strict both ways: what is parsed prints back to the same bytes. Pure; the private key is a
parameter and is kept nowhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from gateway.audit.tree import HASH_SIZE, MAX_SIZE

PROOF_HEADER = "c2sp.org/tlog-proof@v1"
MAX_NOTE = 64 * 1024
_MAX_SIGNATURES = 16
_ED25519 = b"\x01"
_MAX_PROOF = 64


class Damaged(ValueError):
    """A note, head, key or proof that is not what it must be. `damage` names the class."""

    def __init__(self, damage: str, sentence: str) -> None:
        super().__init__(sentence)
        self.damage = damage


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name, printed as `name+hexid+base64` (C2SP signed-note)."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The four bytes that name the key inside a signature."""
        message = self.name.encode() + b"\n" + _ED25519 + self.public
        return hashlib.sha256(message).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{encode64(_ED25519 + self.public)}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read `name+hexid+base64`; the id must be that of the name and the key."""
        parts = text.split("+", 2)
        if len(parts) != 3 or not _is_name(parts[0]):
            raise Damaged("malformed key", "A verifier key is written name+id+key.")
        raw = decode64(parts[2])
        if len(raw) != 1 + HASH_SIZE or raw[:1] != _ED25519:
            raise Damaged("malformed key", "The verifier key is not an Ed25519 key.")
        key = cls(parts[0], raw[1:])
        if str(key) != text:
            raise Damaged("malformed key", "The id of the verifier key is not that of its key.")
        return key


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How large the ledger is and what its root hash is (C2SP tlog-checkpoint)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The text that is signed: origin, size, root, one a line."""
        return f"{self.origin}\n{self.size}\n{encode64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read the signed text; extension lines are refused, since we write none."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not lines[0]:
            raise Damaged("malformed head", "A head has exactly origin, size and root.")
        root = decode64(lines[2])
        if len(root) != HASH_SIZE:
            raise Damaged("malformed head", "The root hash must have 32 bytes.")
        return cls(lines[0], number(lines[1]), root)


@dataclass(frozen=True, slots=True)
class Proof:
    """A receipt: one record's place in a signed head (C2SP tlog-proof)."""

    index: int
    hashes: Sequence[bytes]
    note: str

    def text(self) -> str:
        """The content of a `.tlog-proof` file."""
        lines = [PROOF_HEADER, f"index {self.index}", *map(encode64, self.hashes)]
        return "\n".join(lines) + "\n\n" + self.note

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Read a `.tlog-proof` file; `extra` data, which proves nothing, is refused."""
        head, separator, note = text.partition("\n\n")
        lines = head.split("\n")
        if not separator or len(lines) < 2 or lines[0] != PROOF_HEADER:
            raise Damaged("malformed proof", f"A proof starts with the line {PROOF_HEADER}.")
        if not lines[1].startswith("index ") or len(lines) > _MAX_PROOF + 2:
            raise Damaged("malformed proof", "A proof names its index and has 64 hashes at most.")
        hashes = [decode64(line) for line in lines[2:]]
        if any(len(item) != HASH_SIZE for item in hashes):
            raise Damaged("malformed proof", "Every hash of a proof must have 32 bytes.")
        return cls(number(lines[1][6:]), hashes, note)


def sign(checkpoint: Checkpoint, key: Ed25519PrivateKey, verifier: VerifierKey) -> str:
    """The signed note of a head."""
    text = checkpoint.text()
    signature = encode64(verifier.id + key.sign(text.encode()))
    return f"{text}\n— {verifier.name} {signature}\n"


def open_note(note: str | bytes, keys: Sequence[VerifierKey]) -> Checkpoint:
    """The head inside a note that at least one of `keys` signed, and none signed wrongly.

    Raises `Damaged`: malformed note, unknown key, bad signature, malformed head.
    """
    text, signatures = split(note)
    known = {(key.name, key.id): key for key in keys}
    verified = False
    for name, raw in signatures:
        key = known.get((name, raw[:4]))
        if key is not None:
            _verify(key, raw[4:], text)
            verified = True
    if not verified:
        raise Damaged("unknown key", "The head is not signed by a key that is trusted here.")
    return Checkpoint.parse(text)


def split(note: str | bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The text of a note and its signature lines as (name, id and signature), unverified."""
    decoded = _decode(note)
    text, separator, block = decoded.rpartition("\n\n")
    if not separator or not text or not block.endswith("\n"):
        raise Damaged("malformed note", "A note is a text, an empty line and signature lines.")
    lines = block[:-1].split("\n")
    if len(lines) > _MAX_SIGNATURES:
        raise Damaged("malformed note", f"More than {_MAX_SIGNATURES} signature lines.")
    signatures = [_signature(line) for line in lines]
    if len({(name, raw[:4]) for name, raw in signatures}) != len(signatures):
        raise Damaged("malformed note", "A key signed twice.")
    return text + "\n", signatures


def encode64(data: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(data).decode()


def decode64(text: str) -> bytes:
    """Base64 that encodes back to the same text: altered padding bits do not pass."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Damaged("malformed base64", "A value is not base64.") from None
    if encode64(data) != text:
        raise Damaged("malformed base64", "A value is not canonical base64.")
    return data


def number(text: str) -> int:
    """A decimal without sign or leading zeros, smaller than 2^62."""
    if not (text.isascii() and text.isdigit() and len(text) < 20) or str(int(text)) != text:
        raise Damaged("malformed number", "A size or index is not a plain decimal number.")
    if int(text) > MAX_SIZE:
        raise Damaged("malformed number", "A size or index is too large.")
    return int(text)


def _decode(note: str | bytes) -> str:
    raw = note.encode() if isinstance(note, str) else note
    if len(raw) > MAX_NOTE:
        raise Damaged("malformed note", "The note is too long.")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Damaged("malformed note", "The note is not UTF-8.") from None
    if any(character < " " and character != "\n" for character in text):
        raise Damaged("malformed note", "The note has a control character.")
    return text


def _signature(line: str) -> tuple[str, bytes]:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if dash != "—" or not _is_name(name):
        raise Damaged("malformed note", "A signature line is written: — name base64.")
    raw = decode64(encoded)
    if len(raw) < 5:
        raise Damaged("malformed note", "A signature is too short.")
    return name, raw


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(letter.isspace() for letter in name)


def _verify(key: VerifierKey, signature: bytes, text: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, text.encode())
    except InvalidSignature:
        raise Damaged("bad signature", f"The signature of {key.name} does not fit.") from None
