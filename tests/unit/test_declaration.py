"""Declarative files: every mistake has its line, and all of them are said at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.errors import Refused
from gateway.registry.declaration import load, parse

SERVER = "servers:\n  - label: crm\n    url: https://mcp.crm.example/mcp\n"
#: (file, the exact lines that are reported)
WRONG = [
    (
        SERVER + "    colour: red\n",
        "bad.yaml:4: unknown member 'colour' in servers[0]; known: label",
    ),
    ("colour: red\n", "bad.yaml:1: unknown member 'colour' in the file; known: servers, policies"),
    ("- 1\n", "bad.yaml:1: the file: must be a mapping, not a list"),
    ("servers: 3\n", "bad.yaml:1: servers: must be a list, not a number"),
    ("servers:\n  - crm\n", "bad.yaml:2: servers[0]: must be a mapping, not text"),
    ("servers:\n  - label: crm\n", "bad.yaml:2: servers[0]: needs a url"),
    ("servers:\n  - url: https://a.example\n", "bad.yaml:2: servers[0]: needs a label"),
    (
        SERVER + SERVER.partition("\n")[2],
        "bad.yaml:4: the label 'crm' of servers is taken by bad.yaml:2",
    ),
    (
        SERVER + "  - label: b\n    url: https://MCP.crm.example:443/mcp\n",
        "bad.yaml:4: the servers 'crm' and 'b' have the same address",
    ),
    (
        SERVER + "    url: https://x.example\n",
        "bad.yaml:4: the member 'url' stands here a second time; line 3",
    ),
    (
        SERVER + "    description: 5\n",
        "bad.yaml:4: servers[0].description: must be text, not a number",
    ),
    (
        SERVER + "    description: ''\n",
        "bad.yaml:4: servers[0].description: must be text, not an empty one",
    ),
    (
        SERVER + "    inject: body\n",
        "bad.yaml:4: servers[0].inject: must be headers or authorization",
    ),
    (
        SERVER + "    allow_private_network: 1\n",
        "bad.yaml:4: servers[0].allow_private_network: must be true or",
    ),
    (
        SERVER + "    tools: {pin: never}\n",
        "bad.yaml:4: servers[0].tools.pin: must be on_first_use or accept, not 'never'",
    ),
    (
        SERVER + "    tools: {pins: x}\n",
        "bad.yaml:4: unknown member 'pins' in servers[0].tools; known: pin",
    ),
    (
        SERVER + "    credential: env:X\n",
        "bad.yaml:4: servers[0].credential: must be a mapping, not text",
    ),
    (SERVER + "    credential: {}\n", "bad.yaml:4: servers[0].credential: needs a from"),
    (
        SERVER + "    credential:\n      from: canary-7f3a\n",
        "bad.yaml:5: servers[0].credential.from: A secret is named by one of sealed:NAME, env:",
    ),
    (
        SERVER + "    credential:\n      from: env:X\n      header: 'canary-7f3a: x'\n",
        "bad.yaml:6: servers[0].credential.header: must be the name of a header",
    ),
    (
        SERVER + "    credential: {from: env:X, header: Host}\n",
        "bad.yaml:4: servers[0].credential.header: must be the name of a header",
    ),
    (
        SERVER + "    credential: {from: env:X, scheme: Bearer canary-7f3a}\n",
        "bad.yaml:4: servers[0].credential.scheme: must be one word such as Bearer",
    ),
    (
        SERVER + "    inject: authorization\n    credential: {from: env:X, header: X-Key}\n",
        "bad.yaml:4: servers[0].inject: authorization carries only a Bearer token",
    ),
    (
        "servers:\n  - label: 1crm\n    url: https://a.example\n",
        "bad.yaml:2: servers[0].label: must be 1 to 64 letters",
    ),
    (
        "servers:\n  - label: wiki\n    url: http://127.0.0.1:4112/mcp\n",
        "bad.yaml:3: servers[0].url: The address 127.0.0.1 is a private address; it needs allow_",
    ),
    (
        "servers:\n  - label: wiki\n    url: http://wiki.example/mcp\n",
        "bad.yaml:3: servers[0].url: The address plain http needs allow_private_network: true",
    ),
    (
        "servers:\n  - label: wiki\n    url: https://u:canary-7f3a@wiki.example/mcp\n",
        "bad.yaml:3: servers[0].url: The address must not contain a user name or password",
    ),
    ("apps:\n  - owner: x\n", "bad.yaml:2: apps[0]: needs a name"),
    ("apps:\n  - name: a b\n", "bad.yaml:2: apps[0].name: must be 1 to 80 letters"),
    (
        "apps:\n  - name: a\n    wait: never\n",
        "bad.yaml:3: apps[0].wait: must be hold or return, not 'never'",
    ),
    (
        "apps:\n  - name: a\n    servers: crm\n",
        "bad.yaml:3: apps[0].servers: must be a list, not text",
    ),
    (
        "apps:\n  - name: a\n    servers: [x, 3]\n",
        "bad.yaml:3: apps[0].servers[1]: must be text, not a number",
    ),
    (
        "apps:\n  - name: a\n    servers: [x, x]\n",
        "bad.yaml:3: apps[0].servers[1]: 'x' stands in the list tw",
    ),
    (
        "apps:\n  - name: a\n    key: x\n",
        "bad.yaml:3: unknown member 'key' in apps[0]; known: name, owner",
    ),
    (
        "reviewer_groups:\n  - name: t\n    members: [ann]\n",
        "bad.yaml:3: reviewer_groups[0].members: 'ann' is not an e-mail address",
    ),
    ("reviewer_groups:\n  - name: t\n", "bad.yaml:2: reviewer_groups[0]: needs members"),
    (
        "webhooks:\n  - name: w\n    url: https://10.0.0.1/\n",
        "bad.yaml:3: webhooks[0].url: The address 10.0.0.1 is a private address",
    ),
    (
        "webhooks:\n  - name: w\n    url: https://a.example\n    events: [x y]\n",
        "bad.yaml:4: webhooks[0].events: 'x y' is not a kind of event",
    ),
    (
        "policies:\n  - name: x\n    effect: hold\n    colour: red\n",
        "bad.yaml:4: unknown member 'colour' in policies[0]; known: name, match",
    ),
    (
        "policies:\n  - name: x\n    effect: hold\n    match:\n      tools: get_*\n",
        "bad.yaml:5: unknown member 'tools' in policies[0].match; known: app, server, tool",
    ),
    (
        "policies:\n  - name: x\n    effect: hold\n    when: args.amount >\n",
        "bad.yaml:4: policies[0].when: Syntax error",
    ),
    ("policies: {}\n", "bad.yaml:1: policies: must be a list of rules, not a mapping"),
    (
        "policies:\n  - {name: x, effect: hold}\n  - {name: x, effect: deny}\n",
        "bad.yaml:3: policies[1].name: the name 'x' is taken by rule [0]",
    ),
    ("a: &x [1]\nb: *x\n", "bad.yaml:2: aliases (*name) are not allowed; write the value out"),
    ("a: 1\n---\nb: 2\n", "bad.yaml:2: a second document (---) is not allowed; use another file"),
    ("servers: {\n", "bad.yaml:2: not valid YAML: expected the node content"),
    ("a: '\n", "bad.yaml:2: not valid YAML: found unexpected end of stream"),
    ("\tservers: []\n", "bad.yaml:1: not valid YAML: found character"),
    ("a: \0\n", "bad.yaml:1: not valid YAML: a character that is not allowed"),
    ("servers:\n - a\n - \x07\n", "bad.yaml:3: not valid YAML: a character that is not allowed"),
    ("? [a]\n: 1\n", "bad.yaml:1: a member name must be plain text"),
    ("servers: !foo []\n", "bad.yaml:1: tags (!name) are not allowed"),
    ("a: !!python/object/apply:os.system [x]\n", "bad.yaml:1: tags (!name) are not allowed"),
    (
        "a: !!python/name:os.system\n",
        "bad.yaml:1: a value of the YAML type 'os.system' is not allowed",
    ),
    ("[" * 30, "bad.yaml:1: nested more than 20 levels deep"),
    ("#" * 1_000_001, "bad.yaml:1: is longer than 1000000 characters"),
    (
        SERVER + "    description: 2026-01-05\n",
        "bad.yaml:4: a value of the YAML type 'timestamp' is not allo",
    ),
    (
        SERVER + "    description: 12:30\n",
        "bad.yaml:4: '12:30' is an unusual number; put it in quotes if",
    ),
    (SERVER + "    description: 0x1F\n", "bad.yaml:4: '0x1F' is an unusual number"),
    (SERVER + "    description: 010\n", "bad.yaml:4: '010' is an unusual number"),
]


@pytest.mark.parametrize(
    ("text", "message"), WRONG, ids=[f"{i}-{m[9:50]}" for i, (_, m) in enumerate(WRONG)]
)
def test_what_is_wrong_is_said_with_its_line(text: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        parse({"bad.yaml": text})
    lines = caught.value.message.split("\n")
    assert all(re.match(r"bad\.yaml:\d+:\d+: \S", line) for line in lines)
    # The exact columns: tests/unit/policies_wrong.
    lines = [re.sub(r"^(bad\.yaml:\d+):\d+", r"\1", line) for line in lines]
    assert any(line.startswith(message) for line in lines), lines
    assert "canary" not in caught.value.message


def test_everything_is_said_at_once_and_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(SERVER + "    colour: red\n    inject: x\napps:\n  - name: ok\n")
    second.write_text("apps:\n  - name: ok\n    wait: x\n  - name: ok\ntools: []\n")
    with pytest.raises(Refused) as caught:
        load([first, second])
    found = re.findall(r"^\S*/([ab]\.yaml:\d)", caught.value.message, re.MULTILINE)
    assert found == ["a.yaml:4", "a.yaml:5", "b.yaml:3", "b.yaml:4", "b.yaml:5"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=re.escape("cannot be read: No such file or directory")):
        load([tmp_path / "missing.yaml"])
    odd = tmp_path / "odd.yaml"
    odd.write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match="it is not UTF-8 text"):
        load([odd])


def test_an_empty_file_declares_nothing() -> None:
    for text in ("", "# only a comment\n", "---\n", "servers:\n"):
        declared = parse({"a.yaml": text})
        assert declared.servers == ()
        assert declared.policy is None


def test_an_empty_section_of_policies_is_a_policy_without_rules() -> None:
    declared = parse({"a.yaml": "policies: []\n"})
    assert declared.policy is not None
    assert declared.policy.rules == ()


def test_files_are_joined() -> None:
    declared = parse(
        {
            "a.yaml": SERVER + "policies:\n  - {name: x, effect: hold}\n",
            "b.yaml": "policies:\n  - {name: y, effect: deny}\napps:\n  - name: bot\n",
        }
    )
    assert declared.policy is not None
    assert [rule.name for rule in declared.policy.rules] == ["x", "y"]
    assert declared.place("apps", "bot") == "b.yaml:4"
    assert declared.place("policies", "y") == "b.yaml:2"


def test_layout_does_not_change_the_digest() -> None:
    one = parse({"a.yaml": SERVER + "    inject: headers\n"})
    other = parse(
        {"b.yaml": '{"servers": [{"url": "https://MCP.crm.example:443/mcp", "label": "crm"}]}'}
    )
    assert one.digest == other.digest
    assert one.digest != parse({"a.yaml": ""}).digest


def test_names_that_yaml_takes_for_booleans_stay_names() -> None:
    with pytest.raises(Refused, match="unknown member 'on' in the file"):
        parse({"a.yaml": "on: 1\n"})


def _examples() -> list[str]:
    root = Path(__file__).parents[2] / "docs"
    pages = [root / "configuration.md", root / "servers-and-credentials.md"]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    return [e for text in texts for e in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def test_the_pages_have_examples() -> None:
    assert len(_examples()) >= 4


@pytest.mark.parametrize("example", _examples())
def test_every_example_of_the_pages_is_valid(example: str) -> None:
    assert parse({"example.yaml": example})


def test_every_member_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    known = set()
    sections = ("servers", "apps", "webhooks", "reviewer_groups", "policies")
    for section in sections:
        with pytest.raises(Refused) as caught:
            parse({"a.yaml": f"{section}:\n  - zzz: 1\n"})
        found = re.search(r"known: (.*)", caught.value.message)
        assert found is not None
        known |= set(found.group(1).split(", "))
    assert not {name for name in {*known, *sections} if f"`{name}`" not in page}
