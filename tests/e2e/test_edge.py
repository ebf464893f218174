"""The edge of HTTP: what a real process does with bytes that no client would send.

Each is judged by the bytes that come back (exactly one answer, and whether the connection ends),
by what reached Azure, and by the ledger where the sender was a known app.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from tests.support.demo import KEY
from tests.support.edge import BODY, CHUNKED, RESPONSES, Wall, open_wall

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wall(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Wall]:
    async with AsyncExitStack() as stack:
        wall = await open_wall(
            stack,
            tmp_path_factory.mktemp("edge"),
            GATEPASS_MAX_BODY_BYTES="100000",
            GATEPASS_ALLOWED_HOSTS="proxy.example, [fd00::1]:8443",
        )
        yield wall
        assert "Traceback" not in wall.process.log(), wall.process.log()


async def test_a_good_request_is_answered_and_its_connection_kept(wall: Wall):
    reply = await wall.send(wall.request(), wall.request(), pause=0.2)
    assert (reply.statuses, reply.closed) == ([200, 200], False)


# --- H-01, H-12: whom the request is for ------------------------------------------------------

HOSTS = ["a/b", "a?b", "a#b", "u@h", "a\tb", "a b", "a:b", "a:1:2", "[::1", "a,b", "\xe4"]


@pytest.mark.parametrize("host", HOSTS)
async def test_H_01_a_malformed_host_is_refused(wall: Wall, host: str):
    await wall.refuses(wall.request(host=host), 400, "bad_host")


@pytest.mark.parametrize("more", [["host:"], ["host: 127.0.0.1"], ["host: evil.example"]])
async def test_H_01_one_host_and_no_more_is_accepted(wall: Wall, more: list[str]):
    await wall.refuses(wall.request(*more), 400, "bad_host")
    await wall.refuses(wall.request(*more[1:], host=None), 400, "bad_host")


async def test_H_01_an_empty_host_is_refused(wall: Wall):
    await wall.refuses(wall.request("host:", host=None), 400, "bad_host")


async def test_H_01_an_absolute_target_must_name_the_same_host(wall: Wall):
    for other in ("http://evil.example", "http://localhost", f"http://u@{wall.host}"):
        line = f"POST {other}{RESPONSES} HTTP/1.1"
        code = "bad_target" if "@" in other else "bad_host"
        await wall.refuses(wall.request(line=line), 400, code)
    same = await wall.send(wall.request(line=f"POST http://{wall.host}{RESPONSES} HTTP/1.1"))
    assert same.statuses == [200]


@pytest.mark.parametrize("target", [f"{RESPONSES}#x", f"{RESPONSES}?a#b"])
async def test_H_01_a_target_with_a_fragment_is_refused(wall: Wall, target: str):
    await wall.refuses(wall.request(line=f"POST {target} HTTP/1.1"), 400, "bad_target")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]"])
async def test_H_12_a_host_that_is_not_ours_is_refused_to_apps_as_to_people(wall: Wall, host: str):
    await wall.refuses(wall.request(host=host), 421, "unknown_host")
    page = await wall.send(wall.request(line="GET / HTTP/1.1", host=host, body=b""))
    assert page.statuses == [421]


@pytest.mark.parametrize(
    "host", ["localhost:1", "LOCALHOST", "[::1]:80", "PROXY.example", "[fd00::1]"]
)
async def test_H_12_every_name_of_ours_is_served(wall: Wall, host: str):
    assert (await wall.send(wall.request(host=host))).statuses == [200]


async def test_H_01_probes_may_come_by_any_address(wall: Wall):
    probe = wall.request(line="GET /healthz HTTP/1.1", host="10.1.2.3:8080", body=b"", key=None)
    assert (await wall.send(probe)).statuses == [200]


# --- H-02, H-04: where a request ends ---------------------------------------------------------

ENDINGS: dict[str, dict[str, Any]] = {
    "length and chunks": {"lines": ["transfer-encoding: chunked"], "body": CHUNKED, "length": True},
    "chunked, identity": {"lines": ["transfer-encoding: chunked", "transfer-encoding: identity"]},
    "chunked twice": {"lines": ["transfer-encoding: chunked, chunked"]},
    "xchunked": {"lines": ["transfer-encoding: xchunked"]},
    "a vertical tab": {"lines": ["transfer-encoding: \x0bchunked"]},
    "a space before the colon": {"lines": ["transfer-encoding : chunked"]},
    "a folded encoding": {"lines": ["transfer-encoding:\r\n chunked"]},
    "a folded header": {"lines": ["x-a: b\r\n c", "transfer-encoding: chunked"]},
    "a bare line feed": {"lines": ["x-a: b\ntransfer-encoding: chunked"]},
    "a bare carriage return": {"lines": ["x-a: b\rtransfer-encoding: chunked"]},
    "a NUL": {"lines": ["x-a: b\x00c", "transfer-encoding: chunked"]},
    "lengths that differ": {"lines": ["content-length: 3"], "body": BODY, "length": True},
    "a length twice": {"lines": [f"content-length: {len(BODY)}"], "body": BODY, "length": True},
    "a list of lengths": {"lines": [f"content-length: {len(BODY)}, {len(BODY)}"], "body": BODY},
    "a signed length": {"lines": [f"content-length: +{len(BODY)}"], "body": BODY},
    "a hexadecimal length": {"lines": ["content-length: 0x23"], "body": BODY},
    "a length too long": {"lines": [f"content-length: {'9' * 40}"], "body": BODY},
    "a name with a space": {"lines": ["x a: b", "transfer-encoding: chunked"]},
    "a name with brackets": {"lines": ["x(a): b", "transfer-encoding: chunked"]},
    "no name": {"lines": [": b", "transfer-encoding: chunked"]},
    "no colon": {"lines": ["transfer-encoding", "transfer-encoding: chunked"]},
    "a space before a name": {"lines": ["x-a: b", " transfer-encoding: chunked"]},
}  # fmt: skip


@pytest.mark.parametrize("what", ENDINGS)
async def test_H_02_a_request_with_two_possible_ends_gets_one_answer(wall: Wall, what: str):
    """Then nothing of what follows is taken for a request of its own."""
    change = {"body": CHUNKED, "length": False, **ENDINGS[what]}
    raw = wall.request(*change.pop("lines"), **change)
    await wall.refuses(raw + wall.request(), 400, "malformed_request", known=False)


async def test_H_02_lines_that_end_in_line_feeds_are_refused(wall: Wall):
    raw = wall.request().replace(b"\r\n", b"\n")
    await wall.refuses(raw, 400, "malformed_request", known=False)


@pytest.mark.parametrize(
    "coding", ["gzip, chunked", "identity, chunked", "identity\r\ntransfer-encoding: chunked"]
)
async def test_H_02_another_transfer_encoding_is_refused(wall: Wall, coding: str):
    raw = wall.request(f"transfer-encoding: {coding}", body=CHUNKED, length=False)
    await wall.refuses(raw + wall.request(), 400, "transfer_encoding_refused")


CHUNKS = {
    "a line feed after the size": b"%x\n%b\r\n0\r\n\r\n",
    "a carriage return after the size": b"%x\r%b\r\n0\r\n\r\n",
    "a carriage return in an extension": b"%x;a\rb\r\n%b\r\n0\r\n\r\n",
    "a line feed in an extension": b"%x;a\nb\r\n%b\r\n0\r\n\r\n",
    "a prefix": b"0x%x\r\n%b\r\n0\r\n\r\n",
    "a sign": b"+%x\r\n%b\r\n0\r\n\r\n",
    "a space after the size": b"%x \r\n%b\r\n0\r\n\r\n",
    "a size too large": b"fffffffffffffff%x\r\n%b\r\n0\r\n\r\n",
    "letters after the data": b"%x\r\n%bXX0\r\n\r\n",
    "a line feed after the data": b"%x\r\n%b\n0\r\n\r\n",
    "nothing after the data": b"%x\r\n%b0\r\n\r\n",
}


@pytest.mark.parametrize("what", CHUNKS)
async def test_H_04_a_malformed_chunk_is_refused_and_recorded(wall: Wall, what: str):
    """At once with its head, or when the app's request is already waiting for its body."""
    raw = wall.request(
        "transfer-encoding: chunked", body=CHUNKS[what] % (len(BODY), BODY), length=False
    )
    head, _, rest = raw.partition(b"\r\n\r\n")
    await wall.refuses(raw + wall.request(), 400, "malformed_request")
    await wall.refuses([head + b"\r\n\r\n", rest], 400, "malformed_request")


