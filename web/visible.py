"""Hostile text made visible: what a reviewer reads is exactly what will be sent.

Pure. Every code point outside a small visible set becomes a mark such as `⟨U+202E⟩`, and the
brackets of the marks are marked themselves, so that two different strings never look the same
(UTS 36 §2, UTS 39). Never drops, shortens or translates anything.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

OPEN, CLOSE = "⟨", "⟩"

_NAMED = {"\t": "TAB", "\n": "LF", "\r": "CR"}
_VISIBLE_CATEGORIES = frozenset(
    {"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No"}
    | {"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So"}
)
# Letters and symbols by category, yet blank or ignorable on the screen.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffc\U0001d159")
_SCRIPTS = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC"})
_WORD = re.compile(r"\w+")
_TAGS = range(0xE0020, 0xE007F)


@dataclass(frozen=True)
class Segment:
    """A run of the rendering: plain text, or one mark with the code point's name."""

    text: str
    name: str | None = None  # None: plain text
    breaks: bool = False  # the mark stands for an end of line

    @property
    def marked(self) -> bool:
        return self.name is not None


def shown(character: str) -> bool:
    """Whether `character` may be drawn as itself."""
    if " " <= character <= "~":
        return True
    if character in _BLANK or character in (OPEN, CLOSE):
        return False
    return unicodedata.category(character) in _VISIBLE_CATEGORIES


def segments(text: str, *, spaces: bool = False) -> Iterator[Segment]:
    """Cut `text` into plain runs and marks.

    With `spaces`, a space that could be overlooked (leading, trailing, or following another) is
    marked too: for names and values, not for source text with indentation.
    """
    run: list[str] = []
    for position, character in enumerate(text):
        if shown(character) and not (spaces and _overlooked(text, position)):
            run.append(character)
            continue
        if run:
            yield Segment("".join(run))
            run.clear()
        yield _marked(character)
    if run:
        yield Segment("".join(run))


def visible(text: str, *, spaces: bool = False) -> str:
    """The rendering as plain text. Injective: equal outputs mean equal inputs."""
    return "".join(segment.text for segment in segments(text, spaces=spaces))


def hidden(text: str) -> tuple[str, ...]:
    """The distinct code points of `text` that a plain display would hide or disguise.

    Ends of line and tabs are marked when shown, but nothing is disguised by them.
    """
    found = {c: None for c in text if not shown(c) and c not in _NAMED and c not in (OPEN, CLOSE)}
    return tuple(_marked(character).text for character in found)


def tagged(text: str) -> str:
    """What Unicode tag characters in `text` spell in ASCII; empty when there are none."""
    return "".join(chr(ord(c) - 0xE0000) for c in text if ord(c) in _TAGS)


def mixed_words(text: str) -> tuple[str, ...]:
    """Words whose letters come from more than one look-alike script, or from full-width forms."""
    return tuple(dict.fromkeys(word for word in _WORD.findall(text) if _suspicious(word)))


@dataclass(frozen=True)
class Host:
    """A server's host as it is shown: `name` in ASCII (punycode), `other` its Unicode form."""

    name: str
    other: str | None
    port: int | None
    secure: bool

    @property
    def text(self) -> str:
        return f"{self.name}:{self.port}" if self.port else self.name


def host(url: str) -> Host:
    """The host of `url`. Never raises: what cannot be read as a URL is shown whole."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        name, port, parts = "", None, None
    if parts is None or not name:
        return Host(visible(url, spaces=True), None, None, False)
    ascii_form = ".".join(_encoded_label(label) for label in name.split("."))
    unicode_form = ".".join(_decoded_label(label) for label in name.split("."))
    return Host(
        visible(ascii_form, spaces=True),
        visible(unicode_form, spaces=True) if unicode_form != ascii_form else None,
        port,
        parts.scheme == "https",
    )


def _marked(character: str) -> Segment:
    label = _NAMED.get(character) or f"U+{ord(character):04X}"
    name = unicodedata.name(character, "") or f"U+{ord(character):04X}"
    return Segment(f"{OPEN}{label}{CLOSE}", name, breaks=character == "\n")


def _overlooked(text: str, position: int) -> bool:
    if text[position] != " ":
        return False
    return position in (0, len(text) - 1) or text[position - 1] == " "


def _suspicious(word: str) -> bool:
    scripts = set()
    for character in word:
        first = unicodedata.name(character, "").split(" ", 1)[0]
        if first == "FULLWIDTH":
            return True
        if first in _SCRIPTS:
            scripts.add(first)
    return len(scripts) > 1


def _encoded_label(label: str) -> str:
    return label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii")


def _decoded_label(label: str) -> str:
    if not label.lower().startswith("xn--"):
        return label
    try:
        return label[4:].encode("ascii").decode("punycode")
    except UnicodeError:
        return label
