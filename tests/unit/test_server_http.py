"""Connections: HTTP as the world speaks it, and what a client may do before it is known.

The classes of inputs, each in whatever pieces it comes: offers of another protocol (RFC 9110, section 7.8: a server
may ignore them), clients that close one side (RFC 9112, section 9.6), HTTP/1.0, requests one after the other and in a
pipeline, heads and bodies that are too long, too slow or never end, and what is no HTTP.
"""

from __future__ import annotations

import json
import socket
import time

import pytest

from fake_engine import FakeEngine, FakeLoaded, expected_text
from raw_http import connected, get, parse, post, read_all, read_answer, send_in_pieces
from serving import serving, wait_for

COMPLETION = {"prompt": "abc", "max_tokens": 4}
TEXT = expected_text("abc", 4)
OFFERS = {
    # what these clients send with every first request in plain text
    "JDK HttpClient": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB"],
    "curl --http2": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAA"],
    "keep-alive too": ["Connection: keep-alive, Upgrade", "Upgrade: h2c"],
    "a WebSocket": ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="],
    "lower case": ["connection: upgrade", "upgrade: TLS/1.0"],
}


@pytest.mark.parametrize("size", [100_000, 7, 1])
@pytest.mark.parametrize("name", OFFERS)
def test_an_offer_of_another_protocol_is_answered_in_http1(name: str, size: int) -> None:
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        for _ in "ab":  # and the connection goes on
            send_in_pieces(sock, post("/v1/completions", *OFFERS[name], **COMPLETION), size)
            answer = read_answer(sock)
            assert answer.status == 200
            assert answer.json()["choices"][0]["text"] == TEXT
            assert "upgrade" not in answer.headers


@pytest.mark.parametrize("cut", [1, 40, 150, 217, 230])
def test_an_offer_with_a_body_in_chunks(cut: int) -> None:
    content = json.dumps(COMPLETION).encode()
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:9], content[9:])) + b"0\r\n\r\n"
    head = "\r\n".join(
        ["POST /v1/completions HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *OFFERS["curl --http2"]]
    )
    data = head.encode() + b"\r\n\r\n" + body
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        send_in_pieces(sock, data[:cut], cut)
        time.sleep(0.01)
        send_in_pieces(sock, data[cut:], len(data))
        assert read_answer(sock).json()["choices"][0]["text"] == TEXT


def test_connect_is_refused() -> None:
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        sock.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
        assert parse(read_all(sock)).status == 405


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step_s", [0.0, 0.05])
def test_a_client_that_has_closed_its_side_gets_its_answer(stream: bool, step_s: float) -> None:
    with serving(FakeLoaded(FakeEngine(step_s))) as served, connected(served.url) as sock:
        sock.sendall(post("/v1/completions", **COMPLETION, stream=stream))
        sock.shutdown(socket.SHUT_WR)
        answer = parse(read_all(sock))
        assert answer.status == 200
        if stream:
            lines = [line for line in answer.body.decode().split("\n") if line.startswith("data: ")]
            assert lines[-1] == "data: [DONE]"
            answers = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
            assert "".join(chunk["choices"][0]["text"] for chunk in answers) == TEXT
        else:
            assert answer.json()["choices"][0]["text"] == TEXT


def test_a_client_that_has_closed_its_side_before_its_body_was_whole() -> None:
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        sock.sendall(post("/v1/completions", **COMPLETION)[:-3])
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_is_gone_is_told_from_one_that_has_closed_its_side(stream: bool) -> None:
    """Before the first token, too: nothing but what is written ahead can tell."""
    engine = FakeEngine()
    engine.gate.clear()
    with serving(FakeLoaded(engine)) as served:
        with connected(served.url) as sock:
            sock.sendall(post("/v1/completions", prompt="abc", max_tokens=500, stream=stream))
            model = served.server.service.model()
            wait_for(lambda: model.bridge.busy_since is not None)
        wait_for(lambda: model.bridge.busy_since is None)
        engine.gate.set()
        wait_for(lambda: engine.aborted and not engine.running)


@pytest.mark.parametrize("stream", [False, True])
def test_http10(stream: bool) -> None:
    """No chunks: HTTP/1.0 has none; the end of a stream is that of the connection."""
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        sock.sendall(post("/v1/completions", version="1.0", **COMPLETION, stream=stream))
        answer = parse(read_all(sock))
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        if stream:
            assert answer.body.startswith(b"data: {")
            assert answer.body.endswith(b"data: [DONE]\n\n")
        else:
            assert answer.json()["choices"][0]["text"] == TEXT


def test_http10_keeps_a_connection_alive_where_asked() -> None:
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        for _ in "ab":
            sock.sendall(get("/health", "Connection: keep-alive", version="1.0"))
            assert read_answer(sock).headers["connection"] == "keep-alive"


def test_requests_in_a_pipeline_are_answered_in_order() -> None:
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        first, second = (post("/v1/completions", prompt=text, max_tokens=4) for text in ("abc", "xyz"))
        sock.sendall(first + second + get("/version", "Connection: close"))
        data = read_all(sock)
    parts = [b"HTTP/1.1 " + part for part in data.split(b"HTTP/1.1 ")[1:]]
    assert [parse(part).status for part in parts] == [200, 200, 200]
    assert [parse(part).json()["choices"][0]["text"] for part in parts[:2]] == [TEXT, expected_text("xyz", 4)]


def test_head_has_the_headers_of_get_and_no_body() -> None:
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        sock.sendall(get("/version", "Connection: close"))
        whole = parse(read_all(sock))
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        sock.sendall(get("/version", "Connection: close", method="HEAD"))
        head = parse(read_all(sock))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.body))