async def test_H_04_a_strangers_malformed_chunk_is_answered_once(wall: Wall):
    """It is refused for its key first; then nothing more is said."""
    head = wall.request("transfer-encoding: chunked", key="wrong", body=b"", length=False)
    reply = await wall.send(head, b"zz\r\n", wall.request(), pause=0.3)
    assert (reply.statuses, reply.closed) == ([401], True)


async def test_B_18_chunks_and_extensions_are_read_and_trailers_count_for_nothing(wall: Wall):
    body = b"%x;a=b\r\n%b\r\n1\r\n \r\n0\r\napi-key: other\r\nhost: evil\r\n\r\n" % (
        len(BODY),
        BODY,
    )
    raw = wall.request("transfer-encoding: chunked", body=body, length=False)
    assert (await wall.send(raw)).statuses == [200]
    without = wall.request("transfer-encoding: chunked", body=body, length=False, key=None)
    trailing = without.replace(b"api-key: other", f"api-key: {wall.gateway.key}".encode())
    assert (await wall.send(trailing)).statuses == [401]


async def test_H_02_a_request_before_the_last_was_answered_is_thrown_away(wall: Wall):
    reply = await wall.send(wall.request() + wall.request())
    assert (reply.statuses, reply.closed) == ([200], True)
    reply = await wall.send(wall.request() + b"rubbish\r\n\r\n")
    assert (reply.statuses, reply.closed) == ([200], True)


