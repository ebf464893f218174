"""Free ports for servers that are told theirs before they listen."""

from __future__ import annotations

import contextlib
import random
import socket

#: Below those that the kernel gives to outgoing connections: between our look and the server's
#: start nobody but another test can take one.
_OURS = range(12_000, 32_000)


def free_port() -> int:
    """A port nobody listens on."""
    while True:
        port = random.SystemRandom().choice(_OURS)
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
