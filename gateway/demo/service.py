"""The upstream's settings and the one object that its endpoints share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from gateway.demo.store import Memory
from gateway.telemetry import Clock, utc_now


@dataclass(frozen=True)
class UpstreamSettings:
    """How the upstream behaves. Seconds where a duration is meant.

    `list_failures`: a server that cannot be listed fails the whole request (424) or, with "item",
    only its `mcp_list_tools` item. `propagation_delay`: for so long after a streamed response its
    id cannot be continued from. `replayable_approvals`: an approval that was answered once can be
    answered again from the same response, and executes again. `strict_pairs`: an approved call
    that is sent again must come with its approval. `conversations`: whether the resource has them;
    in one, an approval is answered with its request repeated ("echo") or alone ("plain"),
    `conversation_resume`. `keep` bounds what is remembered.
    """

    api_key: str = field(repr=False)
    region: str = "Sweden Central"
    list_failures: str = "request"
    delta_delay: float = 0.0
    propagation_delay: float = 0.0
    replayable_approvals: bool = False
    strict_pairs: bool = True
    conversations: bool = True
    conversation_resume: str = "echo"
    keep: int = 1000
    clock: Clock = utc_now


@dataclass
class Service:
    """Settings and memory of one upstream. `tasks` exists while it is served (for background)."""

    settings: UpstreamSettings
    memory: Memory
    tasks: asyncio.TaskGroup | None = None


Endpoint = Callable[[Service, Request], Awaitable[Response]]
