"""A gateway as a process of its own, with a secret in every place where one can be.

A planter puts values into one kind of store; to cover another store is to add one to `PLANTERS`.
Whatever the gateway says to anybody is kept, so that it can be searched.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway import config
from gateway.app import create_services
from gateway.demo.runner import serve
from gateway.identity import login, people, tokens
from gateway.registry import apply, apps, servers
from gateway.registry.changes import By
from gateway.registry.declaration import parse
from gateway.registry.servers import CredentialValue
from gateway.registry.settings import AppSettings
from gateway.services import Services
from gateway.store import migration
from gateway.telemetry import utc_now
from tests.support import unguarded
from tests.support.canaries import Found, canary, find
from tests.support.gateway import OPERATOR, Process, environment
from tests.support.keyvault import KeyVault, identity_service
from tests.support.openbao import OpenBao, running_openbao
from tests.support.ports import free_port
from tests.support.reflecting import Mirror, reflecting_bank
from tests.support.tls import over_tls

#: Of the stores; with keys, tokens and the rest there are more than fifty. Nine show that a guard
#: is missing.
MANY = 9 if os.environ.get("WITHOUT") else 45
_SERVER = """
  - label: {label}
    url: {url}
    allow_private_network: true
    inject: {inject}
    credential: {{header: Authorization, scheme: Bearer, from: "{reference}"}}
"""
_CLIENT = """
  - name: {label}
    grant: client_credentials
    token_url: {url}
    client_id: gatepass
    client_secret: {{from: "env:CLIENT_{label}"}}
    client_auth: {way}
    allow_private_network: true
"""
RULES = """
policies:
  - {name: reads, effect: allow, match: {tool: "get_*"}}
