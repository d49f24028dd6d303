"""One file over HTTP, taken up where an earlier attempt ended.

Bytes go to `TARGET.part`; only a file of the announced length and digest gets the name TARGET. What is left of an
interrupted download is asked for with a Range request, by this run or a later one.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.errors import SourceError
from pagoda.sources.files import CHUNK_BYTES, Progress, check_digest, check_room, publish

ATTEMPTS = 5  # without any progress between them
TIMEOUT_S = 60.0
RETRY_DELAY_S = 1.0  # grows with each fruitless attempt

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_DROPPED = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class AccessError(SourceError):
    """The server is reached but lets us not in: credentials, certificates or a proxy are missing."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach servers: settings that the user gave their package installer."""

    cafile: str | None = None
    proxy: str | None = None

    def opener(self) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context(cafile=self.cafile)
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
        if self.proxy:
            handlers.append(urllib.request.ProxyHandler({"http": self.proxy, "https": self.proxy}))
        return urllib.request.build_opener(*handlers)


def download(url: str, target: Path, *, sha256: str | None, access: Access, progress: Progress) -> None:
    """Fetch `url` to `target`, resuming `TARGET.part`. SourceError if that fails, AccessError if we are not let in."""
    part = target.with_name(target.name + ".part")
    resumed = part.is_file() and part.stat().st_size > 0
    _fetch(url, part, access, progress)
    try:
        check_digest(part, sha256, url)
    except SourceError:
        if not resumed:
            raise
        _fetch(url, part, access, progress)  # the part was of something else; a whole one decides
        check_digest(part, sha256, url)
    publish(part, target)


def _fetch(url: str, part: Path, access: Access, progress: Progress) -> None:
    """Bring `part` to the full length, over as many requests as it takes."""
    opener, failures = access.opener(), 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            return _continue(opener, url, part, progress)
        except urllib.error.HTTPError as error:
            error.close()
            _refuse_final(url, error)
            reason: Exception = error
        except _DROPPED as error:
            _refuse_certificate(url, error)
            reason = error
        moved = part.is_file() and part.stat().st_size > before
        failures = 1 if moved else failures + 1
        if failures >= ATTEMPTS:
            raise SourceError(f"cannot download {url}: {reason}; what has come is kept, try again later") from reason
        time.sleep(RETRY_DELAY_S * failures)


def _refuse_final(url: str, error: urllib.error.HTTPError) -> None:
    """Raise unless the status is one that may pass."""
    if error.code in (401, 403, 407):
        raise AccessError(f"{url} refuses access: {error.code} {error.reason}") from error
    if error.code < 500 and error.code not in (408, 416, 429):
        raise SourceError(f"cannot download {url}: {error.code} {error.reason}") from error


def _refuse_certificate(url: str, error: Exception) -> None:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise AccessError(f"{url}: {reason}") from error


def _continue(opener: urllib.request.OpenerDirector, url: str, part: Path, progress: Progress) -> None:
    """One request for what `part` lacks. ConnectionError if the answer ends early."""
    offset = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "pagoda"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing from there on: the part is whole, which its digest will tell, or not of this
            if error.headers.get("Content-Range") == f"bytes */{offset}":
                return
            part.unlink()
        raise
    with response:
        start, total = _extent(response, offset)
        check_room(part.parent, (total or start) - start, part.name)
        _receive(response, part, start, total, progress)


def _extent(response: Any, offset: int) -> tuple[int, int | None]:
    """Where the answer's bytes belong and how long the file is: a server may ignore Range and send it all."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status == 206 and match and int(match[1]) == offset:
        return offset, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length and length.isdecimal() and response.status == 200 else None


def _receive(response: Any, part: Path, start: int, total: int | None, progress: Progress) -> None:
    label = part.name.removesuffix(".part")
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        done = start
        progress(label, done, total)
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            progress(label, done, total)
    if total is not None and done != total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")