def test_expect_continue() -> None:
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        head, _, body = post("/v1/completions", "Expect: 100-continue", **COMPLETION).partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_answer(sock).status == 200


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"hello\r\n\r\n",
     b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
     b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http1_is_answered_so(data: bytes) -> None:
    """TLS, HTTP/2, noise, and a request whose end two parties would see in two places."""
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        sock.sendall(data)
        answer = parse(read_all(sock))
        assert answer.status == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


HEADS = {
    "one long header": b"GET /health HTTP/1.1\r\nX: " + b"x" * 70_000,
    "many headers": b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    "a long path": b"GET /" + b"x" * 70_000,
}


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_has_a_longest_length(name: str, ended: bool) -> None:
    """RFC 6585, section 5: 431. At once, and though the head never ends."""
    data = HEADS[name] + (b" HTTP/1.1\r\n\r\n" if "path" in name else b"\r\n\r\n") * ended
    with serving(FakeLoaded(), api_keys=("k",)) as served, connected(served.url) as sock:
        try:
            for start in range(0, len(data), 8192):
                sock.sendall(data[start : start + 8192])
            for _ in range(0 if ended else 200):
                sock.sendall(b"x" * 8192)
                time.sleep(0.001)
        except OSError:
            pass  # it has been closed
        else:
            assert parse(read_all(sock)).status == 431


def test_heads_have_their_time() -> None:
    with serving(FakeLoaded(), header_timeout=0.2) as served:
        with connected(served.url) as silent, connected(served.url) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nX: ")
            assert read_all(silent) == b""
            answer = parse(read_all(slow))
            assert answer.status == 408
        with connected(served.url) as dripping:
            wait_for(lambda: not can_send(dripping))


def can_send(sock: socket.socket) -> bool:
    time.sleep(0.02)
    try:
        sock.sendall(b"x")
    except OSError:
        return False
    return True


def test_the_next_head_on_a_connection_has_its_time_too() -> None:
    with serving(FakeLoaded(), header_timeout=0.2) as served, connected(served.url) as sock:
        sock.sendall(get("/health"))
        assert read_answer(sock).status == 200
        time.sleep(0.4)  # an idle connection is kept for longer
        sock.sendall(get("/health"))
        assert read_answer(sock).status == 200
        sock.sendall(b"GET /hea")
        assert parse(read_all(sock)).status == 408


