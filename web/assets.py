"""Static files under names that carry their content's digest, so that they never need checking.

Read once when pages are mounted, served from memory. Serves nothing that is not in the folder.
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import NotFound

_FOLDER = Path(__file__).parent / "static"
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Assets:
    """`urls` maps a plain file name to its address, `files` an address's last part to bytes."""

    urls: Mapping[str, str]
    files: Mapping[str, tuple[bytes, str]]

    def url(self, name: str) -> str:
        """The address of the file called `name`; KeyError when there is none."""
        return self.urls[name]

    async def serve(self, request: Request) -> Response:
        """Answer `GET /static/{name}`."""
        found = self.files.get(request.path_params["name"])
        if found is None:
            raise NotFound("There is no such file.")
        body, kind = found
        return Response(body, media_type=kind, headers={"Cache-Control": _FOREVER})


def load() -> Assets:
    """Read every file of the static folder."""
    urls, files = {}, {}
    for path in sorted(_FOLDER.iterdir()):
        if path.is_file():
            body = path.read_bytes()
            name = f"{path.stem}.{hashlib.sha256(body).hexdigest()[:12]}{path.suffix}"
            urls[path.name] = f"/static/{name}"
            files[name] = (body, mimetypes.types_map.get(path.suffix, "text/plain"))
    return Assets(urls, files)
