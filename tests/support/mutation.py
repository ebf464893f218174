"""Production code changed in one place: to see that the tests notice.

`swapped(Mutation(...))` gives the function another body for the time of a block. The code object is
what is swapped, so that it does not matter who imported the function before.
"""

from __future__ import annotations
import __future__

import contextlib
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType


@dataclass(frozen=True)
class Mutation:
    """In `function` (`module:name` or `module:Class.name`), `old` becomes `new`; each once."""

    name: str
    function: str
    old: str
    new: str


def find(place: str) -> FunctionType:
    """The function at `module:qualified.name`, without its decorators."""
    module, _, path = place.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    found = getattr(found, "__func__", getattr(found, "fget", found))
    return inspect.unwrap(found)


@contextlib.contextmanager
def swapped(*mutations: Mutation) -> Iterator[None]:
    """The functions as the mutations want them; as they were afterwards."""
    places = {mutation.function: find(mutation.function) for mutation in mutations}
    before = {place: function.__code__ for place, function in places.items()}
    try:
        for place, function in places.items():
            wanted = [mutation for mutation in mutations if mutation.function == place]
            function.__code__ = _mutated(function, wanted)
        yield
    finally:
        for place, function in places.items():
            function.__code__ = before[place]


def _mutated(function: FunctionType, mutations: Sequence[Mutation]) -> CodeType:
    source = inspect.getsource(function)
    for mutation in mutations:
        count = source.count(mutation.old)
        if count != 1:
            why = f"{mutation.old!r} stands {count} times in {mutation.function}"
            raise LookupError(f"{mutation.name}: {why}")
        source = source.replace(mutation.old, mutation.new)
    lines = textwrap.dedent(source).splitlines(keepends=True)
    while not lines[0].startswith(("def ", "async def ")):  # decorators stay as they are
        lines.pop(0)
    names: dict[str, FunctionType] = {}
    flag = __future__.annotations.compiler_flag
    file = function.__code__.co_filename
    code = compile("".join(lines), file, "exec", flags=flag, dont_inherit=True)
    exec(code, function.__globals__.copy(), names)
    return names[function.__name__].__code__
