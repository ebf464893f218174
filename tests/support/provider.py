"""An identity provider that says what a test tells it to: whole tokens, wrong ones, none.

Real HTTP on a free port; the browser's part of the flow is played by `walk`. The real provider of
tests/ui asks for passwords; this one is for answers that a good one never gives.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
from joserfc import jwt
from joserfc.jwk import Key, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.demo.runner import serve
from gateway.identity.claims import Rules
from gateway.openid.flow import SignIn
from gateway.openid.provider import Client, Provider
from tests.support.stage import Stage

RULES = Rules(
    "roles", "groups", {"look": ("viewer",), "review": ("reviewer",), "run": ("admin",)},
    {"g-desk": ("desk",)},
)  # fmt: skip
ANN = {"sub": "ann-1", "email": "ann@example.org", "name": "Ann", "roles": ["review"]}


@dataclass
class Idp:
    """`claims` go into the next ID token; None leaves one out. `elsewhere` is its userinfo."""

    claims: dict[str, Any] = field(default_factory=lambda: dict(ANN))
    header: dict[str, Any] = field(default_factory=dict)
    elsewhere: dict[str, Any] | None = None
    document: dict[str, Any] = field(default_factory=dict)
    token: str | None = None  # instead of a signed one
    key: Key = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"}))
    keys: list[Key] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    code: str = "code-1"
    nonce: str = ""
    url: str = ""

    async def open(self, stack: AsyncExitStack) -> None:
        self.keys = [self.key]
        routes = [
            Route("/.well-known/openid-configuration", self._document),
            Route("/keys", self._keys),
            Route("/token", self._token, methods=["POST"]),
            Route("/userinfo", self._userinfo),
        ]
        self.url = await stack.enter_async_context(serve(Starlette(routes=routes)))

    async def _document(self, _: Request) -> Response:
        said = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "userinfo_endpoint": f"{self.url}/userinfo",
            "end_session_endpoint": f"{self.url}/end",
            "jwks_uri": f"{self.url}/keys",
            **self.document,
        }
        return JSONResponse({name: value for name, value in said.items() if value is not None})

    async def _keys(self, _: Request) -> Response:
        return JSONResponse({"keys": [key.as_dict(private=False) for key in self.keys]})

    async def _token(self, request: Request) -> Response:
        async with request.form() as form:
            self.asked.append({**form, "authorization": request.headers.get("authorization", "")})
        if self.asked[-1].get("code") != self.code:
            return JSONResponse({"error": "invalid_grant"}, 400)
        token = self.token or self.sign(**self.claims)
        answer = {"access_token": "at-1", "token_type": "Bearer", "id_token": token}
        return JSONResponse(answer)

    async def _userinfo(self, request: Request) -> Response:
        if request.headers.get("authorization") != "Bearer at-1":
            return JSONResponse({}, 401)
        return JSONResponse(self.elsewhere or {"sub": self.claims["sub"]})

    def sign(self, **claims: Any) -> str:
        """An ID token, good but for what is said otherwise."""
        now = int(time.time())
        filled = {
            "iss": self.url, "aud": "gatepass", "nonce": self.nonce, "iat": now,
            "exp": now + 300, "auth_time": now, **claims,
        }  # fmt: skip
        head = {"alg": "RS256", "kid": self.key.kid, **self.header}
        kept = {name: value for name, value in filled.items() if value is not None}
        named = {name: value for name, value in head.items() if value is not None}
        return jwt.encode(named, kept, self.key, algorithms=[head["alg"]])

    def notice(self, **claims: Any) -> str:
        """A logout token."""
        event = {"http://schemas.openid.net/event/backchannel-logout": {}}
        said = {"sub": "ann-1", "jti": "j-1", "events": event, "nonce": None, "auth_time": None}
        return self.sign(**{**said, **claims})

    def join(self, played: Stage, secret: str | None = "s3cret") -> None:
        """Make this the provider of the pages on the stage."""
        client = Client(self.url, "gatepass", secret, "openid email profile", played.url)
        sign_in = SignIn(
            Provider(client, played.clock), RULES, played.ledger, played.envelope,
            timedelta(minutes=5),
        )  # fmt: skip
        played.services.sign_in = sign_in

    async def walk(
        self, browser: httpx2.AsyncClient, query: str = "", **answer: str | None
    ) -> httpx2.Response:
        """Press the button, and come back from the provider with `answer` beside the usual."""
        leaving = await browser.get(f"/sign-in/provider{query}")
        assert leaving.status_code == 303, leaving.text
        sent = {name: said[0] for name, said in
                parse_qs(urlsplit(leaving.headers["location"]).query).items()}  # fmt: skip
        self.asked.append(sent)
        self.nonce = sent["nonce"]
        back = {"code": self.code, "state": sent["state"], **answer}
        said = urlencode({name: value for name, value in back.items() if value is not None})
        return await browser.get(
            f"/sign-in/callback?{said}", headers={"Sec-Fetch-Site": "cross-site"}
        )
