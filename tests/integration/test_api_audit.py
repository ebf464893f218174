"""The ledger over HTTP: filters, proofs that verify, the evidence folder, nothing written."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from gateway.audit import evidence
from gateway.audit.checkpoint import Proof, VerifierKey, open_note
from gateway.audit.folder import Expected
from tests.support.clock import FakeClock
from tests.support.house import CallWanted, Somebody, held_call, somebody

AUDIT = "/api/v1/audit"


@pytest.fixture
async def eve(services, clock: FakeClock) -> Somebody:
    """An auditor."""
    return await somebody(services, clock, "eve@example.org", ["auditor"])


@pytest.fixture
async def held(approvals, clock: FakeClock) -> str:
    return await held_call(approvals, clock, CallWanted())


async def test_records_are_filtered_and_paged(client, eve: Somebody, held: str) -> None:
    seen, after = [], None
    while True:
        query = "?limit=3" + (f"&after={after}" if after else "")
        page = (await client.get(f"{AUDIT}/records{query}", headers=eve.bearer)).json()
        seen += [item["index"] for item in page["items"]]
        if (after := page["next"]) is None:
            break
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0
    only = await client.get(f"{AUDIT}/records?approval={held}", headers=eve.bearer)
    kinds = {item["kind"] for item in only.json()["items"]}
    assert kinds == {"call.ruled", "approval.requested"}
    family = await client.get(f"{AUDIT}/records?kind=user.*", headers=eve.bearer)
    assert {item["kind"].split(".")[0] for item in family.json()["items"]} == {"user"}
    none = await client.get(f"{AUDIT}/records?until=2020-01-01T00:00:00Z", headers=eve.bearer)
    assert none.json()["items"] == []
    for query in ("colour=red", "limit=0", "since=yesterday"):
        answer = await client.get(f"{AUDIT}/records?{query}", headers=eve.bearer)
        assert answer.status_code == 422


async def test_a_record_by_index_and_by_id(client, eve: Somebody, held: str) -> None:
    first = (await client.get(f"{AUDIT}/records/0", headers=eve.bearer)).json()
    again = (await client.get(f"{AUDIT}/records/{first['id']}", headers=eve.bearer)).json()
    assert first == again
    assert first["record"]["id"] == first["id"]
    for name in ("999999", "x", "-1", "01", "1e3"):
        answer = await client.get(f"{AUDIT}/records/{name}", headers=eve.bearer)
        assert answer.status_code == 404, name


async def test_a_proof_verifies_elsewhere(client, eve: Somebody, held: str, services) -> None:
    key = VerifierKey.parse((await client.get(f"{AUDIT}/key", headers=eve.bearer)).text.strip())
    record = (await client.get(f"{AUDIT}/records/2", headers=eve.bearer)).json()
    text = await client.get(f"{AUDIT}/records/2/proof", headers=eve.bearer)
    assert text.headers["content-type"].startswith("text/plain")
    proof = Proof.parse(text.text)
    from gateway.audit.verification import verify_record

    assert verify_record(record["canonical"].encode(), 2, proof, key) is None
    wrong = record["canonical"].replace("user", "usor", 1).encode()
    assert verify_record(wrong, 2, proof, key) is not None
    headers = {**eve.bearer, "accept": "application/json"}
    parts = (await client.get(f"{AUDIT}/records/2/proof", headers=headers)).json()
    assert parts["proof"] == text.text
    assert parts["index"] == 2
    missing = await client.get(f"{AUDIT}/records/99999/proof", headers=eve.bearer)
    assert missing.status_code == 404


async def test_verify_says_what_it_found_now(client, eve: Somebody, held: str, services) -> None:
    found = (await client.get(f"{AUDIT}/records/1/verify", headers=eve.bearer)).json()
    assert found["state"] == "verified"
    from sqlalchemy import text

    async with services.db.connection() as connection:
        await connection.execute(
            text('UPDATE audit_records SET body = :body WHERE "index" = 1'), {"body": b"{}"}
        )
    found = (await client.get(f"{AUDIT}/records/1/verify", headers=eve.bearer)).json()
    assert found["state"] == "failed"


async def test_the_checkpoint_is_a_signed_note(client, eve: Somebody, held, services) -> None:
    answer = await client.get(f"{AUDIT}/checkpoint", headers=eve.bearer)
    assert answer.headers["content-type"].startswith("text/plain")
    head = open_note(answer.text, [services.ledger.signer.verifier])
    older = await client.get(f"{AUDIT}/checkpoint?size={head.size}", headers=eve.bearer)
    assert older.text == answer.text
    none = await client.get(f"{AUDIT}/checkpoint?size=999999", headers=eve.bearer)
    assert none.status_code == 404


async def test_the_evidence_verifies_and_is_recorded(
    client, eve: Somebody, held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "tmp"
    kept.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(kept))
    pin = (await client.get(f"{AUDIT}/checkpoint", headers=eve.bearer)).text
    for query, payloads in (("", 0), ("?payloads=true", 1)):
        answer = await client.get(f"{AUDIT}/export{query}", headers=eve.bearer)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/zip"
        out = tmp_path / f"out{payloads}"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as packed:
            packed.extractall(out)
        report = evidence.verify(out / "evidence", Expected(pins=[pin]))
        assert report.valid, report.findings
        assert len(list((out / "evidence").glob("payloads/*.json"))) == payloads
    made = await client.get(f"{AUDIT}/records?kind=export.made", headers=eve.bearer)
    assert len(made.json()["items"]) == 2
    assert made.json()["items"][0]["record"]["actor"]["ref"] == eve.user.id
    assert list(kept.iterdir()) == []


async def test_an_export_that_fails_leaves_nothing(
    client, eve: Somebody, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("gateway.api.audit.export", broken)
    assert (await client.get(f"{AUDIT}/export", headers=eve.bearer)).status_code == 500
    assert list(tmp_path.glob("gatepass-evidence-*")) == []


async def test_nothing_can_be_written(client, eve: Somebody, adm: Somebody) -> None:
    for who in (eve, adm):
        for path in ("/records", "/records/0", "/checkpoint", "/key", "/export"):
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                answer = await client.request(method, AUDIT + path, headers=who.bearer)
                assert answer.status_code == 405
