"""Every kind of audit record: its fields, its meaning in plain words, an example.

Owns the vocabulary of the ledger; docs/audit.md is checked against it. Pure data and lookups.
A field that is not listed here cannot be written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

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


@dataclass(frozen=True)
class Kind:
    """A kind of record. `subject` and `required` must be there, `optional` may be."""

    meaning: str
    says: str
    subject: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    example: Mapping[str, JSONValue] = field(default_factory=dict)

    @cached_property
    def allowed(self) -> frozenset[str]:
        """Every field such a record may have."""
        return frozenset(self.required + self.optional)


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
        "approvals": Field("list of texts", "the approval requests released together"),
        "approve": Field("boolean", "what was sent: true releases the call, false refuses it"),
        "args": Field("commitment", "the raw arguments: blinded commitment, length, strictness"),
        "background": Field("boolean", "whether the app asked for a background response"),
        "before": Field("digest", "what it was before the change"),
        "body": Field("commitment", "the app's request body: blinded commitment and length"),
        "bytes_in": Field("integer", "length of the request body"),
        "bytes_out": Field("integer", "length of the answer"),
        "call": Field("text", "the id the upstream gave to the call"),
        "calls": Field("integer", "how many calls were proposed"),
        "changes": Field("list of texts", "the names of the members that changed"),
        "channel": Field("text", "where the review was given: web, api or cli"),
        "code": Field("text", "the stable code of the refusal or failure"),
        "count": Field("integer", "how many times since the last such record"),
        "decision": Field("decision", "`value` (approve or deny) and `by` whom or what"),
        "deadline": Field("text", "until when the request may be decided"),
        "definition": Field("digest", "digest of what was configured"),
        "digest": Field("digest", "digest of exactly what the reviewer was shown"),
        "disabled": Field("boolean", "whether the person or app is now shut out"),
        "effect": Field("allow, hold or deny", "what policy said about the call"),
        "epoch": Field("integer", "which election of the sequencer this belongs to"),
        "error": Field("text", "stable code of the upstream's error"),
        "expires": Field("text", "when it stops being valid"),
        "fence": Field("integer", "number of the claim under which it was sent"),
        "files": Field("integer", "how many files were read"),
        "filters": Field("list of texts", "the names of the filters in use"),
        "from": Field("text", "the state before"),
        "groups": Field("list of texts", "the reviewer groups that may decide"),
        "header": Field("text", "the name of the header that carries the credential"),
        "input_tokens": Field("integer", "tokens read by the model"),
        "key_id": Field("text", "the public id of the key, never the key"),
        "match": Field("boolean", "whether what was executed is what was approved"),
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
        "output_tokens": Field("integer", "tokens written by the model"),
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
        "servers": Field("list of texts", "labels of the servers"),
        "session": Field("text", "short public mark of the session, not its code"),
        "signals": Field("list of texts", "codes of the risk signals shown"),
        "size": Field("integer", "number of records in the ledger"),
        "source": Field("text", "where the change came from"),
        "status": Field("integer", "the HTTP status answered"),
        "stored": Field("boolean", "whether the upstream keeps the response"),
        "streamed": Field("boolean", "whether the answer was a stream"),
        "to": Field("text", "the state after"),
        "token_id": Field("text", "the public id of the token, never the token"),
        "tooldef": Field("digest", "the tool definition: name, description, schema"),
        "url": Field("text", "the address of the server"),
        "verdict": Field("approve or deny", "what the reviewer said"),
        "version": Field("text", "the version of the product"),
        "view": Field("digest", "digest of the text the reviewer saw"),
        "vkey": Field("text", "the verifier key of the signed heads"),
        "what": Field("list of texts", "the names of the members that were replaced or removed"),
        "where": Field("text", "in which part of the request"),
        "why": Field("text", "the ruling in one sentence, without payload"),
    }
)

_MARK = "hmac-sha256:" + "5e" * 32
_HASH = "sha256:" + "c0" * 32
_PUBLIC = "p7c1q9ze"
_CALL: Mapping[str, JSONValue] = {
    "exchange": "exc_01",
    "app": "app_01",
    "server": "crm",
    "tool": "send_email",
}
_APPROVAL: Mapping[str, JSONValue] = {**_CALL, "approval": "apr_01"}
_ARGS: Mapping[str, JSONValue] = {"commit": _MARK, "bytes": 812, "class": "strict-json"}


def _example(subject: Mapping[str, JSONValue], **fields: JSONValue) -> Mapping[str, JSONValue]:
    return MappingProxyType({"subject": subject, **fields})


def _w(names: str) -> tuple[str, ...]:
    return tuple(names.split())


_LEDGER = {
    "ledger.started": Kind(
        "A process became the one that gives records their place and signs the heads.",
        "The ledger was started (election {epoch}).",
        (),
        ("epoch",),
        ("size", "version", "vkey"),
        _example({}, epoch=3, size=1841),
    ),
    "ledger.heartbeat": Kind(
        "Nothing else needs to have happened: silence differs from a cut-off end.",
        "The ledger is alive.",
        (),
        ("epoch",),
        ("size",),
        _example({}, epoch=3),
    ),
    "export.made": Kind(
        "Someone took an evidence folder out of the gateway.",
        "{actor} exported {size} records.",
        (),
        ("size",),
        ("filters", "payloads", "from", "to"),
        _example({}, size=1841, payloads=True),
    ),
    "payload.read": Kind(
        "Someone opened a sealed payload outside of a review.",
        "{actor} opened the payload of {approval}.",
        (),
        (),
        ("where", "source"),
        _example({"approval": "apr_01"}, source="export"),
    ),
}

_TRAFFIC = {
    "request.completed": Kind(
        "A request without MCP calls passed through the gateway.",
        "{app} asked {route} and was answered {status}.",
        ("app",),
        ("status",),
        _w(
            "route method model streamed background bytes_in bytes_out milliseconds input_tokens"
            " output_tokens request outcome code stored"
        ),
        _example({"app": "app_01"}, route="/responses", status=200, milliseconds=840),
    ),
    "exchange.opened": Kind(
        "An app's request that may call MCP tools was accepted.",
        "{app} opened the exchange {exchange}.",
        ("exchange",),
        (),
        _w("model mode streamed background stored body request servers bytes_in policy requester"),
        _example({"exchange": "exc_01", "app": "app_01"}, model="gpt-4.1", streamed=True),
    ),
    "exchange.finished": Kind(
        "The one logical response of an exchange is complete, or will never be.",
        "The exchange {exchange} ended: {outcome}.",
        ("exchange",),
        ("outcome",),
        _w("rounds calls status code milliseconds input_tokens output_tokens bytes_out from to"),
        _example({"exchange": "exc_01", "app": "app_01"}, outcome="done", rounds=2),
    ),
    "call.ruled": Kind(
        "Policy answered what should happen to one proposed call.",
        "Policy said {effect} for {tool} on {server}.",
        ("exchange", "server", "tool"),
        ("effect",),
        _w("rule why policy args tooldef call round signals digest"),
        _example(_CALL, effect="hold", rule="mail-needs-review", policy=_HASH, args=_ARGS),
    ),
    "security.refused": Kind(
        "Something was refused that should not have been tried, or could not be understood.",
        "A request was refused: {code}.",
        (),
        ("code",),
        _w("where what status count request route method"),
        _example({"app": "app_01"}, code="forged_approval", where="input[2]"),
    ),
    "security.overridden": Kind(
        "Members of an app's request were replaced or removed because policy decides them.",
        "Members of a request by {app} were overridden.",
        (),
        ("what",),
        ("where", "count", "request"),
        _example({"exchange": "exc_01", "app": "app_01"}, what=["require_approval", "headers"]),
    ),
}

_APPROVALS = {
    "approval.requested": Kind(
        "One held call was put before reviewers.",
        "{tool} on {server} was put before reviewers.",
        ("approval", "exchange"),
        ("args",),
        _w(
            "digest tooldef policy view rule quorum groups deadline require_reason signals round"
            " call from to requester"
        ),
        _example(_APPROVAL, args=_ARGS, digest=_HASH, tooldef=_HASH, quorum=1, rule="mail"),
    ),
    "approval.reviewed": Kind(
        "One reviewer approved or denied.",
        "{actor} said {verdict} to {tool} on {server}.",
        ("approval",),
        ("verdict",),
        _w("digest view reason note channel review"),
        _example(_APPROVAL, verdict="approve", digest=_HASH, channel="web"),
    ),
    "approval.decided": Kind(
        "The final outcome of an approval request, and who or what took it.",
        "{tool} on {server} was decided: {decision}.",
        ("approval",),
        ("decision",),
        _w("from to fence digest args tooldef policy view reason quorum rule code"),
        _example(
            _APPROVAL,
            decision={"value": "approve", "by": "reviewers"},
            digest=_HASH,
            **{"from": "pending", "to": "approved"},
        ),
    ),
    "release.sending": Kind(
        "The gateway is about to send the outcome of a call upstream; written before a byte is.",
        "The outcome for {tool} on {server} is being sent.",
        ("exchange",),
        ("fence",),
        _w("approvals approve call round args digest tooldef policy"),
        _example(_APPROVAL, fence=1, approve=True),
    ),
    "execution.observed": Kind(
        "What the upstream reported about a released call (executed, failed, unknown, not_sent).",
        "{tool} on {server}: {outcome}.",
        ("exchange",),
        ("outcome",),
        _w("match fence args observed error call round digest reconciled"),
        _example(_APPROVAL, outcome="executed", match=True, fence=1),
    ),
    "execution.mismatch": Kind(
        "What was executed is not what was approved: an alarm.",
        "What {server} executed is not what was approved for {tool}.",
        ("exchange",),
        (),
        _w("code what fence args observed call round error digest"),
        _example(_APPROVAL, code="arguments_differ", fence=1),
    ),
}

_CONFIGURED = ("name", "changes", "definition", "before", "source")
_CONFIGURATION = {
    "config.applied": Kind(
        "A declarative configuration was applied.",
        "{actor} applied a configuration.",
        (),
        ("definition",),
        ("files", "changes", "source"),
        _example({}, definition=_HASH, files=1, changes=["servers"]),
    ),
    "app.created": Kind(
        "An app was registered.",
        "{actor} created the app {app}.",
        ("app",),
        (),
        (*_CONFIGURED, "mode", "servers"),
        _example({"app": "app_01"}, name="support-bot"),
    ),
    "app.changed": Kind(
        "Settings of an app changed.",
        "{actor} changed the app {app}.",
        ("app",),
        (),
        (*_CONFIGURED, "mode", "servers", "disabled"),
        _example({"app": "app_01"}, changes=["servers"]),
    ),
    "app.removed": Kind(
        "An app was shut out.",
        "{actor} removed the app {app}.",
        ("app",),
        (),
        _CONFIGURED,
        _example({"app": "app_01"}),
    ),
    "app_key.created": Kind(
        "An app got a new key.",
        "{actor} made a key for the app {app}.",
        ("app",),
        (),
        ("key_id", "name", "expires", "source"),
        _example({"app": "app_01"}, key_id="k3v9x2ma"),
    ),
    "app_key.revoked": Kind(
        "A key of an app stopped being valid.",
        "{actor} revoked a key of the app {app}.",
        ("app",),
        (),
        ("key_id", "name", "source"),
        _example({"app": "app_01"}, key_id="k3v9x2ma"),
    ),
    "server.registered": Kind(
        "An MCP server was registered.",
        "{actor} registered the server {server}.",
        ("server",),
        (),
        (*_CONFIGURED, "url"),
        _example({"server": "crm"}, url="https://mcp.crm.example/mcp", definition=_HASH),
    ),
    "server.changed": Kind(
        "Settings of an MCP server changed.",
        "{actor} changed the server {server}.",
        ("server",),
        (),
        (*_CONFIGURED, "url"),
        _example({"server": "crm"}, changes=["url"], definition=_HASH),
    ),
    "server.removed": Kind(
        "An MCP server was removed.",
        "{actor} removed the server {server}.",
        ("server",),
        (),
        _CONFIGURED,
        _example({"server": "crm"}),
    ),
    "credential.written": Kind(
        "The credential of a server was stored or bound; its value stands nowhere in the ledger.",
        "{actor} wrote the credential {reference} of {server}.",
        (),
        (),
        _w("reference version header name source number"),
        _example({"server": "crm"}, reference="sealed:crm", header="Authorization"),
    ),
    "policy.activated": Kind(
        "A version of the policy came into force.",
        "{actor} put a policy into force.",
        (),
        ("policy",),
        _w("before number rules name source changes"),
        _example({"policy": "pol_01"}, policy=_HASH, number=4, rules=12),
    ),
    "tooldef.pinned": Kind(
        "A tool definition was seen for the first time and pinned.",
        "The definition of {tool} on {server} was pinned.",
        ("server", "tool"),
        ("tooldef",),
        ("source",),
        _example({"server": "crm", "tool": "send_email"}, tooldef=_HASH),
    ),
    "tooldef.changed": Kind(
        "A server lists a definition that differs from the pinned one; its calls are held.",
        "{server} changed its definition of {tool}.",
        ("server", "tool"),
        ("tooldef",),
        ("before", "changes", "source"),
        _example({"server": "crm", "tool": "send_email"}, tooldef=_HASH, before=_HASH),
    ),
    "tooldef.accepted": Kind(
        "A person accepted a changed tool definition.",
        "{actor} accepted the new definition of {tool} on {server}.",
        ("server", "tool"),
        ("tooldef",),
        ("before", "changes", "source"),
        _example({"server": "crm", "tool": "send_email"}, tooldef=_HASH, before=_HASH),
    ),
}

_PEOPLE = {
    "group.changed": Kind(
        "The members of a reviewer group changed.",
        "{actor} changed the reviewer group {group}.",
        (),
        (),
        _w("name members changes definition before source"),
        _example({"group": "treasury"}, members=2),
    ),
    "user.created": Kind(
        "A person may sign in from now on.",
        "{actor} created the user {user}.",
        ("user",),
        (),
        ("roles", "source"),
        _example({"user": "usr_01"}, roles=["reviewer"]),
    ),
    "user.changed": Kind(
        "Roles or the state of a person changed.",
        "{actor} changed the user {user}.",
        ("user",),
        (),
        ("roles", "changes", "disabled", "source"),
        _example({"user": "usr_01"}, roles=["viewer"], changes=["roles"]),
    ),
    "user.signed_in": Kind(
        "A person signed in.",
        "{user} signed in.",
        ("user",),
        (),
        ("method", "session", "expires"),
        _example({"user": "usr_01"}, method="link"),
    ),
    "user.signed_out": Kind(
        "A person signed out, or was signed out.",
        "{user} signed out.",
        ("user",),
        (),
        ("method", "session", "source"),
        _example({"user": "usr_01"}),
    ),
    "token.created": Kind(
        "A personal access token was made.",
        "{actor} made an access token for {user}.",
        ("user",),
        (),
        ("token_id", "expires", "name"),
        _example({"user": "usr_01"}, token_id=_PUBLIC),
    ),
    "token.revoked": Kind(
        "A personal access token stopped being valid.",
        "{actor} revoked an access token of {user}.",
        ("user",),
        (),
        ("token_id", "source"),
        _example({"user": "usr_01"}, token_id=_PUBLIC),
    ),
    "link.created": Kind(
        "A one-time sign-in link was made.",
        "{actor} made a sign-in link for {user}.",
        ("user",),
        (),
        ("expires", "source"),
        _example({"user": "usr_01"}, expires="2026-01-05T10:00:00.000000Z"),
    ),
}

KINDS: Mapping[str, Kind] = MappingProxyType(
    {**_TRAFFIC, **_APPROVALS, **_CONFIGURATION, **_PEOPLE, **_LEDGER}
)


def say(document: Mapping[str, Any]) -> str:
    """One plain sentence about a record, from the members of its body."""
    kind = KINDS.get(str(document.get("type")))
    if kind is None:
        return "A record of a kind this version does not know."
    words = _Words({name: _word(value) for name, value in document.items()})
    words.update({name: str(value) for name, value in document.get("subject", {}).items()})
    words["actor"] = _actor(document.get("actor", {}))
    return " ".join(kind.says.format_map(words).split())


class _Words(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return ""


def _word(value: object) -> str:
    match value:
        case {"value": verdict, "by": by}:
            return f"{verdict}, by {by}"
        case _:
            return str(value)


def _actor(actor: Mapping[str, Any]) -> str:
    return "The gateway" if actor.get("kind") == "system" else str(actor.get("ref", "Someone"))
