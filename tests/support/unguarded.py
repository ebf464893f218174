"""`gatepass` that fails where it is asked to, saying all that it knows, and without one of the
guards that keep secrets in: WITHOUT names it.

WITHOUT=scrubber pytest tests/e2e/test_canaries.py must fail.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any


def scrubber() -> None:
    """What Azure sends back is passed on as it is."""
    from gateway.scrubbing import Scrubber

    Scrubber.clean = lambda _self, raw: raw  # type: ignore[method-assign]


def seams() -> None:
    """What is cut into pieces over several deltas is not put together."""
    from gateway.proxy.scrubbing import Seams

    Seams.feed = lambda _self, frame: [frame]  # type: ignore[method-assign]


def headers() -> None:
    """Headers of answers are passed on as they are."""
    from gateway.proxy import azure, files, passing, relay

    plain = azure.passed_on

    def passed_on(response: Any, _scrubber: Any = None) -> dict[str, str]:
        from gateway.scrubbing import Scrubber

        return plain(response, Scrubber([]))

    for module in (azure, files, passing, relay):
        module.passed_on = passed_on  # type: ignore[assignment]


def others() -> None:
    """Only what a request is sent with is looked for in its answer."""
    from gateway.proxy.injection import Injection

    async def scrubber(self: Any) -> Any:
        return self._own

    Injection.scrubber = scrubber  # type: ignore[method-assign]


def loggers() -> None:
    """The libraries log what they like."""
    from gateway import telemetry

    configure = telemetry.configure_logging

    def configured(level: str) -> None:
        configure(level)
        for name in list(logging.Logger.manager.loggerDict):
            logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger("sqlalchemy.engine").setLevel(logging.DEBUG)

    telemetry.configure_logging = configured


def sealing() -> None:
    """Values are stored as they are."""
    from gateway.store.envelope import Envelope

    Envelope.seal = lambda _s, _k, _n, _a, plain: plain  # type: ignore[method-assign]
    Envelope.open = lambda _s, _k, _n, _a, sealed: sealed  # type: ignore[method-assign]


def references() -> None:
    """What is no reference is repeated."""
    from gateway.errors import Refused
    from gateway.store import references

    parse = references.SecretRef.parse.__func__  # type: ignore[attr-defined]

    def repeating(cls: Any, text: str) -> Any:
        try:
            return parse(cls, text)
        except Refused as error:
            raise Refused(f"{error.message} Not {text!r}.", code=error.code) from None

    references.SecretRef.parse = classmethod(repeating)  # type: ignore[method-assign, assignment]


def problems() -> None:
    """Problems repeat what was sent."""
    from gateway.api import problems

    problems._path = lambda location: f"{location}"
    faults = problems._first
    problems._first = lambda items, most: [  # type: ignore[assignment]
        {**item, "msg": f"{item['msg']}: {item.get('input')!r}"} for item in faults(items, most)
    ]


def redirects() -> None:
    """A redirect is shown as it is."""
    from gateway.proxy import azure

    azure.PASSED_ON = azure.PASSED_ON | {"location"}  # type: ignore[misc]
    headers()


def drivers() -> None:
    """What a store says when it fails is passed on."""
    from gateway.vault import files

    text = files._text

    def quoting(ref: Any, raw: bytes) -> str:
        from gateway.errors import Unavailable

        try:
            return text(ref, raw)
        except Unavailable as error:
            raise Unavailable(f"{error.message} {raw!r}", code=error.code) from None

    files._text = quoting


def failures() -> None:
    """What an exception says is logged."""
    from gateway.api import guard
    from gateway.proxy import driver, live, recovery, routes
    from web import failures

    for module in (driver, live, routes, recovery, guard, failures):
        module.failure = lambda error: {"error": f"{error}"}  # type: ignore[attr-defined]


def names() -> None:
    """Whatever a member is called, a problem shows it."""
    import re

    from gateway.api import problems

    problems._NAME = re.compile(r".*", re.DOTALL)


GUARDS: dict[str, Callable[[], None]] = {
    guard.__name__: guard
    for guard in (
        scrubber, seams, headers, others, loggers, sealing, references, problems, redirects,
        drivers, failures, names,
    )
}  # fmt: skip


def remove() -> None:
    """Take away the guards that WITHOUT names, with commas between them."""
    for name in filter(None, os.environ.get("WITHOUT", "").split(",")):
        GUARDS[name]()


def failing() -> None:
    """A request with `crash here` makes a library fail that quotes what it was given."""
    from gateway.proxy import azure, passing

    def crashing(plain: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def dump(document: Any) -> bytes:
            raw = plain(document)
            if b"crash here" in raw:
                raise RuntimeError(f"cannot write {raw!r}")
            return raw

        return dump

    azure.dump = crashing(azure.dump)
    passing.dump = crashing(passing.dump)  # type: ignore[assignment]


def stubbed() -> None:
    """KEY_VAULT_STUB, an address and the file of its certificate, stands for every Key Vault."""
    if not (stub := os.environ.get("KEY_VAULT_STUB")):
        return
    from gateway.vault import keyvault, opening

    url, ca = stub.split()
    options = {"connection_verify": ca, "verify_challenge_resource": False}
    opening.keyvault_store = lambda settings, clock: keyvault.KeyVaultStore(  # type: ignore[assignment]
        keyvault.azure_credential(settings), clock, lambda _: url, options
    )


if __name__ == "__main__":
    stubbed()
    failing()
    remove()
    from gateway.cli import main

    main()
