"""The bytes of a request's body: decompressed where they are compressed, refused where they are no UTF-8 by name."""

from __future__ import annotations

import asyncio
import zlib
from email.message import Message

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from pagoda.errors import RequestError
from pagoda.server.failures import BodyTooLargeError
from pagoda.server.stream import ClientGone

ENCODINGS = "gzip, deflate"
LONG_BYTES = 1024 * 1024
CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}
WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # of zlib


async def body_of(request: Request) -> bytes:
    """The body. `max_body_bytes` limits it as it is sent and as it is decompressed.

    Raises ClientGone when the client leaves before it is whole, HTTPException 415 for an encoding that is not read.
    """
    check_charset(request.headers.get("content-type", ""))
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity" and encoding not in WBITS:
        # RFC 7694: the answer says which encodings would have been taken
        message = f"Content-Encoding {encoding} is not supported: send {ENCODINGS} or none"
        raise HTTPException(415, message, {"Accept-Encoding": ENCODINGS})
    try:
        data = await request.body()
    except ClientDisconnect:
        raise ClientGone from None
    if encoding == "identity":
        return data
    max_bytes = request.app.state.service.settings.max_body_bytes
    return await asyncio.to_thread(decompress, data, encoding, max_bytes)  # zlib works without the interpreter's lock


def is_long(request: Request) -> bool:
    """Whether the body takes, or may take, so much memory that only some may at once."""
    length = request.headers.get("content-length", "")
    compressed = "content-encoding" in request.headers or "transfer-encoding" in request.headers
    return compressed or (length.isdigit() and int(length) > LONG_BYTES)


def check_charset(content_type: str) -> None:
    """Raise HTTPException 415 when a charset other than UTF-8 is declared."""
    message = Message()
    message["content-type"] = content_type
    charset = message.get_content_charset()
    if charset is not None and charset not in CHARSETS:
        raise HTTPException(415, f"charset {charset} is not supported: JSON is sent in UTF-8 (RFC 8259, section 8.1)")


def decompress(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Raises BodyTooLargeError as soon as more than `max_bytes` come out, RequestError when it is damaged."""
    wbits = WBITS[encoding]
    if encoding == "deflate" and not _has_zlib_head(data):
        wbits = -15  # some clients leave zlib's frame out
    decompressed = b""
    while data:  # gzip may have several members, one after the other (RFC 1952, section 2.2)
        decompressor = zlib.decompressobj(wbits)
        try:
            decompressed += decompressor.decompress(data, max_bytes + 1 - len(decompressed))
        except zlib.error as error:
            raise RequestError(f"the body is not {encoding}: {error}", code="invalid_encoding") from None
        if len(decompressed) > max_bytes:
            raise BodyTooLargeError(413, f"the body is larger than {max_bytes} bytes (--max-body) when decompressed")
        if not decompressor.eof:
            raise RequestError(f"the body ends in the middle of its {encoding}", code="invalid_encoding")
        data = decompressor.unused_data
    return decompressed


def _has_zlib_head(data: bytes) -> bool:
    return len(data) >= 2 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
