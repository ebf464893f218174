"""The command line on temporary data directories: what it prints, changes and returns."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.approvals import grants
from gateway.approvals.case import Reviewer
from gateway.approvals.terms import Terms
from gateway.audit.checkpoint import Proof
from gateway.cli import app
from gateway.cli.runtime import opened
from gateway.config import Settings
from gateway.demo.mcp_server import McpSettings, create_mcp_server
from gateway.demo.runner import serve
from gateway.identity import people
from gateway.registry import servers, tools
from gateway.telemetry import utc_now
from tests.support.house import CallWanted, held_call
from tests.support.ports import free_port

CANARY = "canary-8d1e"


class Host:
    """A host with the command installed and a data directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.env = {"GATEPASS_DATA_DIR": str(self.data)}

    def run(self, *words: str, stdin: str | None = None, **env: str) -> Result:
        result = CliRunner().invoke(app, list(words), input=stdin, env={**self.env, **env})
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    def ok(self, *words: str, stdin: str | None = None, **env: str) -> str:
        result = self.run(*words, stdin=stdin, **env)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *words: str, stdin: str | None = None, **env: str):
        return json.loads(self.ok(*words, "--json", stdin=stdin, **env))

    def held(self, wanted: CallWanted | None = None) -> str:
        async def hold() -> str:
            async with opened(Settings(data_dir=self.data)) as house:
                return await held_call(house.approvals, utc_now, wanted or CallWanted())

        return asyncio.run(hold())

    def remembered(self, approval_id: str, email: str) -> str:
        """Remember an approval, as somebody does on the pages."""

        async def remember() -> str:
            async with opened(Settings(data_dir=self.data)) as house:
                user, now = await people.read(house.db, email), utc_now()
                roles = frozenset(user.roles)
                who = Reviewer(user.id, user.email, roles, frozenset(), "web", "session")
                wanted = Terms("exact", "app", now + timedelta(hours=1))
                return await grants.remember_later(
                    house.approvals, who, approval_id, wanted, now=now
                )

        return asyncio.run(remember())


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory just after `gatepass migrate`, which takes longer than most commands."""
    host = Host(tmp_path_factory.mktemp("migrated"))
    host.ok("migrate")
    return host.data


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated: Path) -> Host:
    monkeypatch.setenv("NO_COLOR", "1")
    for variable in ("GATEPASS_UPSTREAM_URL", "GATEPASS_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    host = Host(tmp_path)
    shutil.copytree(migrated, host.data)
    return host


# --- the process and its settings -----------------------------------------------------------


def test_files_are_for_their_owner_alone(host: Host) -> None:
    host.ok("apps", "list")
    assert host.data.stat().st_mode & 0o777 == 0o700
    for name in ("gatepass.sqlite3", "master.key", "signing.key"):
        assert (host.data / name).stat().st_mode & 0o777 == 0o600, name


def test_migrating_again_changes_nothing(host: Host) -> None:
    assert host.json("migrate") == host.json("migrate")


def test_without_a_database_commands_say_what_to_do(tmp_path: Path) -> None:
    host = Host(tmp_path)
    result = host.run("apps", "list")
    assert result.exit_code == 1
    assert "gatepass migrate" in result.stderr
    assert not host.data.exists()


def test_an_unknown_setting_stops_everything_by_name(host: Host) -> None:
    for words in (["serve"], ["apps", "list"], ["migrate"], ["doctor"], ["init"]):
        result = host.run(*words, GATEPASS_COLOUR="red")
        assert result.exit_code == 1
        assert "GATEPASS_COLOUR" in result.stderr
        assert result.stdout == ""


def test_a_newer_database_is_left_alone(host: Host) -> None:
    import sqlite3

    with sqlite3.connect(host.data / "gatepass.sqlite3") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    result = host.run("migrate")
    assert result.exit_code == 1
    assert "newer version" in result.stderr


def test_wrong_usage_is_2(host: Host) -> None:
    for words in (
        ["colour"],
        ["apps", "create"],
        ["apps", "create", "x", "--colour"],
        ["requests", "list", "--state", "open"],
        ["requests", "approve", "apr_x"],
        ["requests", "deny", "apr_x", "--as", "a@b.c"],
        ["users", "create", "a@b.c"],
        ["users", "link", "a@b.c", "--minutes", "0"],
    ):
        assert host.run(*words).exit_code == 2, words


def test_help_is_there_for_every_command(host: Host) -> None:
    for words in ([], ["apps"], ["audit", "verify"], ["requests", "approve"]):
        assert "Usage:" in host.ok(*words, "--help")
    assert host.ok("--version").startswith("gatepass ")


# --- people and apps ------------------------------------------------------------------------


def test_users_with_ways_in(host: Host) -> None:
    result = host.run(
        "users", "create", "rev@example.org", "--role", "reviewer", "--token", "--link"
    )
    assert result.exit_code == 0
    assert re.search(r"gp_pat_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{43}", result.stdout)
    assert re.search(r"http://127\.0\.0\.1:8080/\S+", result.stdout)
    [user] = host.json("users", "list")
    assert (user["email"], user["roles"]) == ("rev@example.org", ["reviewer"])
    assert "rev@example.org" in host.ok("users", "list")
    again = host.run("users", "create", "REV@example.org", "--role", "viewer")
    assert again.exit_code == 1
    assert "already" in again.stderr
    assert host.run("users", "create", "x@example.org", "--role", "boss").exit_code == 1


def test_users_are_changed_and_shut_out(host: Host) -> None:
    host.ok("users", "create", "a@example.org", "--role", "admin")
    assert host.run("users", "disable", "a@example.org").exit_code == 1
    host.ok("users", "create", "b@example.org", "--role", "admin")
    host.ok("users", "roles", "a@example.org", "--role", "viewer", "--role", "auditor")
    assert host.json("users", "disable", "a@example.org")["disabled_at"] is not None
    assert host.run("users", "token", "a@example.org").exit_code == 1
    host.ok("users", "enable", "a@example.org")
    assert host.json("users", "token", "a@example.org")["token"].startswith("gp_pat_")
    assert "/sign-in" in host.json("users", "link", "a@example.org")["link"]
    assert host.run("users", "link", "nobody@example.org").exit_code == 1


def test_init_makes_the_first_admin_on_a_bare_host(tmp_path: Path) -> None:
    host = Host(tmp_path)
    first = host.json("init", "boss@example.org")
    assert first["user"]["roles"] == ["reviewer", "admin"]
    assert "/sign-in" in first["link"]
    again = host.json("init", "boss@example.org")
    assert again["link"] != first["link"]
    other = host.run("init", "other@example.org")
    assert other.exit_code == 1
    assert "There is an admin already" in other.stderr


def test_apps_and_keys(host: Host) -> None:
    printed = host.ok("apps", "create", "check")
    key = re.search(r"gp_app_[A-Za-z0-9_.\-]+", printed)
    assert key
    second = host.json("apps", "key", "check")
    [entry] = host.json("apps", "list")
    assert len(entry["keys"]) == 2
    assert key.group() not in json.dumps(entry)
    host.ok("apps", "revoke", "check", second["key_id"])
    assert "disabled" in host.ok("apps", "disable", "check")
    assert "enabled" in host.ok("apps", "enable", "check")
    assert host.run("apps", "create", "check").exit_code == 1
    assert host.run("apps", "create", "two words").exit_code == 1
    assert host.run("apps", "key", "nobody").exit_code == 1


# --- servers and configuration --------------------------------------------------------------

YAML = """servers:
  - label: wiki
    url: https://mcp.example/mcp
    credential: {header: Authorization, scheme: Bearer, from: "env:WIKI_TOKEN"}
