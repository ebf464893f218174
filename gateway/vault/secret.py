"""A secret value that prints its name wherever it is printed by mistake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from gateway.errors import Refused, Unavailable

MAX_LENGTH = 16_384


class Secret:
    """Holds one value; `reveal()` is the only way to it.

    Text, format, JSON and pickle show `<secret NAME>` or refuse. Equality is identity, so that no
    comparison leaks a prefix. `version` is what its store calls this value, None where a store
    does not number them.
    """

    __slots__ = ("_name", "_value", "version")

    def __init__(self, name: str, value: str, version: str | None = None) -> None:
        self._name = name
        self._value = value
        self.version = version

    def reveal(self) -> str:
        """The value. Call it where the bytes leave, and keep the result nowhere."""
        return self._value

    def __repr__(self) -> str:
        return f"<secret {self._name}>"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("a secret is not copied or pickled")


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a value is opened for.

    `fresh`: a call that was approved goes out with it, so the store itself is asked, and nothing
    kept in memory will do. `end_user` is the access token of whom the app acts for, where it gave
    one: some stores exchange it for another that is good for the server.
    Without `sent`, the value goes nowhere: it is looked for in what comes back.
    """

    fresh: bool = True
    end_user: Secret | None = None
    sent: bool = True


def check_value(name: str, value: str) -> str:
    """`value` if it can travel in a header; raises `Refused` without repeating any of it."""
    if problem := _problem(value):
        raise Refused(f"The value of {name} {problem}.", code="secret_value_invalid")
    return value


def opened(name: str, value: str, version: str | None = None) -> Secret:
    """The secret for a value that a store holds; raises `Unavailable` when it is unusable."""
    if problem := _problem(value):
        raise Unavailable(f"The value of {name} {problem}.", code="secret_unusable")
    return Secret(name, value, version)


def _problem(value: str) -> str | None:
    if not value:
        return "is empty"
    if len(value) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} characters"
    # RFC 9110 §5.5: a line break in a header value would begin another header.
    if not value.isascii() or not value.isprintable():
        return "holds a line break, a control character or a character that is not ASCII"
    if value != value.strip(" "):
        return "begins or ends with a space"
    return None
