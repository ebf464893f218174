"""JSON for people and their automation, under /api/v1: an application of its own.

Mounted as a whole, so that its sign-in, its errors (RFC 9457) and its table of routes are its
own: nothing outside can be reached through it, and nothing in it without a credential.
"""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from gateway.api import (
    alarms,
    approvals,
    apps,
    audit,
    delegations,
    grants,
    oauth_clients,
    people,
    policies,
    problems,
    servers,
)
from gateway.api.guard import Guard
from gateway.services import Services

_DESCRIPTION = (
    "Approval requests, configuration, people and the ledger. Authenticate with a personal access "
    "token as `Authorization: Bearer gp_pat_…`, or with the session of the web sign-in. Errors are "
    "problem details (RFC 9457); `code` is stable."
)


def application(services: Services) -> FastAPI:
    """The API as an ASGI application; its paths begin with /v1."""
    app = FastAPI(
        title="Gatepass",
        version=version("gatepass"),
        description=_DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(Guard, services=services)],
        responses={"4XX": {"model": problems.Problem, "description": "Refused, and why."}},
    )
    app.state.services = services
    problems.install(app)
    for router in routers():
        app.include_router(router, prefix="/v1")
    return app


def routers() -> tuple[APIRouter, ...]:
    """Every route of the API; a test walks them."""
    return (
        approvals.router,
        grants.router,
        servers.router,
        oauth_clients.router,
        apps.router,
        policies.router,
        people.router,
        delegations.router,
        audit.router,
        alarms.router,
    )


def mount(app: FastAPI, services: Services) -> None:
    """Put the API at /api of the whole application."""
    app.mount("/api", application(services))
