"""Patterns for names, compiled once: `*` stands for any characters, nothing else is special."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Names:
    """Which names fit. `patterns` are other ones than `abc*`: what stands between their stars."""

    everything: bool
    exact: frozenset[str]
    prefixes: tuple[str, ...]
    patterns: tuple[tuple[str, ...], ...]

    @property
    def listed(self) -> bool:
        """Whether all names that fit are known."""
        return not (self.everything or self.prefixes or self.patterns)

    def __contains__(self, name: str) -> bool:
        """Whether `name` fits, case included; takes time in proportion to its length."""
        if self.everything or name in self.exact or name.startswith(self.prefixes):
            return True
        return bool(self.patterns) and any(_fits(parts, name) for parts in self.patterns)


def compile_names(globs: Sequence[str]) -> Names:
    """Compile globs; none of them means that any name fits."""
    starred = [tuple(glob.split("*")) for glob in globs if "*" in glob]
    return Names(
        not globs or "*" in globs,
        frozenset(glob for glob in globs if "*" not in glob),
        tuple(parts[0] for parts in starred if len(parts) == 2 and not parts[1]),
        tuple(parts for parts in starred if len(parts) > 2 or parts[1]),
    )


def _fits(parts: tuple[str, ...], name: str) -> bool:
    first, *middle, last = parts
    if not name.startswith(first):
        return False
    position = len(first)
    for part in middle:
        position = name.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return len(name) - position >= len(last) and name.endswith(last)
