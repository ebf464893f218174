"""S-01 to S-18: fifty secrets in every kind of store, every error forced, and none comes out.

What a person typed into arguments, or an app into its request, is no credential: reviewers are
shown it and apps get it back, so it is looked for only where payloads have no place either (the
database, its log, the ledger, metrics and what the process writes).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import zipfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import text as sql

from gateway.store.database import open_database
from gateway.store.tables import metadata
from tests.support.canaries import canary, find
from tests.support.garden import MANY, Garden, plant
from tests.support.postgres import PostgresServer
from tests.support.reflecting import KINDS, STREAMED

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PASTED, TYPED = canary(MANY + 1), "typed-by-the-model-5c1f7e"
TRANSFER = "Transfer 250 EUR to account 0815"
PHONE = f"Set the phone of {TYPED} to +49 30 1234"
_ZEROES = re.compile(rb"\0{9,}")
RESPONSES = "/openai/v1/responses"
#: Without a guard it is enough to see that something comes out: the short way there.
SHORT = bool(os.environ.get("WITHOUT"))
ANSWERS = ("error 400", "headers", "whole", "redirect") if SHORT else KINDS
STREAMS = ("pieces 5",) if SHORT else STREAMED
READ = (
    "/servers", "/servers/s0", "/servers/s1/tools", "/credentials", "/approval-requests",
    "/audit/records", "/apps", "/policies", "/exchanges", "/alarms", "/me", "/openapi.json",
)  # fmt: skip
PAGES = ("/", "/inbox", "/requests", "/audit", "/audit/0", "/alarms", "/grants", "/preferences")


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def test_S_01_to_S_18_fifty_secrets_stay_in_their_stores(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("postgres_server") if kind == "postgresql" else None
    async with AsyncExitStack() as stack:
        garden = await plant(stack, tmp_path, await server.create() if server else None)
        garden.secrets["pasted"] = PASTED
        assert SHORT or len(garden.secrets) >= 50
        await used_as_meant(garden)
        await shown_by_azure(garden)
        await asked_wrongly(garden)
        waiting = await crashed(garden)
        await read(garden, waiting)
        if not SHORT:
            await commands(garden)
        for path in sorted((tmp_path / "data").iterdir()):  # with its journal, while it is open
            garden.answers.append((f"{path.name}, in use", path.read_bytes()))
        assert garden.process is not None
        garden.process.stop()
        if not SHORT:
            await exported(garden)
        dumped = await rows(garden, server)
    assert SHORT or garden.mirror.shown > 60
    assert garden.search(tmp_path / "data", tmp_path / "export") == []
    log = (tmp_path / "serve.log").read_bytes()
    assert garden.in_(log) == set()
    for what, content in dumped:
        assert garden.in_(content) == set(), what
    typed = {"typed": TYPED}
    for path in (tmp_path / "data").rglob("*"):
        assert path.is_dir() or find(path.read_bytes(), typed) == set(), path
    for what, content in [("log", log), *dumped]:
        assert find(content, typed) == set(), what


def app(garden: Garden) -> dict[str, str]:
    return {"api-key": garden.people["app"]}


def reviewer(garden: Garden) -> dict[str, str]:
    return {"authorization": f"Bearer {garden.people['reviewer']}"}


def admin(garden: Garden) -> dict[str, str]:
    return {"authorization": f"Bearer {garden.people['admin']}"}


async def responses(garden: Garden, text: str, *labels: str, **changes: Any) -> Any:
    body = {"model": "gpt-4.1", "input": text, "tools": [garden.tool(name) for name in labels]}
    return await garden.ask("POST", RESPONSES, app(garden), json={**body, **changes})


async def pending(garden: Garden) -> list[dict[str, Any]]:
    for _ in range(300):
        found = await garden.ask(
            "GET", "/api/v1/approval-requests", reviewer(garden), params={"state": "pending"}
        )
        if items := found.json()["items"]:
            return list(items)
        await asyncio.sleep(0.1)
    raise AssertionError("nothing waits")


async def decide(garden: Garden, verdict: str = "approve") -> dict[str, Any]:
    [asked] = await pending(garden)
    body = {"verdict": verdict, "reason": "as tested", "digest": asked["digest"]}
    path = f"/api/v1/approval-requests/{asked['id']}/reviews"
    assert (await garden.ask("POST", path, reviewer(garden), json=body)).status_code == 201
    return asked


async def used_as_meant(garden: Garden) -> None:
    """Calls to servers that say the credential again in lists, results and errors."""
    usual = (("s0", False), ("s1", True), ("s2", False), ("s4", True))
    for label, stream in usual[:2] if SHORT else usual:
        asking = asyncio.ensure_future(responses(garden, TRANSFER, label, stream=stream))
        asked = await decide(garden, "deny" if label == "s4" else "approve")
        answer = await asking
        assert answer.status_code == 200, answer.text
        assert SHORT or label == "s4" or b"[redacted]" in answer.content
        await garden.ask("GET", f"/api/v1/approval-requests/{asked['id']}", reviewer(garden))
    failing = ("s6", "s13", "s20", "s27")  # answer 500, 403, 401, 503
    for label in () if SHORT else failing:
        for stream in (False, True):
            await responses(garden, TRANSFER, label, stream=stream)
    # While a call waits, Azure becomes one that shows everything: the answer to the approval.
    for way in ("pieces 3",) if SHORT else ("pieces 3", "error 500", "whole"):
        asking = asyncio.ensure_future(responses(garden, PHONE, "s3", stream=True))
        await pending(garden)
        garden.mirror.always = f"mirror {way}"
        await decide(garden)
        await asking
        garden.mirror.always = None


async def shown_by_azure(garden: Garden) -> None:
    """Whatever Azure answers, with everything in it that it was sent."""
    every = list(garden.labels)
    for wish in ANSWERS:
        text = f"mirror {wish}"
        for labels in (every, []):
            await responses(garden, text, *labels)
        messages = [{"role": "user", "content": text}]
        chat = {"model": "gpt-4.1", "messages": messages}
        await garden.ask("POST", "/openai/v1/chat/completions", app(garden), json=chat)
    for wish in STREAMS:
        text = f"mirror {wish}"
        for labels in (every, []):
            await responses(garden, text, *labels, stream=True)
        if wish.startswith("pieces"):
            continue  # no server's credential is in the context of a chat, and our key in none
        chat = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True}
        await garden.ask("POST", "/openai/v1/chat/completions", app(garden), json=chat)
    stored = (await responses(garden, "Hello")).json()["id"]
    # What a server let out once can come back in what has nothing to do with it.
    leaked = " ".join(canary(number) for number in range(min(MANY, 13)))
    for wish in ("whole",) if SHORT else ("error 500", "error 404", "whole", "headers"):
        garden.mirror.always = f"mirror {wish}"
        for method, path in (
            ("GET", "/openai/v1/models"),
            ("GET", f"{RESPONSES}/{stored}"),
            ("GET", f"{RESPONSES}/{stored}/input_items"),
            ("POST", "/openai/v1/conversations"),
            ("POST", "/openai/v1/embeddings"),
            ("POST", RESPONSES),
        ):
            body = {"model": "m", "input": "Hello", "metadata": {"x": leaked}}
            sent = {"json": body} if method == "POST" else {}
            await garden.ask(method, path, app(garden), **sent)
        await garden.ask(
            "POST",
            "/openai/v1/files",
            app(garden),
            data={"purpose": "assistants"},
            files={"file": ("x.txt", b"hello")},
        )
    garden.mirror.always = None


async def asked_wrongly(garden: Garden) -> None:
    """Somebody pastes a secret where none belongs: it is not repeated, nor kept."""
    url = "https://wrong.example/mcp"
    wrong: list[dict[str, Any]] = [
        {"url": url, "credential": {"from": PASTED}},
        {"url": url, "credential": {"from": f"env:{PASTED}"}},
        {"url": url, "credential": {"from": f"sealed:x#{PASTED}"}},
        {"url": url, "credential": {"from": "env:X", "scheme": PASTED}},
        {"url": url, "credential": {"from": "env:X", "header": PASTED}},
        {"url": url, "credential": PASTED},
        {"url": url, "credential": {"from": "env:X", "value": PASTED}},
        {"url": url, "inject": PASTED},
        {"url": url, "allow_private_network": PASTED},
        {"url": f"https://user:{quote(PASTED, safe='')}@wrong.example/mcp"},
        {"url": [PASTED]},
        {"url": url, PASTED: 1},
    ]
    for number, body in enumerate(wrong):
        path, label = "/api/v1/servers", f"wrong{number}"
        answer = await garden.ask("POST", path, admin(garden), json={"label": label, **body})
        assert answer.status_code in {400, 422}, body
        answer = await garden.ask("PUT", f"{path}/s0", admin(garden), json=body)
        assert answer.status_code in {400, 422}, body
    path = "/api/v1/servers/s2/credential"
    for content in (
        json.dumps({"value": [PASTED]}),
        json.dumps({"value": PASTED + "\n"}),
        json.dumps({"value": PASTED, "header": "no header"}),
        json.dumps({"valeu": PASTED}),
        '{"value": "' + PASTED,
        PASTED,
    ):
        headers = {"content-type": "application/json"}
        answer = await garden.ask("PUT", path, admin(garden), content=content, headers=headers)
        assert answer.status_code in {400, 422}, content
    for who in ({"api-key": PASTED}, {"authorization": f"Bearer {PASTED}"}, {"cookie": PASTED}):
        for where in ("/api/v1/servers", RESPONSES, "/inbox", "/metrics"):
            await garden.ask("GET", where, who)
    await garden.ask("POST", "/sign-in/link", {}, data={"code": PASTED})
    for tool in (
        {**garden.tool("s0"), "headers": {"Authorization": PASTED}},
        {**garden.tool("s0"), "authorization": PASTED},
        {**garden.tool("s0"), "server_url": f"https://x:{quote(PASTED)}@evil.example/"},
        {**garden.tool("s0"), "headers": PASTED},
    ):
        body = {"model": "gpt-4.1", "input": "What is the balance of account 4711?"}
        await garden.ask("POST", RESPONSES, app(garden), json={**body, "tools": [tool]})
    await garden.ask("POST", RESPONSES, app(garden), content='{"input": "' + PASTED)
    # Values that cannot be used.
    for label, content in (("s1", canary(1) + "\nX: y"), ("s7", canary(7) + "\u00fc")):
        (garden.folder / "mounted" / label).write_text(content)
        answer = await responses(garden, TRANSFER, label)
        assert answer.json()["error"]["code"] == "secret_unusable", answer.text
        (garden.folder / "mounted" / label).write_text(canary(int(label[1:])))
    await responses(garden, "crash here", "s0", "s1", "s2")
    await responses(garden, "crash here", "s0", stream=True)
    await responses(garden, "crash here")


async def crashed(garden: Garden) -> str:
    """The process is made to say where it is, dies, and goes on; a request that waits."""
    assert garden.process is not None
    asking = asyncio.ensure_future(responses(garden, PHONE, "s5", stream=True))
    [waiting] = await pending(garden)
    if not SHORT:
        garden.process.send(signal.SIGABRT)
        await asking
        garden.process.kill()
        await garden.process.start()
    garden.unfinished.append(asking)
    return str(waiting["id"])


async def read(garden: Garden, approval_id: str) -> None:
    """Everything that can be read, by everybody."""
    who = [reviewer(garden), admin(garden)]
    approval = f"/approval-requests/{approval_id}"
    for headers in who:
        for path in (*READ, approval):
            await garden.ask("GET", f"/api/v1{path}", headers)
    cookie = {"cookie": f"gatepass={garden.people['cookie']}", "sec-fetch-site": "same-origin"}
    seen = b""
    for path in (*PAGES, f"/requests/{approval_id}", f"/requests/{approval_id}/approve"):
        for language in ("en", "ru"):
            page = await garden.ask("GET", path, cookie, headers={"accept-language": language})
            seen += page.content
    assert TYPED.encode() in seen  # what reviewers decide about
    for path in ("/metrics", "/healthz", "/readyz"):
        await garden.ask("GET", path, {})
    answer = await garden.ask("POST", "/api/v1/audit/export", reviewer(garden), json={})
    assert answer.status_code in {200, 404, 405, 422}
    await decide(garden)
    await asyncio.gather(*garden.unfinished)


async def commands(garden: Garden) -> None:
    """What commands say, also of what is wrong."""
    wrong = garden.folder / "wrong.yaml"
    url = "https://x.example/mcp"
    wrong.write_text(
        f"servers: [{{label: x, url: '{url}', credential: {{from: '{PASTED}', x: '{PASTED}'}}}}]"
    )
    assert await garden.run("apply", str(wrong)) == 1
    assert await garden.run("credentials", "set", "s2", stdin=PASTED + "\nX: y\n") == 1
    assert await garden.run("servers", "add", "y", url, "--credential", PASTED) == 1
    await garden.run("doctor")
    for command in (("servers", "list"), ("credentials", "list"), ("requests", "list")):
        assert await garden.run(*command, "--json") == 0
    azure = garden.environ["GATEPASS_UPSTREAM_URL"]
    garden.environ["GATEPASS_UPSTREAM_URL"] = azure.replace("http:", "https:")  # TLS fails
    await garden.run("doctor", "--json")
    garden.environ["GATEPASS_UPSTREAM_URL"] = azure


async def exported(garden: Garden) -> None:
    """The evidence folder, payloads and all, as files and packed."""
    out = garden.folder / "export"
    assert await garden.run("audit", "export", "--payloads", "--out", str(out)) == 0
    with zipfile.ZipFile(out / "all.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(out.rglob("*.json")):
            packed.write(path)


async def rows(garden: Garden, server: PostgresServer | None) -> list[tuple[str, bytes]]:
    """Every row of every table, and the files of PostgreSQL: its tables, and its log of changes."""
    url = garden.environ.get("GATEPASS_DATABASE_URL") or (
        f"sqlite+aiosqlite:///{garden.folder / 'data' / 'gatepass.sqlite3'}"
    )
    db, said = open_database(url), []
    async with db.engine.connect() as connection:
        for name in metadata.tables:
            found = (await connection.execute(sql(f"SELECT * FROM {name}"))).all()
            values = (value for row in found for value in row)
            told = (v if isinstance(v, bytes) else str(v).encode() for v in values)
            said.append((name, b"\n".join(told)))
    await db.close()
    since = (garden.folder / "keys").stat().st_ctime
    for path in sorted(server.home.rglob("*")) if server else ():
        if path.is_file() and path.stat().st_mtime >= since:
            said.append((path.name, _ZEROES.sub(b"\0", path.read_bytes())))
    return said
