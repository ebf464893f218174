"""Every sentence of the pages exists in every language, whole and unquestioned."""

from __future__ import annotations

import re

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.pofile import read_po

from gateway.audit.kinds import KINDS
from tests.support.repository import ROOT

WEB = ROOT / "web"
CATALOGS = sorted(WEB.glob("locales/*/LC_MESSAGES/web.po"))


def texts() -> dict[str, str]:
    """Every sentence marked in code and templates → where it stands first."""
    with (WEB / "locales" / "babel.cfg").open() as mapping:
        methods, options = parse_mapping_cfg(mapping)
    found: dict[str, str] = {}
    for name, line, message, _, _ in extract_from_dir(WEB, methods, options):
        key = message[0] if isinstance(message, tuple) else message
        found.setdefault(key, f"web/{name}:{line}")
    return found


def catalog(language: str, domain: str = "web") -> Catalog:
    path = WEB / "locales" / language / "LC_MESSAGES" / f"{domain}.po"
    assert path.is_file(), f"{path.relative_to(ROOT)} is missing"
    with path.open("rb") as source:
        return read_po(source, locale=language)


def test_the_pages_have_texts() -> None:
    assert len(texts()) > 50


def test_russian_is_offered() -> None:
    assert "ru" in {path.parent.parent.name for path in CATALOGS}


@pytest.mark.parametrize("language", ["ru"])
def test_nothing_is_missing_unsure_or_left_over(language: str) -> None:
    wanted, have = texts(), {}
    for message in catalog(language):
        if message.id:
            key = message.id[0] if isinstance(message.id, tuple) else message.id
            have[key] = message
    problems = [
        f"{where}: {key!r} is not in the catalog"
        for key, where in wanted.items()
        if key not in have
    ]
    problems += [f"{key!r} is used nowhere" for key in have if key not in wanted]
    for key, message in have.items():
        strings = message.string if isinstance(message.string, tuple | list) else (message.string,)
        if not all(strings):
            problems.append(f"{key!r} is not translated (all plural forms?)")
        if message.fuzzy:
            problems.append(f"{key!r} is marked fuzzy")
    assert problems == []


@pytest.mark.parametrize("language", ["ru"])
def test_placeholders_survive_translation(language: str) -> None:
    translations = catalog(language)
    problems = []
    for message in translations:
        if not message.id:
            continue
        problems += [f"{message.id!r}: {error}" for error in message.check(translations)]
        ids = message.id if isinstance(message.id, tuple | list) else (message.id,)
        strings = message.string if isinstance(message.string, tuple | list) else (message.string,)
        named = {name for text in ids for name in re.findall(r"%\((\w+)\)", text)}
        for text in strings:
            extra = set(re.findall(r"%\((\w+)\)", text)) - named
            if extra:
                problems.append(f"{message.id!r}: unknown {sorted(extra)}")
    assert problems == []


@pytest.mark.parametrize("language", ["ru"])
def test_every_record_kind_is_said_in_every_language(language: str) -> None:
    have = {message.id: message for message in catalog(language, "kinds") if message.id}
    wanted = {text for kind in KINDS.values() for text in (kind.meaning, kind.says)}
    assert have.keys() == wanted
    for text, message in have.items():
        assert message.string, text
        assert not message.fuzzy, text
        named = set(re.findall(r"{(\w+)}", text))
        assert set(re.findall(r"{(\w+)}", message.string)) <= named, text
