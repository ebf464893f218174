"""How the most forgiving reader could read a name: case, width, look-alikes and separators aside.

Parsers differ in what they take for the same name; what folds to a name that matters and is not
that name is refused.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

#: Letters of other scripts that look like Latin ones (UTS 39), as far as our names need them.
_LOOK_ALIKE = str.maketrans("\u0430\u0441\u0435\u043e\u0440\u0443\u0445\u0456\u0455", "aceopyxis")


def folded(name: Any) -> str:
    """The letters and digits of a name, as small as they get; empty for what is no text."""
    if not isinstance(name, str):
        return ""
    return _folded(name) if len(name) < 200 else ""


@lru_cache(maxsize=4096)
def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold().translate(_LOOK_ALIKE)
    return "".join(letter for letter in plain if letter.isalnum())
