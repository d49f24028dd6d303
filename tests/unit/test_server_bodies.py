"""Bodies in every encoding that clients send, and uploads that break off.

The classes: byte order marks, encodings other than UTF-8 (declared or not), compression (whole, damaged, too large,
several layers or members), and connections that end at any byte of a body. The statuses are RFC 9110's: 415 for an
encoding that is not read, 413 for too much, 400 for what is not what it says.
"""

from __future__ import annotations

import codecs
import gzip
import json
import logging
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fake_engine import FakeLoaded, expected_text
from pagoda.server.json_body import wrong_encoding
from raw_http import connected, post, read_answer
from serving import Served, serving, wait_for

BODY = {"prompt": "né", "max_tokens": 4}
TEXT = expected_text("né", 4)
PLAIN = json.dumps(BODY, ensure_ascii=False)


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded(), max_body_bytes=10_000) as served:
        yield served


def gzipped(data: bytes) -> bytes:
    """The same whenever it is made: it names tests."""
    return gzip.compress(data, mtime=0)


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (PLAIN.encode(), {}),
        (codecs.BOM_UTF8 + PLAIN.encode(), {}),
        (PLAIN.encode(), {"Content-Type": 'application/json; charset="UTF-8"'}),
        (json.dumps(BODY).encode("ascii"), {"Content-Type": "application/json; charset=us-ascii"}),
        (gzipped(PLAIN.encode()), {"Content-Encoding": "gzip"}),
        (gzipped(codecs.BOM_UTF8 + PLAIN.encode()), {"Content-Encoding": "GZip"}),
        (gzipped(PLAIN.encode()[:9]) + gzipped(PLAIN.encode()[9:]), {"Content-Encoding": "gzip"}),
        (zlib.compress(PLAIN.encode()), {"Content-Encoding": "deflate"}),
        (raw_deflate(PLAIN.encode()), {"Content-Encoding": "deflate"}),
        (PLAIN.encode(), {"Content-Encoding": "identity"}),
    ],
)
def test_what_is_read(api: Served, content: bytes, headers: dict[str, str]) -> None:
    response = api.client.post("/v1/completions", content=content, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["text"] == TEXT


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (PLAIN.encode("utf-16"), {}, 400, "UTF-16"),
        (PLAIN.encode("utf-16-le"), {}, 400, "UTF-16"),
        (PLAIN.encode("utf-16-be"), {}, 400, "UTF-16"),
        (PLAIN.encode("utf-32"), {}, 400, "UTF-32"),
        (PLAIN.encode("latin-1"), {}, 400, "0xe9 at 13"),
        (PLAIN.encode("utf-16"), {"Content-Type": "application/json; charset=utf-16"}, 415, "charset utf-16"),
        (PLAIN.encode("latin-1"), {"Content-Type": "application/json; charset=ISO-8859-1"}, 415, "charset iso-8859-1"),
        (PLAIN.encode(), {"Content-Encoding": "br"}, 415, "br is not supported"),
        (PLAIN.encode(), {"Content-Encoding": "zstd"}, 415, "gzip, deflate"),
        (PLAIN.encode(), {"Content-Encoding": "gzip, gzip"}, 415, "gzip, gzip"),
        (PLAIN.encode(), {"Content-Encoding": "gzip"}, 400, "is not gzip"),
        (zlib.compress(PLAIN.encode()), {}, 400, "0x9c at 1"),
        (gzipped(PLAIN.encode())[:-4], {"Content-Encoding": "gzip"}, 400, "in the middle"),
        (gzipped(b" " * 10_001), {"Content-Encoding": "gzip"}, 413, "10000 bytes"),
        (gzipped(PLAIN.encode()) + b"more", {"Content-Encoding": "gzip"}, 400, "is not gzip"),
        (gzipped(PLAIN.encode("latin-1")), {"Content-Encoding": "gzip"}, 400, "Latin-1"),
    ],
)
def test_what_is_refused_by_its_name(
    api: Served, content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    response = api.client.post("/v1/completions", content=content, headers=headers)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]
    if "Content-Encoding" in headers and status == 415:
        assert response.headers["accept-encoding"] == "gzip, deflate"


