"""Alarms, pauses and settlements over the API and on the command line: who may do what."""

from __future__ import annotations

import asyncio
import json

from sqlalchemy import update
from sqlmodel import col
from typer.testing import CliRunner

from gateway.approvals import alarms
from gateway.approvals.alarms import About
from gateway.audit.records import Actor
from gateway.cli import app
from gateway.cli.runtime import opened
from gateway.config import Settings
from gateway.store.tables import ApprovalRequest
from gateway.telemetry import utc_now
from tests.support.clock import FakeClock
from tests.support.house import CallWanted, Somebody, held_call, somebody

BASE = "/api/v1"
ABOUT = About("mismatch", "arguments_differ", "check", "exc_1", "apr_1", "wiki", "ask")
HOST = Actor("operator", "test", "host")


async def raised(services, clock: FakeClock, by: Actor | None = None) -> str:
    more = {} if by is None else {"raised_by": by}
    async with services.ledger.transaction() as tx:
        return alarms.add(tx, ABOUT, now=clock(), **more)


async def test_an_alarm_is_listed_until_somebody_closes_it_with_a_note(
    client, services, ann: Somebody, clock: FakeClock
) -> None:
    alarm_id = await raised(services, clock)
    (item,) = (await client.get(f"{BASE}/alarms", headers=ann.bearer)).json()["items"]
    assert (item["id"], item["kind"], item["code"]) == (alarm_id, "mismatch", "arguments_differ")
    assert (item["app"], item["server"], item["tool"]) == ("check", "wiki", "ask")
    path = f"{BASE}/alarms/{alarm_id}/close"
    assert (await client.post(path, headers=ann.bearer, json={})).status_code == 422
    closed = await client.post(path, headers=ann.bearer, json={"note": "A bug of Azure's."})
    assert closed.json()["closed_by"] == "ann@example.org"
    again = await client.post(path, headers=ann.bearer, json={"note": "x"})
    assert (again.status_code, again.json()["code"]) == (409, "alarm_closed")
    none = await client.post(
        f"{BASE}/alarms/alm_none/close", headers=ann.bearer, json={"note": "x"}
    )
    assert none.status_code == 404
    assert (await client.get(f"{BASE}/alarms", headers=ann.bearer)).json() == {"items": []}
    over = (await client.get(f"{BASE}/alarms?closed=true", headers=ann.bearer)).json()["items"]
    assert [entry["id"] for entry in over] == [alarm_id]


async def test_whoever_caused_an_alarm_does_not_close_it(
    client, services, ann: Somebody, adm: Somebody, clock: FakeClock
) -> None:
    alarm_id = await raised(services, clock, Actor("user", ann.user.id, "session"))
    path, body = f"{BASE}/alarms/{alarm_id}/close", {"note": "Nothing to see."}
    own = await client.post(path, headers=ann.bearer, json=body)
    assert (own.status_code, own.json()["code"]) == (403, "own_alarm")
    assert (await client.post(path, headers=adm.bearer, json=body)).status_code == 200


async def test_reviewers_and_admins_begin_a_pause_and_only_admins_end_one(
    client, services, approvals, ann: Somebody, adm: Somebody, clock: FakeClock
) -> None:
    await held_call(approvals, clock, CallWanted())
    viewer = await somebody(services, clock, "vic@example.org", ["viewer"])
    body = {"scope": "app", "target": "check", "reason": "looks odd"}
    refused = await client.post(f"{BASE}/pauses", headers=viewer.bearer, json=body)
    assert (refused.status_code, refused.json()["code"]) == (403, "missing_permission")
    begun = await client.post(f"{BASE}/pauses", headers=ann.bearer, json=body)
    assert begun.status_code == 201, begun.text
    assert begun.json()["begun_by"] == "ann@example.org"
    twice = await client.post(f"{BASE}/pauses", headers=adm.bearer, json=body)
    assert (twice.status_code, twice.json()["code"]) == (409, "already_paused")
    clock.advance(1)
    wider = {"scope": "all", "reason": "everything"}
    assert (await client.post(f"{BASE}/pauses", headers=adm.bearer, json=wider)).status_code == 201
    listed = (await client.get(f"{BASE}/pauses", headers=viewer.bearer)).json()["items"]
    assert [pause["scope"] for pause in listed] == ["all", "app"]
    path = f"{BASE}/pauses/{begun.json()['id']}/end"
    assert (await client.post(path, headers=ann.bearer)).status_code == 403
    assert (await client.post(path, headers=adm.bearer)).status_code == 204
    over = await client.post(path, headers=adm.bearer)
    assert (over.status_code, over.json()["code"]) == (409, "pause_over")
    ended = (await client.get(f"{BASE}/pauses?ended=true", headers=ann.bearer)).json()["items"]
    assert [pause["ended_by"] for pause in ended] == ["adm@example.org"]


