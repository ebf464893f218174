"""Plays every selected case once and hands the reports to the tests."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.clients.driving import Played, play
from tests.clients.environments import missing
from tests.clients.results import write
from tests.support.clients import Case


def _cases(session: pytest.Session) -> list[Case]:
    """What the selected tests will ask for."""
    found: dict[str, Case] = {}
    for item in session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        case = parameters.get("case")
        if isinstance(case, Case):
            found[case.name] = case
    return list(found.values())


@pytest.fixture(scope="session")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """All cases of this session, played at once."""
    cases = [case for case in _cases(request.session) if missing(case.client) is None]
    played = asyncio.run(play(cases, tmp_path_factory.mktemp("clients")))
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
