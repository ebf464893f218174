"""What the documents say of the code is what the code says of itself."""

from __future__ import annotations

import re
import subprocess
import sys

from gateway.config import PREFIX, Settings
from tests.support.repository import ROOT, modules


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run: make docs\n{done.stdout}{done.stderr}"


def test_every_setting_is_documented_and_none_is_invented() -> None:
    page = (ROOT / "docs" / "configuration-reference.md").read_text()
    rows = set(re.findall(rf"^\| `({PREFIX}\w+)`", page, re.MULTILINE))
    assert rows == {PREFIX + name.upper() for name in Settings.model_fields}
    described = [name for name, field in Settings.model_fields.items() if not field.description]
    assert described == []


def test_the_map_shows_the_real_modules() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    drawn = set()
    for package, names in re.findall(r"^\| `([\w/]+)/` \| .* \| (.*) \|$", text, re.MULTILINE):
        drawn |= {f"{package}/{name}" for name in re.findall(r"`(\w+)`", names)}
    real = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in modules()
        if path.name != "__init__.py"
    }
    assert drawn == real


def test_settings_named_anywhere_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {f"{name}_FILE" for name in known}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Dockerfile"]
    for path in pages:
        named = set(re.findall(rf"\b{PREFIX}[A-Z][A-Z_]*[A-Z]\b", path.read_text()))
        assert named <= known, f"{path.relative_to(ROOT)}: {sorted(named - known)}"


def test_every_code_that_an_app_may_see_is_documented() -> None:
    pages = (ROOT / "docs" / "apps.md").read_text() + (ROOT / "docs" / "edge.md").read_text()
    documented = set(re.findall(r"`([a-z_]+)`", pages))
    codes: set[str] = set()
    for folder in ("proxy", "exchange", "vault"):
        for path in (ROOT / "gateway" / folder).glob("*.py"):
            codes |= set(re.findall(r'(?:code=|_refusal\()\s*"([a-z_]+)"', path.read_text()))
    assert len(codes) > 50
    # What Azure refuses keeps Azure's code.
    assert codes - documented - {"declined"} == set()
