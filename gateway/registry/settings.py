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
from gateway.store import oauth
from gateway.store.oauth import OAuthClient
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
#: RFC 6749 §3.3, and for identifiers appendix A: what may stand in a form without surprises.
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")
_VISIBLE = re.compile(r"(?! )[\x20-\x7e]+(?<! )")
_TENANT = re.compile(r"(?!(?:common|organizations|consumers)$)[A-Za-z0-9][A-Za-z0-9.-]{0,127}")
_CLIENT_MEMBERS = (
    "name", "grant", "token_url", "issuer", "tenant", "authority", "client_id", "client_secret",
    "assertion", "client_auth", "scope", "audience", "resource", "allow_private_network",
)  # fmt: skip
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


def read_oauth_client(members: Members) -> OAuthClient | None:
    """An OAuth client from its members; None when they do not make one."""
    before = len(members.problems)
    members.only(_CLIENT_MEMBERS)
    private = members.flag("allow_private_network")
    client = OAuthClient(
        name=members.checked("name", members.text("name", required=True), _name) or "",
        grant=_grant(members),
        client_id=_matching(members, "client_id", _VISIBLE, required=True) or "",
        token_url=_address(members, "token_url", private),
        issuer=members.checked("issuer", members.text("issuer"), addresses.check_issuer),
        tenant=_matching(members, "tenant", _TENANT),
        authority=_authority(members, private),
        client_secret=_secret(members, "client_secret"),
        assertion=_assertion(members),
        client_auth=members.choice("client_auth", ("basic", "post")),
        scope=_matching(members, "scope", _SCOPE),
        audience=_matching(members, "audience", _VISIBLE),
        resource=_matching(members, "resource", _VISIBLE),
        allow_private_network=private,
    )
    if len(members.problems) == before:
        _fits_grant(members, client)
    return client if len(members.problems) == before else None


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
    return _address(members, "url", private, required=True)


def _address(members: Members, name: str, private: bool, *, required: bool = False) -> str | None:
    def check(text: str) -> str:
        return addresses.check(text, allow_private_network=private).url

    return members.checked(name, members.text(name, required=required), check)


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


def _secret(members: Members, name: str = "secret") -> str | None:
    inner = members.inner(name)
    if inner is None:
        return None
    inner.only(("from",))
    return inner.checked("from", inner.text("from", required=True), _reference)


def _matching(
    members: Members, name: str, form: re.Pattern[str], *, required: bool = False
) -> str | None:
    value = members.text(name, required=required)
    if value is not None and (len(value) > 500 or not form.fullmatch(value)):
        members.report(name, "has characters that do not belong there, or is too long")
    return value


def _grant(members: Members) -> str:
    if members.data.get("grant") is None:
        members.report(None, f"needs a grant: {' or '.join(oauth.GRANTS)}")
    return members.choice("grant", oauth.GRANTS)


def _authority(members: Members, private: bool) -> str:
    given = _address(members, "authority", private)
    if given is None:
        return oauth.ENTRA
    if not given.startswith("https://") or given.count("/") != 3 or not given.endswith("/"):
        members.report("authority", "must be https:// and a host, such as that of a national cloud")
    if members.data.get("tenant") is None:
        members.report("authority", "belongs to a tenant")
    return given.rstrip("/")


def _assertion(members: Members) -> str | None:
    if members.data.get("assertion") is None:
        return None
    return members.choice("assertion", ("workload_identity",))


def _fits_grant(members: Members, client: OAuthClient) -> None:
    """That it is said once where the tokens come from and how the client proves itself."""
    if sum(place is not None for place in (client.token_url, client.issuer, client.tenant)) != 1:
        members.report(None, "needs one of token_url, issuer and tenant")
    if (client.client_secret is None) == (client.assertion is None):
        members.report(None, "needs one of client_secret and assertion")
    if (client.client_secret or "").startswith("oauth:"):
        members.report("client_secret", "must be in another store than oauth:")
    if client.tenant is not None and client.scope is None:
        members.report(None, "needs a scope: Entra names what a token is for by it")
    if client.grant == oauth.ON_BEHALF_OF:
        if client.tenant is None:
            members.report("grant", "on_behalf_of is Entra's: it needs a tenant")
        if client.audience is not None or client.resource is not None:
            members.report("grant", "on_behalf_of takes a scope, not an audience or resource")


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
