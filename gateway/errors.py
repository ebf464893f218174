"""The six kinds of refusal and failure, each with a stable code and an HTTP status.

Edges render them (OpenAI error shape on the data plane, RFC 9457 problem on the management
plane); nothing else decides a status. A message says what is wrong, where, and what to do; it
never carries a payload or a secret.

    GatepassError
     ├─ Refused         400  the request itself is not acceptable
     ├─ NotAllowed      403  understood, and not permitted
     ├─ NotFound        404  unknown, or not the caller's to know
     ├─ Conflict        409  someone or something was first
     ├─ UpstreamFailed  502  Azure or another remote side failed
     └─ Unavailable     503  a part of our own cannot answer: nothing is released
"""

from __future__ import annotations


class GatepassError(Exception):
    """Root of the expected failures. `code` is stable; `status` is an HTTP status."""

    status = 500
    default_code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        if status is not None:
            self.status = status


class Refused(GatepassError):
    """The request cannot be accepted as it is (400)."""

    status = 400
    default_code = "invalid_request"


class NotAllowed(GatepassError):
    """The caller is known, or should be, and may not do this (403; 401 when unauthenticated)."""

    status = 403
    default_code = "not_allowed"


class NotFound(GatepassError):
    """Nothing of that name is visible to the caller (404)."""

    status = 404
    default_code = "not_found"


class Conflict(GatepassError):
    """The state is no longer what the caller saw (409)."""

    status = 409
    default_code = "conflict"


class UpstreamFailed(GatepassError):
    """A remote side failed or answered what it must not (502)."""

    status = 502
    default_code = "upstream_failed"


class Unavailable(GatepassError):
    """A part of our own cannot answer, so nothing is released (503)."""

    status = 503
    default_code = "unavailable"
