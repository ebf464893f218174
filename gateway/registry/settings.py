"""What a person may configure of each object, and the checks that it passes.

The same readers serve the declarative files, the API and the command line, so that one and the
same mistake has one and the same sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gateway.egress import addresses
from gateway.errors import Refused
from gateway.registry.members import Members, read_object
from gateway.store.references import SecretRef

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
#: Taken by pages and by paths of the API beside those of servers.
_RESERVED_LABELS = frozenset({"new", "probe", "unknown"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,79}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}")
_EMAIL = re.compile(r"[^\s@<>,;\"]{1,64}@[A-Za-z0-9.-]{1,190}")
_EVENT = re.compile(r"(?:\*|[a-z_]+(?:\.[a-z_]+)*(?:\.\*)?)")
#: Headers of the transport: a credential there would be lost or change the meaning of a request.
_FORBIDDEN_HEADERS = frozenset(
    {
        "accept",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "mcp-protocol-version",
        "mcp-session-id",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_SERVER_MEMBERS = (
    "label",
    "url",
    "description",
    "allow_private_network",
    "inject",
    "credential",
    "tools",
)


@dataclass(frozen=True, slots=True)
class CredentialSettings:
    """Which header carries the secret at `source` (a reference), after which scheme word."""

    header: str
    scheme: str | None
    source: str

    def row(self) -> dict[str, str]:
        """The form in which it is stored; without a value, which stands nowhere here."""
        scheme = {} if self.scheme is None else {"scheme": self.scheme}
        return {"header": self.header, **scheme, "from": self.source}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """An MCP server. `url` is in normal form."""

    label: str
    url: str
    description: str | None = None
    allow_private_network: bool = False
    inject: str = "headers"
    credential: CredentialSettings | None = None
    pin: str = "on_first_use"

    @property
    def key(self) -> str:
        """What tells one from another."""
        return self.label


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """Whose access tokens stand for an app: those of `issuer` for `audience`, and, where it is
    set, of `subject` alone.
    """

    issuer: str
    audience: str
    subject: str | None = None

    def row(self) -> dict[str, str]:
        """The form in which it is stored, shown and declared."""
        subject = {} if self.subject is None else {"subject": self.subject}
        return {"issuer": self.issuer, "audience": self.audience, **subject}


@dataclass(frozen=True, slots=True)
class AppSettings:
    """A program that calls us. `servers` None means every registered server."""

    name: str
    owner: str | None = None
    wait: str = "hold"
    plain: str = "patient"
    heartbeat: str = "auto"
    servers: tuple[str, ...] | None = None
    identity: IdentitySettings | None = None

    @property
    def key(self) -> str:
        """What tells one from another."""
        return self.name


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """Reviewers by e-mail address, in lower case."""

    name: str
    members: tuple[str, ...]

    @property
    def key(self) -> str:
        """What tells one from another."""
        return self.name


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """An address that is told about events; `secret` is a reference."""

    name: str
    url: str
    events: tuple[str, ...]
    secret: str | None = None
    allow_private_network: bool = False

    @property
    def key(self) -> str:
        """What tells one from another."""
        return self.name


def read_server(members: Members) -> ServerSettings | None:
    """A server from its members; None when they do not make one (the problems say why)."""
    before = len(members.problems)
    members.only(_SERVER_MEMBERS)
    label = members.checked("label", members.text("label", required=True), _label)
    private = members.flag("allow_private_network")
    url = _url(members, private)
    settings = ServerSettings(
        label=label or "",
        url=url or "",
        description=members.text("description"),
        allow_private_network=private,
        inject=members.choice("inject", ("headers", "authorization")),
        credential=_credential(members),
        pin=_pin(members),
    )
    _fits_injection(members, settings)
    return settings if len(members.problems) == before else None


def read_app(members: Members) -> AppSettings | None:
    """An app from its members; None when they do not make one."""
    before = len(members.problems)
    members.only(("name", "owner", "wait", "plain", "heartbeat", "servers", "identity"))
    settings = AppSettings(
        name=members.checked("name", members.text("name", required=True), _name) or "",
        owner=members.text("owner"),
        wait=members.choice("wait", ("hold", "return")),
        plain=members.choice("plain", ("patient", "strict")),
        heartbeat=members.choice("heartbeat", ("auto", "comments")),
        servers=_sorted(members.texts("servers")),
        identity=_identity(members),
    )
    return settings if len(members.problems) == before else None


def read_group(members: Members) -> GroupSettings | None:
    """A reviewer group from its members; None when they do not make one."""
    before = len(members.problems)
    members.only(("name", "members"))
    name = members.checked("name", members.text("name", required=True), _name)
    addresses_given = members.texts("members")
    if addresses_given is None:
        members.report(None, "needs members: a list of e-mail addresses")
    for address in addresses_given or ():
        if not _EMAIL.fullmatch(address):
            members.report("members", f"{address!r} is not an e-mail address")
    people = tuple(sorted({address.lower() for address in addresses_given or ()}))
    return GroupSettings(name or "", people) if len(members.problems) == before else None


def read_webhook(members: Members) -> WebhookSettings | None:
    """A webhook endpoint from its members; None when they do not make one."""
    before = len(members.problems)
    members.only(("name", "url", "events", "secret", "allow_private_network"))
    private = members.flag("allow_private_network")
    events = members.texts("events")
    for event in events or ():
        if not _EVENT.fullmatch(event):
            members.report("events", f"{event!r} is not a kind of event such as approval.*")
    settings = WebhookSettings(
        name=members.checked("name", members.text("name", required=True), _name) or "",
        url=_url(members, private) or "",
        events=events or ("*",),
        secret=_secret(members),
        allow_private_network=private,
    )
    return settings if len(members.problems) == before else None


def check_server(settings: ServerSettings) -> None:
    """Raise `Refused` for what `read_server` would not have read."""
    read_object(server_document(settings), "server", read_server)


def server_document(settings: ServerSettings) -> dict[str, Any]:
    """The members that `read_server` reads back, without what is at its default."""
    members: dict[str, Any] = {
        "label": settings.label,
        "url": settings.url,
        "description": settings.description,
        "allow_private_network": settings.allow_private_network or None,
        "inject": settings.inject if settings.inject != "headers" else None,
        "credential": settings.credential.row() if settings.credential else None,
    }
    return {name: value for name, value in members.items() if value is not None}


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise Refused(
            "must be 1 to 64 letters, digits, dashes or underscores, beginning with a letter"
        )
    if text in _RESERVED_LABELS:
        raise Refused(f"must not be {text!r}, which is the name of a page")
    return text


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise Refused(
            "must be 1 to 80 letters, digits, dots, dashes or underscores, beginning with a "
            "letter or digit"
        )
    return text


def _url(members: Members, private: bool) -> str | None:
    def check(text: str) -> str:
        return addresses.check(text, allow_private_network=private).url

    return members.checked("url", members.text("url", required=True), check)


def _credential(members: Members) -> CredentialSettings | None:
    inner = members.inner("credential")
    if inner is None:
        return None
    inner.only(("header", "scheme", "from"))
    header = inner.text("header") or "Authorization"
    if not _HEADER.fullmatch(header) or header.lower() in _FORBIDDEN_HEADERS:
        inner.report("header", "must be the name of a header that can carry a credential")
    scheme = inner.text("scheme")
    if scheme is not None and not _SCHEME.fullmatch(scheme):
        inner.report("scheme", "must be one word such as Bearer; the secret itself never goes here")
    source = inner.checked("from", inner.text("from", required=True), _reference)
    return CredentialSettings(header, scheme, source or "")


def _identity(members: Members) -> IdentitySettings | None:
    inner = members.inner("identity")
    if inner is None:
        return None
    inner.only(("issuer", "audience", "subject"))
    issuer = inner.checked("issuer", inner.text("issuer", required=True), addresses.check_issuer)
    audience = inner.text("audience", required=True)
    return IdentitySettings(issuer or "", audience or "", inner.text("subject"))


def _reference(text: str) -> str:
    return str(SecretRef.parse(text))


def _secret(members: Members) -> str | None:
    inner = members.inner("secret")
    if inner is None:
        return None
    inner.only(("from",))
    return inner.checked("from", inner.text("from", required=True), _reference)


def _pin(members: Members) -> str:
    inner = members.inner("tools")
    if inner is None:
        return "on_first_use"
    inner.only(("pin",))
    return inner.choice("pin", ("on_first_use", "accept"))


def _fits_injection(members: Members, settings: ServerSettings) -> None:
    """`authorization` is one token in one header: nothing else can travel that way."""
    if settings.inject != "authorization" or settings.credential is None:
        return
    credential = settings.credential
    if credential.header.lower() != "authorization" or (credential.scheme or "Bearer") != "Bearer":
        members.report(
            "inject",
            "authorization carries only a Bearer token in the header Authorization; use headers",
        )


def _sorted(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(sorted(names))
