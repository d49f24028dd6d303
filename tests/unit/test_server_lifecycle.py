"""The server around its routes: clients that leave, keys, limits, ids, logs, and how it begins and ends."""

from __future__ import annotations

import json
import logging
import resource
import signal
import socket
import threading
import time
from concurrent.futures import Future

import httpx
import pytest

from fake_engine import FakeEngine, FakeLoaded
from pagoda.config import ServerSettings
from pagoda.errors import ConfigError
from pagoda.server.listen import allow_connections, bind, url
from pagoda.server.logs import JsonFormatter, TextFormatter, request_id
from pagoda.server.run import make_server
from serving import HANG_S, Served, serving, wait_for

LONG = {"prompt": "abc", "max_tokens": 500}


def raw_request(served: Served, **body: object) -> socket.socket:
    """A request on a bare socket, so that the test decides when the client is gone."""
    host, port = served.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)))
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    sock.sendall(head.encode() + b"\r\n\r\n" + content)
    return sock


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_sequence_within_a_step(stream: bool) -> None:
    engine = FakeEngine(step_s=0.05)
    with serving(FakeLoaded(engine)) as served:
        sock = raw_request(served, **LONG, stream=stream, n=2)
        wait_for(lambda: engine.num_steps >= 2 and engine.running)
        engine.gate.clear()
        before = engine.num_steps  # one may be running
        sock.close()
        wait_for(lambda: engine.abort_steps)
        assert engine.abort_steps[0] - before <= 1
        engine.gate.set()
        wait_for(lambda: not engine.running)
        model = served.server.service.model()
        wait_for(lambda: model.metrics.server.disconnects.value == 1)
        assert model.bridge.busy_since is None
        assert model.admission.requests.waiting == 0


def test_a_client_that_leaves_the_queue() -> None:
    engine = FakeEngine(step_s=0.01, max_running=1)
    with serving(FakeLoaded(engine)) as served:
        first = raw_request(served, **LONG)
        wait_for(lambda: engine.running)
        second = raw_request(served, **LONG)
        model = served.server.service.model()
        wait_for(lambda: model.admission.requests.waiting == 1)
        second.close()
        wait_for(lambda: model.admission.requests.waiting == 0)
        assert len(engine.running) == 1
        first.close()
        wait_for(lambda: not engine.running)


def test_a_finished_request_is_not_aborted() -> None:
    with serving(FakeLoaded()) as served:
        served.ok("/v1/completions", prompt="abc")
        served.post("/v1/completions", prompt="abc", stream=True)
        assert served.loaded.engine.aborted == []


def test_keys_are_tenants() -> None:
    tenants = []
    loaded = FakeLoaded()
    submit = loaded.engine.submit
    loaded.engine.submit = lambda request, sink: (tenants.append(request.tenant), submit(request, sink))  # type: ignore[method-assign]
    with serving(loaded, api_keys=("alpha", "beta")) as served:
        for key in ("beta", "alpha"):
            served.client.headers["Authorization"] = f"Bearer {key}"
            served.ok("/v1/completions", prompt="abc")
    assert tenants == ["key-1", "key-0"]


def test_body_limit() -> None:
    with serving(FakeLoaded(), max_body_bytes=1000) as served:
        assert served.post("/tokenize", prompt="x" * 900).status_code == 200
        response = served.post("/tokenize", prompt="x" * 1000)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        parts = iter([b'{"prompt": "', b"x" * 600, b"x" * 600, b'"}'])  # chunked: no Content-Length
        response = served.client.post("/tokenize", content=parts, headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert "1000 bytes" in response.json()["error"]["message"]
        assert response.json()["error"]["code"] == "body_too_large"


def test_request_ids() -> None:
    with serving(FakeLoaded()) as served:
        given = served.client.get("/version", headers={"X-Request-Id": "trace-7"})
        assert given.headers["x-request-id"] == "trace-7"
        made = [served.client.get("/version").headers["x-request-id"] for _ in "ab"]
        assert len(set(made)) == 2
        hostile = served.client.get("/version", headers={"X-Request-Id": "x" * 200})
        assert hostile.headers["x-request-id"].startswith("req-")


def test_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pagoda.request"), serving(FakeLoaded()) as served:
        served.client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3}, headers={"X-Request-Id": "r1"})
        served.client.get("/health")
        wait_for(lambda: [r for r in caplog.records if r.name == "pagoda.request"])
    (record,) = [r for r in caplog.records if r.name == "pagoda.request"]
    facts = record.facts  # type: ignore[attr-defined]
    assert (facts["method"], facts["path"], facts["status"]) == ("POST", "/v1/completions", 200)
    assert (facts["prompt_tokens"], facts["completion_tokens"], facts["finish"]) == (4, 3, "length")
    assert 0 <= facts["ttft"] <= facts["seconds"]


