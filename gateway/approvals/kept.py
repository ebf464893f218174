"""An open exchange in the hands of this process: what every use case must know of it."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.audit.records import Actor


@dataclass
class Kept:
    """An open exchange in the hands of this process. `fence` is that of its last claim."""

    id: str
    app_id: str
    app_name: str
    end_user: str | None
    data_key: bytes
    state: str
    fence: int = 0
    streamed: bool = False
    background: bool = False
    body_digest: str | None = None
    idempotency: str | None = None
    auth: str = "key"
    stored: bool = True

    @property
    def logged(self) -> bool:
        """Whether its frames are kept: a background stream can be taken up at any point."""
        return self.streamed and self.background

    @property
    def subject(self) -> dict[str, str]:
        """How audit records name it."""
        return {"exchange": self.id, "app": self.app_name}

    @property
    def actor(self) -> Actor:
        """The app, as audit records name it."""
        return Actor("app", self.app_id, self.auth)
