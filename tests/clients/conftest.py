"""Plays every selected case once and hands the reports to the tests."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.clients.driving import Played, play
from tests.clients.environments import missing
from tests.clients.results import write
from tests.support.clients import Case


def _cases(session: pytest.Session) -> list[Case]:
    """What the selected tests will ask for, and can be run here."""
    found: dict[str, Case] = {}
    for item in session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        case = parameters.get("case")
        if isinstance(case, Case) and missing(case.client) is None:
            found[case.name] = case
    return list(found.values())


@pytest.fixture(scope="session")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """All cases of this session, played at once; by one process, however many run the tests."""
    cases = _cases(request.session)
    folder = tmp_path_factory.mktemp("clients")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _play(cases, folder)
    shared = tmp_path_factory.getbasetemp().parent / "clients.json"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if shared.exists():
            return Played(**json.loads(shared.read_text()))
        played = _play(cases, folder)
        shared.write_text(json.dumps(asdict(played)))
        return played


def _play(cases: list[Case], folder: Path) -> Played:
    played = asyncio.run(play(cases, folder))
    if os.environ.get("RECORD"):
        write(played.reports)
    return played


@pytest.fixture
def report(case: Case, request: pytest.FixtureRequest) -> dict:
    """What the program reported of the case; skips, or in CI fails, where it cannot run."""
    if reason := missing(case.client):
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return request.getfixturevalue("played").reports[case.name]
