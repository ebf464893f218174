"""Where it is configured whose access tokens stand for an app: files and the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import app as cli
from gateway.errors import Refused
from gateway.registry.declaration import parse
from gateway.registry.settings import IdentitySettings


def test_an_identity_is_declared_and_wrong_ones_are_named():
    text = "apps:\n  - name: a\n    identity: {issuer: https://idp.example/t, audience: x}\n"
    [app] = parse({"a.yaml": text}).apps
    assert app.identity == IdentitySettings("https://idp.example/t", "x")
    for member, message in (
        ("issuer: http://idp.example, audience: x", "must begin with https://"),
        ('issuer: "https://idp.example?x=1", audience: x', "must not have a query"),
        ("issuer: https://169.254.169.254, audience: x", "metadata"),
        ("issuer: https://idp.example", "needs a audience"),
        ("audience: x", "needs a issuer"),
        ("issuer: https://idp.example, audience: x, client: y", "unknown member 'client'"),
    ):
        with pytest.raises(Refused, match=re.escape(message)):
            parse({"a.yaml": f"apps:\n  - name: a\n    identity: {{{member}}}\n"})


def test_an_identity_is_given_by_command(tmp_path: Path):
    def run(*words: str):
        return CliRunner().invoke(cli, [*words], env={"GATEPASS_DATA_DIR": str(tmp_path / "data")})

    assert run("migrate").exit_code == 0
    option = "issuer=https://idp.example/t, audience=api://x,subject=s"
    made = run("apps", "create", "bot", "--identity", option, "--json")
    assert made.exit_code == 0, made.output
    [app] = json.loads(run("apps", "list", "--json").stdout)
    assert app["settings"]["identity"] == {
        "issuer": "https://idp.example/t",
        "audience": "api://x",
        "subject": "s",
    }
    wrong = run("apps", "create", "bad", "--identity", "issuer=http://idp.example")
    assert wrong.exit_code == 1
    assert "must begin with https://" in wrong.output
