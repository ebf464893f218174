"""The whole story on one machine: ask, hold, decide, inject, resume, answer, prove.

A scripted Azure, a real MCP server and a real gateway with a database of its own, in a temporary
folder. The question is asked with the official `openai` client, which knows nothing of it all.
Every step is checked where it happened; what was not observed is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
from rich.console import Console

from gateway import config
from gateway.app import create_app
from gateway.audit.live import verify_live
from gateway.audit.records import Actor
from gateway.config import Settings
from gateway.demo.mcp_server import McpSettings, create_mcp_server
from gateway.demo.runner import serve
from gateway.demo.service import UpstreamSettings
from gateway.demo.upstream import create_upstream
from gateway.identity import login, people, tokens
from gateway.identity.people import NewUser
from gateway.registry import apps, servers
from gateway.registry.changes import By
from gateway.registry.servers import CredentialValue
from gateway.registry.settings import AppSettings, ServerSettings
from gateway.services import Services
from gateway.store import migration
from gateway.telemetry import configure_logging, utc_now

QUESTION = "Transfer 250 EUR to account 0815"
_WANTED_PORT = 8080
_OPERATOR = Actor("operator", "demo", "host")
_LINK_LIFETIME = timedelta(hours=8)


class NotObserved(Exception):
    """A step of the story did not happen as it must."""


@dataclass(frozen=True)
class Stage:
    """Where everything is, and with which secrets."""

    gateway: str
    mcp: str
    mcp_token: str
    services: Services
    app_key: str
    link: str
    second_token: str


def run(once: bool, console: Console) -> int:
    """Tell the story; 0 when every step was really observed."""
    configure_logging("error")
    try:
        asyncio.run(_tell(once, console))
    except NotObserved as error:
        console.print(f"[red]✗[/red] {error}")
        return 1
    except KeyboardInterrupt:
        console.print("\nThe demo has ended; nothing of it was kept.")
    return 0


async def _tell(once: bool, console: Console) -> None:
    with tempfile.TemporaryDirectory(prefix="gatepass-demo-") as folder:
        async with _stage(Path(folder), once) as stage:
            _introduce(stage, once, console)
            answer = await _ask(stage, once, console)
            await _check(stage, answer, console)
            if not once:
                console.print(
                    "\nLook around: the request, its record and its proof are at "
                    f"[bold]{stage.gateway}[/bold]. Ctrl-C ends the demo."
                )
                await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _stage(folder: Path, once: bool) -> AsyncIterator[Stage]:
    mcp_token, azure_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    async with contextlib.AsyncExitStack() as stack:
        mcp = await stack.enter_async_context(serve(create_mcp_server(McpSettings(mcp_token))))
        azure = await stack.enter_async_context(
            serve(create_upstream(UpstreamSettings(api_key=azure_key)))
        )
        port = 0 if once or not _is_free(_WANTED_PORT) else _WANTED_PORT
        port = port or _free_port()
        settings = config.load(
            {
                "GATEPASS_LISTEN": f"127.0.0.1:{port}",
                "GATEPASS_PUBLIC_URL": f"http://127.0.0.1:{port}",
                "GATEPASS_DATA_DIR": str(folder / "data"),
                "GATEPASS_UPSTREAM_URL": f"{azure}/openai/v1/",
                "GATEPASS_UPSTREAM_API_KEY": azure_key,
            }
        )
        yield await _furnish(stack, settings, f"{mcp}/mcp", mcp_token, port)


async def _furnish(
    stack: contextlib.AsyncExitStack, settings: Settings, mcp: str, mcp_token: str, port: int
) -> Stage:
    await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
    app = create_app(settings)
    gateway = await stack.enter_async_context(serve(app, port=port))
    services: Services = app.state.services
    ledger, now = services.ledger, utc_now()
    bank = ServerSettings("bank", mcp, "The sample bank of this demo.", allow_private_network=True)
    await servers.register(ledger, bank, actor=_OPERATOR, now=now)
    value = CredentialValue(mcp_token, "Authorization", "Bearer")
    await servers.set_credential(ledger, services.envelope, "bank", value, By(_OPERATOR, now))
    _, key = await apps.create(ledger, AppSettings("support-bot"), actor=_OPERATOR, now=now)
    you = await people.create_user(
        ledger, NewUser("you@demo.example", ("reviewer", "admin")), actor=_OPERATOR, now=now
    )
    second = await people.create_user(
        ledger, NewUser("second@demo.example", ("reviewer",)), actor=_OPERATOR, now=now
    )
    code = await login.create_link(
        ledger, you.id, lifetime=_LINK_LIFETIME, actor=_OPERATOR, now=now
    )
    token = await tokens.create_token(ledger, second.id, actor=_OPERATOR, now=now)
    await services.directory.refresh()
    link = login.link_url(settings.public_url, code)
    return Stage(gateway, mcp, mcp_token, services, key.text, link, token)


def _introduce(stage: Stage, once: bool, console: Console) -> None:
    console.print("[bold]Gatepass demo[/bold]: everything runs on this machine, nothing is kept.\n")
    _done(console, "a scripted Azure OpenAI resource and a real MCP server are running")
    _done(console, "the MCP server refuses calls without its token; only the vault knows it")
    _done(console, f"the gateway listens on {stage.gateway}")
    if not once:
        console.print(
            "\n  [bold]1.[/bold] Open this link; it signs you in once:\n\n"
            f"     [bold cyan]{stage.link}[/bold cyan]\n\n"
            f"  [bold]2.[/bold] Decide about the request in the inbox: {stage.gateway}/inbox\n",
            soft_wrap=True,
        )


def _done(console: Console, what: str) -> None:
    console.print(f"[green]✓[/green] {what}", soft_wrap=True)


# --- asking and deciding --------------------------------------------------------------------


async def _ask(stage: Stage, once: bool, console: Console) -> Any:
    console.print(
        f"The app asks: [italic]{QUESTION}[/italic] (its request says require_approval: "
        "never, and brings an Authorization header of its own)",
        soft_wrap=True,
    )
    tool = {
        "type": "mcp",
        "server_label": "bank",
        "server_url": stage.mcp,
        "require_approval": "never",
        "headers": {"Authorization": "Bearer made-up-by-the-app"},
    }
    client = openai.AsyncOpenAI(base_url=f"{stage.gateway}/openai/v1/", api_key=stage.app_key)
    async with client, asyncio.TaskGroup() as group:
        asking = group.create_task(
            client.responses.create(model="gpt-4.1", input=QUESTION, tools=[tool])  # type: ignore[list-item]  # a plain dictionary, as apps send it
        )
        await _decide(stage, once, console, asking)
        answer = await asking
    console.print(f"The app was answered: [italic]{answer.output_text}[/italic]", soft_wrap=True)
    return answer


async def _decide(stage: Stage, once: bool, console: Console, asking: asyncio.Task[Any]) -> None:
    headers = {"authorization": f"Bearer {stage.second_token}"}
    async with httpx2.AsyncClient(base_url=f"{stage.gateway}/api/v1", headers=headers) as api:
        request = await _pending(api, asking)
        _done(
            console,
            f"the call is held: {request['tool']} on {request['server']['url']} with "
            f"{request['arguments']}",
        )
        if not once:
            await _wait_for_person(console, asking)
            return
        if await _effects(stage):
            raise NotObserved("the call was carried out before anybody approved it")
        review = {"verdict": "approve", "reason": "demo", "digest": request["digest"]}
        taken = await api.post(f"/approval-requests/{request['id']}/reviews", json=review)
        if taken.status_code != 201:
            raise NotObserved(f"the review was not taken: {taken.status_code} {taken.text}")
        _done(console, "second@demo.example approved it through the management API")


async def _pending(api: httpx2.AsyncClient, asking: asyncio.Task[Any]) -> dict[str, Any]:
    for _ in range(200):
        found = (await api.get("/approval-requests", params={"state": "pending"})).json()
        if found["items"]:
            request: dict[str, Any] = found["items"][0]
            return request
        if asking.done():
            break
        await asyncio.sleep(0.1)
    raise NotObserved("no approval request was opened")


async def _wait_for_person(console: Console, asking: asyncio.Task[Any]) -> None:
    waited = 0
    with console.status("waiting for your decision …") as status:
        while not asking.done():
            await asyncio.wait([asking], timeout=1)
            waited += 1
            status.update(f"waiting for your decision … {waited} s (the app just waits, too)")


# --- proving --------------------------------------------------------------------------------


async def _effects(stage: Stage) -> list[Any]:
    headers = {"authorization": f"Bearer {stage.mcp_token}"}
    address = stage.mcp.removesuffix("/mcp") + "/effects"
    async with httpx2.AsyncClient(headers=headers) as client:
        effects: list[Any] = (await client.get(address)).json()["effects"]
        return effects


async def _check(stage: Stage, answer: Any, console: Console) -> None:
    kinds = [item.type for item in answer.output]
    if any(kind.startswith("mcp_approval") for kind in kinds):
        raise NotObserved("the app was shown an approval item")
    _done(console, f"the app saw one response ({', '.join(kinds)}) and no approval item")
    executed, effects = kinds.count("mcp_call"), await _effects(stage)
    if len(effects) != executed:
        raise NotObserved(f"the MCP server recorded {len(effects)} effects, not {executed}")
    outcome = "exactly one effect" if executed else "no effect, as you decided"
    _done(console, f"the MCP server's own record shows {outcome}")
    services = stage.services
    await services.ledger.settle()
    report = await verify_live(services.db, services.ledger.signer.verifier)
    if not report.valid:
        raise NotObserved(f"the ledger does not verify: {report.findings}")
    _done(console, f"the ledger verifies: {report.size} records under one signed head")


# --- ports ----------------------------------------------------------------------------------


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(run("--once" in sys.argv, Console(highlight=False)))
