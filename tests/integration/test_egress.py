"""The guarded client over real sockets: what is connected to is what was checked."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

from gateway.egress.client import Blocked, Bounds, Guarded, Redirected, TooLarge, open_client
from gateway.registry.issuers import Issuers
from tests.support.certificates import Authority
from tests.support.clock import FakeClock
from tests.support.wire import http, speaking

NAME = "mcp.example.test"


class Names:
    """A resolver whose answers are lined up; the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def within(*answers: Sequence[str], **changes: object) -> tuple[Bounds, Names]:
    names = Names(*answers)
    options = {"allow_private_network": True, "seconds": 5.0, "resolve": names, **changes}
    return Bounds(**options), names  # type: ignore[arg-type]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(autouse=True)
def a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Nothing here may go by it: every test that gets an answer proves that.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.9:1")
    return


# --- S-21: resolved once, checked, pinned ---------------------------------------------------


async def test_a_name_is_resolved_once_and_its_address_connected_to() -> None:
    bounds, names = within(["127.0.0.2"], ["127.0.0.3"])
    served = speaking(lambda _: http(b"two"), host="127.0.0.2")
    async with served as said, open_client(bounds) as client:
        answer = await client.get(f"http://{NAME}:{said.port}/x")
    assert (answer.text, names.asked) == ("two", [NAME])
    assert f"host: {NAME}:{said.port}".encode() in said.requests[0].lower()


async def test_S_21_a_dns_answer_that_changes_between_check_and_use_is_not_used() -> None:
    bounds, names = within(["127.0.0.2"], ["169.254.169.254"])
    served = speaking(lambda _: http(), host="127.0.0.2")
    async with served as said, open_client(bounds) as client:
        await client.get(f"http://{NAME}:{said.port}/")
        # A new connection is a new question, and a new check.
        with pytest.raises(Blocked):
            await client.get(f"http://{NAME}:{said.port}/")
    assert (said.connections, len(names.asked)) == (1, 2)


async def test_S_21_one_private_address_among_several_spoils_all() -> None:
    async with speaking(lambda _: http()) as said:
        bounds, _ = within(["93.184.216.34", "127.0.0.1"], allow_private_network=False)
        async with open_client(bounds) as client:
            with pytest.raises(Blocked, match="allow_private_network"):
                await client.get(f"https://{NAME}:{said.port}/")
        bounds, _ = within(["127.0.0.1", "169.254.169.254"])
        async with open_client(bounds) as client:
            with pytest.raises(Blocked):
                await client.get(f"http://{NAME}:{said.port}/")
    assert said.connections == 0


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.0.9", "100.64.0.1", "198.18.0.1",
        "::1", "fd12::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::",
    ],
)  # fmt: skip
async def test_S_21_a_name_that_leads_inside_is_refused_without_saying_where(address: str) -> None:
    bounds, _ = within([address], allow_private_network=False)
    async with open_client(bounds) as client:
        with pytest.raises(Blocked) as caught:
            await client.get(f"https://{NAME}/")
    assert address not in str(caught.value)
    assert NAME in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.1.1", "168.63.129.16", "100.100.100.200", "fe80::1",
        "fe80::1%lo", "fd00:ec2::254", "::ffff:169.254.169.254", "0.0.0.0", "::", "224.0.0.1",
        "255.255.255.255",
    ],
)  # fmt: skip
async def test_S_22_metadata_and_the_like_are_refused_whatever_is_allowed(address: str) -> None:
    bounds, _ = within([address])
    async with open_client(bounds) as client:
        with pytest.raises(Blocked):
            await client.get(f"http://{NAME}/")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/",
        "http://0.0.0.0/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "ftp://127.0.0.1/",
        "unix:///run/docker.sock",
        "http+unix://%2Frun%2Fdocker.sock/",
        "ws://127.0.0.1/",
    ],
)
async def test_S_22_other_schemes_and_forbidden_addresses_are_refused(url: str) -> None:
    bounds, names = within(["127.0.0.1"])
    async with open_client(bounds) as client:
        with pytest.raises((Blocked, httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
            await client.get(url)
    assert names.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://user:word@mcp.example.test:{port}/",
        "http://mcp.example.test:{port}@127.0.0.1:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://127.1:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://mcp.example.test.:{port}/",
        "http://mcp.example.test:{port}/%2e%2e/b",
        "http://mcp.example.test:{port}/#x",
        "http://mcp.example.test\\@127.0.0.1:{port}/",
    ],
)
async def test_S_20_what_parsers_read_differently_is_never_fetched(url: str) -> None:
    bounds, names = within(["127.0.0.1"])
    async with speaking(lambda _: http()) as said, open_client(bounds) as client:
        with pytest.raises((Blocked, httpx2.InvalidURL)):
            await client.get(url.format(port=said.port))
    assert (said.connections, names.asked) == (0, [])


