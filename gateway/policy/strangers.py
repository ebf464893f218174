"""Texts of strangers: what stands out in what a server says of itself and its tools. Pure.

A model reads these texts as it reads its user's. A sign tells a person where to look; it never
rules on a call, and a text without signs is not therefore honest. Linear in the length of the
text: words are looked up one by one, and no expression backtracks over more than a few characters.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gateway.policy import phrases
from gateway.policy.arguments import texts
from gateway.policy.characters import BIDI, hides, invisible, mixes, named
from gateway.policy.risk import RiskSignal

LONG_TEXT, LONG_WHOLE = 8_192, 24_576
_NAME = re.compile(r"[\w./:-]+\Z")
_BLOB = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
_LONG_BLOB = 200
_RUNS = re.compile(
    r"[0-9a-fA-F]{160,}|(?:%[0-9a-fA-F]{2}){12,}|(?:\\[ux][0-9a-fA-F]{2,4}){8,}"
    r"|(?:&#x?[0-9a-fA-F]{2,6};){6,}"
)
#: Text that is there and does not meet the eye.
_OUT_OF_SIGHT = re.compile(
    r"\s{80}|\n[ \t]*\n[ \t]*\n[ \t]*\n[ \t]*\n[ \t]*\n[ \t]*\n|<!--|(?:\b\w[ .]){12}"
    r"|display\s?:\s?none|font-size\s?:\s?0|visibility\s?:\s?hidden"
)
#: Marks of a conversation, which a model may take for one.
_MARKS = re.compile(
    r"</?\s?(?:important|system|instructions?|critical|assistant|user_query)\s?/?>"
    r"|<\|[a-z_ ]{2,20}\|>|\[/?(?:inst|system)\]|<</?sys>>"
    r"|(?:^|\n)\s?(?:#{1,6}\s?)?(?:system|assistant)\s?:|(?:^|\n)#{1,6}\s?system\b"
)
_IMAGE = re.compile(r"!\[[^][\n]{0,80}\]\(|<img\b|<iframe\b|<script\b")
_LINK_WITH_DATA = re.compile(r"\]\(\s?https?://[^\s)]{1,120}?[?&]\w{1,30}=")
_SENDING_TO = re.compile(
    r"\b(?:to|cc|bcc|via)[\s:]{1,2}['\"`(<]?(?:https?://|[a-z0-9.+_-]{1,64}@)([a-z0-9.-]{1,253})"
)
_SENDING = frozenset(
    [
        "send",
        "sends",
        "sent",
        "post",
        "posts",
        "upload",
        "uploads",
        "forward",
        "forwards",
        "exfiltrate",
        "transmit",
        "submit",
        "report",
        "copy",
        "bcc",
        "cc",
        "email",
        "mail",
        "append",
        "curl",
        "post",
    ]
)
_MOST_ADDRESSES = 200
_SAMPLE_HOSTS = (".example", ".test", ".invalid", "localhost", "127.0.0.1")

_SENTENCES = {
    "text_hidden": "The server's text on this tool holds something that does not meet the eye",
    "text_reversed": "The server's text on this tool reverses the direction of text",
    "text_lookalike": "The server's text on this tool has words that mix look-alike alphabets",
    "text_instructs": "The server's text on this tool instructs the model beyond the use of it",
    "text_exposes": "The server's text on this tool asks for what a server need not know",
    "text_sends": "The server's text on this tool has an image, or an address to send things to",
    "text_encoded": "The server's text on this tool holds encoded text that people cannot read",
    "text_long": "The server's text on this tool is very long: much can stand in it unread",
}


def of_tool(definition: Mapping[str, Any]) -> tuple[RiskSignal, ...]:
    """The signs of a tool's definition: name, description, schema, whatever else is in it."""
    name = definition.get("name")
    found = _signs(list(texts(dict(definition))))
    if isinstance(name, str) and not (name.isascii() and _NAME.match(name)):
        found.setdefault("text_lookalike", "")
    return _signals(found)


def of_text(text: str) -> tuple[RiskSignal, ...]:
    """The signs of one text, such as the instructions of a server."""
    return _signals(_signs([text]))


def _signals(found: Mapping[str, str]) -> tuple[RiskSignal, ...]:
    return tuple(
        RiskSignal(code, f"{sentence} ({found[code]})." if found[code] else f"{sentence}.")
        for code, sentence in _SENTENCES.items()
        if code in found
    )


def _signs(parts: list[str]) -> dict[str, str]:
    """By code, what in particular was found; it is quoted nowhere, for it is hostile."""
    whole = "\n\n".join(parts)
    plain = _plain(whole)
    signs = dict(_characters(parts)) | dict(_meaning(plain))
    if mixes(whole):
        signs["text_lookalike"] = ""
    if _OUT_OF_SIGHT.search(whole) or _OUT_OF_SIGHT.search(plain):
        signs.setdefault("text_hidden", "")
    if _RUNS.search(whole) or any(_is_blob(match.group()) for match in _BLOB.finditer(whole)):
        signs["text_encoded"] = ""
    if len(whole) > LONG_WHOLE or any(len(part) > LONG_TEXT for part in parts):
        signs["text_long"] = ""
    return signs


def _meaning(plain: str) -> Iterator[tuple[str, str]]:
    meant = phrases.found(plain)
    if what := next((each for each in meant if each in phrases.INSTRUCTS), None):
        yield "text_instructs", what
    elif _MARKS.search(plain):
        yield "text_instructs", "marks of a conversation"
    if what := next((each for each in meant if each in phrases.EXPOSES), None):
        yield "text_exposes", what
    if _IMAGE.search(plain) or _LINK_WITH_DATA.search(plain) or _sends(plain):
        yield "text_sends", ""


def _characters(parts: Iterable[str]) -> Iterator[tuple[str, str]]:
    points: set[int] = set()
    for part in parts:
        points |= invisible(part)
    if points - BIDI:
        yield "text_hidden", named(points - BIDI)
    if points & BIDI:
        yield "text_reversed", named(points & BIDI)


def _plain(text: str) -> str:
    """What a model makes of a text: compatible forms as one, no hidden characters, lower case."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    read: dict[int, int | None] = {ord(each): None for each in set(text) if hides(each)}
    read |= {point: point - 0xE0000 for point in range(0xE0020, 0xE007F)}  # tags spell ASCII
    return text.translate(read).lower()


def _sends(plain: str) -> bool:
    """Whether a sentence has something sent to an address that stands in it."""
    for match in itertools.islice(_SENDING_TO.finditer(plain), _MOST_ADDRESSES):
        host = match.group(1).rstrip(".")
        sample = host.endswith(_SAMPLE_HOSTS) or re.search(r"(?:^|\.)example\.[a-z]+$", host)
        before = plain[max(0, match.start() - 120) : match.start()]
        if not sample and not _SENDING.isdisjoint(re.findall(r"[a-z]+", before)):
            return True
    return False


def _is_blob(run: str) -> bool:
    """Whether a run of letters and digits is text in disguise, or too long to be a name."""
    kinds = (str.islower, str.isupper, str.isdigit)
    if not all(any(map(kind, run)) for kind in kinds):
        return False
    if len(run) >= _LONG_BLOB:
        return True
    whole = run.rstrip("=")
    try:
        decoded = base64.b64decode(whole[: len(whole) // 4 * 4], validate=True)
    except binascii.Error:
        return False
    printable = sum(32 <= byte < 127 or byte in b"\n\t\r" for byte in decoded)
    return printable >= 0.95 * len(decoded)
