"""The allow-list of the app-facing side: which method and path lead where, and why others do not.

Paths are matched as they were sent: an encoded character, a doubled slash or a dot segment is on
no list. Every way in which the official clients write a path is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from gateway.errors import GatepassError, Refused
from gateway.exchange.messages import Bypass

#: `/team/openai/…`: some clients keep a prefix of the endpoint they were given.
_ROOT = re.compile(
    r"(?:(?:/(?!(?:openai|v1|api)/)[A-Za-z0-9_-]{1,64})?/openai(?:/v1)?|/v1)"
    r"(?:/deployments/(?P<deployment>[A-Za-z0-9._-]{1,64}))?(?P<rest>/.*)"
)
_ID = r"([A-Za-z0-9_-]{1,256})"
_MODEL = r"([A-Za-z0-9._:-]{1,128})"
_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("responses", "/responses", "POST"),
    ("response", rf"/responses/(?!(?:compact|input_tokens)$){_ID}", "GET DELETE"),
    ("response.cancel", rf"/responses/{_ID}/cancel", "POST"),
    ("response.input_items", rf"/responses/{_ID}/input_items", "GET"),
    ("conversations", "/conversations", "POST"),
    ("conversation", rf"/conversations/{_ID}", "GET POST DELETE"),
    ("conversation.items", rf"/conversations/{_ID}/items", "GET POST"),
    ("conversation.item", rf"/conversations/{_ID}/items/{_ID}", "GET DELETE"),
    ("files", "/files", "GET POST"),
    ("file", rf"/files/{_ID}", "GET DELETE"),
    ("file.content", rf"/files/{_ID}/content", "GET"),
    ("chat", "/chat/completions", "POST"),
    ("embeddings", "/embeddings", "POST"),
    ("models", "/models", "GET"),
    ("model", rf"/models/{_MODEL}", "GET"),
)
_TABLE = tuple(
    (name, re.compile(pattern), frozenset(methods.split())) for name, pattern, methods in _ROUTES
)
_USE_RESPONSES = "Use POST /responses with registered servers."
_NEVER = (
    (re.compile(r"/(realtime|live)(/|$)"),
     f"It could call MCP tools that nobody would see. {_USE_RESPONSES}"),
    (re.compile(r"/(assistants|threads|agents|chatkit|evals|batches|vaults)(/|$)"),
     f"It runs models elsewhere with tools that are not in the request. {_USE_RESPONSES}"),
    (re.compile(r"/uploads(/|$)"),
     "A file in parts could be a batch of requests that nobody reads. Use POST /files."),
    (re.compile(r"/webhook_endpoints(/|$)"),
     "Azure would tell of single rounds, before people have decided. Poll the response instead."),
    (re.compile(r"/responses/(compact|input_tokens)$"),
     f"It takes tools without calling them, and may ask their servers. {_USE_RESPONSES}"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """Where a path leads: the route's name and methods, the ids in it, the deployment before it."""

    name: str
    methods: frozenset[str]
    ids: tuple[str, ...] = ()
    deployment: str | None = None

    def allow(self, method: str) -> None:
        """Raises `Refused` (405) for a method that the route does not have."""
        if method not in self.methods:
            raise Refused(
                f"{method[:16]} is not possible here.", code="method_not_allowed", status=405
            )


@lru_cache(maxsize=1024)
def find(path: str) -> Target:
    """The route of a path; raises `Bypass` for one that is not on the list."""
    root = _ROOT.fullmatch(path)
    if root is not None:
        for name, pattern, methods in _TABLE:
            if (match := pattern.fullmatch(root["rest"])) is not None:
                return Target(name, methods, match.groups(), root["deployment"])
    raise _no_route(path)


def _no_route(path: str) -> GatepassError:
    for pattern, why in _NEVER:
        if pattern.search(path):
            return Bypass(
                f"This part of the API is not available through this gateway. {why}",
                code="route_refused",
            )
    return Bypass(
        "This path is not available through this gateway.", code="route_unknown", status=404
    )