async def test_unknown_outcomes_are_a_list_of_their_own_and_settled_by_reviewers(
    client, services, approvals, ann: Somebody, adm: Somebody, clock: FakeClock
) -> None:
    held = await held_call(approvals, clock, CallWanted())
    other = await held_call(approvals, clock, CallWanted(tool="other"))
    async with services.db.transaction() as session:
        await session.exec(
            update(ApprovalRequest)
            .where(col(ApprovalRequest.id) == held)
            .values(state="approved", execution="unknown", executed_at=clock())
        )
    path = f"{BASE}/approval-requests"
    listed = (await client.get(f"{path}?execution=unknown", headers=ann.bearer)).json()["items"]
    assert [item["id"] for item in listed] == [held]
    body = {"outcome": "not_executed", "reason": "The server's log has nothing."}
    settle = f"{path}/{held}/settlement"
    assert (await client.post(settle, headers=adm.bearer, json=body)).status_code == 403
    assert (await client.post(f"{path}/{other}/settlement", headers=ann.bearer, json=body)).json()[
        "code"
    ] == "outcome_known"
    settled = await client.post(settle, headers=ann.bearer, json=body)
    assert settled.status_code == 200, settled.text
    assert settled.json()["execution"] == "failed"
    assert settled.json()["settlement"]["outcome"] == "not_executed"
    again = await client.post(settle, headers=ann.bearer, json=body)
    assert (again.status_code, again.json()["code"]) == (409, "already_settled")


def test_the_host_pauses_resumes_settles_and_closes(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    env = {"GATEPASS_DATA_DIR": str(tmp_path)}

    def ok(*words: str) -> str:
        result = CliRunner().invoke(app, list(words), env=env)
        assert result.exit_code == 0, result.output
        return result.stdout

    async def prepare() -> tuple[str, str]:
        async with opened(Settings(data_dir=tmp_path)) as house:
            held = await held_call(house.approvals, utc_now, CallWanted())
            async with house.ledger.transaction() as tx:
                alarm_id = alarms.add(tx, ABOUT, now=utc_now())
                await tx.session.exec(
                    update(ApprovalRequest).values(
                        state="approved", execution="unknown", executed_at=utc_now()
                    )
                )
            await house.ledger.settle()
            return held, alarm_id

    ok("migrate")
    held, alarm_id = asyncio.run(prepare())
    ok("users", "create", "rev@example.org", "--role", "reviewer")
    assert held in ok("requests", "unclear")
    assert "none yet" in ok("requests", "unclear")
    why = ("--reason", "Seen in its log")
    ok("requests", "settle", held, "executed", "--as", "rev@example.org", *why)
    assert ok("requests", "unclear").strip() == "No outcome is unclear."
    begun = json.loads(ok("pause", "app", "check", "--reason", "odd", "--json"))
    assert "app check" in ok("pauses", "list")
    assert begun["begun_by"] == "operator"
    assert "is over" in ok("resume", begun["id"])
    assert "Nothing is paused" in ok("pauses", "list")
    assert begun["id"] in ok("pauses", "list", "--ended")
    everything = json.loads(ok("pause", "all", "--reason", "odd", "--json"))
    ok("resume", everything["id"], "--json")
    unknown = CliRunner().invoke(app, ["pause", "server", "none", "--reason", "x"], env=env)
    assert unknown.exit_code == 1
    assert alarm_id in ok("alarms", "list")
    ok("alarms", "close", alarm_id, "--note", "Looked into")
    assert "No alarm is open" in ok("alarms", "list")
    assert alarm_id in ok("alarms", "list", "--closed")
