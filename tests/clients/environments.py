"""Builds the environment of every client below .venv/clients, each from its own locked set.

Idempotent: an environment stands until its lock changes. Run by `make clients`; needs the package
registries only when something is missing, and nothing at the time of the tests.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.clients import CLIENTS, PROGRAMS, PROVIDER, Client

_STAMP = ".built-from"
NODE = ("node", "ai")


def missing(client: Client) -> str | None:
    """Why this client cannot be run here, in one sentence; None when it can."""
    if client.family == "curl" and not shutil.which("curl"):
        return "curl is not installed"
    if client.family in NODE and not _has_node():
        return "Node.js 18 or newer, with npm, is not installed: its clients are left out"
    if not is_built(client):
        return "the environments of the clients are not built: make clients"
    return None


def is_built(client: Client) -> bool:
    """Whether the environment stands, made from the lock as it is now."""
    if client.lock is None:
        return True
    stamp = client.environment / _STAMP
    return stamp.is_file() and stamp.read_text() == _digest(client.lock)


def command(client: Client) -> list[str]:
    """How its program is started; the program's arguments follow."""
    if client.family in NODE:
        # An ES module finds packages only in folders above itself.
        return ["node", str(client.environment / client.program)]
    if client.family == "curl":
        return [sys.executable, str(PROGRAMS / client.program)]
    return [str(client.environment / "bin" / "python"), str(PROGRAMS / client.program)]


def bring_programs() -> None:
    """Put the Node programs as they are now beside the packages they import."""
    for client in (*CLIENTS, PROVIDER):
        if client.family in NODE and client.environment.is_dir():
            for program in PROGRAMS.glob("*.mjs"):
                shutil.copy(program, client.environment)


def _has_node() -> bool:
    if not shutil.which("node") or not shutil.which("npm"):
        return False
    done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    return int(done.stdout.lstrip("v").partition(".")[0] or 0) >= 18


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def build(client: Client) -> str:
    """Make one environment anew; a line that says how long it took."""
    assert client.lock is not None
    began = time.monotonic()
    shutil.rmtree(client.environment, ignore_errors=True)
    client.environment.mkdir(parents=True)
    if client.family in NODE:
        _npm(client)
    else:
        _pip(client)
    (client.environment / _STAMP).write_text(_digest(client.lock))
    return f"  {client.title}: {time.monotonic() - began:.0f} s"


def _npm(client: Client) -> None:
    assert client.lock is not None
    for name in ("package.json", client.lock.name, ".npmrc"):
        shutil.copy(client.lock.parent / name, client.environment)
    _run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], client.environment)


def _pip(client: Client) -> None:
    python = client.environment / "bin" / "python"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(client.environment)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    options = ["--no-deps", "--no-compile", "--require-hashes", "--progress-bar", "off"]
    _run([*pip, *options, "-r", str(client.lock)], client.environment)


def _run(command: list[str], folder: Path) -> None:
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    environ = {**os.environ, **quiet, "PIP_NO_INPUT": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{folder.name}: {done.stdout}{done.stderr}")


def main() -> int:
    """Build what is missing, two at a time."""
    wanted = [client for client in (*CLIENTS, PROVIDER) if not is_built(client)]
    if any(client.family in NODE for client in wanted) and not _has_node():
        print("Node.js 18 or newer, with npm, is not installed: its clients are left out")
        if os.environ.get("CI") == "true":
            return 1
        wanted = [client for client in wanted if client.family not in NODE]
    if wanted:
        print(f"Installing {len(wanted)} clients into .venv/clients", flush=True)
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(build, wanted):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