async def test_S_20_two_readings_of_one_address_are_refused() -> None:
    bounds, names = within(["127.0.0.1"])
    request = httpx2.Request("GET", f"http://{NAME}/")
    # As if the client's own parser had understood another host than ours does.
    request.url = _Torn(request.url)
    async with Guarded(bounds) as guarded:
        with pytest.raises(Blocked, match="two ways"):
            await guarded.handle_async_request(request)
    assert names.asked == []


class _Torn(httpx2.URL):
    @property
    def raw_host(self) -> bytes:
        return b"elsewhere.example.test"


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with speaking(lambda _: http(b"here"), host="127.0.0.2") as said:
        bounds, _ = within(["127.0.0.3", "127.0.0.2"])
        async with open_client(bounds) as client:
            assert (await client.get(f"http://{NAME}:{said.port}/")).text == "here"


async def test_a_name_without_an_address_and_a_closed_port_are_told_apart_where_allowed() -> None:
    async def nothing(_host: str, _port: int) -> list[str]:
        raise socket.gaierror("no such name")

    async with open_client(Bounds(resolve=nothing)) as client:
        with pytest.raises(httpx2.ConnectError, match="cannot be found"):
            await client.get(f"https://{NAME}/")
    async with speaking(lambda _: http()) as said:
        pass
    async with open_client(Bounds(allow_private_network=True)) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"http://127.0.0.1:{said.port}/")


async def test_what_is_not_allowed_looks_the_same_whether_a_port_is_open_or_closed() -> None:
    said_things = []
    async with speaking(lambda _: http()) as said:
        for _ in ("open", "closed"):
            bounds, _ = within(["127.0.0.1"], allow_private_network=False)
            async with open_client(bounds) as client:
                with pytest.raises(Blocked) as caught:
                    await client.get(f"https://{NAME}:{said.port}/")
            said_things.append(str(caught.value))
        assert said.connections == 0
    assert said_things[0] == said_things[1]


# --- names and certificates -----------------------------------------------------------------


async def test_the_certificate_is_that_of_the_name_not_of_the_address(authority: Authority) -> None:
    tls = authority.server(NAME)
    seen: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: seen.append(name)
    async with speaking(lambda _: http(b"secure"), host="127.0.0.2", tls=tls) as said:
        bounds, _ = within(["127.0.0.2"], trust=authority.trust())
        async with open_client(bounds) as client:
            assert (await client.get(f"https://{NAME}:{said.port}/")).text == "secure"
            with pytest.raises(httpx2.ConnectError, match="mismatch"):
                await client.get(f"https://other.example.test:{said.port}/")
    assert seen == [NAME, "other.example.test"]


async def test_two_names_at_one_address_never_share_a_connection(authority: Authority) -> None:
    tls = authority.server(NAME, "other.example.test")
    alive = http(connection="keep-alive")
    async with speaking(lambda _: alive, tls=tls) as said:
        bounds, names = within(["127.0.0.1"], trust=authority.trust())
        async with open_client(bounds) as client:
            for name in (NAME, "other.example.test"):
                await client.get(f"https://{name}:{said.port}/")
    assert names.asked == [NAME, "other.example.test"]


