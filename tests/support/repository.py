"""The files of this repository, for tests about the repository itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files() -> list[Path]:
    """Every file that is tracked, or would be by `git add .`; absolute, sorted."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = {ROOT / name for name in done.stdout.split("\0") if name}
    return sorted(path for path in paths if path.is_file())


def text_files() -> dict[str, str]:
    """Name below the root → text, of every file that is text."""
    found = {}
    for path in files():
        try:
            found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return found


def modules() -> list[Path]:
    """Every Python module of the two packages, absolute and sorted."""
    packages = (ROOT / "gateway", ROOT / "web")
    return sorted(path for package in packages for path in package.rglob("*.py"))
