"""The `image_generation` tool: its conditions, its item, and a picture that really is a PNG.

The picture is a few pixels in a colour that follows from the prompt, so it is the same every time.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Collection, Mapping

from gateway.demo.parts import check_image
from gateway.demo.wire import JSON, bad_request, new_id

DEPLOYMENT_HEADER = "x-ms-oai-image-generation-deployment"
_EDGE = 8
_MOST_PARTIAL_IMAGES = 3


def tool_of(body: JSON) -> JSON | None:
    """The request's `image_generation` tool."""
    return next((t for t in body.get("tools") or [] if t.get("type") == "image_generation"), None)


def check_image_tool(body: JSON, headers: Mapping[str, str], files: Collection[str]) -> None:
    """ApiError(400) when the tool is there and something it needs is not."""
    tool = tool_of(body)
    if tool is None:
        return
    if not headers.get(DEPLOYMENT_HEADER):
        raise bad_request(
            "The 'image_generation' tool needs an image model: name its deployment in the "
            f"request header '{DEPLOYMENT_HEADER}'.",
            param="tools",
            code="missing_required_header",
        )
    partial = tool.get("partial_images") or 0
    if not isinstance(partial, int) or not 0 <= partial <= _MOST_PARTIAL_IMAGES:
        raise bad_request(
            "Invalid 'tools.partial_images': expected an integer between 0 and "
            f"{_MOST_PARTIAL_IMAGES}.",
            param="tools",
            code="invalid_value",
        )
    if mask := tool.get("input_image_mask"):
        check_image(mask, "tools.input_image_mask", files)


def echo(tool: JSON) -> JSON:
    """The tool as the response shows it, defaults filled in."""
    return {
        "type": "image_generation",
        "background": "auto",
        "moderation": "auto",
        "n": 1,
        "output_compression": 100,
        "output_format": "png",
        "quality": "auto",
        "size": "auto",
        **tool,
    }


def image_call(prompt: str, tool: JSON) -> JSON:
    """The finished item, its picture included."""

    def chosen(name: str, otherwise: str) -> str:
        value = tool.get(name)
        return otherwise if value in (None, "auto") else str(value)

    return {
        "id": new_id("ig"),
        "type": "image_generation_call",
        "status": "completed",
        "background": chosen("background", "opaque"),
        "output_format": chosen("output_format", "png"),
        "quality": chosen("quality", "medium"),
        "result": picture(prompt),
        "revised_prompt": prompt,
        "size": chosen("size", "1024x1024"),
    }


def picture(seed: str) -> str:
    """A tiny PNG of one colour, in base64."""
    colour = hashlib.sha256(seed.encode()).digest()[:3]
    header = struct.pack(">IIBBBBB", _EDGE, _EDGE, 8, 2, 0, 0, 0)
    rows = (b"\0" + colour * _EDGE) * _EDGE
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)
    return base64.b64encode(png).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check
