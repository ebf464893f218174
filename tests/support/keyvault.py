"""What Azure Key Vault and the identity service of a machine say, as far as the real clients ask.

A stub: nothing of Azure's own can be started here. The challenge, versions, disabled secrets and
error codes are those of the documentation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

TOKEN = "kv-token"
RESOURCE = "https://vault.azure.net"


@dataclass
class KeyVault:
    """Secrets by name: their versions, oldest first, each with its value and attributes."""

    secrets: dict[str, list[tuple[str, str, dict[str, Any]]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    fails: int = 0

    def put(self, name: str, value: str, **attributes: Any) -> str:
        """A new version; its id."""
        versions = self.secrets.setdefault(name, [])
        version = f"{len(versions) + 1:032x}"
        versions.append((version, value, attributes))
        return version

    def app(self) -> FastAPI:
        """The vault as a web service."""
        app = FastAPI()

        @app.get("/secrets/{name}/{version}")
        @app.get("/secrets/{name}/")
        @app.get("/secrets/{name}")
        async def secret(request: Request, name: str, version: str = "") -> JSONResponse:
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                where = f'authorization="https://login.example/tenant", resource="{RESOURCE}"'
                return _error(401, "Unauthorized", headers={"www-authenticate": f"Bearer {where}"})
            self.asked.append(name)
            if self.fails:
                return _error(self.fails, "Forbidden" if self.fails == 403 else "Throttled")
            return self._answer(str(request.base_url), name, version)

        return app

    def _answer(self, base: str, name: str, version: str) -> JSONResponse:
        wanted = [one for one in self.secrets.get(name, []) if version in ("", one[0])]
        if not wanted:
            return _error(404, "SecretNotFound")
        found, value, attributes = wanted[-1]
        if attributes.get("enabled") is False:
            return _error(403, "Forbidden", inner="SecretDisabled")
        now = int(time.time())
        host = urlsplit(base).netloc
        return JSONResponse(
            {
                "value": value,
                "id": f"https://{host}/secrets/{name}/{found}",
                "attributes": {"enabled": True, "created": now, "updated": now, **attributes},
            }
        )


def _error(
    status: int, code: str, *, inner: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    error: dict[str, Any] = {"code": code, "message": "canary: said by the vault"}
    if inner:
        error["innererror"] = {"code": inner}
    return JSONResponse({"error": error}, status, headers)


def identity_service(asked: list[dict[str, str]], status: int = 200) -> FastAPI:
    """What answers on a machine of Azure's that has a managed identity."""
    app = FastAPI()

    @app.get("/metadata/identity/oauth2/token")
    async def token(request: Request) -> JSONResponse:
        assert request.headers["metadata"].lower() == "true"
        asked.append(dict(request.query_params))
        if status != 200:
            return JSONResponse({"error": "canary", "error_description": "canary"}, status)
        return JSONResponse(
            {
                "access_token": TOKEN,
                "expires_in": "3600",
                "expires_on": str(int(time.time()) + 3600),
                "resource": request.query_params["resource"],
                "token_type": "Bearer",
            }
        )

    return app
