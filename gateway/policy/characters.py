"""Characters that deceive: those that show nothing, turn text round, or look like others. Pure."""

from __future__ import annotations

import re
import unicodedata

#: Characters that show nothing although Unicode calls them letters, marks or spaces.
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5\u180b\u180c\u180d\u180f")
_JOINERS = "\u200c\u200d"
#: Cyrillic and Greek letters that look like Latin ones.
_LOOKALIKES = frozenset("асеорхуіјѕһԁԛԝӏмтнвкαορυνικτ")
BIDI = frozenset({0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)})
_DECEIVING = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC"})
_LETTERS = re.compile(r"[^\W\d_]+")
#: What a hurried reader takes for one and the same, and the letter it is read as.
_READ_AS = (("rn", "m"), ("vv", "w"), ("cl", "d"), ("0", "o"), ("1", "l"), ("i", "l"), ("5", "s"))


def invisible(text: str) -> set[int]:
    """The code points in `text` that do not show, or turn its direction round."""
    hiding = {character for character in set(text) if hides(character)}
    if hiding.isdisjoint(_JOINERS):
        return {ord(character) for character in hiding}
    return {
        ord(character)
        for index, character in enumerate(text)
        if character in hiding and not _joins(text, index)
    }


def hides(character: str) -> bool:
    """Whether a character shows nothing, or moves what others show."""
    if character in "\t\n\r":
        return False
    point = ord(character)
    return (
        unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Co")
        or character in _FILLERS
        or 0xFE00 <= point <= 0xFE0E  # U+FE0F only asks for an emoji's colours
        or 0xE0000 <= point <= 0xE0FFF
    )


def named(points: set[int]) -> str:
    """The first of them as people write them: U+200B, U+202E and 4 more."""
    names = [f"U+{point:04X}" for point in sorted(points)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def is_confusing(label: str) -> bool:
    """Whether a name mixes scripts, or is written wholly in letters that look Latin."""
    letters = [character for character in label.lower() if character.isalpha()]
    scripts = {unicodedata.name(letter, "?").split()[0] for letter in letters}
    foreign = [letter for letter in letters if not letter.isascii()]
    return len(scripts - _together(scripts)) > 1 or (
        bool(foreign) and all(letter in _LOOKALIKES for letter in letters)
    )


def mixes(text: str) -> bool:
    """Whether one word of a text has letters of two scripts that look alike, or in full width."""
    if text.isascii():
        return False
    for word in set(_LETTERS.findall(text)):
        if word.isascii():
            continue
        scripts = {unicodedata.name(letter, "?").split()[0] for letter in set(word)}
        if "FULLWIDTH" in scripts or "MATHEMATICAL" in scripts or len(scripts & _DECEIVING) > 1:
            return True
    return False


def skeleton(name: str) -> str:
    """What a hurried reader makes of a name: two of one skeleton are taken for each other."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(character for character in text if character.isalnum())
    for seen, read in _READ_AS:
        text = text.replace(seen, read)
    return text


def _joins(text: str, index: int) -> bool:
    """Whether a joiner stands between two characters of a script or an emoji that needs it."""
    if text[index] not in _JOINERS or not 0 < index < len(text) - 1:
        return False
    before, after = text[index - 1], text[index + 1]
    return ord(before) > 0x2FF and ord(after) > 0x2FF and not (hides(before) or hides(after))


def _together(scripts: set[str]) -> set[str]:
    # Japanese mixes three scripts within one word.
    return {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"} & scripts if "CJK" in scripts else set()
