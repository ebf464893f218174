"""What people decide beside a plain review, as the app sees it: remembered, undone, urgent."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.identity import people, tokens
from gateway.telemetry import utc_now
from tests.support.demo import TRANSFER
from tests.support.gateway import OPERATOR, Gateway, http, open_gateway

pytestmark = pytest.mark.e2e
EXECUTED = "bank.transfer returned:"
UNDO = """
policies:
  - {name: undo, effect: hold, undo_seconds: 2}
"""
TWO = """
reviewer_groups:
  - {name: desk, members: [nobody@example.org]}
policies:
  - {name: two, effect: hold, quorum: 2, groups: [desk]}
"""


async def remember(gateway: Gateway, request: dict[str, Any], **terms: Any) -> None:
    until = (utc_now() + timedelta(hours=1)).isoformat()
    wanted = {"kind": "exact", "scope": "app", "until": until, **terms}
    body = {"verdict": "approve", "digest": request["digest"], "remember": wanted}
    path = f"/approval-requests/{request['id']}/reviews"
    answer = await gateway.api("POST", path, json=body)
    assert answer.status_code == 201, answer.text


async def test_the_second_call_is_answered_by_the_grant_without_a_person(gateway: Gateway) -> None:
    first = asyncio.ensure_future(gateway.ask(TRANSFER))
    [request] = await gateway.pending()
    await remember(gateway, request, max_uses=2)
    assert (await first).output_text.startswith(EXECUTED)
    second = await gateway.ask(TRANSFER)
    assert second.output_text.startswith(EXECUTED)
    streamed = [event async for event in await gateway.ask(TRANSFER, stream=True)]
    assert streamed[-1].response.output_text.startswith(EXECUTED)
    assert len(await gateway.effects()) == 3
    [grant] = (await gateway.api("GET", "/grants")).json()["items"]
    assert (grant["uses"], grant["state"]) == (2, "used_up")
    decided = await gateway.records("approval.decided")
    assert [record["decision"]["by"] for record in decided] == ["reviewers", "grant", "grant"]
    assert [record.get("use") for record in decided] == [None, 1, 2]
    fourth = asyncio.ensure_future(gateway.ask(TRANSFER))
    await gateway.decide("deny")
    await fourth
    assert len(await gateway.effects()) == 3


async def test_a_revoked_grant_answers_no_more(gateway: Gateway) -> None:
    first = asyncio.ensure_future(gateway.ask(TRANSFER))
    [request] = await gateway.pending()
    await remember(gateway, request)
    await first
    [grant] = (await gateway.api("GET", "/grants")).json()["items"]
    assert (await gateway.api("POST", f"/grants/{grant['id']}/revoke")).status_code == 200
    second = asyncio.ensure_future(gateway.ask(TRANSFER))
    await gateway.decide("deny")
    await second
    assert len(await gateway.effects()) == 1


async def test_an_approval_is_undone_in_time_and_counts_otherwise(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, declare=UNDO)
        asking = asyncio.ensure_future(gateway.ask(TRANSFER))
        [request] = await gateway.pending()
        given = (await gateway.review(request)).json()
        assert given["state"] == "pending"
        assert given["settles_at"] is not None
        path = f"/approval-requests/{request['id']}/reviews/withdraw"
        undone = await gateway.api("POST", path)
        assert (undone.status_code, undone.json()["settles_at"]) == (200, None)
        assert await gateway.effects() == []
        begun = time.monotonic()
        await gateway.review(request)
        answer = await asking
        assert time.monotonic() - begun >= 2
        assert answer.output_text.startswith(EXECUTED)
        assert len(await gateway.effects()) == 1
        await gateway.verify()


async def test_in_an_emergency_one_person_releases_what_two_should(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path, declare=TWO)
        assert gateway.services is not None
        ledger, now = gateway.services.ledger, utc_now()
        new = people.NewUser("eve@example.org", ("break_glass",))
        user = await people.create_user(ledger, new, actor=OPERATOR, now=now)
        token = await tokens.create_token(ledger, user.id, actor=OPERATOR, now=now)
        asking = asyncio.ensure_future(gateway.ask(TRANSFER))
        [request] = await gateway.pending()
        assert (await gateway.review(request)).status_code == 403
        body = {"digest": request["digest"], "reason": "The pumps have stopped"}
        async with http(gateway.url, {"authorization": f"Bearer {token}"}) as eve:
            path = f"/api/v1/approval-requests/{request['id']}/break-glass"
            assert (await eve.post(path, json=body)).status_code == 201
        assert (await asking).output_text.startswith(EXECUTED)
        kinds = [record["type"] for record in await gateway.records()]
        used, sent = kinds.index("break_glass.used"), kinds.index("release.sending")
        assert used < sent
        await gateway.verify()
