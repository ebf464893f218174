"""An evidence folder on disk, read file by file while it is verified.

Never follows a symbolic link, never reads a file larger than an export has, never leaves the
folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gateway.audit.folder import Expected, verify_folder
from gateway.audit.verification import Report
from gateway.errors import Refused

_LARGEST = 256 * 1024 * 1024
_MOST_FILES = 5_000_000
_DEEPEST = 12


class Folder(Mapping[str, bytes]):
    """The regular files below a path, by their names with `/`; contents are read when asked for.

    Raises `Refused` for symbolic links, special files, and files or counts no export has.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise Refused(f"{root} is not a folder.", code="evidence_missing")
        self._root = root
        self._names = dict.fromkeys(sorted(_walk(root, "")))

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        descriptor = os.open(self._root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise Refused(f"{name} is larger than any file of an export.", code="evidence_refused")
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def verify(path: Path, expected: Expected | None = None) -> Report:
    """Verify an exported folder on disk."""
    return verify_folder(Folder(path), expected)


def _walk(root: Path, prefix: str) -> Iterator[str]:
    count = 0
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            name = prefix + entry.name
            count += 1
            strange = entry.is_symlink() or not (entry.is_dir() or entry.is_file())
            if strange or count > _MOST_FILES or name.count("/") > _DEEPEST:
                raise Refused(f"{name} does not belong to an export.", code="evidence_refused")
            if entry.is_dir():
                yield from _walk(root, name + "/")
            else:
                yield name
