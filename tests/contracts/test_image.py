"""The Dockerfile: linted, and the promises that a linter cannot see."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_runs_as_a_numbered_user_that_is_not_root() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    users = re.findall(r"^USER (\d+):(\d+)$", final, re.MULTILINE)
    assert users == [("10001", "10001")]
    assert re.search(r"^VOLUME /data$", final, re.MULTILINE)
    assert "pip install" not in final


def test_every_dependency_is_checked_against_its_hash() -> None:
    for command in re.findall(r"pip install [^\n\\&]*", DOCKERFILE):
        assert "--require-hashes" in command or "--no-index" in command, command


def test_what_it_copies_is_there_and_let_through() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    copied = re.findall(r"^COPY ((?!--from)[^\n]+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == let_through
    assert [source for source in sorted(sources) if not (ROOT / source).exists()] == []
