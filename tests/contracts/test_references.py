"""The command line and the API are documented: all of it, and nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gateway import api
from gateway.api.guard import MAX_BODY_BYTES
from gateway.cli import app
from gateway.identity.roles import ROLES

ROOT = Path(__file__).parents[2]
CLI = (ROOT / "docs/cli.md").read_text()
API = (ROOT / "docs/api.md").read_text()


def _commands() -> Iterator[str]:
    for command in app.registered_commands:
        yield f"gatepass {command.name}"
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            yield f"gatepass {group.name} {command.name}"


def _routes() -> Iterator[str]:
    for router in api.routers():
        for route in router.routes:
            for method in route.methods:
                yield f"{method} /api/v1{route.path}".replace(":path}", "}")


def test_every_command_is_documented_and_none_is_invented() -> None:
    rows = re.findall(r"^\| `(gatepass [^`]+)`", CLI, re.MULTILINE)
    commands = set(_commands())
    documented = {
        max((name for name in commands if f"{row} ".startswith(f"{name} ")), key=len, default=row)
        for row in rows
    }
    assert documented == commands


def test_every_exit_code_of_the_verifier_is_documented() -> None:
    from gateway.audit.verification import Layer

    for layer in Layer:
        assert f"| {int(layer)} |" in CLI


def test_every_route_is_documented_and_none_is_invented() -> None:
    rows = set(re.findall(r"^\| `((?:GET|POST|PUT|PATCH|DELETE) [^`]+)`", API, re.MULTILINE))
    assert rows == set(_routes())


def test_the_roles_and_the_limit_are_the_real_ones() -> None:
    assert set(re.findall(r"^\| (\w+) \| (?:see|the same|configure)", API, re.MULTILINE)) == set(
        ROLES
    )
    assert MAX_BODY_BYTES == 1024 * 1024
    assert "more than 1 MiB" in API