policies:
  - name: no-deleting
    match: {server: wiki, tool: "delete_*"}
    effect: deny
"""


def test_apply_is_idempotent_and_shows_the_difference(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "check.yaml"
    file.write_text(YAML)
    dry = host.json("apply", str(file), "--dry-run")
    assert (dry["changes"], dry["applied"]) == (True, False)
    assert host.json("servers", "list") == []
    assert "Applied" in host.ok("apply", str(file))
    assert "as declared" in host.ok("apply", str(file))
    file.write_text(YAML.replace("mcp.example/mcp", "mcp.example/v2"))
    assert "mcp.example/v2" in host.ok("apply", str(file), "--dry-run")


def test_a_wrong_file_is_named_with_its_line(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("servers:\n  - label: x\n    url: https://x.example/mcp\n    colour: red\n")
    for words in (["apply", str(file)], ["policy", "check", str(file)]):
        result = host.run(*words)
        assert result.exit_code == 1
        assert re.search(r"bad\.yaml:4:\d+: .*colour", result.stderr)
    assert host.run("apply", str(tmp_path / "none.yaml")).exit_code == 1


def test_policy_check_needs_no_database(tmp_path: Path) -> None:
    host = Host(tmp_path)
    file = tmp_path / "check.yaml"
    file.write_text(YAML)
    assert host.json("policy", "check", str(file))["rules"] == ["no-deleting"]
    assert not host.data.exists()


def test_policy_simulate_tries_rules_on_past_calls(host: Host, tmp_path: Path) -> None:
    host.held(CallWanted(tool="delete_page"))
    file = tmp_path / "check.yaml"
    file.write_text(YAML)
    outcome = host.json("policy", "simulate", str(file))
    assert outcome["calls"] == 1
    assert [call["would_be"] for call in outcome["changed"]] == ["deny"]
    assert "delete_page on wiki" in host.ok("policy", "simulate", str(file))
    file.write_text("servers: []\n")
    assert host.run("policy", "simulate", str(file)).exit_code == 1


def test_policy_versions_on_the_command_line(host: Host, tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("policies:\n  - {name: strict, effect: deny, match: {tool: 'delete_*'}}\n")
    second.write_text("policies:\n  - {name: reads, effect: allow, match: {tool: 'get_*'}}\n")
    host.ok("apply", str(first))
    assert "Saved version 2" in host.ok("policy", "save", str(second))
    assert host.ok("policy", "diff", "1", "2").splitlines() == [
        "- strict: deny delete_* on every server",
        "+ reads: allow get_* on every server",
    ]
    assert "in force" in host.ok("policy", "show", "1")
    assert "Version 2 is in shadow." in host.ok("policy", "shadow", "2")
    assert host.json("policy", "shadow")["calls"] == 0
    assert [each["shadow"] for each in host.json("policy", "list")] == [True, False]
    assert "not in shadow any more" in host.ok("policy", "shadow", "--end")
    assert host.run("policy", "shadow").exit_code == 1
    host.ok("policy", "activate", "2")
    assert [each["active"] for each in host.json("policy", "list")] == [True, False]


def test_a_policy_that_allows_what_people_denied_is_not_put_into_force_silently(
    host: Host, tmp_path: Path
) -> None:
    host.ok("users", "create", "ann@example.org", "--role", "reviewer")
    held = host.held(CallWanted(tool="get_page"))
    digest = host.json("requests", "show", held)["digest"]
    words = ("--reason", "No", "--as", "ann@example.org", "--digest", digest)
    host.ok("requests", "deny", held, *words)
    file = tmp_path / "draft.yaml"
    file.write_text("policies:\n  - {name: reads, effect: allow, match: {tool: 'get_*'}}\n")
    simulated = host.run("policy", "simulate", str(file), "--since", "7d")
    assert "allows 1 calls that people denied" in simulated.stderr
    host.ok("policy", "save", str(file))
    refused = host.run("policy", "activate", "1")
    assert refused.exit_code == 1
    assert "would allow 1 of the last 1 calls that people denied" in refused.stderr
    assert not host.json("policy", "list")[0]["active"]
    host.ok("policy", "activate", "1", "--allow-denied")
    assert host.json("policy", "list")[0]["active"]
    assert host.run("policy", "simulate", str(file), "--since", "soon").exit_code == 1


def test_a_credential_comes_from_stdin_or_a_file_and_stays_secret(host, tmp_path) -> None:
    host.ok("servers", "add", "wiki", "https://mcp.example/mcp")
    printed = host.ok("credentials", "set", "wiki", stdin=CANARY + "\n")
    secret = tmp_path / "secret"
    secret.write_text(CANARY)
    printed += host.ok("credentials", "set", "wiki", "--from-file", str(secret))
    printed += host.ok("servers", "list") + host.ok("servers", "list", "--json")
    printed += host.ok("audit", "export", "--out", str(tmp_path / "evidence"), "--payloads")
    assert CANARY not in printed
    for path in [*host.data.rglob("*"), *(tmp_path / "evidence").rglob("*")]:
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
    assert host.run("credentials", "set", "wiki", stdin="").exit_code == 1
    assert host.run("credentials", "set", "none", stdin="x").exit_code == 1
    assert host.run("credentials", "set", "wiki", "value").exit_code == 2


@pytest.fixture
def bank() -> Iterator[str]:
    """The address of a real MCP server that wants a token, in a loop of its own."""
    ready, stop, found = threading.Event(), asyncio.Event(), []
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with serve(create_mcp_server(McpSettings(CANARY))) as url:
            found.append(f"{url}/mcp")
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def test_servers_are_probed_on_the_host(host: Host, bank: str) -> None:
    add = ("servers", "add", "bank", bank, "--allow-private-network", "--probe")
    printed = host.ok(*add, "--credential", "env:BANK_TOKEN", BANK_TOKEN=CANARY)
    assert "The server answered and listed" in printed
    assert "sample-bank 1.0" in printed
    assert "The server wants a credential (401)." in printed
    result = host.run("servers", "probe", "bank", "--json", BANK_TOKEN=CANARY)
    report = json.loads(result.stdout)
    assert (result.exit_code, report["visit"]["outcome"]) == (0, "answered")
    assert {tool["name"] for tool in report["visit"]["tools"]} >= {"transfer"}
    refused = host.run("servers", "probe", "bank", BANK_TOKEN="wrong-token")
    assert (refused.exit_code, "refused the credential (401)" in refused.stdout) == (1, True)
    stranger = host.run("servers", "probe", bank, "--allow-private-network")
    assert (stranger.exit_code, "wants a credential" in stranger.stdout) == (1, True)
    assert host.run("servers", "probe", bank).exit_code == 1
    assert host.run("servers", "probe", "nobody").exit_code == 1
    host.ok("audit", "verify")
    states = json.loads(host.run("doctor", "--json", BANK_TOKEN=CANARY).stdout)
    assert ("server bank", "warning") in [(f["part"], f["state"]) for f in states]
    states = json.loads(host.run("doctor", "--json", BANK_TOKEN="wrong-token").stdout)
    assert ("server bank", "failed") in [(f["part"], f["state"]) for f in states]
    assert CANARY not in printed + result.output + refused.output


def test_S_17_a_credential_is_bound_to_where_its_server_is(host: Host) -> None:
    address = ("servers", "add", "crm", "https://crm.example/mcp")
    host.ok(*address, "--credential", "env:CRM_TOKEN")
    assert "https://crm.example:443" in host.ok("credentials", "list")
    [use] = host.json("credentials", "list")
    assert (use["reference"], use["server"]) == ("env:CRM_TOKEN", "crm")
    assert use["bound"]["how"] == "host"
    said = host.ok("credentials", "bind", "crm")
    assert said == "env:CRM_TOKEN may be sent to https://crm.example:443.\n"
    host.ok("servers", "add", "open", "https://open.example/mcp")
    assert "has no credential" in host.run("credentials", "bind", "open").stderr
    assert host.run("credentials", "bind", "none").exit_code == 1


def test_servers_are_added_and_removed(host: Host) -> None:
    assert host.run("servers", "add", "wiki", "http://127.0.0.1:9/mcp").exit_code == 1
    host.ok("servers", "add", "wiki", "http://127.0.0.1:9/mcp", "--allow-private-network")
    assert "wiki" in host.ok("servers", "list")
    assert host.run("servers", "add", "wiki", "https://x.example/mcp").exit_code == 1
    host.ok("servers", "remove", "wiki")
    assert host.json("servers", "list") == []


def test_tools_are_shown_accepted_and_refused_by_digest(host: Host) -> None:
    host.ok("servers", "add", "wiki", "https://mcp.example/mcp")
    ask = {"name": "ask", "description": "Ask.", "input_schema": {"type": "object"}}

    def lists(*definitions: dict) -> None:
        async def observe() -> None:
            async with opened(Settings(data_dir=host.data)) as house:
                server = await servers.read(house.db, "wiki")
                await tools.observe(house.ledger, server.id, definitions, now=utc_now())

        asyncio.run(observe())

    lists(ask)
    lists({**ask, "description": "Ask\u202e."}, {**ask, "name": "wipe"})
    printed = host.ok("servers", "tools", "wiki")
    assert "changed" in printed
    assert "text_reversed" in printed
    one = host.ok("servers", "tools", "wiki", "ask")
    assert "/description changed" in one
    assert "⟨U+202E⟩" in one
    states = {state["name"]: state for state in host.json("servers", "tools", "wiki")}
    assert {name: state["state"] for name, state in states.items()} == {
        "ask": "changed",
        "wipe": "new",
    }
    digest = states["wipe"]["listed_digest"]
    assert host.run("servers", "accept", "wiki", "wipe").exit_code == 2
    stale = states["ask"]["pinned_digest"]
    assert host.run("servers", "accept", "wiki", "ask", "--digest", stale).exit_code == 1
    host.ok("servers", "refuse", "wiki", "wipe", "--digest", digest)
    assert host.run("servers", "accept", "wiki", "--all", stdin="n\n").exit_code == 1
    assert "ask" in host.ok("servers", "accept", "wiki", "--all", "--yes")
    states = {state["name"]: state["state"] for state in host.json("servers", "tools", "wiki")}
    assert states == {"ask": "pinned", "wipe": "refused"}
    assert host.json("servers", "unknown") == []


# --- requests -------------------------------------------------------------------------------


def test_requests_are_listed_and_shown_with_everything(host: Host) -> None:
    assert host.json("requests", "list") == []
    held = host.held()
    assert [item["id"] for item in host.json("requests", "list")] == [held]
    assert held in host.ok("requests", "list")
    shown = host.json("requests", "show", held)
    printed = host.ok("requests", "show", held)
    for fact in (shown["digest"], shown["arguments"], "https://mcp.example/mcp", "check"):
        assert fact in printed
    assert host.run("requests", "show", "apr_none").exit_code == 1
    assert held in host.ok("requests", "watch", "--once")
    assert json.loads(host.ok("requests", "watch", "--once", "--json"))["id"] == held
    assert host.json("requests", "list", "--state", "all", "--tool", "other") == []


def test_hostile_text_cannot_move_the_cursor(host: Host) -> None:
    hostile = '{"q": "\x1b[2J\x1b]8;;http://evil\x07ok\r\u202eevil\x00"}'
    held = host.held(CallWanted(arguments=hostile, tool="ask\x1b[31m"))
    for words in (["show", held], ["list"], ["watch", "--once"]):
        printed = host.ok("requests", *words)
        assert not set(printed) & {"\x1b", "\x07", "\r", "\x00", "\u202e"}
    assert "U+202E" in host.ok("requests", "show", held)
    assert host.json("requests", "show", held)["arguments"] == hostile


def test_approving_asks_for_the_tools_name(host: Host) -> None:
    host.ok("users", "create", "ann@example.org", "--role", "reviewer")
    held = host.held()
    approve = ["requests", "approve", held, "--as", "ann@example.org"]
    for typed in ("", "yes\n", "Ask\n"):
        result = host.run(*approve, stdin=typed)
        assert result.exit_code == 1
    assert host.json("requests", "show", held)["state"] == "pending"
    result = host.run(*approve, stdin="ask\n")
    assert result.exit_code == 0, result.output
    digest = host.json("requests", "show", held)["digest"]
    assert digest in result.stdout
    decided = host.json("requests", "show", held)
    assert decided["state"] == "approved"
    assert [(r["reviewer"], r["channel"]) for r in decided["reviews"]] == [
        ("ann@example.org", "cli")
    ]


def test_a_digest_stands_for_having_read(host: Host) -> None:
    host.ok("users", "create", "ann@example.org", "--role", "reviewer")
    held = host.held()
    words = ["--as", "ann@example.org", "--reason", "not today"]
    stale = host.run("requests", "deny", held, *words, "--digest", "sha256:" + "0" * 64)
    assert stale.exit_code == 1
    digest = host.json("requests", "show", held)["digest"]
    denied = host.json("requests", "deny", held, *words, "--digest", digest)
    assert (denied["state"], denied["decision"]["reason"]) == ("denied", "not today")
    late = host.run("requests", "approve", held, "--as", "ann@example.org", "--digest", digest)
    assert late.exit_code == 1
    assert "ann@example.org" in late.stderr


def test_a_review_is_a_reviewers(host: Host) -> None:
    host.ok("users", "create", "adm@example.org", "--role", "admin")
    host.ok("users", "create", "ann@example.org", "--role", "reviewer")
    host.ok("users", "disable", "ann@example.org")
    held = host.held()
    digest = host.json("requests", "show", held)["digest"]
    for email in ("adm@example.org", "ann@example.org", "nobody@example.org"):
        result = host.run("requests", "approve", held, "--as", email, "--digest", digest)
        assert result.exit_code == 1, email
    assert host.json("requests", "show", held)["state"] == "pending"


# --- the ledger -----------------------------------------------------------------------------


def test_what_commands_write_is_sealed_when_they_end(host: Host) -> None:
    host.ok("apps", "create", "check")
    report = host.json("audit", "verify")
    assert report["valid"] is True
    head = host.json("audit", "checkpoint")
    assert head["size"] == report["size"]
    assert host.ok("audit", "checkpoint") == head["note"]
    assert host.json("audit", "checkpoint", "--size", str(head["size"]))["note"] == head["note"]
    assert host.run("audit", "checkpoint", "--size", "99999").exit_code == 1


def test_an_operator_is_named_by_number(host: Host, tmp_path: Path) -> None:
    host.ok("users", "create", "ann@example.org", "--role", "reviewer")
    host.ok("audit", "export", "--out", str(tmp_path / "e"))
    written = b"".join(p.read_bytes() for p in (tmp_path / "e").rglob("*") if p.is_file())
    assert b'"kind":"operator","ref":"uid:' in written
    assert b"ann@example.org" not in written


def test_prove_gives_a_receipt_that_verifies(host: Host, tmp_path: Path) -> None:
    held = host.held()
    text = host.ok("audit", "prove", held)
    proof = Proof.parse(text)
    assert proof.index == host.json("audit", "prove", held)["index"]
    receipt = tmp_path / "r.tlog-proof"
    receipt.write_text(text)
    host.ok("audit", "export", "--out", str(tmp_path / "e"))
    host.ok("audit", "verify", str(tmp_path / "e"), "--receipt", str(receipt))
    for name in ("999999", "apr_none", "nonsense"):
        assert host.run("audit", "prove", name).exit_code == 1


def test_verify_knows_pins_keys_and_damage(host: Host, tmp_path: Path) -> None:
    host.ok("apps", "create", "one")
    pin = tmp_path / "pin"
    pin.write_text(host.ok("audit", "checkpoint"))
    host.ok("apps", "create", "two")
    host.ok("audit", "verify", "--pin", str(pin))
    bundle = tmp_path / "e"
    made = host.json("audit", "export", "--out", str(bundle))
    assert made["path"] == str(bundle)
    bare = Host(tmp_path / "elsewhere")
    [key] = bundle.glob("keys/*.vkey")
    bare.ok("audit", "verify", str(bundle), "--pin", str(pin), "--key", str(key))
    bare.ok("audit", "verify", str(bundle), "--key", key.read_text().strip())
    assert not bare.data.exists()
    other = "other+00000000+AZgAlbw5yphacEOyP45kXVImLQjEmtlqvemoGvOK8cF7"
    assert bare.run("audit", "verify", str(bundle), "--key", other).exit_code == 2
    assert host.run("audit", "export", "--out", str(bundle)).exit_code == 1
    [entries] = [p for p in (bundle / "tile/entries").rglob("*") if p.is_file()]
    damaged = bytearray(entries.read_bytes())
    damaged[40] ^= 1
    entries.write_bytes(damaged)
    result = bare.run("audit", "verify", str(bundle), "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == found["exit_code"]
    assert 11 <= result.exit_code <= 18
    assert found["valid"] is False
    assert "NOT SOUND" in bare.run("audit", "verify", str(bundle)).stdout
    assert bare.run("audit", "verify", str(tmp_path / "none")).exit_code == 1


def test_an_altered_row_is_found(host: Host) -> None:
    import sqlite3

    host.ok("apps", "create", "one")
    with sqlite3.connect(host.data / "gatepass.sqlite3") as connection:
        connection.execute(
            "UPDATE audit_records SET "
            "body = CAST(replace(CAST(body AS TEXT), '\"one\"', '\"two\"') AS BLOB)"
        )
    connection.close()
    assert 11 <= host.run("audit", "verify").exit_code <= 18


# --- doctor ---------------------------------------------------------------------------------


def test_doctor_names_what_is_wrong(host: Host) -> None:
    result = host.run("doctor", "--json")
    assert result.exit_code == 1
    states = {finding["part"]: finding["state"] for finding in json.loads(result.stdout)}
    assert {part for part, state in states.items() if state == "failed"} == {"upstream"}
    assert states["people"] == "warning"


def test_doctor_asks_the_identity_provider(host: Host) -> None:
    env = {
        "GATEPASS_OIDC_ISSUER": f"http://127.0.0.1:{free_port()}",
        "GATEPASS_OIDC_CLIENT_ID": "gatepass",
        "GATEPASS_OIDC_ROLES": "reviewers=reviewer",
    }
    states = json.loads(host.run("doctor", "--json", **env).stdout)
    assert {item["part"]: item["state"] for item in states}["sign-in"] == "failed"
    wrong = host.run("doctor", **{**env, "GATEPASS_OIDC_ROLES": "reviewers=owner"})
    assert (wrong.exit_code, "gives the role 'owner'" in wrong.output) == (1, True)
    wrong = host.run("doctor", **{**env, "GATEPASS_OIDC_ISSUER": "http://sso.example"})
    assert (wrong.exit_code, "GATEPASS_OIDC_ISSUER" in wrong.output) == (1, True)


def test_doctor_asks_the_upstream_and_opens_credentials(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "check.yaml"
    file.write_text(
        YAML.replace("https://mcp.example", "http://127.0.0.1:9").replace(
            "    credential", "    allow_private_network: true\n    credential"
        )
    )
    host.ok("apply", str(file))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    env = {
        "GATEPASS_UPSTREAM_URL": f"http://127.0.0.1:{port}/openai/v1/",
        "GATEPASS_UPSTREAM_API_KEY": CANARY,
    }
    result = host.run("doctor", **env)
    assert result.exit_code == 1
    assert "cannot be reached" in result.stdout
    assert CANARY not in result.output
    states = json.loads(host.run("doctor", "--json", **env).stdout)
    wiki = [(f["part"], f["state"]) for f in states if f["part"].startswith("server")]
    assert wiki == [("server wiki: credential", "failed"), ("server wiki", "warning")]
    stores = [(f["part"], f["state"]) for f in states if f["part"].startswith("secret store")]
    assert stores == [("secret store env", "failed")]
    states = json.loads(host.run("doctor", "--json", WIKI_TOKEN="x", **env).stdout)
    assert ("server wiki: credential", "ok") in [(f["part"], f["state"]) for f in states]
    (store,) = [f for f in states if f["part"] == "secret store env"]
    assert store["detail"] == "answers; 1 of 1 credentials can be opened"


def test_doctor_asks_the_vault_that_is_set_up_and_says_what_to_do(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    env = {"GATEPASS_VAULT_ADDR": url, "GATEPASS_VAULT_TOKEN": CANARY}
    result = host.run("doctor", "--json", **env)
    (store,) = [f for f in json.loads(result.stdout) if f["part"] == "secret store vault"]
    assert store["state"] == "failed"
    assert store["detail"] == f"The vault at {url} cannot be reached (ConnectError)."
    assert CANARY not in result.output
    result = host.run("doctor", GATEPASS_VAULT_TOKEN=CANARY)
    assert "GATEPASS_VAULT_ADDR is missing, which GATEPASS_VAULT_TOKEN need" in result.output


# --- what is remembered, and who stands in --------------------------------------------------


def test_standing_in_is_said_and_ended_on_the_host(host: Host) -> None:
    for name in ("ann", "bo"):
        host.ok("users", "create", f"{name}@example.org", "--role", "reviewer")
    made = host.json(
        "delegations", "create", "bo@example.org", "--for", "ann@example.org", "--days", "3"
    )
    assert made["state"] == "active"
    assert "bo@example.org" in host.ok("delegations", "list")
    assert host.json("delegations", "end", made["id"])["state"] == "revoked"
    assert host.run("delegations", "end", made["id"]).exit_code == 1


def test_what_is_remembered_is_listed_and_revoked_on_the_host(host: Host) -> None:
    host.ok("users", "create", "ann@example.org", "--role", "reviewer")
    approval_id = host.held()
    digest = host.json("requests", "show", approval_id)["digest"]
    host.ok("requests", "approve", approval_id, "--as", "ann@example.org", "--digest", digest)
    assert "Nothing is remembered." in host.run("grants", "list").output
    grant_id = host.remembered(approval_id, "ann@example.org")
    [listed] = host.json("grants", "list")
    assert (listed["id"], listed["state"]) == (grant_id, "live")
    assert '{"q": "x"}' in host.ok("grants", "show", grant_id)
    assert host.json("grants", "revoke", grant_id)["ended_by"] == "operator"
    assert host.json("grants", "list") == []
    assert [one["id"] for one in host.json("grants", "list", "--all")] == [grant_id]
    assert host.run("grants", "revoke", grant_id).exit_code == 1


def test_a_review_is_taken_back_on_the_host(host: Host) -> None:
    host.ok("users", "create", "ann@example.org", "--role", "reviewer")
    approval_id = host.held()
    result = host.run("requests", "withdraw", approval_id, "--as", "ann@example.org")
    assert result.exit_code == 1
    assert "no review" in result.output


# --- OAuth clients ----------------------------------------------------------------------------

CLIENTS = """
oauth_clients:
  - name: crm
    grant: token_exchange
    token_url: https://login.example/token
    client_id: gatepass
    client_secret: {from: "sealed:crm"}
servers:
  - label: crm
    url: https://mcp.crm.example/mcp
    credential: {from: "oauth:crm", scheme: Bearer}
"""


def test_the_secret_of_a_client_comes_from_stdin_and_stays_secret(
    host: Host, tmp_path: Path
) -> None:
    file = tmp_path / "clients.yaml"
    file.write_text(CLIENTS)
    printed = host.ok("apply", str(file))
    printed += host.ok("credentials", "set-client", "crm", stdin=CANARY + "\n")
    assert "The OAuth client crm now uses sealed:crm" in printed
    assert CANARY not in printed
    assert host.run("credentials", "set-client", "none", stdin="x").exit_code == 1
    assert not host.json("apply", str(file))["changes"]
    states = {f["part"]: f["state"] for f in json.loads(host.run("doctor", "--json").stdout)}
    assert states["server crm: credential"] == "warning"  # there is no end user here
