"""Who may import whom: the contracts hold, and each of them would notice being broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.repository import ROOT

LINT = Path(sys.executable).parent / "lint-imports"

# Contract → the module that breaks it, and how.
VIOLATIONS = {
    "One direction": ("gateway/store/ids.py", "import gateway.audit.records"),
    "The core is pure": ("gateway/policy/__init__.py", "import socket"),
    "No SQL in the web": ("web/__init__.py", "import sqlalchemy"),
    "Only the sender opens secrets": ("gateway/approvals/__init__.py", "import gateway.vault"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [LINT, "--no-cache", "--no-logo"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_planted_violations_are_found(tmp_path: Path) -> None:
    for name in ("gateway", "web"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, line in VIOLATIONS.values():
        path = tmp_path / module
        path.write_text(f"{path.read_text()}\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    for contract in VIOLATIONS:
        assert f"{contract} BROKEN" in done.stdout, done.stdout + done.stderr
