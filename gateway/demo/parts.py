"""Images and files inside messages: what the service takes, refuses, and says that it saw. Pure.

Nothing is fetched: an image by URL is believed to be there, one by id must have been uploaded.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterator, Sequence
from urllib.parse import urlsplit

from gateway.demo.wire import JSON, ApiError, bad_request

_DATA_URL = re.compile(r"data:image/(png|jpe?g|gif|webp);base64,(?P<bytes>.*)", re.DOTALL)


def check_parts(items: Sequence[JSON], files: Collection[str]) -> None:
    """ApiError(400) for an image or a file that cannot be used; `files` are the ids there are."""
    for place, item in enumerate(items):
        for where, part in _parts(item):
            path = f"input[{place}].{where}"
            match part.get("type"):
                case "input_image" | "computer_screenshot":
                    check_image(part, path, files)
                case "input_file":
                    _check_file(part, path, files)
                case _:
                    continue


def _parts(item: JSON) -> Iterator[tuple[str, JSON]]:
    for member in ("content", "output"):
        value = item.get(member)
        if isinstance(value, dict):
            yield member, value
        if isinstance(value, list):
            yield from ((f"{member}[{i}]", p) for i, p in enumerate(value) if isinstance(p, dict))


def check_image(image: JSON, path: str, files: Collection[str]) -> None:
    """One image: by URL, as a data URL, or by the id of an uploaded file."""
    if image.get("file_id"):
        _check_id(str(image["file_id"]), f"{path}.file_id", files)
    elif not image.get("image_url"):
        raise bad_request(
            f"Missing required parameter: '{path}.image_url'.",
            param=f"{path}.image_url",
            code="missing_required_parameter",
        )
    else:
        _check_url(str(image["image_url"]), f"{path}.image_url")


def _check_url(url: str, path: str) -> None:
    if not url.startswith("data:"):
        split = urlsplit(url)
        if split.scheme not in ("http", "https") or not split.netloc:
            problem = "Expected a valid URL, but got a value with an invalid format."
            raise _invalid(path, problem, "invalid_value")
        return
    expected = (
        "Expected a base64-encoded data URL with an image MIME type (e.g. "
        "'data:image/png;base64,aW1nIGJ5dGVzIGhlcmU='), but got "
    )
    found = _DATA_URL.fullmatch(url)
    if found is None:
        raise _invalid(path, expected + "an unsupported MIME type or encoding.", "invalid_value")
    if not found["bytes"]:
        raise _invalid(path, expected + "empty base64-encoded bytes.", "empty_base64")
    try:
        base64.b64decode(found["bytes"], validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(path, expected + "invalid base64-encoded bytes.", "invalid_base64") from None


def _invalid(path: str, problem: str, code: str) -> ApiError:
    return bad_request(f"Invalid '{path}'. {problem}", param=path, code=code)


def _check_file(part: JSON, path: str, files: Collection[str]) -> None:
    if part.get("file_id"):
        _check_id(str(part["file_id"]), f"{path}.file_id", files)
    elif not (part.get("file_data") or part.get("file_url")):
        raise bad_request(
            f"Missing required parameter: '{path}.file_id'.",
            param=f"{path}.file_id",
            code="missing_required_parameter",
        )


def _check_id(file_id: str, path: str, files: Collection[str]) -> None:
    if file_id not in files:
        raise bad_request(f"No such File object: {file_id}", param=path, code="invalid_value")


def saw(message: JSON) -> str:
    """What the model remarks about one message's images and files; "" when it has none."""
    kinds = [part.get("type") for part in message.get("content") or [] if isinstance(part, dict)]
    remarks = (
        f"You {verb} {kinds.count(kind)} {noun}{'s' if kinds.count(kind) > 1 else ''}."
        for kind, verb, noun in (
            ("input_image", "showed", "image"),
            ("input_file", "attached", "file"),
        )
        if kind in kinds
    )
    return " ".join(remarks)
