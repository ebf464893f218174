"""An uploaded file: read strictly, written anew.

Two parsers that read one form differently are a way round an inspector, so nothing of the app's
form goes on as it was: what was understood is put into a form of our own. The file itself is
spooled to disk, never held in memory, and never looked into.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gateway.errors import Refused
from gateway.proxy.http import Call

_FORM = re.compile(
    r"multipart/form-data\s*;\s*boundary=(\"[\w'()+,./:=?-]{1,70}\"|[\w'()+./:=?-]{1,70})",
    re.ASCII | re.IGNORECASE,
)
_MEDIA = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_FRAMING = 64 * 1024
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Form:
    """Fields and one file, as they are sent to Azure."""

    fields: dict[str, str]
    file: UploadFile
    boundary: str = field(default_factory=lambda: f"gatepass-{secrets.token_hex(16)}")

    @property
    def content_type(self) -> str:
        """The header that goes with it."""
        return f"multipart/form-data; boundary={self.boundary}"

    @property
    def length(self) -> int:
        """How many bytes `chunks` gives."""
        return len(self._head()) + (self.file.size or 0) + len(self._tail())

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes in order. Can be read once more from the start."""
        yield self._head()
        await self.file.seek(0)
        while chunk := await self.file.read(_CHUNK):
            yield chunk
        yield self._tail()

    def _head(self) -> bytes:
        parts = [f'form-data; name="{name}"\r\n\r\n{text}' for name, text in self.fields.items()]
        name = (self.file.filename or "").replace('"', "%22")
        media = self.file.content_type or ""
        if not _MEDIA.fullmatch(media):
            media = "application/octet-stream"
        disposition = f'form-data; name="file"; filename="{name}"'
        parts.append(f"{disposition}\r\nContent-Type: {media}\r\n\r\n")
        opening = f"--{self.boundary}\r\nContent-Disposition: "
        return "\r\n".join(opening + part for part in parts).encode()

    def _tail(self) -> bytes:
        return f"\r\n--{self.boundary}--\r\n".encode()


async def read_form(call: Call, allowed: frozenset[str], limit: int) -> Form:
    """The form of a request with the fields `allowed`, each once at most, and a file of at most
    `limit` bytes; whoever calls closes the file. Raises `Refused` or `ClientGone`.
    """
    content_type = call.header("content-type") or ""
    if not _FORM.fullmatch(content_type):
        raise Refused(
            "A file must be sent as multipart/form-data with a boundary.",
            code="content_type_unsupported",
            status=415,
        )
    parser = MultiPartParser(
        Headers({"content-type": content_type}),
        call.chunks(limit + _FRAMING),
        max_files=1,
        max_fields=len(allowed),
        max_part_size=4096,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(f"The form cannot be read: {error.message}", code="invalid_form") from None
    try:
        return _checked(form.multi_items(), allowed, limit)
    except Refused:
        await form.close()
        raise


def _checked(
    items: list[tuple[str, UploadFile | str]], allowed: frozenset[str], limit: int
) -> Form:
    fields: dict[str, str] = {}
    file: UploadFile | None = None
    for name, value in items:
        if name in fields or (name == "file" and file is not None):
            raise Refused(
                f"The field {name!r} stands twice in the form.", code="duplicate_member", param=name
            )
        if isinstance(value, str) and name in allowed:
            fields[name] = value
        elif isinstance(value, UploadFile) and name == "file":
            file = value
        else:
            raise _invalid(f"The field {name[:80]!r} is not one that is passed on.", name[:80])
    if file is None:
        raise Refused("The form needs a 'file'.", code="missing_required_parameter", param="file")
    _check_file(file, limit)
    if any(_CONTROL.search(text) for text in fields.values()):
        raise _invalid("A field holds control characters.", None)
    return Form(fields, file)


def _check_file(file: UploadFile, limit: int) -> None:
    name = file.filename or ""
    if not 0 < len(name) <= 255 or _CONTROL.search(name):
        raise _invalid("The file needs a name of 1 to 255 visible characters.", "file")
    if (file.size or 0) > limit:
        raise Refused(f"The file is longer than {limit} bytes.", code="body_too_large", status=413)


def _invalid(message: str, param: str | None) -> Refused:
    return Refused(message, code="invalid_form", param=param)