async def test_H_02_a_body_that_is_longer_than_it_said_is_no_request(wall: Wall):
    raw = wall.request("content-length: 0", length=False)
    reply = await wall.send(raw)
    assert (reply.statuses, reply.code, reply.closed) == ([400], "invalid_json", True)


# --- H-03, H-05, H-06: what headers may say ---------------------------------------------------


@pytest.mark.parametrize("line", ["api_key: x", "X_Api_Key: x", "content_length: 3", "x-a_b: c"])
async def test_H_03_a_name_with_an_underscore_is_refused(wall: Wall, line: str):
    await wall.refuses(wall.request(line), 400, "header_name_refused")


@pytest.mark.parametrize(
    "named", ["api-key", "close, x-ms-client-request-id", "host", "user-agent"]
)
async def test_H_03_connection_may_not_name_headers(wall: Wall, named: str):
    raw = wall.request(f"connection: {named}", "x-ms-client-request-id: 1")
    await wall.refuses(raw, 400, "connection_refused")


async def test_H_03_what_is_about_the_connection_never_reaches_azure(wall: Wall):
    lines = [
        "connection: Keep-Alive, TE",
        "keep-alive: timeout=5",
        "te: trailers",
        "proxy-connection: x",
    ]
    assert (await wall.send(wall.request(*lines))).statuses == [200]
    sent = (await wall.gateway.upstream_requests())[-1]["headers"]
    assert not {"connection", "keep-alive", "te", "proxy-connection", "transfer-encoding"} & set(
        sent
    )


FORWARDED = ["user-agent", "x-ms-client-request-id", "x-ms-oai-image-generation-deployment"]
UNFIT = ["a\xe9", "a\tb", "\xff", "caf\xc3\xa9"]


@pytest.mark.parametrize(("name", "value"), list(itertools.product(FORWARDED, UNFIT)))
async def test_H_05_a_value_that_goes_out_is_plain_or_refused(wall: Wall, name: str, value: str):
    sent = len(await wall.gateway.upstream_requests())
    reply = await wall.send(wall.request(f"{name}: {value}"))
    assert (reply.statuses, reply.code) == ([400], "header_value_refused")
    assert name in reply.error["message"]
    assert len(await wall.gateway.upstream_requests()) == sent
    newest = (await wall.recorded())[0]
    assert (newest["code"], newest["request"]) == (
        "header_value_refused",
        reply.header("x-request-id"),
    )