def test_bodies_have_their_time() -> None:
    with serving(FakeLoaded(), body_timeout=0.2) as served, connected(served.url) as sock:
        sock.sendall(post("/v1/completions", **COMPLETION)[:-3])
        answer = parse(read_all(sock))
        assert answer.status == 408
        assert "--body-timeout" in answer.json()["error"]["message"]


LONG = {"prompt": "abc", "max_tokens": 500, "n": 128, "stream": True}  # tens of megabytes: more than sockets hold


def test_who_does_not_read_is_cut_off() -> None:
    """So that the sequence, its KV blocks and the connection do not stay taken for good."""
    engine = FakeEngine(0.01)  # so that it has not said all before the client is cut off
    with serving(FakeLoaded(engine), write_timeout=0.3) as served, connected(served.url) as sock:
        sock.sendall(post("/v1/completions", **LONG))
        wait_for(lambda: engine.running)
        wait_for(lambda: not engine.running)
        assert len(engine.aborted) == 1
        assert b"[DONE]" not in read_all(sock)


def test_who_reads_slowly_gets_all() -> None:
    """However long it takes, as long as some of it is read within the time."""
    with serving(FakeLoaded(), write_timeout=2.0) as served, connected(served.url) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        begun = time.monotonic()
        sock.sendall(post("/v1/completions", **LONG))
        data = bytearray()
        while not data.endswith(b"0\r\n\r\n") and (piece := sock.recv(1 << 16)):
            data += piece
            time.sleep(0.02)
        assert b"data: [DONE]" in data[-100:]
        assert time.monotonic() > begun + 2


def test_an_answer_may_take_longer_than_a_body() -> None:
    with serving(FakeLoaded(FakeEngine(0.2)), body_timeout=0.2, header_timeout=0.2) as served:
        assert served.ok("/v1/completions", **COMPLETION)["choices"][0]["text"] == TEXT


def test_who_has_no_key_cannot_send_a_body() -> None:
    """The answer comes before the body, and the connection does not stay open for the rest of it."""
    with serving(FakeLoaded(), api_keys=("k",)) as served, connected(served.url) as sock:
        sock.sendall(post("/v1/completions", content=b"x" * 1_000_000)[:5000])
        answer = parse(read_all(sock))
        assert answer.status == 401


def test_an_answer_before_the_end_of_the_body_arrives() -> None:
    """As with 413: the client goes on sending, and must not see a reset in place of the answer."""
    with serving(FakeLoaded(), max_body_bytes=1000) as served, connected(served.url) as sock:
        sock.sendall(post("/v1/completions", content=b"x" * 3_000_000))
        assert parse(read_all(sock)).status == 413


def test_a_body_that_nobody_read_stands_before_the_next_request() -> None:
    with serving(FakeLoaded()) as served, connected(served.url) as sock:
        sock.sendall(post("/nothing", content=b"x" * 300_000) + get("/health"))
        assert read_answer(sock).status == 404
        assert read_answer(sock).status == 200


def test_one_connection_too_many_closes_the_one_that_has_waited_longest() -> None:
    with serving(FakeLoaded(), max_connections=3) as served:
        served.client.close()
        with connected(served.url) as first, connected(served.url), connected(served.url):
            first.sendall(b"GET /health HT")
            time.sleep(0.05)
            with connected(served.url) as late:
                late.sendall(get("/health"))
                assert read_answer(late).status == 200
            assert read_all(first) == b""


def test_connections_that_are_answered_are_not_closed_for_others() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    with serving(FakeLoaded(engine), max_connections=2) as served:
        served.client.close()
        with connected(served.url) as first, connected(served.url) as second:
            for sock in (first, second):
                sock.sendall(post("/v1/completions", **COMPLETION))
            model = served.server.service.model()
            wait_for(lambda: model.admission.requests.waiting == 2)
            with connected(served.url) as late:
                assert parse(read_all(late)).status == 503
            engine.gate.set()
            assert read_answer(first).status == read_answer(second).status == 200
