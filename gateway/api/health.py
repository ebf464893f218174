"""/healthz, /readyz and /metrics: open to everybody, without a secret, a payload or a name.

Ready means that a call could be held, decided, recorded and released now. Each part is asked
for real; the answer names those that cannot, and an answer is kept for a second, so that asking
often costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import update
from sqlmodel import col

from gateway.errors import GatepassError
from gateway.services import Services
from gateway.store.database import Database
from gateway.store.tables import Meta
from gateway.telemetry import log

_KEPT = timedelta(seconds=1)
_PATIENCE = 3.0

Check = Callable[[Services], Awaitable[str | None]]


async def _database(services: Services) -> str | None:
    await write_nothing(services.db)
    return None


async def _ledger(services: Services) -> str | None:
    if services.ledger.healthy:
        return None
    return services.ledger.problem or "the ledger cannot be written"


async def _vault(services: Services) -> str | None:
    await services.vault.ping()
    return None


async def _directory(services: Services) -> str | None:
    _ = services.directory.view  # raises Unavailable when it was not read, or is broken
    return None


async def _upstream(services: Services) -> str | None:
    return None if services.settings.upstream_url else "GATEPASS_UPSTREAM_URL is not set"


def checks() -> dict[str, Check]:
    """Every part that must answer before a call may be released, by name."""
    return {
        "database": _database,
        "ledger": _ledger,
        "vault": _vault,
        "configuration": _directory,
        "upstream": _upstream,
    }


async def examine(services: Services) -> dict[str, str]:
    """Ask every part; returns what is wrong, by name of the part (empty: ready)."""
    problems: dict[str, str] = {}
    for name, check in checks().items():
        if (problem := await _ask(name, check, services)) is not None:
            problems[name] = problem
    return problems


async def _ask(name: str, check: Check, services: Services) -> str | None:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await check(services)
    except TimeoutError:
        return f"no answer within {_PATIENCE:.0f} s"
    except GatepassError as error:
        return error.message
    except Exception as error:
        log.warning("readiness.failed", part=name, error=type(error).__name__)
        return "cannot answer; see the log"


async def write_nothing(db: Database) -> None:
    """A real write that changes nothing: a full or read-only disk shows."""
    async with db.connection() as connection:
        await connection.execute(
            update(Meta).where(col(Meta.name) == "config_version").values(value=Meta.value)
        )


class _Readiness:
    """The last answer and when it was found."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._found: dict[str, str] = {}
        self._at: datetime | None = None

    async def __call__(self, request: Request) -> dict[str, str]:
        services: Services = request.app.state.services
        async with self._lock:
            now = services.clock()
            if self._at is None or not timedelta(0) <= now - self._at < _KEPT:
                self._found, self._at = await examine(services), now
            return self._found


def router() -> APIRouter:
    """The three routes; mount at the root of the application, outside every sign-in."""
    health = APIRouter(include_in_schema=False)
    ready = _Readiness()

    @health.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @health.get("/readyz")
    async def readyz(request: Request) -> Response:
        problems = await ready(request)
        parts = {name: problems.get(name, "ok") for name in checks()}
        status = "not ready" if problems else "ready"
        return JSONResponse({"status": status, "parts": parts}, 503 if problems else 200)

    @health.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return health
