"""Every client, in an environment of its own, against a gateway: what an app really sees.

The cases are declared in tests/support/clients.py and played by tests/clients/driving.py; the
programs have checked their own side: one id, no gap in any numbering, no approval to be seen.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.driving import WAIT, Played
from tests.clients.environments import missing
from tests.clients.results import measured, recorded
from tests.support.clients import CLIENTS, Case, cases_of
from tests.support.demo import TOKEN

pytestmark = pytest.mark.e2e
Report = dict[str, Any]


def each(*names: str, modes: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """For every case of these capabilities, or of some modes of theirs."""
    chosen = [case for case in cases_of(*names) if not modes or case.mode in modes]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


@each(
    *("text", "azure", "function", "image", "drawing", "chain", "reasoning", "stored"),
    *("background", "resume"),
)
def test_what_works_at_azure_works_here(case: Case, report: Report) -> None:
    assert report["ok"], report["error"]
    assert report["id"].startswith("resp_")


@each("files", "chat", "embeddings", "models")
def test_what_passes_through_works_here_too(case: Case, report: Report) -> None:
    assert report["ok"], report["error"]


@each("computer", "conversation")
def test_a_call_is_held_wherever_it_stands(case: Case, report: Report, played: Played) -> None:
    assert report["ok"], report["error"]
    assert (played.people_asked(case), played.executed(case)) == (1, 1)


@each("credential")
def test_headers_of_an_app_never_reach_azure(case: Case, report: Report, played: Played) -> None:
    assert report["ok"], report["error"]
    sent = [body for body in played.bodies if case.name in json.dumps(body)]
    assert sent
    for body in played.bodies:
        assert "my-own-key" not in json.dumps(body)
    [tool] = sent[0]["tools"]
    assert tool["headers"] == {"Authorization": f"Bearer {TOKEN}"}
    assert played.executed(case) == 1


@each("wish")
def test_the_answer_of_an_app_that_goes_on_by_itself_is_a_wish(
    case: Case, report: Report, played: Played
) -> None:
    assert report["ok"], report["error"]
    # The app said no, a person said yes.
    assert (played.people_asked(case), played.executed(case)) == (1, 1)


@each("cancel")
def test_what_an_app_cancels_is_not_carried_out(case: Case, report: Report, played: Played) -> None:
    assert report["ok"], report["error"]
    assert report["statuses"][-2:] == ["cancelled", "cancelled"]
    assert (played.people_asked(case), played.executed(case)) == (1, 0)


@each("wait", modes=("plain",))
def test_P_18_white_space_before_the_answer_is_understood(
    case: Case, report: Report, played: Played
) -> None:
    assert report["ok"], report["error"]
    # The header went out early, and people were asked once by one request.
    assert report["waited"] > WAIT
    assert (report["attempts"], played.people_asked(case), played.executed(case)) == (1, 1, 1)
    assert report.get("blank", 1) >= 1


@each("approved")
def test_P_19_a_held_call_is_one_seamless_response(
    case: Case, report: Report, played: Played
) -> None:
    assert report["ok"], report["error"]
    assert report["text"].startswith("bank.transfer returned:")
    assert (report["attempts"], played.people_asked(case), played.executed(case)) == (1, 1, 1)


@each("wait", modes=("stream", "helper"))
def test_P_19_a_stream_that_was_held_for_twenty_seconds_is_seamless_too(
    case: Case, report: Report, played: Played
) -> None:
    assert report["ok"], report["error"]
    assert report["waited"] > WAIT
    assert (report["attempts"], played.people_asked(case), played.executed(case)) == (1, 1, 1)


@each("denied")
def test_P_20_a_denied_call_ends_with_an_explanation(
    case: Case, report: Report, played: Played
) -> None:
    assert report["ok"], report["error"]
    assert "as tested" in report["text"]
    assert (played.people_asked(case), played.executed(case)) == (1, 0)


@pytest.mark.parametrize(
    "case", [case for case in cases_of("wait") if case.name == "curl/wait:stream"], ids=["curl"]
)
def test_P_23_nothing_but_comments_and_numbered_events_is_on_the_wire(
    case: Case, report: Report
) -> None:
    assert report["ok"], report["error"]
    # No id, no retry; that every event has its data and its number, the program has checked.
    assert report["wire"] == ["", "data", "event"]
    assert report["comments"] >= 10
    assert report["keepalives"] >= 3
    assert report["silence"] < 10


@each("unknown")
def test_P_26_an_event_nobody_knows_is_passed_on(case: Case, report: Report) -> None:
    assert report["ok"] is not case.breaks, report["error"]
    if case.breaks:
        assert "Unhandled response stream event" in report["error"]


@each("retry")
def test_P_44_a_client_that_gives_up_waiting_joins_what_it_began(
    case: Case, report: Report, played: Played
) -> None:
    assert report["ok"], report["error"]
    assert report["attempts"] > 1
    assert played.first_rounds(case) == 1
    assert (played.people_asked(case), played.executed(case)) == (1, 1)


#: Mode → status, code, how often the clients post that read `x-should-retry`.
REFUSALS = {
    "400": (400, "credentials_differ", 1),
    "401": (401, "invalid_api_key", 1),
    "403": (403, "mcp_server_not_allowed", 1),
    "404": (404, "route_unknown", 1),
    "424": (424, "http_error", 1),
    # People were asked: no client may start over by itself, whatever it makes of headers.
    "500": (424, "server_error", 1),
    "502": (424, "upstream_failed", 1),
    "503": (503, "ledger_unavailable", 1),
    # Nothing was sent and nobody was asked: asking again does no harm.
    "vault": (503, "secret_missing", 3),
}


@each("refusal")
def test_P_46_a_refusal_is_repeated_only_where_that_is_harmless(
    case: Case, report: Report, played: Played
) -> None:
    assert report["ok"], report["error"]
    status, code, attempts = REFUSALS[case.mode]
    if case.client.name == "node-ai" and status >= 500:
        attempts = 3  # it reads the status and nothing else
    assert report["statuses"] == [status]
    assert (report["code"], report["attempts"]) == (code, attempts)
    # Whatever a client repeats, no decision ever counts for two executions.
    asked = attempts if case.mode in {"500", "502"} else 0
    assert played.people_asked(case) == asked
    assert played.executed(case) == (asked if case.mode == "502" else 0)


@pytest.mark.parametrize(
    "case",
    [case for case in cases_of("approved", "denied", "wait") if case.client.name == "agents"],
    ids=lambda case: case.name,
)
def test_P_47_the_approval_callback_of_an_agent_is_never_called(case: Case, report: Report) -> None:
    assert report["ok"], report["error"]
    assert (report["approval_callbacks"], report["attempts"]) == (0, 1)


@each("runner")
def test_P_48_the_tool_runner_of_an_app_that_declares_never_is_content(
    case: Case, report: Report, played: Played
) -> None:
    assert report["ok"], report["error"]
    assert (report["attempts"], played.people_asked(case), played.executed(case)) == (1, 1, 1)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_table_says_what_was_measured(client, request: pytest.FixtureRequest) -> None:
    if reason := missing(client):
        pytest.skip(reason)
    played: Played = request.getfixturevalue("played")
    found = measured(client, played.reports)
    if found is None:
        pytest.skip("not every case of this client was selected")
    assert recorded()["results"].get(client.name) == found, "run: make compatibility"
