"""S-09, S-10, S-18 without a process: what is pasted wrongly or fails is not quoted anywhere."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import structlog

from gateway.api import problems
from gateway.telemetry import configure_logging, failure
from tests.support.canaries import canary, find
from tests.support.house import Somebody

PASTED = canary(1)
SECRETS = {"pasted": PASTED}
SERVER = {"label": "wiki", "url": "https://mcp.example/mcp"}
WRONG: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/servers", {**SERVER, "credential": {"from": PASTED}}),
    ("POST", "/servers", {**SERVER, "credential": {"from": f"env:{PASTED}"}}),
    ("POST", "/servers", {**SERVER, "credential": {"from": "env:X", "scheme": PASTED}}),
    ("POST", "/servers", {**SERVER, "credential": {"from": "env:X", "header": PASTED}}),
    ("POST", "/servers", {**SERVER, "credential": PASTED}),
    ("POST", "/servers", {**SERVER, "inject": PASTED}),
    ("POST", "/servers", {**SERVER, "allow_private_network": PASTED}),
    ("POST", "/servers", {**SERVER, "url": f"https://u:{PASTED}@mcp.example/"}),
    ("POST", "/servers", {**SERVER, PASTED: 1}),
    ("PUT", "/servers/wiki/credential", {"value": [PASTED]}),
    ("PUT", "/servers/wiki/credential", {"value": f"{PASTED}\n"}),
    ("PUT", "/servers/wiki/credential", {"valeu": PASTED}),
    ("PUT", "/servers/wiki/credential", {"value": "x", "header": PASTED}),
    ("POST", "/servers/wiki/binding", {"reference": [PASTED], "origin": PASTED}),
    ("POST", "/servers/wiki/binding", {"reference": PASTED, "origin": PASTED}),
)


@pytest.mark.parametrize(("method", "path", "body"), WRONG)
async def test_S_09_what_is_pasted_where_it_does_not_belong_is_not_repeated(
    client: Any, adm: Somebody, method: str, path: str, body: Any, capfd: Any
) -> None:
    for content in (json.dumps(body), json.dumps(body)[:-1]):
        headers = {**adm.bearer, "content-type": "application/json"}
        answer = await client.request(method, f"/api/v1{path}", headers=headers, content=content)
        assert 400 <= answer.status_code < 500, answer.text
        assert find(answer.content + str(answer.headers).encode(), SECRETS) == set()
    told = capfd.readouterr()
    assert find((told.out + told.err).encode(), SECRETS) == set()


def test_S_10_of_a_failure_its_type_and_place_are_logged(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug")
    try:
        raise RuntimeError(f"cannot write {PASTED!r}")
    except RuntimeError as error:
        structlog.get_logger().error("x.failed", **failure(error))
    told = capfd.readouterr().err
    assert '"error": "RuntimeError"' in told
    assert "test_canaries.py:" in told
    assert find(told.encode(), SECRETS) == set()


@pytest.mark.parametrize("name", ["httpx2", "httpcore", "aiohttp", "aiohttp.client", "sqlalchemy"])
def test_S_18_no_client_logs_headers_whatever_the_level(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug")
    logging.getLogger(name).debug("send_request_headers %r", {"authorization": PASTED})
    assert find(capfd.readouterr().err.encode(), SECRETS) == set()


def test_a_problem_has_no_room_for_what_was_sent() -> None:
    assert set(problems.Fault.model_fields) == {"where", "detail"}
