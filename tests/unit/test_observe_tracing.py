"""Spans and histograms as a real exporter sends them to a collector that keeps what it gets."""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from fake_engine import FakeEngine, FakeLoaded, FakeTemplate
from pagoda.errors import ConfigError
from pagoda.observe.tracing import Tracing
from serving import serving, wait_for

proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="no OTLP exporter")
pytest.importorskip("opentelemetry.sdk.trace", reason="no OpenTelemetry SDK")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # the example of W3C Trace Context


class Collector(HTTPServer):
    """Keeps the bodies that come, by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[tuple[str, bytes]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Any]:
        found = []
        for path, body in self.bodies:
            if path == "/v1/traces":
                request = proto.ExportTraceServiceRequest.FromString(body)
                found += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        return found


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.server.bodies.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.shutdown()
    server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    def value(one: Any) -> Any:
        kind = one.WhichOneof("value")
        return [value(v) for v in one.array_value.values] if kind == "array_value" else getattr(one, kind)

    return {pair.key: value(pair.value) for pair in span.attributes}


def test_a_request_is_a_span_with_its_parts(collector: Collector) -> None:
    """Names and attributes of opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans; kind SERVER is 2."""
    with serving(FakeLoaded(engine=FakeEngine(step_s=0.002)), otlp_endpoint=collector.url) as served:
        body = {"messages": [{"role": "user", "content": "secret words"}], "max_tokens": 5, "temperature": 0.5}
        answer = served.client.post("/v1/chat/completions", json=body, headers={"traceparent": PARENT})
        assert answer.status_code == 200
        out = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01", answer.headers["traceparent"])
        assert out is not None
        assert out[1] == PARENT.split("-")[1]
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"chat fake", "queue", "prefill", "decode"}
    chat = spans["chat fake"]
    assert (chat.kind, chat.span_id.hex(), chat.parent_span_id.hex()) == (2, out[2], PARENT.split("-")[2])
    found = attributes(chat)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.max_tokens"] == 5
    assert found["gen_ai.request.temperature"] == 0.5
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    assert found["gen_ai.usage.output_tokens"] == 5
    assert found["gen_ai.response.id"] == answer.json()["id"]
    assert b"secret words" not in b"".join(body for _, body in collector.bodies)
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent_span_id == chat.span_id
        assert spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano
    assert spans["queue"].end_time_unix_nano == pytest.approx(spans["prefill"].start_time_unix_nano, abs=1e6)
    assert chat.status.code == 0
    metrics = [body for path, body in collector.bodies if path == "/v1/metrics"]
    assert any(b"gen_ai.server.time_to_first_token" in body for body in metrics)


def test_tool_parsing_and_the_caches_lookup_are_parts(collector: Collector) -> None:
    class Echo(FakeTemplate):
        def render_ids(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
            return list((messages[-1]["content"] + "|").encode())

    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    loaded = FakeLoaded(chat_template=Echo("{{ tools }}<tool_call>"))
    options: dict[str, Any] = {"cache_store": "memory", "cache_embedder": "none", "cache_budget": 5}
    with serving(loaded, otlp_endpoint=collector.url, **options) as served:
        asked = {"messages": [{"role": "user", "content": text}], "max_tokens": len(text), "tools": [tool]}
        answer = served.ok("/v1/chat/completions", **asked)
        assert len(answer["choices"][0]["message"]["tool_calls"]) == 1
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"chat fake", "queue", "prefill", "decode", "cache lookup", "tool parsing"}
    assert attributes(spans["cache lookup"]) == {"pagoda.cache.why": "no entry"}
    assert attributes(spans["tool parsing"])["pagoda.tool_calls"] == 1
    whole = spans["chat fake"]
    for name in ("cache lookup", "tool parsing"):
        part = spans[name]
        assert part.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano - 1e6 < part.start_time_unix_nano <= part.end_time_unix_nano
        assert part.end_time_unix_nano < whole.end_time_unix_nano + 1e6


def test_texts_are_sent_where_the_operator_chose_so(collector: Collector) -> None:
    with serving(FakeLoaded(), otlp_endpoint=collector.url, trace_content=True) as served:
        served.ok("/v1/chat/completions", messages=[{"role": "user", "content": "secret words"}], max_tokens=5)
    (chat,) = [span for span in collector.spans() if span.name == "chat fake"]
    assert json.loads(attributes(chat)["gen_ai.input.messages"]) == [{"role": "user", "content": "secret words"}]


def test_a_cancelled_request_ends_with_a_status(collector: Collector) -> None:
    """The SDK itself would leave it UNSET; ERROR is 2."""
    with serving(FakeLoaded(engine=FakeEngine(step_s=0.005)), otlp_endpoint=collector.url) as served:
        body = {"prompt": "abc", "max_tokens": 300, "stream": True}
        with served.client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
        tracing = served.server.service.model().accounts.tracing
        assert tracing is not None
        wait_for(lambda: served.loaded.engine.aborted)
        wait_for(lambda: not tracing._late)
    (span,) = [span for span in collector.spans() if span.name.startswith("text_completion")]
    assert (span.status.code, span.status.message) == (2, "cancelled")
    assert attributes(span)["error.type"] == "cancelled"
    assert {"queue", "prefill", "decode"} <= {span.name for span in collector.spans()}


def test_what_the_engine_never_tells_of_is_sent_all_the_same(collector: Collector) -> None:
    """An answer of the cache at once, one whose requests are never heard of at the end."""
    tracing = Tracing(collector.url, "m")
    for name in ("cached", "lost"):
        trace = tracing.open([name], {}, 0.0, gen_ai__operation__name="chat", gen_ai__response__id=name)
        tracing.close(trace, computed=name == "lost")
    assert list(tracing._late) == ["lost"]
    tracing.shutdown()
    assert {attributes(span)["gen_ai.response.id"] for span in collector.spans()} == {"cached", "lost"}


def test_the_log_line_carries_the_traces_id(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pagoda.request")
    with serving(FakeLoaded(), otlp_endpoint=collector.url) as served:
        served.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}, headers={"traceparent": PARENT})
        wait_for(lambda: caplog.records)
    (line,) = [record for record in caplog.records if getattr(record, "facts", {}).get("path") == "/v1/completions"]
    assert line.facts["trace_id"] == PARENT.split("-")[1]  # type: ignore[attr-defined]


def test_without_the_packages_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pagoda-llm\[otel\]"):
        Tracing("http://127.0.0.1:9", "m")
