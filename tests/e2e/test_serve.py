"""`gatepass serve` as a process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import schema
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.store import migration
from tests.support.ports import free_port

pytestmark = pytest.mark.e2e

COMMAND = [sys.executable, "-m", "gateway"]


def _env(folder: Path, port: int, **more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("GATEPASS_")}
    return {
        **own,
        "GATEPASS_DATA_DIR": str(folder / "data"),
        "GATEPASS_LISTEN": f"127.0.0.1:{port}",
        "GATEPASS_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "GATEPASS_UPSTREAM_URL": "http://127.0.0.1:9/openai/v1/",
        "GATEPASS_UPSTREAM_API_KEY": "k",
        **more,
    }


@contextlib.contextmanager
def _serving(env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "serve"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        _until_ready(env, process)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _until_ready(env: dict[str, str], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 40
    while time.monotonic() < end and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(env["GATEPASS_PUBLIC_URL"] + "/readyz", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[0])


def _run(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env=env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_starts_on_a_bare_host_and_ends_cleanly(tmp_path: Path, number: int) -> None:
    env = _env(tmp_path, free_port())
    with _serving(env) as process:
        process.send_signal(number)
        assert process.wait(30) == 0
        said = process.stdout.read()
    assert "Traceback" not in said
    assert _run(env, "audit", "verify").returncode == 0


def test_files_of_the_configuration_are_applied_first(tmp_path: Path) -> None:
    file = tmp_path / "check.yaml"
    file.write_text("apps:\n  - name: bot\n")
    env = _env(tmp_path, free_port(), GATEPASS_CONFIG=str(file))
    with _serving(env):
        assert "bot" in _run(env, "apps", "list", "--json").stdout
    file.write_text("apps:\n  - name: bot\n    colour: red\n")
    refused = _run(env, "serve")
    assert refused.returncode == 1
    assert "check.yaml:3" in refused.stderr


def test_a_second_server_is_refused_and_commands_are_not(tmp_path: Path) -> None:
    env = _env(tmp_path, free_port())
    with _serving(env):
        second = _run({**env, "GATEPASS_LISTEN": f"127.0.0.1:{free_port()}"}, "serve")
        assert second.returncode == 1
        assert "Another gateway is running" in second.stderr
        assert "Traceback" not in second.stderr
        key = _run(env, "apps", "create", "bot").stdout.strip()
        assert key.startswith("gp_app_")
        assert _status(env, key) != 401  # the server takes up what commands change


def test_a_taken_address_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = _run(_env(tmp_path, taken.getsockname()[1]), "serve")
    assert refused.returncode == 1
    assert "cannot listen on 127.0.0.1:" in refused.stderr
    assert "Traceback" not in refused.stderr


def _status(env: dict[str, str], key: str) -> int:
    request = urllib.request.Request(
        env["GATEPASS_PUBLIC_URL"] + "/openai/v1/models", headers={"api-key": key}
    )
    for _ in range(50):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            if error.code != 401:
                return error.code
        time.sleep(0.1)
    return 401


def test_headers_of_the_server_say_nothing_about_it(tmp_path: Path) -> None:
    env = _env(tmp_path, free_port())
    with (
        _serving(env),
        urllib.request.urlopen(env["GATEPASS_PUBLIC_URL"] + "/healthz", timeout=5) as answer,
    ):
        assert "server" not in {name.lower() for name in answer.headers}


@pytest.mark.postgres
def test_a_postgresql_that_is_behind_is_refused(postgres_server, tmp_path: Path) -> None:
    url = asyncio.run(postgres_server.create())
    keys = {name: tmp_path / name for name in ("master_key_file", "signing_key_file")}
    settings = Settings(database_url=url, data_dir=tmp_path / "data", **keys)
    with pytest.raises(Unavailable, match="gatepass migrate"):
        schema.prepare(settings)
    assert schema.upgrade(settings) == migration.newest()
    schema.prepare(settings)
