"""A folder sent as a zip while it is packed, and gone when the answer has ended, however."""

from __future__ import annotations

import contextlib
import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

_EPOCH = (1980, 1, 1, 0, 0, 0)


class Archive(StreamingResponse):
    """Sends the files below `folder` as `NAME.zip`, then deletes the folder."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(
            _packed(folder, name),
            media_type="application/zip",
            headers={"content-disposition": f'attachment; filename="{name}.zip"'},
        )
        self.folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def discarded_on_failure(self) -> Iterator[None]:
        """Delete the folder when filling it fails, for then nothing is sent."""
        try:
            yield
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise


class _Pipe(io.RawIOBase):
    """What the zip writer wrote since the last look; not seekable, so it never looks back."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]  # any buffer
        self._written += view
        return len(view)

    def take(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken


def _packed(folder: Path, name: str) -> Iterator[bytes]:
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(f"{name}/{path.relative_to(folder)}", _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o600 << 16
                packed.writestr(entry, path.read_bytes())
                yield pipe.take()
    yield pipe.take()