def test_a_bomb_is_not_unpacked(api: Served) -> None:
    """A gigabyte of blanks in a megabyte."""
    compressor = zlib.compressobj(9, wbits=31)
    bomb = b"".join(compressor.compress(b" " * 2**20) for _ in range(8)) + compressor.flush()
    assert len(bomb) < 10_000
    response = api.client.post("/v1/completions", content=bomb, headers={"Content-Encoding": "gzip"})
    assert response.status_code == 413


def test_utf8_has_no_wrong_encoding() -> None:
    assert wrong_encoding("größer 日本 🙂".encode()) is None
    assert wrong_encoding(b"") is None


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_an_upload_that_breaks_off_is_the_clients_doing(
    path: str, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged as nginx does, with 499 and without a traceback."""
    with caplog.at_level(logging.INFO, "pagoda"), serving(FakeLoaded()) as served:
        content = json.dumps({"prompt": "x" * 50_000}).encode()
        head_bytes = len(post(path, content=content)) - len(content)
        with connected(served.url) as sock:
            sock.sendall(post(path, content=content)[: head_bytes + int(share * len(content))])
            wait_for(lambda: served.server.service.num_active)
            sock.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: [record for record in caplog.records if record.name == "pagoda.request"])
        (record,) = [record for record in caplog.records if record.name == "pagoda.request"]
        assert record.facts["status"] == 499  # type: ignore[attr-defined]
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
        assert served.server.service.model().metrics.server.disconnects.value == 1


def test_a_client_that_leaves_while_it_waits_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    loaded = FakeLoaded()
    loaded.engine.gate.clear()
    with caplog.at_level(logging.INFO, "pagoda"), serving(loaded) as served:
        model = served.server.service.model()
        for stream in (False, True):
            with connected(served.url) as sock:
                sock.sendall(post("/v1/completions", **BODY, stream=stream))
                wait_for(lambda: model.admission.requests.waiting)
            wait_for(lambda: not model.admission.requests.waiting)
        wait_for(lambda: model.metrics.server.disconnects.value == 2)
        loaded.engine.gate.set()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_long_bodies_wait_with_their_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that come slowly, some are taken in; the others lie in their clients' memory, and are answered later."""
    monkeypatch.setattr("pagoda.server.service.LONG_BODIES", 2)
    data = post("/tokenize", content=json.dumps({"prompt": "ab"}).encode().ljust(2_000_000))
    with serving(FakeLoaded()) as served, ExitStack() as stack:
        socks = [stack.enter_context(connected(served.url)) for _ in range(4)]
        for sock in socks:
            sock.sendall(data[:1000])
        service = served.server.service
        wait_for(lambda: service.num_active == 4 and service.long_bodies.locked())
        small = served.ok("/tokenize", prompt="ab")
        sending = [threading.Thread(target=sock.sendall, args=[data[1000:]]) for sock in socks]
        for thread in sending:
            thread.start()
        assert [read_answer(sock).json() for sock in socks] == [small] * 4
        for thread in sending:
            thread.join()
        wait_for(lambda: not service.long_bodies.locked())


def test_a_client_that_leaves_while_its_long_body_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.server.service.LONG_BODIES", 1)
    data = post("/tokenize", content=json.dumps({"prompt": "ab"}).encode().ljust(2_000_000))
    with serving(FakeLoaded()) as served, connected(served.url) as first:
        first.sendall(data[:1000])
        service = served.server.service
        wait_for(lambda: service.long_bodies.locked())
        with connected(served.url) as second:
            second.sendall(data[:1000])
            wait_for(lambda: service.num_active == 2)
        first.sendall(data[1000:])
        assert read_answer(first).status == 200
        wait_for(lambda: service.num_active == 0 and not service.long_bodies.locked())
