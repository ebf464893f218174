"""The members that records may have beside the envelope: their types and what they mean.

Owns the types; which kind of record has which member is said in `kinds`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TypeAlias

JSONValue: TypeAlias = bool | int | str | Sequence["JSONValue"] | Mapping[str, "JSONValue"]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z", re.ASCII)
_COMMIT = re.compile(r"hmac-sha256:[0-9a-f]{64}\Z", re.ASCII)
_LONG = 512
_TOO_LARGE = 2**53


@dataclass(frozen=True)
class Field:
    """What a field holds (`type`, for people and checks) and what it means."""

    type: str
    meaning: str

    @cached_property
    def fits(self) -> Callable[[object], bool]:
        """Tells whether a value is of this type."""
        return _TYPES[self.type]


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONG


def _integer(value: object) -> bool:
    return type(value) is int and -_TOO_LARGE < value < _TOO_LARGE


def _digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.match(value) is not None


def _names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(_text(item) for item in value)


def _commitment(value: object) -> bool:
    if not isinstance(value, Mapping) or not set(value) <= {"commit", "bytes", "class"}:
        return False
    mark = value.get("commit")
    if not (isinstance(mark, str) and _COMMIT.match(mark)):
        return False
    return _integer(value.get("bytes", 0)) and _text(value.get("class", ""))


def _decision(value: object) -> bool:
    if not isinstance(value, Mapping) or set(value) != {"value", "by"}:
        return False
    by = {"reviewers", "policy", "grant", "expiry", "cancelled"}
    return value["value"] in {"approve", "deny"} and value["by"] in by


def _one_of(*words: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in words


_TYPES: Mapping[str, Callable[[object], bool]] = MappingProxyType(
    {
        "text": _text,
        "integer": _integer,
        "boolean": lambda value: type(value) is bool,
        "digest": _digest,
        "list of texts": _names,
        "commitment": _commitment,
        "decision": _decision,
        "allow, hold or deny": _one_of("allow", "hold", "deny"),
        "approve or deny": _one_of("approve", "deny"),
    }
)

FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "alarm": Field("text", "the id of the alarm"),
        "approve": Field("boolean", "what was sent: true releases the call, false refuses it"),
        "args": Field("commitment", "the raw arguments: blinded commitment, length, strictness"),
        "authenticated": Field("text", "when the reviewer last proved who they are"),
        "background": Field("boolean", "whether the app asked for a background response"),
        "before": Field("digest", "what it was before the change"),
        "begins": Field("text", "when it starts to be valid"),
        "body": Field("commitment", "the app's request body: blinded commitment and length"),
        "bytes_in": Field("integer", "length of the request body"),
        "bytes_out": Field("integer", "length of the answer"),
        "call": Field("text", "the id the upstream gave to the call"),
        "calls": Field("integer", "how many calls were proposed"),
        "changes": Field("list of texts", "the names of the members that changed"),
        "channel": Field("text", "where the review was given: web, api or cli"),
        "code": Field("text", "the stable code of the refusal or failure"),
        "covers": Field("text", "what a pause covers: all, app or server"),
        "credential": Field("text", "which secret goes along: its reference, and its version"),
        "count": Field("integer", "how many times since the last such record"),
        "decision": Field("decision", "`value` (approve or deny) and `by` whom or what"),
        "deadline": Field("text", "until when the request may be decided"),
        "definition": Field("digest", "digest of what was configured"),
        "delegation": Field("text", "the id of the delegation"),
        "digest": Field("digest", "digest of exactly what the reviewer was shown"),
        "disabled": Field("boolean", "whether the person or app is now shut out"),
        "effect": Field("allow, hold or deny", "what policy said about the call"),
        "epoch": Field("integer", "which election of the sequencer this belongs to"),
        "error": Field("text", "stable code of the upstream's error"),
        "expires": Field("text", "when it stops being valid"),
        "finding": Field("text", "what was found: executed, failed, absent or unavailable"),
        "fence": Field("integer", "number of the claim under which it was sent"),
        "files": Field("integer", "how many files were read"),
        "filters": Field("list of texts", "the names of the filters in use"),
        "from": Field("text", "the state before"),
        "grant": Field("text", "the id of the grant: the remembered approval"),
        "groups": Field("list of texts", "the reviewer groups that may decide"),
        "header": Field("text", "the name of the header that carries the credential"),
        "input_tokens": Field("integer", "tokens read by the model"),
        "instead_of": Field("text", "the user for whom the reviewer stood in"),
        "key_id": Field("text", "the public id of the key, never the key"),
        "listed": Field("integer", "how many tools the server listed"),
        "match": Field("boolean", "whether what was executed is what was approved"),
        "max_uses": Field("integer", "how many times it may be used"),
        "members": Field("integer", "how many members there are now"),
        "method": Field("text", "how: an HTTP method, or a way to sign in"),
        "milliseconds": Field("integer", "how long it took"),
        "mode": Field("text", "how the app waits: hold or return"),
        "model": Field("text", "the model or deployment asked for"),
        "name": Field("text", "the name given to the app, server, policy, group or tool"),
        "note": Field("commitment", "the reviewer's private note: blinded commitment"),
        "number": Field("integer", "the version number"),
        "observed": Field("digest", "digest of what was really executed"),
        "outcome": Field("text", "how it ended"),
        "origin": Field("text", "scheme, host and port to which a credential may be sent"),
        "output_tokens": Field("integer", "tokens written by the model"),
        "pause": Field("text", "the id of the pause"),
        "pattern": Field("text", "what must be the same: exact, fields or tool"),
        "payloads": Field("boolean", "whether opened payloads were handed out too"),
        "policy": Field("digest", "the policy in force"),
        "quorum": Field("integer", "how many approving reviews are needed"),
        "reason": Field("commitment", "the reason given: blinded commitment"),
        "reconciled": Field("boolean", "whether a person settled an unknown outcome"),
        "reference": Field("text", "where the secret lives, never its value"),
        "request": Field("text", "the request id"),
        "requester": Field("text", "the user for whom the app acted, where known by id"),
        "require_reason": Field("boolean", "whether an approval needs a reason"),
        "review": Field("text", "the id of the review"),
        "roles": Field("list of texts", "the roles of the person"),
        "round": Field("integer", "the upstream round inside the exchange"),
        "rounds": Field("integer", "how many upstream rounds there were"),
        "route": Field("text", "the route that was asked for"),
        "rule": Field("text", "the name of the deciding rule"),
        "rules": Field("integer", "how many rules there are"),
        "scope": Field("text", "for whom: app, end_user or thread"),
        "scopes": Field("list of texts", "the permissions that the token has"),
        "servers": Field("list of texts", "labels of the servers"),
        "session": Field("text", "short public mark of the session, not its code"),
        "signals": Field("list of texts", "codes of the risk signals shown"),
        "size": Field("integer", "number of records in the ledger"),
        "source": Field("text", "where the change came from"),
        "status": Field("integer", "the HTTP status answered"),
        "stored": Field("boolean", "whether the upstream keeps the response"),
        "step_up": Field("boolean", "whether reviewers have to sign in again"),
        "streamed": Field("boolean", "whether the answer was a stream"),
        "successor": Field("text", "the id of the request that asks anew"),
        "terms": Field("digest", "blinded digest of everything that was granted"),
        "to": Field("text", "the state after"),
        "tools": Field("list of texts", "the names of tools"),
        "token_id": Field("text", "the public id of the token, never the token"),
        "tooldef": Field("digest", "the tool definition: name, description, schema"),
        "url": Field("text", "the address of the server"),
        "verdict": Field("approve or deny", "what the reviewer said"),
        "version": Field("text", "the version of the product"),
        "view": Field("digest", "digest of the text the reviewer saw"),
        "use": Field("integer", "the how-manieth use of the grant this is"),
        "uses": Field("integer", "how many times it was used"),
        "vkey": Field("text", "the verifier key of the signed heads"),
        "what": Field("list of texts", "the names of the members that were replaced or removed"),
        "where": Field("text", "in which part of the request"),
        "why": Field("text", "the ruling in one sentence, without payload"),
    }
)
