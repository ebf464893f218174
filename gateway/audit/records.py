"""Audit records: what may stand in one, and the exact bytes that are hashed.

Owns the schema `gatepass.audit/1`. A record holds names, states, digests and blinded
commitments; never a payload, a secret or an e-mail address. Pure: no clock, no randomness.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from gateway.audit.kinds import FIELDS, KINDS, JSONValue, Kind
from gateway.errors import Refused

__all__ = [
    "FIELDS",
    "KINDS",
    "MAX_BYTES",
    "SCHEMA",
    "SYSTEM",
    "Actor",
    "JSONValue",
    "Kind",
    "Malformed",
    "Record",
    "Unsupported",
    "canonical",
    "commit",
    "make",
    "members",
    "parse",
    "timestamp",
]

SCHEMA = "gatepass.audit/1"
MAX_BYTES = 4096
_VERSION = 1
_MAX_DEPTH = 8
_MAX_INTEGER = 2**53
_NAMESPACE = uuid.UUID("6f0c1a6e-5d0f-5c1b-9d0e-8d4d2f6d1c57")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.ASCII)
_SUBJECTS = frozenset({"app", "server", "tool", "exchange", "approval", "user"})
_ACTORS = frozenset({"user", "app", "system", "operator"})
_ENVELOPE = frozenset({"v", "id", "type", "ts", "actor", "subject"})
_NOTHING: Mapping[str, Any] = {}


class Malformed(ValueError):
    """Bytes that no version of this product can have written as a record."""


class Unsupported(ValueError):
    """A record of a schema or kind that this version does not know: never called valid."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it. `kind`: user, app, system or operator (a command on the host).

    `ref` is pseudonymous (`usr_…`, `app_…`, `gateway`), never an e-mail address; `auth` says how
    the actor was known: session, oidc (a session of the identity provider's people), token,
    link, key or host.
    """

    kind: str
    ref: str
    auth: str | None = None

    def document(self) -> dict[str, JSONValue]:
        """The member `actor` of a record."""
        if self.auth is None:
            return {"kind": self.kind, "ref": self.ref}
        return {"kind": self.kind, "ref": self.ref, "auth": self.auth}


SYSTEM = Actor("system", "gateway")


class Record(NamedTuple):
    """One immutable entry: `body` is what is hashed, the rest repeats it for filters."""

    id: str
    kind: str
    ts: datetime
    body: bytes
    actor: str
    subject: Mapping[str, str]

    @property
    def leaf_hash(self) -> bytes:
        """The hash of the tree's leaf (RFC 9162 §2.1.1)."""
        return hashlib.sha256(b"\x00" + self.body).digest()

    def document(self) -> dict[str, Any]:
        """The members of the body."""
        members: dict[str, Any] = orjson.loads(self.body)
        return members


def make(
    kind: str,
    *,
    now: datetime,
    actor: Actor,
    subject: Mapping[str, str],
    key: str = "",
    fields: Mapping[str, JSONValue] = _NOTHING,
) -> Record:
    """Make the record of one transition.

    The id follows from kind, subject and `key`: the same transition cannot be recorded twice.
    `key` sets repeats apart (a fence, a random id). Raises `ValueError` when the kind is unknown
    or its members are not those of the kind, `Refused` when a name makes it too large.
    """
    _check_kind(kind, subject, fields)
    _check_actor(actor)
    _check_subject(subject)
    identity, about = identify(kind, subject, key), {**subject}
    document = {
        **fields,
        "v": _VERSION,
        "id": identity,
        "type": kind,
        "ts": timestamp(now),
        "actor": actor.document(),
        "subject": about,
    }
    return Record(identity, kind, now, _encode(document), actor.ref, about)


def identify(kind: str, subject: Mapping[str, str], key: str) -> str:
    """The UUIDv5 of a transition."""
    try:
        name = orjson.dumps([kind, {**subject}, key], option=orjson.OPT_SORT_KEYS)
    except TypeError as error:  # a lone surrogate
        raise Refused("A name in the record is not valid text.", code="record_invalid") from error
    # RFC 9562 §5.5, without the objects that uuid.uuid5 makes.
    digest = bytearray(hashlib.sha1(_NAMESPACE.bytes + name, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with exactly six decimals."""
    if moment.tzinfo is not UTC:
        if moment.tzinfo is None:
            raise ValueError("a record needs an aware time")
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"


def canonical(document: Mapping[str, Any]) -> bytes:
    """RFC 8785 bytes of strings, booleans, small integers, and lists and objects of them.

    Member names are ASCII, so that sorting by code point and by UTF-16 unit is the same.
    """
    _check_value(document, 0)
    return _encode(document)


def _encode(document: Mapping[str, Any]) -> bytes:
    # What `make` hands over needs no walk: each field is already known to be of its type.
    try:
        body = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:  # a lone surrogate
        raise Refused("A value in the record is not valid text.", code="record_invalid") from error
    if len(body) > MAX_BYTES:
        raise Refused(
            f"The audit record would take {len(body)} bytes; {MAX_BYTES} are allowed.",
            code="record_too_large",
        )
    return body


def parse(body: bytes) -> Record:
    """Read a body strictly: it must be the canonical bytes of a record of this schema.

    Raises `Malformed`, or `Unsupported` for another version or an unknown kind.
    """
    document = members(body)
    actor, subject = document["actor"], document["subject"]
    moment = datetime.fromisoformat(document["ts"])
    return Record(document["id"], document["type"], moment, body, actor["ref"], subject)


def members(body: bytes) -> dict[str, Any]:
    """The members of a body, read as strictly as `parse` does."""
    document = _decode(body)
    version = document.get("v")
    if type(version) is float:
        raise Malformed("the version is not an integer")
    if type(version) is not int or version != _VERSION:
        raise Unsupported(f"schema version {version!r} is not known")
    kind, actor, subject = document.get("type"), document.get("actor"), document.get("subject")
    if not (isinstance(kind, str) and isinstance(actor, dict) and isinstance(subject, dict)):
        raise Malformed("a record needs type, actor and subject")
    if kind not in KINDS:
        raise Unsupported(f"record kind {kind[:60]!r} is not known")
    try:
        _check_kind(kind, subject, document, _ENVELOPE)
        _check_subject(subject)
        _check_words(actor)
        _check_actor(Actor(**actor))
        _check_identity(document["id"], document["ts"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Malformed(f"not a record: {error}") from error
    return document


def commit(blind: bytes, raw: bytes) -> str:
    """A commitment to `raw` that nobody can guess back once the 32-byte `blind` is destroyed."""
    if len(blind) != 32:
        raise ValueError("a blind has exactly 32 bytes")
    return "hmac-sha256:" + hmac.digest(blind, raw, "sha256").hex()


def _decode(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BYTES:
        raise Malformed(f"{len(body)} bytes; at most {MAX_BYTES} are allowed")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Malformed("not an object")
    try:
        # Every value is checked against the type of its field, so that no walk is needed here.
        again = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise Malformed(str(error)) from error
    if again != body:
        raise Malformed("not in canonical form")
    return document


def _check_there(kind: str, what: str, needed: Sequence[str], present: Mapping[str, Any]) -> None:
    for name in needed:
        if name not in present:
            raise ValueError(f"{kind} needs the {what} {name!r}")


def _check_kind(
    kind: str,
    subject: Mapping[str, Any],
    fields: Mapping[str, Any],
    beside: frozenset[str] = frozenset(),
) -> None:
    known = KINDS.get(kind)
    if known is None:
        raise ValueError(f"unknown record kind {kind!r}")
    _check_there(kind, "subject member", known.subject, subject)
    _check_there(kind, "field", known.required, fields)
    allowed = known.allowed
    for name, value in fields.items():
        fits = allowed.get(name)
        if fits is None:
            if name in beside:
                continue
            raise ValueError(f"{kind} has no field {name!r}; it may have {sorted(allowed)}")
        if not fits(value):
            raise ValueError(f"the field {name!r} of {kind} must be: {FIELDS[name].type}")


def _check_actor(actor: Actor) -> None:
    if actor.kind not in _ACTORS:
        raise ValueError(f"unknown kind of actor {actor.kind!r}")
    if not actor.ref or "@" in actor.ref:
        raise ValueError("an actor is named by a reference, never by an e-mail address")


def _check_words(actor: Mapping[str, Any]) -> None:
    if not all(isinstance(word, str) for word in actor.values()):
        raise TypeError("an actor is described by words")


def _check_subject(subject: Mapping[str, Any]) -> None:
    for name, value in subject.items():
        known = name in _SUBJECTS or _NAME.match(name) is not None
        if not known or not isinstance(value, str) or not value:
            raise ValueError(f"the subject member {name!r} must be a non-empty string")
    if "@" in subject.get("user", ""):
        raise ValueError("a user is named by id, never by an e-mail address")


def _check_value(value: object, depth: int) -> None:
    # The exact types: a subclass of int or str could serialise as something else.
    kind = type(value)
    if kind is str or kind is bool:
        return
    if kind is int:
        _check_integer(value)
    elif depth >= _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    elif kind is dict:
        _check_object(value, depth)  # type: ignore[arg-type]
    elif kind is list or kind is tuple:
        for item in value:  # type: ignore[attr-defined]
            _check_value(item, depth + 1)
    else:
        raise ValueError(f"a record cannot hold {kind.__name__}")


def _check_integer(value: Any) -> None:
    if not -_MAX_INTEGER < value < _MAX_INTEGER:
        raise ValueError("integers in a record are smaller than 2^53")


def _check_object(value: dict[Any, Any], depth: int) -> None:
    for name, item in value.items():
        if type(name) is not str or _NAME.match(name) is None:
            raise ValueError(f"{name!r} cannot be a member name")
        if type(item) is not str:
            _check_value(item, depth + 1)


def _check_identity(identity: str, moment: str) -> None:
    if _UUID.match(identity) is None:
        raise ValueError("the id is not a canonical UUID")
    if _TIME.match(moment) is None:
        raise ValueError("the time is not in the one allowed form")
    datetime.fromisoformat(moment)