@pytest.mark.parametrize("value", ["a\r\nx-b: c", "a\rb", "a\nb", "a\x00b", "a\x7fb"])
@pytest.mark.parametrize("name", FORWARDED)
async def test_H_05_no_value_becomes_a_header_of_its_own(wall: Wall, name: str, value: str):
    sent = len(await wall.gateway.upstream_requests())
    reply = await wall.send(wall.request(f"{name}: {value}"))
    if "\r\n" in value:  # two headers to everyone: the second is none that is sent on
        assert reply.statuses == [200]
        assert "x-b" not in (await wall.gateway.upstream_requests())[-1]["headers"]
    else:
        assert (reply.statuses, reply.code) == ([400], "malformed_request")
        assert len(await wall.gateway.upstream_requests()) == sent


async def test_H_06_forwarded_headers_are_nobodys_word(wall: Wall):
    spoofed = [
        "x-forwarded-for: 1.2.3.4", "x-forwarded-host: evil.example", "x-forwarded-proto: https",
        "forwarded: for=1.2.3.4;host=evil.example", "x-real-ip: 1.2.3.4", "x-original-url: /",
    ]  # fmt: skip
    assert (await wall.send(wall.request(*spoofed))).statuses == [200]
    sent = (await wall.gateway.upstream_requests())[-1]
    assert "1.2.3.4" not in json.dumps(sent)
    assert "evil.example" not in json.dumps(sent)
    evil = wall.request(*spoofed, line="GET / HTTP/1.1", body=b"")
    page = await wall.send(evil)
    assert b"evil.example" not in page.raw
    refused = wall.request("x-forwarded-host: 127.0.0.1", host="evil.example")
    await wall.refuses(refused, 421, "unknown_host")


# --- B-28, B-15: other versions, other protocols ----------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "2.0", "0.9"])
async def test_B_28_another_version_of_http_is_refused(wall: Wall, version: str):
    await wall.refuses(
        wall.request(line=f"POST {RESPONSES} HTTP/{version}"), 505, "http_version_refused"
    )


@pytest.mark.parametrize("version", ["1.2", "1.10", "3.0", "1", "x"])
async def test_B_28_a_version_that_does_not_exist_is_refused(wall: Wall, version: str):
    raw = wall.request(line=f"POST {RESPONSES} HTTP/{version}")
    await wall.refuses(raw, 400, "malformed_request", known=False)


async def test_B_28_other_protocols_on_the_port_are_refused(wall: Wall):
    for raw in (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-x\r\n",
        b"\x00" * 100,
        b"CONNECT evil:443 HTTP/1.1\r\nhost: e\r\n\r\n",
    ):
        await wall.refuses(raw, 400, "malformed_request", known=False)


SOCKETS = ["/openai/v1/responses", "/v1/responses", "/openai/responses", "/openai/v1/realtime",
           "/openai/deployments/a/responses", "/v1/responses/resp_1", "/openai/x"]  # fmt: skip


@pytest.mark.parametrize("path", SOCKETS)
async def test_B_15_no_socket_is_opened_on_any_path_and_the_attempt_is_recorded(
    wall: Wall, path: str
):
    lines = [
        "upgrade: WebSocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZQ==",
    ]
    for connection in ("Upgrade", "keep-alive, upgrade", "close"):
        line = f"GET {path} HTTP/1.1"
        raw = wall.request(f"connection: {connection}", *lines, line=line, body=b"")
        await wall.refuses(raw + b"\x81\x85rubbish" + wall.request(), 403, "websocket_refused")


async def test_B_15_a_strangers_socket_is_refused_without_a_record(wall: Wall):
    lines = ["connection: upgrade", "upgrade: websocket"]
    raw = wall.request(*lines, line=f"GET {RESPONSES} HTTP/1.1", body=b"", key="wrong")
    await wall.refuses(raw, 403, "websocket_refused", known=False)


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.0", "connect-udp"])
async def test_B_15_no_other_protocol_is_turned_to(wall: Wall, protocol: str):
    raw = wall.request("connection: Upgrade, HTTP2-Settings", f"upgrade: {protocol}")
    head = raw.partition(b"\r\n\r\n")[0]
    await wall.refuses(raw, 403, "upgrade_refused")
    # The parser leaves the body of such a request alone: it must not be the next request.
    smuggled = wall.request()
    await wall.refuses([head + b"\r\n\r\n", smuggled], 403, "upgrade_refused")


