"""The layers around every route, as plain ASGI: nothing buffers, so streams flow.

RequestLogging  X-Request-Id in and out, one log line a request, the count that a shutdown waits for
Prefix          paths as the server knows them, behind a proxy that offers it under a longer one
ApiKeys         who may ask
BodyLimit       how much they may send
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagoda.observe.metrics import Metrics
from pagoda.server import logs
from pagoda.server.dialects.errors import in_dialect
from pagoda.server.failures import BodyTooLargeError, error_body
from pagoda.server.key_store import KeyStore
from pagoda.server.record import KEY, RequestRecord, record_of
from pagoda.server.requests import new_id

logger = logging.getLogger("pagoda.request")

# Asked every few seconds by machines, or left open by people who look on: logged at debug level.
QUIET_PATHS = {"/health", "/ready", "/metrics", "/live", "/live.css", "/live.js", "/live/state", "/live/events",
               "/v1/kv_events"}  # fmt: skip
TENANT, LONGEST_TENANT = b"x-pagoda-tenant", 1024  # the header by which a gateway names its client; bytes of it
SAFE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
SAFE_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")  # no empty part: "//host" would lead elsewhere
CLIENT_CLOSED = 499  # nginx's number for it; only the log sees it


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header called `name`, which is in lower case."""
    return next((value for key, value in scope["headers"] if key == name), None)


class Measured(Protocol):
    """Something whose requests are counted."""

    @property
    def metrics(self) -> Metrics: ...


class Serving(Protocol):
    """What is told of requests."""

    num_active: int

    @property
    def loaded(self) -> Measured | None: ...


class RequestLogging:
    """Outermost: sees every request and how it ended."""

    def __init__(self, app: ASGIApp, service: Serving) -> None:
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
                more = [(key.lower().encode(), value.encode("latin-1")) for key, value in record.headers.items()]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name), *more]
            await send(message)

        token = logs.request_id.set(record.id)
        counts = scope["path"] not in QUIET_PATHS
        self.service.num_active += counts
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self.service.num_active -= counts
            self._log(scope, CLIENT_CLOSED if record.client_gone else status, record)
            logs.request_id.reset(token)

    def _log(self, scope: Scope, status: int, record: RequestRecord) -> None:
        if self.service.loaded is not None:
            metrics = self.service.loaded.metrics
            metrics.server.http_requests.add(str(status))
            metrics.server.disconnects.value += status == CLIENT_CLOSED
        level = logging.DEBUG if scope["path"] in QUIET_PATHS and status in (200, 503) else logging.INFO
        if logger.isEnabledFor(level):
            facts = {"method": scope["method"], "path": scope["path"], "status": status}
            facts |= {"seconds": round(time.monotonic() - record.start, 4)} | record.answer
            logger.log(level, "request", extra={"facts": facts})


class Prefix:
    """Takes the path under which a proxy offers the server off requests, and puts it before redirects.

    It is `root_path`, or what X-Forwarded-Prefix says; the proxy may have taken it off already. Redirects are written
    as paths alone: the scheme and host that the client sees are the proxy's (RFC 9110, section 10.2.2 allows it).
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        prefix = self.root_path or _forwarded_prefix(scope)
        if prefix and scope["path"].startswith(f"{prefix}/"):
            scope["path"] = scope["path"].removeprefix(prefix)
        scope["root_path"] = prefix

        async def send_with_prefix(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, _behind(prefix, value) if name == b"location" else value)
                    for name, value in message.get("headers", ())
                ]
            await send(message)

        await self.app(scope, receive, send_with_prefix)


def _forwarded_prefix(scope: Scope) -> str:
    value = (header(scope, b"x-forwarded-prefix") or b"").decode("latin-1").rstrip("/")
    return value if SAFE_PREFIX.fullmatch(value) else ""


def _behind(prefix: str, location: bytes) -> bytes:
    """The path that leads to `location` through the proxy."""
    parts = urlsplit(location.decode("latin-1"))
    path = parts.path if parts.path.startswith(f"{prefix}/") else prefix + parts.path
    return urlunsplit(("", "", path, parts.query, parts.fragment)).encode("latin-1")


class ApiKeys:
    """Asks for a key on every path that is not open. The one that came is the tenant.

    A gateway, which comes with the admin key or to a server without keys, says whose requests it brings: so its tenants
    share neither prefixes nor stored responses here, and are served fairly.

    A key comes as `Authorization: Bearer KEY` or as `X-Api-Key: KEY`.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: tuple[str, ...],
        admin_key: str | None,
        open_paths: Iterable[str],
        path_keys: Mapping[str, str],
        store: KeyStore | None = None,
    ) -> None:
        """Without `keys` and `store` nothing is asked; then the admin key still tells who may change the server.

        `path_keys` open the path that they belong to, which always asks for a key.
        """
        self.app = app
        self._path_keys = {path: _digest(key.encode()) for path, key in path_keys.items()}
        self._digests = {f"key-{number}": _digest(key.encode()) for number, key in enumerate(keys)}
        self._admin = None if admin_key is None else _digest(admin_key.encode())
        self._open_paths = set(open_paths)
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        tenant, record = None, record_of(scope)
        path_key = self._path_keys.get(scope["path"])
        asks = bool(self._digests) or self._store is not None
        opened = path_key is None and (not asks or scope["path"] in self._open_paths)
        for key in _keys(scope):
            given = _digest(key)
            opened = opened or (path_key is not None and hmac.compare_digest(given, path_key))
            tenant = self._tenant(given) or tenant
            record.admin = record.admin or (self._admin is not None and hmac.compare_digest(given, self._admin))
        if tenant is None and not record.admin and not opened:
            body = error_body(
                "Incorrect API key provided: send one as `Authorization: Bearer KEY`.", 401, code="invalid_api_key"
            )
            return await answer(scope, send, 401, body, [(b"www-authenticate", b"Bearer")])
        record.tenant = tenant or ("admin" if record.admin else "")
        told = header(scope, TENANT)
        if told and (record.admin or not (asks or self._admin)):
            record.tenant = unquote(told[:LONGEST_TENANT].decode("latin-1"))
        await self.app(scope, receive, send)

    def _tenant(self, given: bytes) -> str | None:
        """Which key that is; None: none. Every key is compared in full, so that timing tells nothing."""
        found = None
        for name, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        if found is None and self._store is not None and (key := self._store.find(given)) is not None:
            return key.name
        return found


def _keys(scope: Scope) -> list[bytes]:
    """The keys that a request brings."""
    scheme, _, bearer = (header(scope, b"authorization") or b"").partition(b" ")
    keys = [bearer.strip()] if scheme.lower() == b"bearer" else []
    plain = header(scope, b"x-api-key")
    return keys if plain is None else [*keys, plain.strip()]


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
            return await answer(scope, send, 413, error_body(self._message(), 413, code="body_too_large"), close)
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


async def answer(
    scope: Scope, send: Send, status: int, body: dict[str, Any], headers: list[tuple[bytes, bytes]]
) -> None:
    """Send a response without the application."""
    content = orjson.dumps(in_dialect(scope["path"], status, body))
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": content})
