"""An OpenID provider on a free port: discovery, changing keys, tokens of any kind."""

from __future__ import annotations

import base64
import hmac
import json
import time
from contextlib import AsyncExitStack
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, Key, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from gateway.demo.runner import serve

AUDIENCE = "api://gatepass"


class Issuer:
    """Signs with `key`; says what `keys` holds. `asked` counts the requests for keys."""

    def __init__(self) -> None:
        self.key: Key = RSAKey.generate_key(2048, {"kid": "rsa-1", "use": "sig"})
        self.keys: list[Key] = [self.key]
        self.more: list[Any] = []
        self.asked = 0
        self.fails: str | None = None  # down | redirect | mixed up | nonsense
        self.url = ""

    async def open(self, stack: AsyncExitStack) -> None:
        """Start it."""
        routes = [
            Route("/t/v2.0/.well-known/openid-configuration", self._discovery),
            Route("/t/keys", self._keys),
        ]
        root = await stack.enter_async_context(serve(Starlette(routes=routes)))
        self.url = f"{root}/t/v2.0"

    async def _discovery(self, _: Request) -> Response:
        match self.fails:
            case "down":
                return JSONResponse({}, status_code=503)
            case "redirect":
                return RedirectResponse(f"{self.url}/elsewhere")
            case "mixed up":
                return JSONResponse({"issuer": "https://evil.example", "jwks_uri": self._jwks})
            case "nonsense":
                return Response(b"<html>")
            case _:
                return JSONResponse({"issuer": self.url, "jwks_uri": self._jwks})

    @property
    def _jwks(self) -> str:
        return f"{self.url.removesuffix('/v2.0')}/keys"

    async def _keys(self, _: Request) -> Response:
        self.asked += 1
        public = [key.as_dict(private=False) for key in self.keys]
        return JSONResponse({"keys": [*public, *self.more]})

    def token(self, key: Key | None = None, header: Any = None, **claims: Any) -> str:
        """A good token; a claim that is given as None is left out."""
        key = key or self.key
        now = int(time.time())
        filled = {
            "iss": self.url, "aud": AUDIENCE, "sub": "object-1", "azp": "client-1",
            "nbf": now - 60, "iat": now - 60, "exp": now + 3600, **claims,
        }  # fmt: skip
        algorithm = {"RSA": "RS256", "EC": "ES256"}[key.key_type]
        head = {"alg": algorithm, "kid": key.kid, "typ": "JWT", **(header or {})}
        kept = {name: value for name, value in filled.items() if value is not None}
        return jwt.encode(
            {name: value for name, value in head.items() if value is not None},
            kept,
            key,
            algorithms=[head["alg"]],
        )


def elliptic(name: str) -> ECKey:
    """Another key, of another kind."""
    return ECKey.generate_key("P-256", {"kid": name, "use": "sig"})


def with_public_key_as_secret(token: str, public: Key) -> str:
    """The token, signed with what everybody knows as if it were a shared secret."""
    head = {"alg": "HS256", "kid": public.kid, "typ": "JWT"}
    signed = f"{text(json.dumps(head).encode())}.{token.split('.')[1]}"
    digest = hmac.digest(public.as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{text(digest)}"


def text(raw: bytes) -> str:
    """Base64 as tokens have it."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