"""


@dataclass
class Garden:
    """What is planted, and all that was said. `answers` holds whole answers, heads included."""

    folder: Path
    stack: AsyncExitStack
    environ: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str | bytes] = field(default_factory=dict)
    answers: list[tuple[str, bytes]] = field(default_factory=list)
    sealed: list[tuple[str, str]] = field(default_factory=list)
    clients: str = ""
    vaults: Vaults | None = None
    labels: dict[str, str] = field(default_factory=dict)
    mirror: Mirror = field(default_factory=lambda: Mirror(canary(MANY)))
    process: Process | None = None
    unfinished: list[asyncio.Future[Any]] = field(default_factory=list)
    people: dict[str, str] = field(default_factory=dict)

    # --- what is asked, and what is answered ------------------------------------------------

    async def ask(
        self, method: str, path: str, who: Mapping[str, str], **options: Any
    ) -> httpx2.Response:
        """One request; the answer is kept, head and body. A connection that breaks is an answer."""
        headers = {**who, **options.pop("headers", {})}
        url = self.environ["GATEPASS_PUBLIC_URL"]
        async with httpx2.AsyncClient(base_url=url, timeout=60, verify=False) as client:
            body = b""
            try:
                async with client.stream(method, path, headers=headers, **options) as answer:
                    async for chunk in answer.aiter_raw():
                        body += chunk
            except httpx2.HTTPError as error:
                self.answers.append((f"{method} {path}", body + repr(error).encode()))
                return httpx2.Response(599)
            head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        self.answers.append((f"{method} {path}", f"{answer.status_code}\n{head}\n".encode() + body))
        kept = {name: v for name, v in answer.headers.items() if name != "content-encoding"}
        return httpx2.Response(answer.status_code, content=body, headers=kept)

    def tool(self, label: str) -> dict[str, Any]:
        """A server as an app names it."""
        return {"type": "mcp", "server_label": label, "server_url": self.labels[label]}

    async def run(self, *command: str, stdin: str = "") -> int:
        """A command of the host; what it writes is kept."""
        done = await asyncio.to_thread(  # what it visits lives in this loop
            subprocess.run,
            [sys.executable, "-m", "tests.support.unguarded", *command],
            env={**os.environ, **self.environ},
            input=stdin.encode(),
            capture_output=True,
            timeout=300,
            check=False,
        )
        self.answers.append((f"$ gatepass {' '.join(command)}", done.stdout + b"\n" + done.stderr))
        return done.returncode

    # --- what is found ----------------------------------------------------------------------

    def search(self, *places: Path) -> list[str]:
        """Every place in which a secret stands, and how."""
        found = [f"{_told(each)}: {what}" for what, said in self.answers for each in self.in_(said)]
        for place in places:
            for path in sorted(p for p in place.rglob("*") if p.is_file()):
                found += [
                    f"{_told(each)}: {path.relative_to(place)}"
                    for each in self.in_(path.read_bytes())
                ]
        return sorted(set(found))

    def in_(self, said: bytes) -> set[Found]:
        """The secrets in some bytes."""
        return find(said, self.secrets)


def _told(found: Found) -> str:
    return f"{found.secret} ({found.encoding})"


Planter = Callable[[Garden, str, str], Awaitable[str]]


async def in_the_environment(garden: Garden, label: str, value: str) -> str:
    """A variable of the process."""
    garden.environ[f"TOKEN_{label}"] = value
    return f"env:TOKEN_{label}"


async def in_a_file(garden: Garden, label: str, value: str) -> str:
    """A file as an orchestrator mounts it."""
    file = garden.folder / "mounted" / label
    file.parent.mkdir(exist_ok=True)
    file.write_text(value + "\n")
    return f"file:{file}"


async def in_our_vault(garden: Garden, label: str, value: str) -> str:
    """A sealed value: stored once the server is registered."""
    garden.sealed.append((label, value))
    return f"sealed:{label}"


async def in_openbao(garden: Garden, label: str, value: str) -> str:
    """A field of a secret of a real OpenBao."""
    assert garden.vaults is not None
    await garden.vaults.bao.put(label, token=value)
    return f"vault:secret/{label}#token"


async def in_key_vault(garden: Garden, label: str, value: str) -> str:
    """A secret of Azure Key Vault, as far as its real client can tell."""
    assert garden.vaults is not None
    garden.vaults.azure.put(label, value)
    return f"keyvault:corp/{label}"


async def as_a_token(garden: Garden, label: str, value: str) -> str:
    """What a token server gives, for a secret that it says again in every error."""
    assert garden.vaults is not None
    secret = canary(500 + int(label[1:]))
    garden.environ[f"CLIENT_{label}"] = garden.secrets[f"client of {label}"] = secret
    garden.vaults.tokens[label] = value
    way = "post" if len(garden.vaults.tokens) % 2 else "basic"
    url = f"{garden.vaults.token_url}/{label}"
    garden.clients += _CLIENT.format(label=label, url=url, way=way)
    return f"oauth:{label}"


#: One for each kind of store. Each is given a garden, a label and a value, and returns the
#: reference under which the gateway will find it.
PLANTERS: tuple[Planter, ...] = (
    in_the_environment, in_a_file, in_our_vault, in_openbao, in_key_vault, as_a_token
)  # fmt: skip


@dataclass
class Vaults:
    """The stores on other machines. A token server gives two of three what is in `tokens`."""

    bao: OpenBao
    azure: KeyVault
    tokens: dict[str, str] = field(default_factory=dict)
    token_url: str = ""

    @classmethod
    async def open(cls, garden: Garden) -> Vaults:
        """Start them, and tell the gateway where they are."""
        stack, folder = garden.stack, garden.folder / "vaults"
        folder.mkdir()
        vaults = cls(stack.enter_context(running_openbao(folder)), KeyVault())
        url, ca = await stack.enter_async_context(
            over_tls(await stack.enter_async_context(serve(vaults.azure.app())), folder)
        )
        tokens = Starlette(routes=[Route("/{label}", vaults.give, methods=["POST"])])
        vaults.token_url = await stack.enter_async_context(serve(tokens))
        token = garden.secrets["token of the vault"] = await vaults.bao.token()
        (folder / "token").write_text(token)
        garden.environ |= {
            "GATEPASS_VAULT_ADDR": vaults.bao.url,
            "GATEPASS_VAULT_AUTH": "token",
            "GATEPASS_VAULT_TOKEN_FILE": str(folder / "token"),
            "GATEPASS_AZURE_CREDENTIAL": "managed",
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": await stack.enter_async_context(
                serve(identity_service([]))
            ),
            "KEY_VAULT_STUB": f"{url} {ca}",
        }
        return vaults

    async def give(self, request: Request) -> JSONResponse:
        """A token; or an error that repeats the form and the headers."""
        label, form = request.path_params["label"], await request.form()
        if list(self.tokens).index(label) % 3 == 2:
            said = f"{dict(form)} {dict(request.headers)}"
            return JSONResponse({"error": "invalid_client", "error_description": said}, 401)
        token = {"access_token": self.tokens[label], "token_type": "Bearer", "expires_in": 3600}
        return JSONResponse(token)


async def plant(
    stack: AsyncExitStack, folder: Path, database: str | None = None, **changes: str
) -> Garden:
    """A garden with `MANY` secrets in its stores, and a gateway that runs."""
    unguarded.remove()
    garden = Garden(folder, stack)
    bank = await stack.enter_async_context(serve(reflecting_bank()))
    azure = await stack.enter_async_context(serve(garden.mirror))
    garden.vaults = await Vaults.open(garden)
    declared = await _servers(garden, bank)
    settings = _settings(garden, azure, database, changes)
    await asyncio.to_thread(migration.upgrade, settings.resolved_database_url)
    services = create_services(settings)
    try:
        await _furnish(garden, services, declared)
    finally:
        services.rulings.close()
        await services.db.close()
    garden.process = Process(garden.environ, folder, ("tests.support.unguarded", "serve"))
    stack.callback(garden.process.kill)
    await garden.process.start()
    return garden


async def _servers(garden: Garden, bank: str) -> str:
    declared = "servers:"
    for number in range(MANY):
        label, value = f"s{number}", canary(number)
        planter = PLANTERS[number % len(PLANTERS)]
        reference = await planter(garden, label, value)
        garden.secrets[f"{planter.__name__} {label}"] = value
        status = f"&status={(401, 403, 500, 503)[number % 4]}" if number % 7 == 6 else ""
        garden.labels[label] = f"{bank}/mcp?server={number}{status}"
        inject = "authorization" if number % 5 == 4 else "headers"
        declared += _SERVER.format(
            label=label, url=garden.labels[label], reference=reference, inject=inject
        )
    return f"{declared}\noauth_clients:{garden.clients}{RULES}"


def _settings(
    garden: Garden, azure: str, database: str | None, changes: Mapping[str, str]
) -> config.Settings:
    folder = garden.folder
    (folder / "keys").mkdir()
    for name in ("master", "signing"):
        file = folder / "keys" / name
        garden.secrets[f"{name} key"] = value = os.urandom(32)
        file.write_bytes(value)
        file.chmod(0o600)
        garden.environ[f"GATEPASS_{name.upper()}_KEY_FILE"] = str(file)
    key = folder / "keys" / "azure"
    key.write_text(canary(MANY))
    garden.secrets["key of Azure"] = canary(MANY)

    class World:
        url = azure

    given = environment(folder, World(), free_port())  # type: ignore[arg-type]
    del given["GATEPASS_UPSTREAM_API_KEY"]
    garden.environ |= given | {
        "GATEPASS_UPSTREAM_API_KEY_FILE": str(key),
        "GATEPASS_UPSTREAM_TIMEOUT": "2s",
        "GATEPASS_LOG_LEVEL": "debug",
        "PYTHONFAULTHANDLER": "1",
        **changes,
    }
    if database is not None:
        garden.environ["GATEPASS_DATABASE_URL"] = database
        garden.secrets["password of the database"] = database.split(":")[2].partition("@")[0]
    return config.load(
        {name: v for name, v in garden.environ.items() if name.startswith("GATEPASS_")}
    )


async def _furnish(garden: Garden, services: Services, declared: str) -> None:
    ledger, now = services.ledger, utc_now()
    by = By(OPERATOR, now)
    await apply.apply(ledger, parse({"garden.yaml": declared}), by)
    for label, value in garden.sealed:
        given = CredentialValue(value)
        await servers.set_credential(ledger, services.envelope, label, given, by)
    _, key = await apps.create(ledger, AppSettings("bot"), actor=OPERATOR, now=now)
    garden.people["app"] = garden.secrets["app key"] = key.text
    for name, roles in (("reviewer", ("reviewer", "auditor")), ("admin", ("admin",))):
        new = people.NewUser(f"{name}@example.org", roles)
        user = await people.create_user(ledger, new, actor=OPERATOR, now=now)
        token = await tokens.create_token(ledger, user.id, actor=OPERATOR, now=now)
        garden.people[name] = garden.secrets[f"token of {name}"] = token
        link = await login.create_link(ledger, user.id, actor=OPERATOR, now=now)
        garden.secrets[f"link of {name}"] = link
        if name == "reviewer":
            cookie = await login.redeem(ledger, link, now=now)
            garden.people["cookie"] = garden.secrets["cookie"] = cookie
