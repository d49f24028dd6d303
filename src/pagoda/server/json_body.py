"""JSON as clients send it: UTF-8, with or without a byte order mark. Another encoding is refused by its name."""

from __future__ import annotations

import codecs
from typing import Any

import orjson

from pagoda.errors import RequestError

# Longest first: the mark of UTF-32 begins as that of UTF-16 does.
MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def parse_json(data: bytes, what: str = "the body") -> Any:
    """Read with orjson: no NaN, no lone surrogates, no bottomless nesting. RequestError says what is wrong with `what`.

    JSON is exchanged in UTF-8, and a reader may skip the mark (RFC 8259, section 8.1).
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        encoding = wrong_encoding(data)
        if encoding is not None:
            raise RequestError(f"{what} is not UTF-8: {encoding}", code="invalid_encoding") from None
        raise RequestError(f"{what} is not valid JSON: {error}", code="invalid_json") from None


def wrong_encoding(data: bytes) -> str | None:
    """What speaks against UTF-8, and what the text may be in place of it; None: it is UTF-8."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return f"it begins with the byte order mark of {name}; send UTF-8"
    if b"\0" in data[:4]:  # JSON begins with two ASCII characters (RFC 4627, section 3)
        return "every other byte is zero, as in UTF-16; send UTF-8"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte 0x{data[error.start]:02x} at {error.start} begins no character, as in Latin-1; send UTF-8"
    return None
