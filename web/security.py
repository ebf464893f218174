"""What every answer to a person carries, and which requests a browser may not send at all.

Plain ASGI around the whole program. Leaves the apps' side alone: there a key in a header is
the only authority, so that neither rebinding nor forgery has anything to use. Decides nothing
about who is signed in.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
_HSTS = "max-age=31536000; includeSubDomains"
_APPS = re.compile(r"/(openai|v1)(/|$)")
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: Sent by the identity provider's own servers: signed, and no cookie counts there.
_NOTICES = frozenset({"/sign-in/backchannel-logout"})
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  compared with, never bound
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Site:
    """Where this installation lives: the public origin and the Host names it answers to."""

    public_url: str
    hosts: frozenset[str]

    @property
    def secure(self) -> bool:
        return self.public_url.startswith("https:")

    @property
    def netloc(self) -> str:
        return urlsplit(self.public_url).netloc.lower()


def site(public_url: str, listen: str, more: tuple[str, ...] = ()) -> Site:
    """The Host names allowed: the public one, the address listened on, and `more`."""
    bound = listen.rpartition(":")[0].strip("[]").lower()
    names = {urlsplit(public_url).hostname or "", bound, *map(_name, more)}
    if bound in _WILDCARDS | _LOOPBACK:
        names |= _LOOPBACK
    return Site(public_url, frozenset(names - _WILDCARDS))


class Guard:
    """ASGI middleware: refuses foreign hosts and cross-origin changes, adds the headers."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _APPS.match(scope["path"]):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        request_id = state.setdefault("request_id", f"req_{secrets.token_hex(8)}")

        complete = False

        async def send_guarded(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Request-Id", request_id)
                self._add_headers(headers)
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        answer = self._refusal(scope) or self._app
        try:
            await answer(scope, receive, send_guarded)
        except Exception:
            # Answered by a page and logged by its place. Raised on, it would be printed with its
            # message, which may hold a payload.
            if not complete:
                raise

    def _add_headers(self, headers: MutableHeaders) -> None:
        for name, value in _HEADERS:
            headers.setdefault(name, value)
        headers.setdefault("Cache-Control", "no-store")
        if self._site.secure:
            headers["Strict-Transport-Security"] = _HSTS

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["path"] in _PROBES:
            return None
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return _refuse(scope, 400, "bad_host", "The Host header is missing or malformed.")
        if _name(hosts[0]) not in self._site.hosts:
            return _refuse(scope, 421, "unknown_host", "This address is not served here.")
        if scope["method"] not in _SAFE and not self._own(scope, headers, hosts[0].lower()):
            sentence = "A change asked for by another site was refused."
            return _refuse(scope, 403, "cross_origin", sentence)
        return None

    def _own(self, scope: Scope, headers: Headers, host: str) -> bool:
        """Whether a state-changing request comes from our own pages, or from no browser."""
        if scope["path"].startswith("/api/") and "cookie" not in headers:
            return True  # a program with a token: nothing is attached behind its back
        if scope["path"] in _NOTICES:
            return True
        fetch_site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if fetch_site is not None and fetch_site not in {"same-origin", "none"}:
            return False
        if origin is not None:
            return urlsplit(origin).netloc.lower() in {host, self._site.netloc}
        # Every current browser sends one header or the other; what sends neither is not trusted.
        return fetch_site is not None


def _name(host: str) -> str:
    """The host without its port: `[::1]:8080`, `::1` and `localhost:8080` are all understood."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _refuse(scope: Scope, status: int, code: str, sentence: str) -> Response:
    if scope["path"].startswith("/api/"):
        problem = {"type": "about:blank", "title": sentence, "status": status, "code": code}
        return JSONResponse(problem, status, media_type="application/problem+json")
    return PlainTextResponse(f"{sentence} ({code})\n", status)