async def test_B_18_only_one_expectation_is_known(wall: Wall):
    await wall.refuses(wall.request("expect: 200-ok"), 417, "expectation_refused")
    head, body = wall.request("expect: 100-continue").split(b"\r\n\r\n")
    assert (await wall.send(head + b"\r\n\r\n", body, pause=0.2)).statuses == [100, 200]


# --- D-05, D-04, B-18: sizes ------------------------------------------------------------------


async def test_D_05_too_many_or_too_large_headers_are_refused(wall: Wall):
    many = [f"x-{number}: 1" for number in range(62)]
    assert (await wall.send(wall.request(*many[:61]))).statuses == [200]
    await wall.refuses(wall.request(*many), 431, "headers_too_large")
    await wall.refuses(wall.request("x-a: " + "a" * 17_000), 431, "headers_too_large")


@pytest.mark.parametrize("flood", [b"x-a: " + b"a" * 200_000, b"x: y\r\n" * 40_000])
async def test_D_05_headers_without_an_end_are_refused_before_it(wall: Wall, flood: bytes):
    head = wall.request(body=b"", length=False).removesuffix(b"\r\n")
    await wall.refuses(head + flood, 431, "headers_too_large", known=False)


async def test_D_05_a_long_address_is_refused(wall: Wall):
    for length in (20_000, 60_000, 100_000):
        raw = wall.request(line=f"POST {RESPONSES}?{'a' * length} HTTP/1.1")
        reply = await wall.send(raw)
        assert (reply.statuses, reply.closed) in [([414], True), ([431], True)]


async def test_D_04_a_body_that_says_it_is_too_large_is_refused_unread(wall: Wall):
    raw = wall.request("content-length: 100001", "expect: 100-continue", body=b"", length=False)
    await wall.refuses(raw, 413, "body_too_large")


async def test_D_04_chunks_that_are_mostly_wrapping_are_refused(wall: Wall):
    raw = wall.request("transfer-encoding: chunked", body=b"", length=False)
    await wall.refuses(raw + (b"1;" + b"a" * 5000 + b"\r\n \r\n") * 40, 400, "malformed_request")


async def test_B_18_a_request_without_a_body_is_none(wall: Wall):
    for raw in (wall.request(body=b""), wall.request(body=b"", length=False)):
        reply = await wall.send(raw)
        assert (reply.statuses, reply.code) == ([400], "invalid_json")


# --- B-01, B-02, B-07: who asks ---------------------------------------------------------------

KEYS = [
    "' OR '1'='1",
    "gp_app_%00",
    '{"$ne":null}',
    "gp_app_' UNION SELECT 1--",
    "*",
    "\\x00",
    "../../x",
]


@pytest.mark.parametrize("value", KEYS)
async def test_B_01_what_means_something_to_a_database_means_nothing_here(wall: Wall, value: str):
    for line in (f"api-key: {value}", f"authorization: Bearer {value}", f"authorization: {value}"):
        reply = await wall.send(wall.request(line, key=None))
        assert (reply.statuses, reply.code) == ([401], "invalid_api_key")


async def test_B_02_a_part_of_a_key_or_more_than_it_opens_nothing(wall: Wall):
    key = wall.gateway.key
    for other in (key[:8], key[:20], key[:-1], key + "x", key + key, key.upper(), key.swapcase()):
        reply = await wall.send(wall.request(key=other))
        assert (reply.statuses, reply.code) == ([401], "invalid_api_key")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"])
async def test_B_07_nothing_of_the_apps_side_answers_without_a_key(wall: Wall, method: str):
    for path in [*SOCKETS, "/v1/", "/openai/", "/v1/models", "/v1/responses/x/cancel"]:
        reply = await wall.send(wall.request(line=f"{method} {path} HTTP/1.1", key=None, body=b""))
        assert reply.statuses == [401], (method, path)


async def test_the_upstream_key_never_came_out(wall: Wall):
    assert KEY not in wall.process.log()
