"""Liveness, readiness and metrics: open, truthful, without a secret."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fastapi import FastAPI

from gateway.api import health
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.registry.directory import Directory
from tests.support.house import client_of


async def _ready(services) -> tuple[int, dict]:
    app = FastAPI()
    app.state.services = services
    app.include_router(health.router())
    async with client_of(app) as client:
        answer = await client.get("/readyz")
    return answer.status_code, answer.json()


async def test_alive_and_ready_without_a_credential(client) -> None:
    assert (await client.get("/healthz")).json() == {"status": "alive"}
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ready",
        "parts": dict.fromkeys(("database", "ledger", "vault", "configuration", "upstream"), "ok"),
    }


async def test_metrics_are_in_the_prometheus_format(client) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "# TYPE gatepass_requests_total counter" in answer.text


async def test_each_part_that_cannot_answer_is_named(services) -> None:
    class Broken:
        async def ping(self) -> None:
            raise Unavailable("The vault does not answer.")

    class Angry:
        async def ping(self) -> None:
            raise RuntimeError("canary")

    settings = Settings(upstream_url=None)
    for change, part, sentence in (
        ({"vault": Broken()}, "vault", "The vault does not answer."),
        ({"vault": Angry()}, "vault", "cannot answer; see the log"),
        ({"settings": settings}, "upstream", "GATEPASS_UPSTREAM_URL is not set"),
        ({"directory": Directory(services.db)}, "configuration", None),
    ):
        status, found = await _ready(replace(services, **change))
        assert status == 503
        assert found["status"] == "not ready"
        wrong = {name: text for name, text in found["parts"].items() if text != "ok"}
        assert set(wrong) == {part}
        assert sentence is None or wrong[part] == sentence


async def test_a_sick_ledger_is_not_ready(services) -> None:
    services.ledger.problem = "The disk failed."
    status, found = await _ready(services)
    assert (status, found["parts"]["ledger"]) == (503, "The disk failed.")


async def test_a_database_that_cannot_be_written_is_not_ready(
    services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with services.db.connection() as connection:
        await connection.exec_driver_sql("INSERT INTO meta VALUES ('config_version', '0')")
        await connection.exec_driver_sql("PRAGMA query_only=ON")
    # The writing connection refuses to write now, as on a full or read-only disk.
    status, found = await _ready(services)
    assert (status, set(found["parts"])) == (503, set(health.checks()))
    assert found["parts"]["database"] != "ok"


async def test_a_part_that_hangs_is_not_waited_for(
    services, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    class Hanging:
        async def ping(self) -> None:
            await asyncio.sleep(60)

    monkeypatch.setattr(health, "_PATIENCE", 0.05)
    status, found = await _ready(replace(services, vault=Hanging()))
    assert (status, found["parts"]["vault"]) == (503, "no answer within 0 s")


async def test_asking_often_costs_one_look_a_second(services, clock) -> None:
    asked = []

    class Counting:
        async def ping(self) -> None:
            asked.append(1)

    app = FastAPI()
    app.state.services = replace(services, vault=Counting())
    app.include_router(health.router())
    async with client_of(app) as client:
        for _ in range(5):
            await client.get("/readyz")
        clock.advance(1)
        await client.get("/readyz")
    assert len(asked) == 2
