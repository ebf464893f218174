"""Why a visit ended early: a stable outcome, and a sentence for people."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import httpx2

from gateway.egress.client import Blocked, Redirected, TooLarge

#: A stranger's text as it may stand in a sentence.
Shown = Callable[[str], str]

_KINDS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        httpx2.ConnectTimeout,
        "unreachable",
        "The server cannot be reached: nothing answers there in time.",
    ),
    (
        httpx2.ProtocolError,
        "not_http",
        "What answers there does not speak HTTP/1.1 as it should.",
    ),
    (
        httpx2.NetworkError,
        "cut",
        "The server cut the connection in the middle of an answer.",
    ),
)


def refused(status: int, *, with_credential: bool) -> tuple[str, str]:
    """For an HTTP status that is an error (RFC 9110 §15.5, §15.6)."""
    if status in (401, 403):
        if with_credential:
            return "credential_refused", f"The server refused the credential ({status})."
        return "credential_wanted", f"The server wants a credential ({status})."
    if status == 429 or status >= 500:
        return "failing", f"The server answered {status}."
    return "not_mcp", f"There is no MCP server at this address: it answered {status}."


def failed(failure: Exception, seconds: float, shown: Shown) -> tuple[str, str]:
    """For a request that had no answer, or half of one."""
    if isinstance(failure, Redirected):
        to = shown(failure.location)
        return "redirected", f"The server redirects to {to}, which is not followed."
    if isinstance(failure, Blocked | TooLarge):
        return "blocked" if isinstance(failure, Blocked) else "too_much", str(failure)
    if isinstance(failure, httpx2.ConnectError):
        return _unreachable(failure)
    for kind, outcome, sentence in _KINDS:
        if isinstance(failure, kind):
            return outcome, sentence
    return slow(seconds)


def slow(seconds: float) -> tuple[str, str]:
    """For a visit that took too long."""
    return "too_slow", f"The server did not answer within {seconds:g} seconds."


def nonsense(error: BaseException, shown: Shown) -> tuple[str, str]:
    """For answers that are good HTTP and no MCP."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said = shown(str(error).partition("\n")[0].rstrip("."))
    return "not_mcp", f"It does not answer as an MCP server does ({said})."


def _unreachable(failure: Exception) -> tuple[str, str]:
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message.rstrip(".")
            return "tls_failed", f"The server's certificate is not accepted: {why}."
        if isinstance(cause, ssl.SSLError):
            return "tls_failed", f"No encrypted connection comes about ({cause.reason})."
        if isinstance(cause, ConnectionRefusedError):
            return "unreachable", "The server cannot be reached: the port is closed."
        cause = cause.__cause__ or cause.__context__
    return "unreachable", f"The server cannot be reached ({failure})."
