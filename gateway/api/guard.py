"""The door of /api: nobody passes without a session or a token, and every failure is an answer.

Pure ASGI around the whole API, so that even a path that does not exist needs a credential.
Decides who is asking and whether a browser may send this for them; what that person may do is
`gateway.api.access`' to say. An exception here ends as a refusal, never as an identity.
"""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api import problems, refusals
from gateway.api.refusals import Attempt
from gateway.audit.records import Actor
from gateway.errors import GatepassError, NotAllowed, Refused
from gateway.identity import login
from gateway.identity.login import Principal
from gateway.services import Services
from gateway.telemetry import failure, log

MAX_BODY_BYTES = 1024 * 1024
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_APP_KEY_HEADERS = ("api-key", "x-api-key")


class Guard:
    """Authenticates each request of the wrapped application."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self.app = app
        self.services = services
        self.cookie = login.cookie_name(services.settings.public_url)
        self.origin = origin_of(services.settings.public_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send)
        request = Request(scope)
        try:
            principal = await self._identify(request, self.services.clock())
            scope.setdefault("state", {})["principal"] = principal
            await self.app(scope, _Limited(receive), answer)
        except GatepassError as error:
            await _give_up(answer, problems.of_error(error), scope, receive)
        except Exception as error:
            log.error("api.failed", **failure(error))
            detail = "Something went wrong here; nothing was decided or changed by this answer."
            await _give_up(answer, problems.of_status(500, detail), scope, receive)

    async def _identify(self, request: Request, now: datetime) -> Principal:
        """The one credential parser of /api: exactly one credential, in exactly one place."""
        bearer = request.headers.getlist("authorization")
        cookie = request.cookies.get(self.cookie)
        foreign = [name for name in _APP_KEY_HEADERS if name in request.headers]
        if len(bearer) + (cookie is not None) + len(foreign) > 1:
            raise Refused("Send one credential, in one place.", code="several_credentials")
        if foreign:
            raise await self._app_key(request, request.headers[foreign[0]])
        principal = None
        if bearer:
            principal = await self._bearer(request, bearer[0], now)
        elif cookie is not None:
            principal = await login.session(self.services.db, cookie, now)
            if principal is not None and not _from_here(request, self.origin):
                raise await self._cross_site(request, principal)
        if principal is None:
            raise NotAllowed(
                "Sign in, or send a personal access token as 'Authorization: Bearer gp_pat_…'.",
                code="unauthenticated",
                status=401,
            )
        return principal

    async def _bearer(self, request: Request, header: str, now: datetime) -> Principal | None:
        scheme, _, value = header.partition(" ")
        if value.startswith("gp_app_"):
            raise await self._app_key(request, value)
        if scheme.lower() != "bearer":
            return None
        return await login.token(self.services.db, value.strip(), now)

    async def _app_key(self, request: Request, key: str) -> NotAllowed:
        """The refusal of an app key; an app that tries with its own is recorded."""
        app = self.services.directory.authenticate(key.removeprefix("Bearer ").strip())
        if app is not None:
            actor = Actor("app", app.id, "key")
            await self._record(request, actor, {"app": app.id}, "app_key")
        return NotAllowed(
            "An app key opens nothing here: use a personal access token 'gp_pat_…'.",
            code="app_key",
            status=401,
        )

    async def _cross_site(self, request: Request, principal: Principal) -> NotAllowed:
        """The refusal of a request that another site sent with this person's cookie."""
        await self._record(request, principal.actor, {"user": principal.user_id}, "cross_site")
        return NotAllowed("This request comes from another site.", code="cross_site")

    async def _record(
        self, request: Request, actor: Actor, subject: dict[str, str], code: str
    ) -> None:
        attempt = Attempt(actor, subject, code, request.method, "/api")
        await refusals.record(self.services, attempt)


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL, as browsers send them in `Origin` (RFC 6454)."""
    parts = urlsplit(url)
    port = "" if parts.port in {None, {"http": 80, "https": 443}.get(parts.scheme)} else parts.port
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}"


def _from_here(request: Request, origin: str) -> bool:
    # A browser attaches the cookie wherever a request comes from; only it can say from where.
    if request.method in _SAFE:
        return True
    site = request.headers.get("sec-fetch-site")
    return site == "same-origin" if site else request.headers.get("origin") == origin


class _Limited:
    """Receives a body up to the limit, and not a byte further."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.left = MAX_BODY_BYTES

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise HTTPException(413)
        return message


class _Answer:
    """Sends on, adds the safety headers, and remembers whether anything went out."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers["cache-control"] = "no-store"
            headers["x-content-type-options"] = "nosniff"
            headers["content-security-policy"] = "default-src 'none'; frame-ancestors 'none'"
        await self.send(message)


async def _give_up(answer: _Answer, response: ASGIApp, scope: Scope, receive: Receive) -> None:
    if answer.started:
        # Half an answer is out: breaking the connection is the only honest end.
        raise ConnectionAbortedError("failed after the response had started")
    await response(scope, receive, answer)
