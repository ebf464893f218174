"""Pages of servers, tools and credentials: who may do what, and what never stands in one."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx2
import pytest
from sqlalchemy import text as sql

from gateway.approvals import grants
from gateway.approvals.terms import Terms
from gateway.audit.records import SYSTEM
from gateway.demo.runner import serve
from gateway.errors import NotFound
from gateway.registry import apps, servers, tools, unknown
from gateway.registry.settings import AppSettings
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.mcp_servers import server, these, tool
from tests.support.ports import free_port
from tests.support.servers import CHANGED, CRM, FIND, SEND, crm, register
from tests.support.stage import Stage, Wish, stage

VALUE = "canary-7f3a9b1c"
NEW = {"url": CRM, "label": "crm", "inject": "headers"}
BEARER = {"kind": "value", "header": "Authorization", "scheme": "Bearer"}


@pytest.fixture
async def played(sqlite: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(sqlite, clock) as played:
        await played.directory.reload()
        yield played


@pytest.fixture
async def adm(played: Stage) -> httpx2.AsyncClient:
    return await played.signed_in("adm@example.org", "admin")


def words(page: httpx2.Response) -> str:
    """What stands on a page, without its marks."""
    spaced = re.sub(r"</(dt|dd|td|li|p)>", " ", page.text)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", spaced)))


def fields(page: httpx2.Response) -> dict[str, str]:
    """The values that the inputs of a page hold."""
    found = re.findall(r'<input[^>]*name="([^"]+)"[^>]*?value="([^"]*)"', page.text)
    return {name: html.unescape(value) for name, value in found}


async def records(played: Stage, kind: str) -> int:
    async with played.db.reading() as session:
        statement = sql("SELECT count(*) FROM audit_records WHERE kind = :kind")
        return (await session.exec(statement, params={"kind": kind})).scalar_one()


# --- the list -------------------------------------------------------------------------------


async def test_without_servers_the_page_says_so_and_what_to_do(played: Stage, adm) -> None:
    page = await adm.get("/servers")
    assert "No server is registered" in page.text
    assert 'href="/servers/new"' in page.text
    vic = await played.signed_in("vic@example.org", "viewer")
    assert "An admin can add one." in (await vic.get("/servers")).text


async def test_the_list_tells_what_is_to_be_looked_at(played: Stage, adm) -> None:
    await crm(played, [SEND, FIND], [CHANGED, FIND])
    await played.ask()
    page = words(await adm.get("/servers"))
    assert "mcp.crm.example" in page
    assert "Tools to look at" in page
    assert "1 to look at" in page
    assert "No value stored" in page
    assert "sealed:crm" in page
    assert "env:BANK" in page


async def test_a_viewer_reads_and_is_offered_nothing_to_press(played: Stage) -> None:
    await crm(played, [SEND], [CHANGED], value=VALUE)
    vic = await played.signed_in("vic@example.org", "viewer", "reviewer")
    for path in ("/servers", "/servers/crm", "/servers/crm/tools/send_email"):
        page = await vic.get(path)
        assert page.status_code == 200, path
        main = page.text.split("<main")[1]
        assert '<form method="post"' not in main, path
        for link in ("/servers/new", "/settings", "/credential", "/remove"):
            assert f'{link}"' not in main, (path, link)


@pytest.mark.parametrize(
    "path",
    [
        "/servers/new",
        "/servers/crm/settings",
        "/servers/crm/credential",
        "/servers/crm/remove",
        "/servers/crm/test",
        "/servers/crm/tools/send_email",
    ],
)
async def test_who_may_not_change_servers_changes_none(played: Stage, path: str) -> None:
    await crm(played, [SEND], [CHANGED])
    before = await servers.read(played.db, "crm")
    [one] = await tools.listing(played.db, "crm")
    data = {**NEW, **BEARER, "value": VALUE, "digest": one.listed_digest, "label": "other"}
    for role in ("viewer", "reviewer", "auditor"):
        client = await played.signed_in(f"{role}@example.org", role)
        assert (await client.post(path, data=data)).status_code == 403, role
        if "tools" not in path and "test" not in path:
            assert (await client.get(path)).status_code == 403, role
    assert (await played.client().post(path, data=data)).status_code == 303
    assert await servers.read(played.db, "crm") == before
    assert [one] == await tools.listing(played.db, "crm")
    assert len(await servers.listing(played.db)) == 1


@pytest.mark.parametrize("path", ["/servers/new", "/servers/crm/credential", "/servers/crm/remove"])
async def test_another_site_changes_nothing(played: Stage, adm, path: str) -> None:
    await crm(played, [SEND])
    before = await servers.listing(played.db)
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    data = {**NEW, **BEARER, "label": "other", "value": VALUE}
    answer = await adm.post(path, data=data, headers=headers)
    assert answer.status_code == 403
    assert await servers.listing(played.db) == before


# --- adding and changing --------------------------------------------------------------------


async def test_a_server_is_added_and_the_browser_is_on_its_page(played: Stage, adm) -> None:
    answer = await adm.post("/servers/new", data={**NEW, "description": "Customers"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/servers/crm")
    page = words(await adm.get("/servers/crm"))
    assert "mcp.crm.example" in page
    assert "None: the server is called without one." in page
    assert "crm" in played.directory.view.servers_by_label
    assert await records(played, "server.registered") == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "http://mcp.crm.example/mcp"}, "url"),
        ({"url": "https://127.0.0.1/mcp"}, "url"),
        ({"url": "https://169.254.169.254/", "allow_private_network": "true"}, "url"),
        ({"url": "stdio:rm -rf"}, "url"),
        ({"url": ""}, "url"),
        ({"label": "two words"}, "label"),
        ({"label": "new"}, "label"),
        ({"label": "<b>x"}, "label"),
    ],
)
async def test_what_is_not_a_server_comes_back_with_the_field_named(
    played: Stage, adm, change: dict[str, str], field: str
) -> None:
    page = await adm.post("/servers/new", data={**NEW, **change})
    assert page.status_code == 400
    assert 'role="alert"' in page.text
    if change[field]:
        named = re.search(rf'<input id="{field}"[^>]*aria-invalid="true"', page.text)
        assert named, page.text
    assert fields(page)[field] == change[field]
    assert "<b>x" not in page.text
    assert await servers.listing(played.db) == []


async def test_an_address_belongs_to_one_server(played: Stage, adm) -> None:
    await crm(played)
    for data in (NEW, {**NEW, "label": "other"}):
        page = await adm.post("/servers/new", data=data)
        assert page.status_code == 409
        assert "registered" in words(page)
    assert len(await servers.listing(played.db)) == 1


async def test_the_form_for_a_new_server_can_be_filled_by_a_link(adm) -> None:
    page = await adm.get("/servers/new", params={"url": '"><script>', "label": "a"})
    assert fields(page)["url"] == '"><script>'
    assert "<script>" not in page.text.split("<main")[1]


async def test_settings_change_and_the_credential_stays(played: Stage, adm) -> None:
    await crm(played, [SEND], value=VALUE)
    page = await adm.get("/servers/crm/settings")
    assert fields(page)["url"] == CRM
    data = {"url": CRM, "description": "Now with\nlines", "inject": "authorization"}
    assert (await adm.post("/servers/crm/settings", data=data)).status_code == 303
    entry = await servers.read(played.db, "crm")
    assert entry.settings.description == "Now with\nlines"
    assert entry.settings.inject == "authorization"
    assert entry.settings.credential is not None
    assert entry.stored_at is not None
    moved = {**data, "url": "https://other.example/mcp"}
    assert (await adm.post("/servers/crm/settings", data=moved)).status_code == 303
    assert (await servers.read(played.db, "crm")).stored_at is None
    assert "No value is stored for this address" in words(await adm.get("/servers/crm"))


# --- credentials ----------------------------------------------------------------------------


async def test_a_value_goes_in_and_never_comes_out(played: Stage, adm) -> None:
    await register(played, "crm", CRM)
    answer = await adm.post("/servers/crm/credential", data={**BEARER, "value": VALUE})
    assert (answer.status_code, answer.headers["location"]) == (303, "/servers/crm#credential")
    assert VALUE not in answer.text
    entry = await servers.read(played.db, "crm")
    assert entry.stored_at is not None
    for path in ("", "/crm", "/crm/credential", "/crm/settings", "/crm/remove"):
        page = await adm.get(f"/servers{path}")
        assert page.status_code == 200
        assert VALUE not in page.text, path
        assert page.headers["cache-control"] == "no-store"
    assert "sealed:crm" in words(await adm.get("/servers/crm"))
    assert await records(played, "credential.written") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"value": VALUE + "\r\nX: y"},
        {"value": VALUE + "é"},
        {"value": " " + VALUE},
        {"value": VALUE * 2000},
        {"value": VALUE, "header": "Host"},
        {"value": VALUE, "header": "X\r\nY"},
        {"value": VALUE, "scheme": "two words"},
        {"value": VALUE, "kind": "reference", "reference": VALUE},
        {"value": VALUE, "kind": "reference", "reference": ""},
        {"value": VALUE, "kind": "elsewhere"},
        {"value": ""},
    ],
)
async def test_a_value_that_is_not_taken_is_not_repeated(played: Stage, adm, change) -> None:
    await register(played, "crm", CRM)
    page = await adm.post("/servers/crm/credential", data={**BEARER, **change})
    assert page.status_code == 400
    shown = page.text if change.get("reference") != VALUE else page.text.replace(VALUE, "", 1)
    assert VALUE not in shown
    entry = await servers.read(played.db, "crm")
    assert (entry.settings.credential, entry.stored_at) == (None, None)


async def test_a_reference_is_bound_and_taken_away(played: Stage, adm) -> None:
    await crm(played, value=VALUE)
    data = {**BEARER, "kind": "reference", "reference": "env:CRM_TOKEN"}
    assert (await adm.post("/servers/crm/credential", data=data)).status_code == 303
    entry = await servers.read(played.db, "crm")
    assert entry.settings.credential is not None
    assert entry.settings.credential.source == "env:CRM_TOKEN"
    assert entry.stored_at is None
    assert fields(await adm.get("/servers/crm/credential"))["reference"] == "env:CRM_TOKEN"
    assert (await adm.post("/servers/crm/credential", data={**data, "kind": "none"})).is_redirect
    assert (await servers.read(played.db, "crm")).settings.credential is None


async def test_servers_with_one_reference_name_each_other(played: Stage, adm) -> None:
    await played.ask()
    await played.ask(Wish(server="other", url="https://other.example/mcp"))
    page = words(await adm.get("/servers/bank"))
    assert "Also used by other" in page
    await crm(played)
    assert "Also used by no other server" in words(await adm.get("/servers/crm"))


# --- tools ----------------------------------------------------------------------------------


async def test_a_changed_tool_is_shown_path_by_path_and_accepted(
    played: Stage, adm, clock: FakeClock
) -> None:
    await crm(played, [SEND], [CHANGED])
    page = await adm.get("/servers/crm/tools/send_email")
    shown = words(page)
    assert "/description changed" in shown
    assert "/input_schema/properties/bcc added" in shown
    assert "⟨U+200B⟩" in shown
    assert "\u200b" not in page.text
    digest = fields(page)["digest"]
    clock.advance(60)
    answer = await adm.post("/servers/crm/tools/send_email", data={"digest": digest})
    assert answer.headers["location"] == "/servers/crm/tools/send_email"
    [one] = await tools.listing(played.db, "crm")
    assert not one.changed
    shown = words(await adm.get("/servers/crm/tools/send_email"))
    assert "What the server lists is what was accepted." in shown
    assert "adm@example.org" in shown
    assert await records(played, "tooldef.accepted") == 1


async def test_only_what_was_shown_is_accepted(played: Stage, adm) -> None:
    server_id = await crm(played, [SEND], [CHANGED])
    digest = fields(await adm.get("/servers/crm/tools/send_email"))["digest"]
    worse = {**CHANGED, "description": "Worse"}
    await tools.observe(played.ledger, server_id, [worse], now=played.clock())
    page = await adm.post("/servers/crm/tools/send_email", data={"digest": digest})
    assert page.status_code == 409
    assert "Nothing was accepted" in words(page)
    assert "Worse" in page.text
    [one] = await tools.listing(played.db, "crm")
    assert one.changed
    assert fields(page)["digest"] == one.listed_digest


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".", "~x", "a?b#c", "a b", "<b>", "%2e", "ü\u202e", "\\..\\", "x" * 200]
)
async def test_a_tool_of_any_name_has_its_page(played: Stage, adm, name: str) -> None:
    server_id = await crm(played, [{"name": name, "description": "one"}])
    listed = [{"name": name, "description": "other"}]
    await tools.observe(played.ledger, server_id, listed, now=played.clock())
    page = await adm.get("/servers/crm")
    assert "<b>" not in page.text.split("<main")[1]
    [path] = set(re.findall(r'href="(/servers/crm/tools/[^"]+)"', page.text))
    page = await adm.get(httpx2.URL(html.unescape(path)))
    assert page.status_code == 200
    assert "\u202e" not in page.text
    [action] = set(re.findall(r'action="(/servers/crm/tools/[^"]+)"', page.text))
    answer = await adm.post(action, data={"digest": fields(page)["digest"]})
    assert answer.status_code == 303
    assert (await adm.get(answer.headers["location"])).status_code == 200
    [one] = await tools.listing(played.db, "crm")
    assert not one.changed


async def test_what_does_not_exist_is_said_not_to(played: Stage, adm) -> None:
    await crm(played)
    for path in ("/nobody", "/crm/tools/nothing", "/nobody/tools/x", "/nobody/settings"):
        assert (await adm.get(f"/servers{path}")).status_code == 404, path


async def test_a_waiting_call_shows_what_its_definition_was_before(played: Stage, adm) -> None:
    approval = await played.ask()
    page = words(await adm.get(f"/requests/{approval}"))
    assert "when it was first seen" in page
    assert "header Authorization, value from env:BANK" in page
    other = {**SEND, "name": "transfer", "description": "Send all of it."}
    await tools.observe(played.ledger, "srv_bank", [other], now=played.clock())
    again = await played.ask(Wish(definition=None))
    page = await adm.get(f"/requests/{again}")
    assert "This is not the definition that was accepted." in words(page)
    assert "Send all of it." in words(page)
    assert "Send money from the house account." in words(page)
    assert 'href="/servers/bank/tools/transfer"' in page.text


# --- removing -------------------------------------------------------------------------------


async def test_removing_says_what_will_be_denied_and_then_does_it(
    played: Stage, adm, clock: FakeClock
) -> None:
    approval = await played.ask()
    await played.decide(approval, "approve")
    cy = await played.reviewer("cy@example.org")
    terms = Terms("tool", "app", clock() + timedelta(days=1), (), 5)
    await grants.remember_later(played.approvals, cy, approval, terms, now=clock())
    await played.ask(Wish(tool="get_rate"))
    settings = AppSettings("narrow", servers=("bank",))
    await apps.create(played.ledger, settings, actor=SYSTEM, now=clock())
    await played.directory.reload()
    page = words(await adm.get("/servers/bank/remove"))
    assert "1 app names it: narrow." in page
    assert "1 app may use every server." in page
    assert "1 call waits for a decision. It is denied, whatever is decided." in page
    assert "1 remembered approval ends." in page
    assert (await servers.read(played.db, "bank")).settings.label == "bank"
    answer = await adm.post("/servers/bank/remove")
    assert answer.headers["location"] == "/servers"
    with pytest.raises(NotFound):
        await servers.read(played.db, "bank")
    assert await records(played, "grant.ended") == 1
    assert (await adm.get(f"/requests/{approval}")).status_code == 200


# --- testing --------------------------------------------------------------------------------


@pytest.fixture
async def odd(played: Stage) -> AsyncIterator[str]:
    """A real server whose words are hostile."""
    words = tool("<i>\u200b", "x" * 9_000)
    async with serve(server(these(words), name="<b>x</b>\u202e")) as url:
        yield f"{url}/mcp"


async def test_what_a_test_found_is_shown_and_hostile_words_are_drawn(
    played: Stage, adm, odd: str
) -> None:
    await register(played, "odd", odd, allow_private_network=True)
    assert "Test now" in (await adm.get("/servers/odd")).text
    page = await adm.post("/servers/odd/test")
    assert page.status_code == 200
    shown = words(page)
    for fact in ("The server wants no credential", "1 tool is listed", "127.0.0.1", "Took"):
        assert fact in shown, fact
    assert "<b>x" not in page.text
    assert "<i>" not in page.text
    assert not {"\u202e", "\u200b"} & set(page.text)
    [found] = await tools.listing(played.db, "odd")
    assert found.state == "pinned"
    russian = await adm.post("/servers/odd/test", headers={"accept-language": "ru"})
    assert "Сервер перечислил свои инструменты." in words(russian)
    assert await records(played, "server.probed") == 2


async def test_an_address_is_tested_before_it_is_registered(played: Stage, adm, odd: str) -> None:
    form = {"url": odd, "label": "odd", "allow_private_network": "true", "act": "test"}
    page = await adm.post("/servers/new", data=form)
    assert page.status_code == 200
    assert "The server answered" in words(page)
    assert fields(page)["label"] == "odd"
    assert await servers.listing(played.db) == []
    page = await adm.post("/servers/new", data={**form, "allow_private_network": ""})
    assert page.status_code == 400
    assert await records(played, "server.probed") == 1


async def test_a_server_that_is_not_there_is_a_finding(played: Stage, adm) -> None:
    url = f"http://127.0.0.1:{free_port()}/mcp"
    await register(played, "gone", url, allow_private_network=True)
    page = await adm.post("/servers/gone/test")
    assert page.status_code == 200
    assert "The test failed" in words(page)


# --- strangers, bindings, and tools that are not accepted -----------------------------------


async def test_what_nobody_registered_is_listed_with_a_way_to_register_it(
    played: Stage, adm
) -> None:
    app, now = ("app_1", "<b>bot"), played.clock()
    await unknown.note(played.db, app, "https://evil.example/mcp", now=now)
    await unknown.note(played.db, app, "label calendar", now=now)
    page = await adm.get("/servers")
    assert "No server is registered" in page.text
    assert "Every request that brought one of these was refused." in words(page)
    assert "<b>bot" not in page.text
    assert 'href="/servers/new?url=https%3A%2F%2Fevil.example%2Fmcp"' in page.text
    assert 'href="/servers/new?label=calendar"' in page.text
    vic = await played.signed_in("vic@example.org", "viewer")
    assert "Forget" not in (await vic.get("/servers")).text
    path = re.findall(r'action="(/servers/unknown/[^"]+)"', page.text)[0]
    assert (await vic.post(path)).status_code == 403
    assert (await adm.post(path)).headers["location"] == "/servers"
    assert len(await unknown.listing(played.db)) == 1


async def test_a_credential_that_is_not_bound_is_said_so_and_confirmed(played: Stage, adm) -> None:
    await played.ask()
    assert "Credential not bound" in words(await adm.get("/servers"))
    page = await adm.get("/servers/bank")
    assert "so it is not." in words(page)
    data = {name: fields(page)[name] for name in ("reference", "origin")}
    assert data == {"reference": "env:BANK", "origin": "https://mcp.bank.example:443"}
    vic = await played.signed_in("vic@example.org", "viewer")
    assert (await vic.post("/servers/bank/binding", data=data)).status_code == 403
    other = {**data, "origin": "https://evil.example:443"}
    assert (await adm.post("/servers/bank/binding", data=other)).status_code == 409
    assert (await servers.read(played.db, "bank")).binding is None
    assert (await adm.post("/servers/bank/binding", data=data)).status_code == 303
    page = words(await adm.get("/servers/bank"))
    assert "by adm@example.org" in page
    assert "Credential not bound" not in page


async def test_a_new_tool_is_refused_and_then_accepted(played: Stage, adm) -> None:
    server_id = await crm(played, [FIND])
    await tools.observe(played.ledger, server_id, [FIND, SEND], now=played.clock())
    page = await adm.get("/servers/crm/tools/send_email")
    assert "Nobody has accepted this tool yet." in words(page)
    digest = fields(page)["digest"]
    path = "/servers/crm/tools/send_email"
    for answer, state in (("refuse", "refused"), ("accept", "pinned")):
        data = {"digest": digest, "answer": answer}
        assert (await adm.post(path, data=data)).status_code == 303
        found = await tools.read(played.db, "crm", "send_email")
        assert found.state == state
        assert (await adm.get(path)).status_code == 200
    await tools.observe(played.ledger, server_id, [FIND], now=played.clock())
    page = words(await adm.get(path))
    assert "Not listed since" in page


async def test_a_label_without_new_tools_of_its_own_can_be_asked_for(played: Stage, adm) -> None:
    await adm.post("/servers/new", data={**NEW, "pin": "accept"})
    assert (await servers.read(played.db, "crm")).settings.pin == "accept"
    assert "each waits for a person" in words(await adm.get("/servers/crm"))
    data = {**BEARER, "value": VALUE}
    await adm.post("/servers/crm/credential", data=data)
    assert (await servers.read(played.db, "crm")).settings.pin == "accept"
