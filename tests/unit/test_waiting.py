"""How long a held plain call is kept waiting, by what its client says and is known for."""

from __future__ import annotations

import pytest

from gateway.proxy.clients import Limits, patience, takes_keepalive
from gateway.proxy.http import Call

LIMITS = Limits(early=20, plain=570, strict=240)
PYTHON = "AsyncOpenAI/Python 3.54.0"
NODE = "OpenAI/JS 7.57.0"


def call(**headers: str) -> Call:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": lines,
    }
    return Call(scope, None, None)  # type: ignore[arg-type]


def test_the_python_clients_wait_to_the_deadline():
    for agent in (PYTHON, "AzureOpenAI/Python 2.9.0", "OpenAI/Python 1.109.1"):
        assert patience(call(user_agent=agent), "patient", LIMITS).limit is None


def test_other_clients_are_answered_before_they_give_up():
    assert patience(call(user_agent=NODE), "patient", LIMITS).limit == 570
    assert patience(call(), "patient", LIMITS).limit == 570
    told = patience(call(user_agent=NODE, x_stainless_timeout="100"), "patient", LIMITS)
    assert told.limit == 97


def test_a_short_read_timeout_brings_the_signs_of_life_forward():
    short = patience(call(user_agent=PYTHON, x_stainless_read_timeout="10"), "patient", LIMITS)
    assert short.early == short.trickle == 6
    assert short.limit is None


def test_a_strict_app_gets_its_status_late_and_never_waits_past_its_client():
    strict = patience(call(user_agent=PYTHON), "strict", LIMITS)
    assert (strict.early, strict.limit) == (None, 240)
    short = patience(call(user_agent=PYTHON, x_stainless_read_timeout="60"), "strict", LIMITS)
    assert short.limit == 57


@pytest.mark.parametrize("value", ["", "soon", "-3", "0", "nan"])
def test_a_senseless_timeout_is_no_timeout(value: str):
    assert patience(
        call(user_agent=NODE, x_stainless_timeout=value), "patient", LIMITS
    ) == patience(call(user_agent=NODE), "patient", LIMITS)


def test_keepalive_events_are_kept_from_clients_that_break_on_them():
    assert takes_keepalive(call(user_agent=PYTHON), "auto")
    assert not takes_keepalive(call(user_agent=PYTHON), "comments")
    assert not takes_keepalive(call(user_agent="OpenAI/JS 6.45.0"), "auto")
    assert not takes_keepalive(call(user_agent="OpenAI/Java 4.1"), "auto")
