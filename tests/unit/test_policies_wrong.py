"""Files with mistakes, and word for word what is said about each: place, what, what to do.

The first lines of a file in `policies_wrong` are comments: `# LINE:COLUMN: sentence`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import Refused
from gateway.registry.declaration import load, parse

FOLDER = Path(__file__).parent / "policies_wrong"
FILES = sorted(FOLDER.glob("*.yaml"))


def _expected(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    return lines


def test_there_are_many_ways_to_be_wrong() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_what_is_wrong_is_said_word_for_word(file: Path) -> None:
    with pytest.raises(Refused) as caught:
        load([file])
    assert caught.value.message.split("\n") == [
        f"{file}:{line}" for line in _expected(file.read_text(encoding="utf-8"))
    ]


STYLES = {
    "plain": ("when: {}", "args.a == 1 && {}"),
    "single": ("when: '{}'", "args.a == ''x'' && {}"),
    "double": ('when: "{}"', r"args.a == \"\x41\u20ac\" \t &&\n {}"),
    "continued": ('when: "{}"', "args.a == 1 \\\n      && {}"),
    "literal": ("when: |\n      {}", "args.a == 1\n\n        && {}\n      || false"),
    "kept": ("when: |+  # why\n      {}", "args.a == 1\n      && {}\n\n"),
    "indented": ("when: |4\n        {}", "args.a == 1\n          && {}"),
    "folded": ("when: >-\n      {}", "args.a == 1\n      && 'ü' == app\n\n      && {}"),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_place_in_the_file_is_that_of_the_word(style: str, newline: str) -> None:
    frame, condition = STYLES[style]
    text = "policies:\n  - name: x\n    effect: deny\n    "
    text = (text + frame.format(condition.format("wrongly")) + "\n").replace("\n", newline)
    offset = text.index("wrongly")
    line = text.count("\n", 0, offset) + 1
    column = offset - text.rfind("\n", 0, offset)
    with pytest.raises(Refused) as caught:
        parse({"x.yaml": text})
    assert f"x.yaml:{line}:{column}: policies[0].when: undeclared" in caught.value.message


def test_groups_that_no_file_declares_are_told() -> None:
    rule = "policies:\n  - name: x\n    effect: hold\n    groups: [board]\n"
    rule += "    escalate: {after: 5m, to: [managers]}\n"
    (said, also) = parse({"x.yaml": rule}).undeclared_groups
    assert said == (
        "x.yaml:2: the rule 'x' asks for the reviewer group 'board', which these files do not "
        "declare; it must exist by then"
    )
    assert "'managers'" in also
    groups = "reviewer_groups:\n" + "".join(
        f"  - {{name: {name}, members: [ann@example.org]}}\n" for name in ("board", "managers")
    )
    assert parse({"x.yaml": rule, "y.yaml": groups}).undeclared_groups == ()
