"""Two real gateways on one PostgreSQL: both serve, both are ready, one seals."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from gateway import config
from gateway.app import create_services
from gateway.audit.live import verify_live
from gateway.registry import servers
from gateway.registry.settings import ServerSettings
from gateway.store import migration
from gateway.telemetry import utc_now
from tests.support.demo import open_world
from tests.support.gateway import OPERATOR, Process, environment, furnish
from tests.support.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.slow]


async def test_two_gateways_share_a_ledger_and_its_configuration(
    postgres_database: str, tmp_path: Path
) -> None:
    await asyncio.to_thread(migration.upgrade, postgres_database)
    keys = {}
    for name in ("MASTER", "SIGNING"):
        file = tmp_path / f"{name}.key"
        file.write_bytes(os.urandom(32))
        file.chmod(0o600)
        keys[f"GATEPASS_{name}_KEY_FILE"] = str(file)
    async with AsyncExitStack() as stack:
        world = await open_world(stack)
        more = {"GATEPASS_DATABASE_URL": postgres_database, **keys}
        settings = [
            environment(tmp_path / name, world, free_port(), **more) for name in ("a", "b", "c")
        ]
        processes = []
        for environ in settings[:2]:
            folder = Path(environ["GATEPASS_DATA_DIR"])
            folder.mkdir(parents=True)
            processes.append(Process(environ, folder))
            stack.callback(processes[-1].kill)
        for process in processes:
            await process.start()  # until /readyz says so
        command = create_services(config.load(settings[2]))
        stack.push_async_callback(command.db.close)
        key, _ = await furnish(command, world.bank)
        seen = [await asks(process.url, key) for process in processes]
        assert seen == [200, 200]  # both know the app that a third process has made
        assert processes[0].stop() == 0
        by = {"actor": OPERATOR, "now": utc_now()}
        async with asyncio.timeout(20):  # sealed by the one that is left
            wiki = ServerSettings("wiki", "https://wiki.example/mcp")
            await servers.register(command.ledger, wiki, **by)
        assert await asks(processes[1].url, key) == 200
        assert processes[1].stop() == 0
        await command.ledger.settle()
        report = await verify_live(command.db, command.ledger.signer.verifier)
        assert report.valid, list(map(str, report.findings))


async def asks(url: str, key: str) -> int:
    async with httpx2.AsyncClient(base_url=url, headers={"api-key": key}) as client:
        body = {"model": "gpt-4.1", "input": "Hello"}
        answer = await client.post("/openai/v1/responses", json=body)
        return answer.status_code
