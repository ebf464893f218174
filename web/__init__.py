"""Everything a person looks at: pages, static files, error pages, the live stream.

`mount(app, services)` is the only entrance. Pages call use cases and fill templates; they hold
no rule, no query and no secret, and work without script.
"""

from __future__ import annotations

from fastapi import FastAPI

from gateway.services import Services
from web import assets, failures, live, security, translation
from web.frame import Web
from web.pages import (
    account,
    alarms,
    audit,
    credentials,
    delegations,
    emergency,
    grants,
    inbox,
    overview,
    provider,
    remember,
    requests,
    servers,
    sign_in,
    tools,
)
from web.pages import preferences as preferences_page
from web.rendering import Renderer

__all__ = ["mount"]


def mount(app: FastAPI, services: Services) -> None:
    """Serve the pages from `app`, and guard every answer that is for people.

    Call it last: whatever nothing else answers becomes a page, if only "there is nothing here".
    """
    settings = services.settings
    site = security.site(settings.public_url, settings.listen, settings.allowed_hosts)
    files = assets.load()
    pages = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, title="Gatepass")
    pages.state.web = Web(services, Renderer(files, translation.catalogs()), files, site)
    pages.state.services = services
    people = (remember, emergency, requests, grants, delegations)  # the particular before any
    configured = (servers, credentials, tools)
    front = (overview, provider, sign_in, account, preferences_page)
    for screen in (*front, inbox, alarms, *people, *configured, audit, live):
        pages.include_router(screen.router)
    pages.add_route("/static/{name}", files.serve)
    failures.install(pages)
    app.mount("/", pages)
    app.add_middleware(security.Guard, site=site)
