"""Offers to switch to another protocol (RFC 9110, section 7.8): a request without its offer is plain HTTP/1."""

from __future__ import annotations

from collections.abc import Sequence

SWITCHING = {b"upgrade", b"http2-settings"}  # headers, and options of Connection, that make the offer


def head_without_offer(method: bytes, url: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a request's head, less what offers another protocol. Names of headers are in lower case."""
    kept = [(name, value) for name, value in headers if name not in SWITCHING and name != b"connection"]
    options = [option.strip() for name, value in headers if name == b"connection" for option in value.split(b",")]
    if left := b", ".join(option for option in options if option.lower() not in SWITCHING):
        kept.append((b"connection", left))
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    lines += [b"%b: %b" % (name, value) for name, value in kept]
    return b"\r\n".join(lines) + b"\r\n\r\n"
