"""Records: canonical bytes, strict reading, the vocabulary and its documentation."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit import records
from gateway.audit.kinds import FIELDS, KINDS, say
from gateway.audit.records import (
    SYSTEM,
    Actor,
    Malformed,
    Unsupported,
    canonical,
    commit,
    make,
    parse,
)
from gateway.audit.verify_evidence import KINDS as KNOWN_TO_THE_SHIPPED_VERIFIER
from gateway.errors import Refused

NOW = datetime(2026, 11, 22, 10, 9, tzinfo=UTC)
DOCS = Path(__file__).parents[2] / "docs" / "audit.md"

names = st.from_regex(r"\A[a-z][a-z0-9_]{0,10}\Z")
leaves = (
    st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def refused(**more: object) -> records.Record:
    given = {
        "now": NOW,
        "actor": SYSTEM,
        "subject": {"app": "app_1"},
        "fields": {"code": "x"},
    } | more
    return make("security.refused", **given)


def test_a_record_as_it_stands_on_disk() -> None:
    record = make(
        "approval.reviewed",
        now=NOW,
        actor=Actor("user", "usr_9f2", "session"),
        subject={"approval": "apr_1", "tool": "send_email"},
        key="rev_1",
        fields={"verdict": "approve", "channel": "web"},
    )
    assert record.body.decode() == (
        '{"actor":{"auth":"session","kind":"user","ref":"usr_9f2"},"channel":"web",'
        '"id":"' + record.id + '","subject":{"approval":"apr_1","tool":"send_email"},'
        '"ts":"2026-11-22T10:09:00.000000Z","type":"approval.reviewed","v":1,"verdict":"approve"}'
    )
    assert parse(record.body) == record
    assert record.leaf_hash == hashlib.sha256(b"\0" + record.body).digest()


def test_the_id_is_that_of_the_transition() -> None:
    assert refused().id == refused(now=NOW + timedelta(1), fields={"code": "y"}).id
    assert len({refused(key=str(n)).id for n in range(10)}) == 10
    name = '["security.refused",{"app":"app_1"},"7"]'
    space = uuid.UUID("6f0c1a6e-5d0f-5c1b-9d0e-8d4d2f6d1c57")
    assert refused(key="7").id == str(uuid.uuid5(space, name))
    assert refused(subject={"app": "app_2"}).id != refused().id


def test_times_are_utc_with_six_decimals() -> None:
    east = datetime(2026, 1, 1, 2, 30, 0, 5, tzinfo=timezone(timedelta(hours=2, minutes=30)))
    assert refused(now=east).document()["ts"] == "2026-01-01T00:00:00.000005Z"
    with pytest.raises(ValueError, match="aware"):
        refused(now=datetime(2026, 1, 1))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_a_valid_example_and_a_sentence(kind: str) -> None:
    example = dict(KINDS[kind].example)
    subject = example.pop("subject")
    record = make(kind, now=NOW, actor=Actor("user", "usr_1"), subject=subject, fields=example)
    assert parse(record.body) == record
    sentence = say(record.document())
    assert sentence.endswith(".")
    assert "{" not in sentence


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_documented_with_its_fields(kind: str) -> None:
    text = DOCS.read_text()
    section = text.partition(f"### {kind}\n")[2].partition("\n### ")[0]
    assert KINDS[kind].meaning in section
    for name in KINDS[kind].allowed:
        assert f"`{name}`" in section, name
    example = json.loads(section.partition("```json\n")[2].partition("\n```")[0])
    assert example["type"] == kind
    assert parse(json.dumps(example, sort_keys=True, separators=(",", ":")).encode()).kind == kind


def test_every_field_is_documented_and_in_use() -> None:
    text = DOCS.read_text()
    for name, field in FIELDS.items():
        assert f"| `{name}` | {field.type} | {field.meaning} |" in text
    assert set(FIELDS) == set().union(*(kind.allowed for kind in KINDS.values()))


def test_the_shipped_verifier_knows_the_same_kinds() -> None:
    assert set(KINDS) == KNOWN_TO_THE_SHIPPED_VERIFIER


@pytest.mark.parametrize(
    "change",
    [
        {"fields": {}},
        {"fields": {"code": "x", "surprise": 1}},
        {"fields": {"code": 5}},
        {"fields": {"code": "x" * 513}},
        {"fields": {"code": "x", "count": 2**53}},
        {"fields": {"code": "x", "count": True}},
        {"actor": Actor("user", "ann@example.org")},
        {"actor": Actor("martian", "m_1")},
        {"actor": Actor("user", "")},
        {"subject": {"user": "ann@example.org"}},
        {"subject": {"App": "x"}},
        {"subject": {"app": ""}},
        {"subject": {"app": 5}},
    ],
)
def test_what_is_not_in_the_vocabulary_cannot_be_written(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        refused(**change)


def test_an_unknown_kind_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="unknown record kind"):
        make("approval.guessed", now=NOW, actor=SYSTEM, subject={})


def test_too_large_or_not_text_is_refused() -> None:
    with pytest.raises(Refused, match="4096"):
        refused(subject={"tool": "x" * 4096})
    for bad in ({"subject": {"tool": "\ud800"}}, {"fields": {"code": "\ud800"}}):
        with pytest.raises(Refused, match="not valid text"):
            refused(**bad)


@given(st.dictionaries(names, values, max_size=5))
def test_canonical_bytes_are_those_of_a_sorted_compact_dump(document: dict[str, object]) -> None:
    body = canonical(document)
    plain = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert body == plain.encode()
    assert canonical(json.loads(body)) == body


def test_rfc_8785_escapes() -> None:
    text = "\u20ac$\u000f\nA'\u0042\u0022\u005c\\\"/"
    expected = '{"s":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    assert canonical({"s": text}) == expected.encode()


@pytest.mark.parametrize("value", [1.0, None, 2**53, b"x", {"Ä": 1}, {"a": {1: 2}}])
def test_canonical_refuses_other_values(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical({"a": value})


def test_canonical_refuses_deep_nesting() -> None:
    deep: object = 1
    for _ in range(20):
        deep = [deep]
    with pytest.raises(ValueError, match="nested"):
        canonical({"a": deep})


BODY = refused().body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        BODY + b"\n",
        BODY.replace(b":", b": ", 1),
        BODY.replace(b'"v":1', b'"v":1.0'),
        BODY.replace(b'"code":"x"', b'"code":"\\u0078"'),
        BODY.replace(b'"code":"x"', b'"code":"x","code":"x"'),
        BODY.replace(b'"actor"', b'"bctor"'),
        BODY.replace(b'"kind":"system"', b'"kind":"sysadm"'),
        BODY.replace(b'{"kind":"system"', b'{"auth":null,"kind":"system"'),
        BODY.replace(b'"ref":"gateway"', b'"ref":["gateway"]'),
        BODY.replace(b'"code":"x"', b'"codf":"x"'),
        BODY.replace(b".000000Z", b"Z"),
        BODY.replace(b"2026-11-22", b"2026-13-22"),
        BODY.replace(b'"id":"', b'"id":"{'),
        BODY.replace(b'"type":"security.refused"', b'"type":5'),
        b"[" * 4000,
        b'{"a":' + b'"' + b"x" * 5000 + b'"}',
    ],
)
def test_A_36_a_body_that_is_not_canonical_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        parse(body)


@pytest.mark.parametrize(
    "body",
    [
        BODY.replace(b'"v":1', b'"v":2'),
        BODY.replace(b'"v":1', b'"v":true'),
        BODY.replace(b"security.refused", b"security.revised"),
    ],
)
def test_A_46_another_version_or_kind_is_unsupported(body: bytes) -> None:
    with pytest.raises(Unsupported):
        parse(body)


def test_commitments_are_blinded() -> None:
    blind = bytes(range(32))
    assert commit(blind, b"x") == ("hmac-sha256:" + hmac.new(blind, b"x", "sha256").hexdigest())
    assert commit(blind, b"x") != commit(bytes(32), b"x")
    with pytest.raises(ValueError, match="32"):
        commit(b"short", b"x")


def test_A_39_hostile_text_stays_one_record() -> None:
    hostile = 'x\r\n— forged AAAA\x1b[31m"},{"v":1\u2028'
    record = refused(fields={"code": hostile}, subject={"tool": hostile})
    assert b"\n" not in record.body
    assert parse(record.body).document()["code"] == hostile
