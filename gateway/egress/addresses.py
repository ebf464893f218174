"""Addresses of servers: one normal form, and which addresses are out of bounds.

Pure. There is one parser, and what it accepted is what is kept, compared and sent: what another
parser might read differently (backslashes, user names, odd numbers for hosts, dot segments) is
refused rather than repaired.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

import idna

from gateway.errors import Refused

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL = 2048
_PORTS = {"http": 80, "https": 443}
_VISIBLE = re.compile(r"[\x21-\x7e\u0080-\U0010ffff]+")
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*")
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")
_DOTS = re.compile(r"(?:\.|%2e){1,2}", re.IGNORECASE)
#: Names that stand for the machine or the network we are in.
_LOCAL_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "localdomain")
#: Addresses that hand out credentials or wire a cloud's machines together: never, for nobody.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254")
)
_METADATA_NAMES = frozenset({"metadata.google.internal", "metadata", "instance-data"})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598, carrier-grade NAT
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Address:
    """A URL in normal form. `host` is punycode or an address without brackets."""

    url: str
    scheme: str
    host: str
    port: int


def normalise(url: str) -> Address:
    """The one form of `url` that is kept and compared; raises `Refused` with what is wrong.

    Letter case of scheme and host, the default port, an absent path and the script of a host name
    make no difference; a slash at the end of a path does.
    """
    parts = _split(url)
    host = _host(parts)
    port = _port(parts)
    shown = f"[{host}]" if ":" in host else host
    suffix = "" if port == _PORTS[parts.scheme] else f":{port}"
    query = f"?{parts.query}" if parts.query else ""
    text = f"{parts.scheme}://{shown}{suffix}{_path(parts)}{query}"
    return Address(text, parts.scheme, host, port)


def check(url: str, *, allow_private_network: bool) -> Address:
    """Normalise `url` and apply the rule for outgoing addresses; raises `Refused`."""
    address = normalise(url)
    if problem := problem_with_host(address.host, allow_private_network=allow_private_network):
        raise _refused(problem)
    if address.scheme == "http" and not allow_private_network:
        raise _refused("plain http needs allow_private_network: true; use https")
    return address


def check_issuer(url: str) -> str:
    """`url` as it was given, if tokens may be checked with what is found there.

    Tokens name their issuer letter by letter, so it is not brought into normal form.
    """
    if "?" in url:
        raise _refused("must not have a query")
    return check_endpoint(url)


def check_endpoint(url: str) -> str:
    """`url` as it was given, if tokens may be fetched or people sent there: never in the clear."""
    address = check(url, allow_private_network=True)
    if address.scheme != "https" and address.host not in _LOOPBACK:
        raise _refused("must begin with https://, because keys are fetched from there")
    return url


def problem_with_host(host: str, *, allow_private_network: bool) -> str | None:
    """Why a host must not be contacted, or None. A name is judged by its spelling alone."""
    if host in _METADATA_NAMES:
        return f"{host} is a metadata service"
    if (number := _as_number(host)) is not None:
        return problem_with_address(number, allow_private_network=allow_private_network)
    labels = host.split(".")
    if not allow_private_network and (labels[-1] in _LOCAL_NAMES or len(labels) == 1):
        return f"{host} is a name of the local network; it needs allow_private_network: true"
    return None


def problem_with_address(address: _Address, *, allow_private_network: bool) -> str | None:
    """Why an address, as written or as resolved, must not be contacted, or None."""
    inner = _unwrapped(address)
    if inner in _METADATA or inner.is_link_local:
        return f"{address} is a link-local or metadata address, which is never contacted"
    if inner.is_unspecified or inner.is_multicast or _is_reserved(inner):
        return f"{address} is not the address of a server"
    private = not inner.is_global or (inner.version == 4 and inner in _SHARED)
    if private and not allow_private_network:
        return f"{address} is a private address; it needs allow_private_network: true"
    return None


def _split(url: str) -> SplitResult:
    if not 0 < len(url) <= MAX_URL:
        raise _refused(f"must have 1 to {MAX_URL} characters")
    if not _VISIBLE.fullmatch(url) or "\\" in url:
        raise _refused("must not contain spaces, backslashes or control characters")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _refused("is not a URL") from None
    if parts.scheme not in _PORTS or not url.lower().startswith(f"{parts.scheme}://"):
        raise _refused("must begin with https:// (or http://)")
    if "@" in parts.netloc:
        raise _refused("must not contain a user name or password; use a credential")
    if "#" in url:
        raise _refused("must not contain a fragment")
    return parts


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        return _ipv6(host)
    if not host or "[" in parts.netloc or "%" in host:
        raise _refused("needs a host name")
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode()
        except idna.IDNAError:
            raise _refused("has a host name that is not a valid international name") from None
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise _refused("has a host name that is not valid (a dot at the end counts)")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        # Browsers, libc and Python disagree on 0x7f.1, 017700000001 and 2130706433.
        return _ipv4(host)
    return host


def _ipv4(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise _refused("has a number as its host that is not a plain a.b.c.d address") from None


def _ipv6(host: str) -> str:
    try:
        if "%" in host:
            raise ValueError("zone")
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise _refused("has an IPv6 address that is not valid (zones are not allowed)") from None


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        raise _refused("has a port that is not a number from 1 to 65535")
    return port or _PORTS[parts.scheme]


def _path(parts: SplitResult) -> str:
    if not _PATH.fullmatch(parts.path) or not _QUERY.fullmatch(parts.query):
        raise _refused("has characters in its path or query that must be percent-encoded")
    if any(_DOTS.fullmatch(segment) for segment in parts.path.split("/")):
        raise _refused("has . or .. in its path")
    return parts.path or "/"


def _as_number(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _unwrapped(address: _Address) -> _Address:
    """The IPv4 address inside an IPv6 one that leads to it."""
    match address:
        case ipaddress.IPv6Address(ipv4_mapped=ipaddress.IPv4Address() as inner):
            return inner
        case ipaddress.IPv6Address(sixtofour=ipaddress.IPv4Address() as inner):
            return inner
        case ipaddress.IPv6Address(teredo=(_, ipaddress.IPv4Address() as inner)):
            return inner
        case ipaddress.IPv6Address() if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        case ipaddress.IPv6Address() if 1 < int(address) <= 0xFFFFFFFF:
            return ipaddress.IPv4Address(int(address))  # ::a.b.c.d, RFC 4291 §2.5.5.1
        case _:
            return address


def _is_reserved(address: _Address) -> bool:
    this_network = address.version == 4 and int(address) >> 24 == 0
    return this_network or (address.version == 4 and int(address) >> 28 == 15)


def _refused(what: str) -> Refused:
    return Refused(f"The address {what}.", code="server_url_invalid", param="url")
