"""What a route may touch and who may call it: the one place that checks permissions.

Every route names its permission with `may(...)`; a test walks the route table and fails for one
that does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request

from gateway.api import refusals
from gateway.api.refusals import Attempt
from gateway.errors import NotAllowed
from gateway.identity.login import Principal
from gateway.identity.roles import SENTENCES, Permission
from gateway.services import Services


@dataclass(frozen=True)
class May:
    """A dependency that lets a principal with this permission through and nobody else."""

    permission: Permission

    async def __call__(self, request: Request) -> Principal:
        principal: Principal = request.scope["state"]["principal"]
        if not principal.may(self.permission):
            raise await refusal(_services(request), principal, self.permission, request.method)
        return principal


async def refusal(
    services: Services, principal: Principal, permission: Permission, method: str
) -> NotAllowed:
    """What to raise at somebody without this permission; their attempt is recorded."""
    attempt = Attempt(
        actor=principal.actor,
        subject={"user": principal.user_id},
        code="missing_permission",
        method=method,
        route=permission.value,
    )
    await refusals.record(services, attempt)
    return NotAllowed(
        f"Your roles{_and_token(principal)} do not include: {SENTENCES[permission]}",
        code="missing_permission",
        param=permission.value,
    )


def _and_token(principal: Principal) -> str:
    return "" if principal.scopes is None else ", or this token,"


def may(permission: Permission) -> Callable[..., Awaitable[Principal]]:
    """`Depends(may(Permission.X))` on a route: the principal, or 403."""
    return May(permission)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


House = Annotated[Services, Depends(_services)]
After = Annotated[
    str | None, Query(max_length=200, description="Cursor: `next` of the previous page.")
]
Limit = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]
