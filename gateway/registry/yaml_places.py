"""Where a character of a YAML text stands in its file, whatever the style it is written in.

Folding, indentation and line breaks change nothing but white space, so that the n-th character
that is none is the same one in the value and in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

_BLOCK = ("|", ">")
#: A backslash in double quotes, and how far what it stands for goes.
_ESCAPE = re.compile(r"\\(?:x..|u.{4}|U.{8}|\r?\n[ \t]*|.)", re.DOTALL)
#: The letters of escapes that stand for white space.
_WHITE = "tnvfr \t\r\n_NLP"


def place_within(node: yaml.ScalarNode, at: tuple[int, int]) -> tuple[int, int]:
    """Line and column in the file of the line and column `at` of the value, all from 1."""
    start, end = node.start_mark, node.end_mark
    if start is None or end is None or start.buffer is None:
        return 1, 1
    value = str(node.value)
    wanted = _solid_before(value, at)
    first = start.pointer
    if node.style in _BLOCK:
        # What begins behind the line of the | or >.
        first = start.buffer.find("\n", first) + 1
    position = first
    for number, (offset, length) in enumerate(_solid(start.buffer, first, end.pointer, node.style)):
        if number == wanted:
            position = offset
            break
        position = offset + length
    before = start.buffer[:position]
    return before.count("\n") + 1, position - before.rfind("\n")


def _solid_before(value: str, at: tuple[int, int]) -> int:
    line, column = at
    lines = value.split("\n")
    text = "".join(lines[: line - 1]) + lines[line - 1][: column - 1]
    return sum(not character.isspace() for character in text)


def _solid(text: str, first: int, last: int, style: str | None) -> Iterator[tuple[int, int]]:
    """Offset and length of each character that is not white space, as it is written."""
    position = first + 1 if style in ("'", '"') else first
    last = last - 1 if style in ("'", '"') else last
    while position < last:
        length, white = 1, text[position].isspace()
        if style == '"' and text[position] == "\\" and (escape := _ESCAPE.match(text, position)):
            length, white = len(escape[0]), _stands_for_white(escape[0])
        elif style == "'" and text.startswith("''", position):
            length = 2
        if not white:
            yield position, length
        position += length


def _stands_for_white(escape: str) -> bool:
    if escape[1] in "xuU":
        return chr(int(f"0x{escape[2:]}", 0)).isspace()
    return escape[1] in _WHITE
