"""The clients that are tried: pinned, hashed, declared once, and told of as they were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.clients.results import declared, recorded
from tests.support.clients import CAPABILITIES, CLIENTS, PROGRAMS, PROVIDER, cases
from tests.support.repository import ROOT

LOCKS = [client.lock for client in (*CLIENTS, PROVIDER) if client.lock is not None]
PYTHON = [lock for lock in LOCKS if lock.suffix == ".lock"]
NODE = [lock for lock in LOCKS if lock.suffix == ".json"]


@pytest.mark.parametrize("lock", PYTHON, ids=lambda path: path.stem)
def test_python_locks_pin_and_hash_everything_and_name_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    for pin in pins:
        assert re.match(r"^[a-z0-9][a-z0-9._-]*==\S+( ; .+)? \\$", pin), pin
    for wanted in lock.with_suffix(".in").read_text().split():
        assert any(pin.startswith(f"{wanted} ") for pin in pins), f"{wanted}: make lock"


@pytest.mark.parametrize("lock", NODE, ids=lambda path: path.parent.name)
def test_node_locks_pin_and_hash_everything_and_name_no_registry(lock: Path) -> None:
    document = json.loads(lock.read_text())
    wanted = json.loads((lock.parent / "package.json").read_text())["dependencies"]
    packages = {name: entry for name, entry in document["packages"].items() if name}
    assert document["packages"][""]["dependencies"] == wanted
    for name, version in wanted.items():
        assert packages[f"node_modules/{name}"]["version"] == version
    assert [name for name, entry in packages.items() if "resolved" in entry] == []
    assert [name for name, entry in packages.items() if "integrity" not in entry] == []


def test_every_lock_belongs_to_a_client() -> None:
    found = {*ROOT.glob("requirements/clients/*.lock"), *ROOT.glob("tests/clients/*/package*.json")}
    wanted = {*LOCKS, *(lock.parent / "package.json" for lock in NODE)}
    assert found == wanted


def test_every_program_plays_what_its_clients_are_asked() -> None:
    for case in cases():
        text = (PROGRAMS / case.client.program).read_text()
        words = rf"^async def {case.capability.name}\(|^  async {case.capability.name}\("
        assert re.search(words, text, re.MULTILINE), case.name


def test_the_measured_results_are_those_of_the_declared_cases() -> None:
    document = recorded()
    assert {name: document[name] for name in declared()} == declared(), "run: make compatibility"
    played = {f"{client}/{name}" for client, own in document["results"].items() for name in own}
    assert played == {case.name for case in cases()}, "run: make compatibility"


def test_only_what_is_declared_to_break_breaks() -> None:
    results = recorded()["results"]
    broken = {
        f"{client}/{name}"
        for client in results
        for name, word in results[client].items()
        if word != "works"
    }
    assert broken == {case.name for case in cases() if case.breaks}


def test_names_tell_clients_and_capabilities_apart() -> None:
    for names in ([each.name for each in CLIENTS], [each.name for each in CAPABILITIES]):
        assert len(set(names)) == len(names)
