"""The repository about itself: what must be there, what must never be, and how large it may get."""

from __future__ import annotations

import ast
import hashlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.repository import ROOT, files, modules, text_files

LARGEST_FILE = 400_000
LONGEST_MODULE = 500
# Shipped alone into every export: one file that imports nothing of ours. And every table on one
# page, for operators and auditors to read.
LONGER = {"gateway/audit/verify_evidence.py": 850, "gateway/store/tables.py": 750}
REQUIRED = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
    "Makefile",
    "Dockerfile",
    ".ci/run",
    ".pre-commit-config.yaml",
    "docs/configuration-reference.md",
    "requirements/base.lock",
    "requirements/build.lock",
    "requirements/demo.lock",
    "requirements/test.lock",
]


@pytest.mark.parametrize("name", REQUIRED)
def test_is_there_and_says_something(name: str) -> None:
    path = ROOT / name
    assert path.is_file(), f"{name} is missing"
    assert path.stat().st_size > 100, f"{name} is nearly empty"


@pytest.mark.parametrize("lock", sorted(ROOT.glob("requirements/*.lock")), ids=lambda p: p.stem)
def test_locks_pin_and_hash_everything_and_name_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert pins
    for pin in pins:
        assert re.match(r"^[a-z0-9][a-z0-9._-]*==\S+( ; .+)? \\$", pin), pin
    for name in lock.with_suffix(".in").read_text().split():
        if name == "-r" or name.endswith(".in"):
            continue
        bare = re.sub(r"\[.*", "", name).lower()
        assert re.search(rf"^{re.escape(bare)}==", text, re.MULTILINE), f"{name}: make lock"


def test_larger_sets_hold_the_smaller_ones() -> None:
    # So that .venv can grow from demo to test without changing what the demo runs on.
    pins = {
        name: set(
            re.findall(
                r"^\S+==[^\\]+", (ROOT / f"requirements/{name}.lock").read_text(), re.MULTILINE
            )
        )
        for name in ("build", "base", "demo", "test")
    }
    assert pins["build"] | pins["base"] <= pins["demo"] <= pins["test"]


def test_no_file_says_where_packages_come_from() -> None:
    # Split, so that this file does not find itself.
    words = (
        "index" + "-url",
        "find" + "-links",
        "py" + "pi.org",
        "python" + "hosted",
        "npm" + "js",
    )
    found = [
        f"{name}: {word}" for name, text in text_files().items() for word in words if word in text
    ]
    assert found == []
    assert not {"uv.lock", "pylock.toml", "pip.conf"} & {path.name for path in files()}


def test_no_work_is_left_as_a_note() -> None:
    note = re.compile(r"\b(TO" + r"DO|FIX" + r"ME)\b")
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
        for name, text in text_files().items()
        if not name.startswith("web/static/vendor/")
        for match in note.finditer(text)
    ]
    assert found == []


def test_no_file_is_large() -> None:
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in files()}
    assert {name: size for name, size in sizes.items() if size > LARGEST_FILE} == {}


def test_modules_stay_readable() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in modules()
    }
    limits = {name: LONGER.get(name, LONGEST_MODULE) for name in lengths}
    assert {name: length for name, length in lengths.items() if length > limits[name]} == {}


def test_every_module_says_what_it_owns() -> None:
    silent = [str(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_vendored_files_are_the_ones_that_were_looked_at() -> None:
    folder = ROOT / "web" / "static" / "vendor"
    listing = folder / "VENDOR.md"
    assert listing.is_file(), "web/static/vendor/VENDOR.md is missing"
    listed = {}
    for line in listing.read_text().splitlines():
        digest = re.search(r"\b[0-9a-f]{64}\b", line)
        name = re.search(r"[\w.-]+\.(?:js|css|woff2|svg)\b", line)
        if digest and name:
            listed[name.group()] = digest.group()
    vendored = [path for path in folder.rglob("*") if path.suffix in {".js", ".css", ".woff2"}]
    assert listed == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in vendored}


def test_makefile_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert phony is not None
    described = re.findall(r"^([a-z0-9-]+):.*## ", text, re.MULTILINE)
    assert sorted(described) == sorted(phony.group(1).split())


def test_changelog_has_the_current_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{version}]" in changelog or "## [Unreleased]" in changelog


def test_decision_records_are_numbered_and_short() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [path.name[:4] for path in records] == [f"{n:04}" for n in range(1, len(records) + 1)]
    assert len(records) >= 10
    for path in records:
        text = path.read_text()
        assert len(text.splitlines()) <= 40, path.name
        for heading in ("## Context", "## Choice", "## Consequences", "## Rejected"):
            assert heading in text, f"{path.name}: {heading}"


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in files():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if re.match(r"[a-z]+:|#", target):
                continue
            if not (path.parent / target.partition("#")[0]).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def fixed_ports(tree: ast.AST) -> Iterator[int]:
    """Lines that make something listen on a port chosen beforehand."""
    listens = re.compile(r"(--port|--listen|GATEPASS_LISTEN)[= ]?\S*?:?[1-9]\d{2,4}\b")
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="port", value=ast.Constant(value=int(port))) if port:
                yield node.value.lineno
            case ast.Call(
                func=ast.Attribute(attr="bind" | "create_server"),
                args=[ast.Tuple(elts=[_, ast.Constant(value=int(port))]), *_],
            ) if port:
                yield node.lineno
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    match key, value:
                        case (
                            ast.Constant(value="GATEPASS_LISTEN"),
                            ast.Constant(value=str(address)),
                        ) if not address.endswith(":0"):
                            yield value.lineno
            case ast.Constant(value=str(text)) if listens.search(text):
                yield node.lineno


def test_fixed_ports_would_be_seen() -> None:
    for bad in (
        "serve(port=8080)",
        "sock.bind(('127.0.0.1', 4112))",
        "env = {'GATEPASS_LISTEN': '127.0.0.1:8080'}",
        "run('serve --port 9000')",
    ):
        assert list(fixed_ports(ast.parse(bad))), bad
    for good in ("serve(port=0)", "sock.bind(('', 0))", "env = {'GATEPASS_LISTEN': address}"):
        assert not list(fixed_ports(ast.parse(good))), good


def test_tests_listen_on_free_ports_only() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files()
        if path.suffix == ".py"
        and path.is_relative_to(ROOT / "tests")
        and not path.is_relative_to(ROOT / "tests" / "unit")  # no I/O there; strings only
        and path != Path(__file__)
        and path != ROOT / "tests" / "contracts" / "test_chart.py"  # values of a refused chart
        for line in fixed_ports(ast.parse(path.read_text()))
    ]
    assert found == []
