"""A secret value that prints its name wherever it is printed by mistake."""

from __future__ import annotations

from typing import Any, NoReturn

from gateway.errors import Refused, Unavailable

MAX_LENGTH = 16_384


class Secret:
    """Holds one value; `reveal()` is the only way to it.

    Text, format, JSON and pickle show `<secret NAME>` or refuse. Equality is identity, so that no
    comparison leaks a prefix.
    """

    __slots__ = ("_name", "_value")

    def __init__(self, name: str, value: str) -> None:
        self._name = name
        self._value = value

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


def check_value(name: str, value: str) -> str:
    """`value` if it can travel in a header; raises `Refused` without repeating any of it."""
    if problem := _problem(value):
        raise Refused(f"The value of {name} {problem}.", code="secret_value_invalid")
    return value


def opened(name: str, value: str) -> Secret:
    """The secret for a value that a store holds; raises `Unavailable` when it is unusable."""
    if problem := _problem(value):
        raise Unavailable(f"The value of {name} {problem}.", code="secret_unusable")
    return Secret(name, value)


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