def test_log_formats() -> None:
    record = logging.makeLogRecord({"msg": "hello", "levelname": "INFO", "name": "pagoda.x"})
    record.facts = {"path": "/a\nb", "seconds": 0.25, "none": None}
    token = request_id.set("r9")
    try:
        text, line = TextFormatter().format(record), json.loads(JsonFormatter().format(record))
    finally:
        request_id.reset(token)
    assert text.endswith('info    hello request_id=r9 path="/a\\nb" seconds=0.25')
    assert line | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "pagoda.x",
        "message": "hello",
        "request_id": "r9",
        "path": "/a\nb",
        "seconds": 0.25,
    }


def test_alive_before_the_model_is_there() -> None:
    sock = bind("127.0.0.1", 0)
    loading: Future[FakeLoaded] = Future()
    server = make_server(ServerSettings(), loading)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]))
    thread.start()
    loaded = FakeLoaded()
    try:
        with httpx.Client(base_url=url(sock)) as client:
            wait_for(lambda: server.started)
            assert client.get("/health").status_code == 200
            assert client.get("/ready").status_code == 503
            refused = client.post("/v1/completions", json={"prompt": "abc"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            loading.set_result(loaded)
            wait_for(lambda: client.get("/ready").status_code == 200)
            assert client.post("/v1/completions", json={"prompt": "abc"}).status_code == 200
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(HANG_S)
        loaded.engine.stop()


def test_a_stop_while_loading_ends_at_once() -> None:
    loading: Future[FakeLoaded] = Future()
    server = make_server(ServerSettings(), loading)
    thread = threading.Thread(target=lambda: server.run(sockets=[bind("127.0.0.1", 0)]))
    thread.start()
    wait_for(lambda: server.started)
    server.handle_exit(signal.SIGINT, None)
    thread.join(HANG_S)
    assert not thread.is_alive()
    assert server.failure is None
    loading.set_result(FakeLoaded())  # the thread that loads comes back too late


def test_what_loading_raises_ends_the_server() -> None:
    loading: Future[FakeLoaded] = Future()
    loading.set_exception(ConfigError("no such model"))
    server = make_server(ServerSettings(), loading)
    server.run(sockets=[bind("127.0.0.1", 0)])
    assert str(server.failure) == "no such model"


def test_a_dead_engine_is_not_hidden() -> None:
    loaded = FakeLoaded()
    with serving(loaded) as served:
        loaded.engine.die(RuntimeError("out of luck"))
        for path in ("/health", "/ready"):
            assert served.client.get(path).status_code == 503
        assert "out of luck" in served.client.get("/health").json()["error"]["message"]
        assert "out of luck" in served.refused("/v1/completions", status=503, prompt="abc")["message"]


def test_an_engine_that_takes_no_steps_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.server.service.STALLED_S", 0.1)
    engine = FakeEngine()
    with serving(FakeLoaded(engine)) as served:
        time.sleep(0.2)
        assert served.client.get("/ready").status_code == 200  # idle is not stalled
        engine.gate.clear()
        sock = raw_request(served, prompt="abc")
        wait_for(lambda: served.client.get("/ready").status_code == 503)
        assert served.client.get("/health").status_code == 200
        engine.gate.set()
        wait_for(lambda: served.client.get("/ready").status_code == 200)
        sock.close()


def test_draining_finishes_what_runs() -> None:
    engine = FakeEngine()
    with serving(FakeLoaded(engine), shutdown_timeout=HANG_S) as served:
        engine.before_sinks.append(lambda result: engine.gate.clear())  # a step, then none until we say so
        answers: list[httpx.Response] = []
        running = threading.Thread(
            target=lambda: answers.append(served.post("/v1/completions", prompt="abc", max_tokens=100))
        )
        running.start()
        wait_for(lambda: engine.running)
        with httpx.Client(base_url=served.url) as client:
            served.stop()
            wait_for(lambda: served.server.service.phase == "draining")
            refused = client.post("/v1/completions", json={"prompt": "abc"})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert client.get("/ready").status_code == 503
            assert client.get("/health").status_code == 200
        engine.before_sinks.clear()
        engine.gate.set()
        running.join(HANG_S)
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] == 100


def test_draining_has_an_end() -> None:
    engine = FakeEngine(step_s=0.05)
    with serving(FakeLoaded(engine), shutdown_timeout=0.2) as served:
        with served.client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            wait_for(lambda: engine.running)
            served.stop()
            lines = [line for line in response.iter_lines() if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "server_error"
        assert lines[-1] == "data: [DONE]"
        wait_for(lambda: engine.aborted)


def test_a_busy_port_says_so() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127.0.0.1 is in use.*--port"):
            bind("127.0.0.1", port)


def test_an_unknown_host_says_so() -> None:
    with pytest.raises(ConfigError, match=r"--host no\.such\.host\.invalid"):
        bind("no.such.host.invalid", 0)


def test_a_model_that_changes_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overwritten bytes make nonsense of what is answered: nothing more is, and the process ends with an error."""
    monkeypatch.setattr("pagoda.server.run.WATCH_S", 0.02)
    monkeypatch.setattr("pagoda.server.run.BROKEN_S", 1.0)
    engine = FakeEngine(step_s=0.02)
    loaded, loading = FakeLoaded(engine), Future[FakeLoaded]()
    sock = bind("127.0.0.1", 0)
    server = make_server(ServerSettings(), loading)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]))
    thread.start()
    loading.set_result(loaded)
    with httpx.Client(base_url=url(sock), timeout=HANG_S) as client:
        wait_for(lambda: server.service.ready)
        with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            wait_for(lambda: engine.running)
            loaded.file_change = "model.gguf was written to"
            lines = [line for line in response.iter_lines() if line]
        assert "was written to" in json.loads(lines[-2].removeprefix("data: "))["error"]["message"]
        assert client.get("/ready").status_code == 503
        refused = client.post("/v1/completions", json=LONG)
        assert refused.status_code == 503
        assert "was written to" in refused.json()["error"]["message"]
    thread.join(HANG_S)
    loaded.engine.stop()
    assert not thread.is_alive()
    assert "start the server again" in str(server.failure)


def test_an_answer_whose_model_changed_meanwhile_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody has looked at the file yet."""
    monkeypatch.setattr("pagoda.server.run.WATCH_S", 100.0)
    engine = FakeEngine()
    loaded = FakeLoaded(engine)
    with serving(loaded) as served:
        engine.before_sinks.append(lambda result: engine.gate.clear())  # a step, then none until it has changed
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(served.post("/v1/completions", prompt="abc", max_tokens=10))
        )
        asking.start()
        wait_for(lambda: engine.num_steps)
        loaded.file_change = "model.gguf had 9 bytes when it was opened, and has 3"
        engine.before_sinks.clear()
        engine.gate.set()
        asking.join()
        assert answers[0].status_code == 503
        assert "and has 3" in answers[0].json()["error"]["message"]
        loaded.file_change = None


@pytest.mark.parametrize(
    ("limits", "wanted", "expected"),
    [
        ((1024, 4096), 1000, (1256, 4096)),
        ((1024, 1100), 1000, (1100, 1100)),  # no further than the system lets
        ((4096, 4096), 1000, None),
        ((1024, resource.RLIM_INFINITY), 5000, (5256, resource.RLIM_INFINITY)),
    ],
)
def test_connections_are_files_that_may_be_open(
    limits: tuple[int, int], wanted: int, expected: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A default of 1024 open files would be used up by a thousand connections, and nobody else could come."""
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, new: given.append(new))
    allow_connections(wanted)
    assert given == ([] if expected is None else [expected])
