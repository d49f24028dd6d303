"""The layers around every route, as plain ASGI: nothing buffers, so streams flow.

RequestLog   X-Request-Id in and out, one log line a request, the count that a shutdown waits for
ApiKeys      who may ask
BodyLimit    how much they may send
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagoda.server import logs
from pagoda.server.failures import BodyTooLargeError, error_body
from pagoda.server.record import KEY, RequestRecord, record_of
from pagoda.server.requests import new_id
from pagoda.server.service import Service
from pagoda.server.stream import ClientGone

logger = logging.getLogger("pagoda.request")

OPEN_PATHS = {"/health"}
QUIET_PATHS = {"/health", "/ready", "/metrics"}  # asked every few seconds by machines: logged at debug level
SAFE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
CLIENT_CLOSED = 499  # nginx's number for it; only the log sees it


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header called `name`, which is in lower case."""
    return next((value for key, value in scope["headers"] if key == name), None)


class RequestLog:
    """Outermost: sees every request and how it ended."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = header(scope, b"x-request-id")
        known = given is not None and SAFE_ID.fullmatch(given)
        name = given if given is not None and known else new_id("req").encode()
        status = 500
        scope[KEY] = record = RequestRecord(name.decode())

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            await send(message)

        token = logs.request_id.set(record.id)
        counts = scope["path"] not in QUIET_PATHS
        self.service.num_active += counts
        try:
            await self.app(scope, receive, send_with_id)
        except ClientGone:
            status = CLIENT_CLOSED
        finally:
            self.service.num_active -= counts
            self._log(scope, status, record)
            logs.request_id.reset(token)

    def _log(self, scope: Scope, status: int, record: RequestRecord) -> None:
        if self.service.loaded is not None:
            metrics = self.service.loaded.metrics
            metrics.own.http_requests.add(str(status))
            metrics.own.disconnects.value += status == CLIENT_CLOSED
        level = logging.DEBUG if scope["path"] in QUIET_PATHS and status in (200, 503) else logging.INFO
        if logger.isEnabledFor(level):
            facts = {"method": scope["method"], "path": scope["path"], "status": status}
            facts |= {"seconds": round(time.monotonic() - record.start, 4)} | record.answer
            logger.log(level, "request", extra={"facts": facts})


class ApiKeys:
    """Asks for one of the keys on every path but /health. The one that came is the tenant."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self.app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            return await self.app(scope, receive, send)
        tenant = self._tenant(header(scope, b"authorization"))
        if tenant is not None:
            record_of(scope).tenant = tenant
            return await self.app(scope, receive, send)
        body = error_body(
            "Incorrect API key provided: send one as `Authorization: Bearer KEY`.", 401, code="invalid_api_key"
        )
        await _answer(send, 401, body, [(b"www-authenticate", b"Bearer")])

    def _tenant(self, authorization: bytes | None) -> str | None:
        """Which key that is; None: none. Every key is compared in full, so that timing tells nothing."""
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _digest(key.strip())
        found = None
        for number, digest in enumerate(self._digests):
            if hmac.compare_digest(given, digest) and scheme.lower() == b"bearer":
                found = f"key-{number}"
        return found


def _digest(key: bytes) -> bytes:
    """Equal lengths, whatever the keys' lengths are."""
    return hashlib.sha256(key).digest()


class BodyLimit:
    """Refuses bodies over the limit, by their Content-Length or as soon as that much has come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > self.max_bytes:
            close = [(b"connection", b"close")]  # the body is not read, so the connection cannot go on
            return await _answer(send, 413, error_body(self._message(), 413, code="body_too_large"), close)
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.max_bytes:
                    raise BodyTooLargeError(413, self._message(), {"Connection": "close"})
            return message

        await self.app(scope, receive_limited, send)

    def _message(self) -> str:
        return f"the body is larger than {self.max_bytes} bytes (--max-body)"


async def _answer(send: Send, status: int, body: dict[str, Any], headers: list[tuple[bytes, bytes]]) -> None:
    content = orjson.dumps(body)
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": content})
