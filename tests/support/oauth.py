"""A token server on Authlib's own authorization server, and an MCP server that asks for its tokens.

Authlib does client authentication, client credentials and every error; token exchange (RFC 8693)
is one more grant of it. Counts what it was asked, and can be told to misbehave.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from authlib.oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, OAuth2Payload, OAuth2Request, grants
from authlib.oauth2.rfc6749.errors import InvalidGrantError, InvalidRequestError
from authlib.oauth2.rfc6749.grants import BaseGrant, TokenEndpointMixin
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.demo.mcp_server import McpSettings, create_mcp_server
from gateway.demo.runner import serve
from tests.support.demo import TOKEN

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
#: With everything that a form, a header or a URL could get wrong.
CLIENT, SECRET = "gate pass", "canary-s3cret/+:%"


@dataclass
class Client(ClientMixin):
    client_id: str
    secret: str

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == self.secret

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method != "none"

    def check_grant_type(self, grant_type: str) -> bool:
        return True

    def get_allowed_scope(self, scope: str) -> str:
        return scope


class Payload(OAuth2Payload):
    def __init__(self, form: dict[str, str]) -> None:
        self._form = form

    @property
    def data(self) -> dict[str, str]:
        return self._form

    @property
    def datalist(self) -> dict[str, list[str]]:
        return defaultdict(list, {name: [value] for name, value in self._form.items()})


class TokenRequest(OAuth2Request):
    def __init__(self, request: Request, form: dict[str, str]) -> None:
        super().__init__("POST", str(request.url), headers=request.headers)
        self.payload, self._posted = Payload(form), form

    @property
    def form(self) -> dict[str, str]:
        return self._posted


_METHODS = ["client_secret_basic", "client_secret_post", "private_key_jwt"]


class ClientCredentials(grants.ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS


class TokenExchange(BaseGrant, TokenEndpointMixin):
    """RFC 8693 §2: the subject's token for another."""

    GRANT_TYPE = EXCHANGE
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS

    def validate_token_request(self) -> None:
        self.request.client = self.authenticate_token_endpoint_client()
        form = self.request.payload.data
        if not form.get("subject_token") or not form.get("subject_token_type"):
            raise InvalidRequestError()
        if form["subject_token"] not in self.server.house.users:
            raise InvalidGrantError(description=f"unknown subject {form['subject_token']}")
        self.request.user = self.server.house.users[form["subject_token"]]

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        scope = self.request.payload.scope
        token = self.generate_token(self.request.user, scope, include_refresh_token=False)
        kind = "urn:ietf:params:oauth:token-type:access_token"
        return 200, {**token, "issued_token_type": kind}, self.TOKEN_RESPONSE_HEADER


class Server(AuthorizationServer):
    def __init__(self, house: TokenServer) -> None:
        super().__init__()
        self.house = house
        self.register_token_generator("default", self.issue)
        self.register_client_auth_method("private_key_jwt", self.assertion)
        self.register_grant(ClientCredentials)
        self.register_grant(TokenExchange)

    def assertion(self, query_client: Callable[[str], Client | None], request: Any) -> Any:
        form = request.form
        if form.get("client_assertion") in self.house.assertions:
            return query_client(form.get("client_id"))
        return None

    def query_client(self, client_id: str) -> Client | None:
        return Client(CLIENT, self.house.secret) if client_id == CLIENT else None

    def save_token(self, token: dict[str, Any], request: Any) -> None:
        pass

    def issue(self, grant_type: str, client: Client, user: str | None = None, **_: Any) -> Any:
        value = f"canary-token-{len(self.house.given) + 1}-of-{user or 'nobody'}"
        self.house.given[value] = self.house.now() + self.house.lifetime
        return {
            "access_token": value,
            "token_type": "Bearer",
            "expires_in": int(self.house.lifetime),
        }

    def create_oauth2_request(self, request: Any) -> Any:
        return request

    def send_signal(self, *_: Any, **__: Any) -> None:
        pass

    def handle_response(self, status: int, body: Any, headers: Any) -> Response:
        return JSONResponse(body, status, dict(headers))


@dataclass
class TokenServer:
    """The server at `url`. `given` says until when each of its tokens is good; `users` whom each
    subject token stands for.
    """

    now: Callable[[], float] = time.time
    url: str = ""
    secret: str = SECRET
    lifetime: float = 3600.0
    users: dict[str, str] = field(default_factory=dict)
    assertions: set[str] = field(default_factory=set)
    given: dict[str, float] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    fails: Callable[[Request, dict[str, str]], Response] | None = None
    names: str | None = None  # as its token address, instead of its own
    #: Set: requests wait for it.
    gate: asyncio.Event | None = None

    async def open(self, stack: AsyncExitStack) -> None:
        """Start it."""
        pytest.MonkeyPatch().setenv("AUTHLIB_INSECURE_TRANSPORT", "1")  # loopback
        routes = [
            Route("/token", self._token, methods=["POST"]),
            Route("/.well-known/openid-configuration", self._discovery),
        ]
        self._server = Server(self)
        self.url = await stack.enter_async_context(serve(Starlette(routes=routes)))

    async def _token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        self.asked.append(form)
        if self.gate is not None:
            await self.gate.wait()
        if self.fails is not None:
            return self.fails(request, form)
        return self._server.create_token_response(TokenRequest(request, form))

    async def _discovery(self, _: Request) -> Response:
        return JSONResponse(
            {"issuer": self.url, "token_endpoint": self.names or f"{self.url}/token"}
        )

    def accepts(self, token: str) -> bool:
        """Whether a token is one of ours, and good yet."""
        return self.now() < self.given.get(token, 0)


def elsewhere(_: Request, __: dict[str, str]) -> Response:
    return RedirectResponse("http://127.0.0.1:1/token", 307)


def user_token(subject: str, expires: float) -> str:
    """A token of some provider, as far as its payload goes."""
    parts = ({"alg": "RS256"}, {"sub": subject, "exp": int(expires)})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return f"{encoded[0].rstrip('=')}.{encoded[1].rstrip('=')}.signature"


async def open_bank(stack: AsyncExitStack, tokens: TokenServer) -> tuple[str, list[str]]:
    """The sample bank, for whom the token server has given a token; and the tokens it was sent."""
    inner = create_mcp_server(McpSettings(TOKEN))
    seen: list[str] = []

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            token = headers.get(b"authorization", b"").decode().removeprefix("Bearer ")
            seen.append(token)
            if not tokens.accepts(token):
                await JSONResponse({"error": "invalid_token"}, 401)(scope, receive, send)
                return
            headers[b"authorization"] = f"Bearer {TOKEN}".encode()
            scope = {**scope, "headers": list(headers.items())}
        await inner(scope, receive, send)

    app: ASGIApp = guarded
    return await stack.enter_async_context(serve(app)), seen
