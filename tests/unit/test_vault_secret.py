"""A secret prints its name wherever it is printed by mistake, and holds no line breaks."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import pprint
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import pytest
import rich.console
import rich.traceback
import structlog
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from gateway.errors import Refused, Unavailable
from gateway.proxy.injection import Outgoing
from gateway.vault import Secret
from gateway.vault.secret import check_value, opened

VALUE = "canary-7f3a-9e21"


@pytest.fixture
def secret() -> Secret:
    return Secret("env:WIKI_TOKEN", VALUE)


def test_only_reveal_shows_the_value(secret: Secret) -> None:
    assert secret.reveal() == VALUE
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        f"{secret:>40}",
        "{}".format(secret),  # noqa: UP032 - this is another path to the text
        "%s %r" % (secret, secret),  # noqa: UP031
        repr([secret]),
        repr({"a": secret}),
        json.dumps({"a": secret}, default=str),
    ]
    for text in shown:
        assert "canary" not in text
        assert "<secret env:WIKI_TOKEN>" in text


def test_it_has_no_dictionary_to_dump(secret: Secret) -> None:
    assert not hasattr(secret, "__dict__")


def test_serialisers_refuse_it(secret: Secret) -> None:
    for serialise in (orjson.dumps, json.dumps, pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError) as caught:
            serialise({"a": secret} if serialise is not copy.copy else secret)
        assert "canary" not in str(caught.value)


def test_serialisers_that_ask_for_a_text_get_its_name(secret: Secret) -> None:
    for text in (
        json.dumps({"a": secret}, default=str),
        orjson.dumps({"a": secret}, default=str).decode(),
        yaml.dump({"a": str(secret)}),
    ):
        assert "<secret env:WIKI_TOKEN>" in text
        assert "canary" not in text


def test_models_write_its_name(secret: Secret) -> None:
    class Model(BaseModel):
        token: Secret
        anything: Any = None

    model = Model(token=secret)
    assert model.token is secret
    for text in (repr(model), str(model), model.model_dump_json(), repr(model.model_dump())):
        assert "<secret env:WIKI_TOKEN>" in text
        assert "canary" not in text
    with pytest.raises(ValidationError) as caught:
        Model(token=VALUE)
    assert caught.value.error_count() == 1
    loose = Model(token=secret, anything=secret)
    assert "canary" not in repr(loose)
    with pytest.raises(PydanticSerializationError) as refused:
        loose.model_dump_json()
    assert "canary" not in str(refused.value)


def test_what_holds_it_prints_its_name(secret: Secret) -> None:
    @dataclass(frozen=True)
    class Holder:
        token: Secret

    holder = Holder(secret)
    shown = [
        repr(holder),
        str(vars(holder)),
        pprint.pformat(holder),
        rich_text(holder),
    ]
    for text in shown:
        assert "<secret env:WIKI_TOKEN>" in text
        assert "canary" not in text
    with pytest.raises(TypeError):
        asdict(holder)
    with pytest.raises(TypeError):
        vars(secret)


def test_structured_logs_show_its_name(secret: Secret) -> None:
    render = structlog.processors.JSONRenderer()
    text = render(None, "info", {"event": "opened", "secret": secret, "more": {"a": [secret]}})
    assert "canary" not in str(text)
    assert str(text).count("<secret env:WIKI_TOKEN>") == 2


def rich_text(*things: Any) -> str:
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(*things)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_traceback_of_rich_with_local_variables_does_not_show_it(secret: Secret) -> None:
    def fails(token: Secret) -> None:
        held = [token, {"header": token}]
        raise ValueError(len(held))

    try:
        fails(secret)
    except ValueError as error:
        trace = rich.traceback.Traceback.from_exception(
            type(error), error, error.__traceback__, show_locals=True
        )
    text = rich_text(trace)
    assert "<secret env:WIKI_TOKEN>" in text
    # The line of the code above is in it; the value is not.
    assert VALUE not in text


def test_a_body_with_secrets_in_it_prints_as_its_length() -> None:
    def fails(raw: bytes) -> None:
        raise ValueError(len(raw))

    body = Outgoing(VALUE.encode())
    assert [repr(body), str(body), f"{body}", f"{body!r}"] == ["<16 bytes>"] * 4
    assert bytes(body) == VALUE.encode()
    try:
        fails(body)
    except ValueError as error:
        report = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert VALUE not in "".join(report.format())


def test_equality_tells_nothing(secret: Secret) -> None:
    assert secret != Secret("env:WIKI_TOKEN", VALUE)
    assert secret != VALUE


def test_tracebacks_with_local_variables_do_not_show_it(secret: Secret) -> None:
    def fails(value: Secret) -> None:
        held = {"header": value}
        raise ValueError(f"cannot use {held}")

    try:
        fails(secret)
    except ValueError as error:
        report = traceback.TracebackException.from_exception(error, capture_locals=True)
        text = "".join(report.format())
    assert "<secret env:WIKI_TOKEN>" in text
    assert "canary" not in text


def test_logs_do_not_show_it(secret: Secret, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("x").warning("opened %s %s", secret, {"a": secret})
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is empty"),
        ("a\r\nX-Evil: 1", "holds a line break"),
        ("a\nb", "holds a line break"),
        ("a\0b", "holds a line break"),
        ("a\tb", "holds a line break"),
        ("a\x7fb", "holds a line break"),
        ("naïve", "not ASCII"),
        ("a\u2028b", "holds a line break"),
        (" a", "begins or ends with a space"),
        ("a ", "begins or ends with a space"),
        ("a" * 16_385, "is longer than"),
    ],
)
def test_what_cannot_travel_in_a_header_is_refused(value: str, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        check_value("sealed:crm", value)
    with pytest.raises(Unavailable) as unavailable:
        opened("env:X", value)
    for caught in (refused, unavailable):
        assert reason in caught.value.message
        assert value not in caught.value.message or value in ("", " a", "a ")


def test_an_ordinary_value_passes() -> None:
    assert check_value("sealed:crm", "Zm9v.bar-baz_==~ x") == "Zm9v.bar-baz_==~ x"
    assert opened("env:X", VALUE).reveal() == VALUE