@pytest.mark.parametrize(("days", "signed"), [(-1, True), (30, False)])
async def test_bad_certificates_are_refused(authority: Authority, days: int, signed: bool) -> None:
    tls = authority.server("127.0.0.1", days=days, signed=signed)
    async with speaking(lambda _: http(), tls=tls) as said:
        bounds, _ = within(["127.0.0.1"], trust=authority.trust())
        async with open_client(bounds) as client:
            with pytest.raises(httpx2.ConnectError, match="certificate"):
                await client.get(f"https://127.0.0.1:{said.port}/")


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
async def test_S_21_redirects_are_never_followed(status: str) -> None:
    async with speaking(lambda _: http(b"inside")) as inside:
        location = f"http://127.0.0.1:{inside.port}/secret"
        async with speaking(lambda _: http(status=status, location=location)) as said:
            bounds, _ = within(["127.0.0.1"])
            async with open_client(bounds) as client:
                for follow in (False, True):
                    with pytest.raises(Redirected) as caught:
                        await client.get(f"http://{NAME}:{said.port}/", follow_redirects=follow)
    assert (caught.value.location, inside.connections) == (location, 0)


async def test_an_answer_has_a_largest_size_and_is_never_unpacked() -> None:
    bounds, _ = within(["127.0.0.1"], most=1000)
    bomb = gzip.compress(b"x" * 10_000)
    answers = {
        b"/fits": http(b"x" * 1000),
        b"/large": http(b"x" * 1001),
        b"/endless": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        + (b"64\r\n" + b"x" * 100 + b"\r\n") * 20,
        b"/bomb": http(bomb, content_encoding="gzip"),
    }  # fmt: skip
    served = speaking(lambda request: answers[request.split()[1]])
    asking = open_client(bounds, headers={"accept-encoding": "gzip"})
    async with served as said, asking as client:
        root = f"http://{NAME}:{said.port}"
        assert len((await client.get(f"{root}/fits")).content) == 1000
        for path in ("/large", "/endless", "/bomb"):
            with pytest.raises(TooLarge):
                await client.get(root + path)
    assert b"accept-encoding: identity" in said.requests[0].lower()


@pytest.mark.parametrize("reply", [None, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx"])
async def test_an_answer_has_a_deadline_as_a_whole(reply: bytes | None) -> None:
    release = asyncio.Event()

    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if reply is not None:
            writer.write(reply)
        await release.wait()
        writer.close()

    server = await asyncio.start_server(dripping, "127.0.0.1", 0)
    try:
        bounds, _ = within(["127.0.0.1"], seconds=0.2)
        port = server.sockets[0].getsockname()[1]
        async with open_client(bounds) as client:
            with pytest.raises(httpx2.TimeoutException):
                await client.get(f"http://{NAME}:{port}/")
            # Also when the client itself would wait for ever.
            with pytest.raises(httpx2.TimeoutException):
                await client.get(f"http://{NAME}:{port}/", timeout=None)
    finally:
        release.set()
        server.close()


async def test_what_is_no_http_is_an_error_of_the_protocol() -> None:
    async with speaking(lambda _: b"SSH-2.0-OpenSSH_9.6\r\n") as said:
        bounds, _ = within(["127.0.0.1"])
        async with open_client(bounds) as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.get(f"http://{NAME}:{said.port}/")


# --- who uses it ----------------------------------------------------------------------------


async def test_issuers_are_asked_within_bounds(clock: FakeClock, authority: Authority) -> None:
    tls = authority.server("login.example.test")
    async with speaking(lambda _: http(b"{}"), tls=tls) as said:
        issuer = f"https://login.example.test:{said.port}"
        bounds, names = within(["127.0.0.1", "169.254.169.254"], trust=authority.trust())
        with pytest.raises(Exception, match="cannot be fetched"):
            await Issuers(clock, bounds).key(issuer, "k")
    assert (names.asked, said.connections) == (["login.example.test"], 0)
