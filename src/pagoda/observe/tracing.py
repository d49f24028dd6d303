"""OpenTelemetry over OTLP/HTTP: a span for each answered request with its parts, and histograms.

Names are those of the GenAI semantic conventions (opentelemetry.io/docs/specs/semconv/gen-ai), written out here: the
package's own constants are all deprecated, and its histograms carry no buckets. The context comes in and goes out as
`traceparent` (W3C Trace Context). Texts are left out unless they are asked for.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pagoda
from pagoda.errors import ConfigError
from pagoda.types import FinishedRequest, StepResult

KEPT = 4096  # ended requests whose times wait for the server to ask for them
TIMEOUT_S = 5
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
HISTOGRAMS = {
    "gen_ai.server.request.duration": DURATION,
    "gen_ai.server.time_per_output_token": PER_TOKEN,
    "gen_ai.server.time_to_first_token": FIRST_TOKEN,
}


@dataclass(frozen=True, slots=True)
class Part:
    """Something that was done for an answer besides computing it. Times are time.monotonic() seconds."""

    name: str
    start: float
    end: float
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RequestTrace:
    """The open span of one answer."""

    span: Any
    request_ids: Sequence[str]
    attributes: dict[str, Any]
    ended_ns: int = 0
    error: str | None = None
    parts: Sequence[Part] = ()
    missing: set[str] = field(default_factory=set)  # requests whose times have not come yet


class Tracing:
    """Sends to one collector. Spans are made on the event loop, those of aborted requests on the engine's thread."""

    def __init__(self, endpoint: str, model: str, *, exporters: tuple[Any, Any] | None = None) -> None:
        """`exporters` of spans and metrics, in place of OTLP over HTTP. ConfigError: the packages are missing."""
        try:
            self._api = import_module("opentelemetry.trace")
            tracing, metrics = import_module("opentelemetry.sdk.trace"), import_module("opentelemetry.sdk.metrics")
            exporters = exporters or _exporters(endpoint)
        except ImportError:
            raise ConfigError("--otlp-endpoint needs OpenTelemetry: pip install 'pagoda-llm[otel]'") from None
        self._model = model
        resource = import_module("opentelemetry.sdk.resources").Resource.create(
            {"service.name": "pagoda", "service.version": pagoda.__version__}
        )
        self._spans = tracing.TracerProvider(resource=resource)
        batches = import_module("opentelemetry.sdk.trace.export").BatchSpanProcessor
        self._spans.add_span_processor(batches(exporters[0]))
        self._tracer = self._spans.get_tracer("pagoda", pagoda.__version__)
        reader = import_module("opentelemetry.sdk.metrics.export").PeriodicExportingMetricReader
        self._meters = metrics.MeterProvider(
            resource=resource,
            metric_readers=[reader(exporters[1])],
            views=_views(),
        )
        meter = self._meters.get_meter("pagoda", pagoda.__version__)
        self._histograms = {name: meter.create_histogram(name, unit="s") for name in HISTOGRAMS}
        self._propagator = import_module("opentelemetry.trace.propagation.tracecontext").TraceContextTextMapPropagator()
        self._lock = threading.Lock()  # of both below
        self._finished: OrderedDict[str, FinishedRequest] = OrderedDict()
        self._late: dict[str, RequestTrace] = {}  # closed before the engine has told of their requests, by request

    def note(self, step: StepResult) -> None:
        """Keep the times of requests that have ended. An observer that comes before the sinks."""
        for request in step.finished:
            with self._lock:
                self._finished[request.request_id] = request
                if len(self._finished) > KEPT:
                    self._finished.popitem(last=False)
                late = self._late.pop(request.request_id, None)
                if late is None:
                    continue
                late.missing.discard(request.request_id)
            if not late.missing:
                self._end(late)

    def open(
        self, request_ids: Sequence[str], headers: Mapping[str, str], start: float, **attributes: Any
    ) -> RequestTrace:
        """A span that began at `start` (time.monotonic() seconds), below the one that the headers name, if any."""
        known = {"gen_ai.provider.name": "pagoda", "gen_ai.request.model": self._model} | _named(attributes)
        given = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        context = self._propagator.extract(given)
        name = f"{known['gen_ai.operation.name']} {known['gen_ai.request.model']}"
        span = self._tracer.start_span(
            name, context, kind=self._api.SpanKind.SERVER, attributes=known, start_time=_epoch_ns(start)
        )
        return RequestTrace(span, request_ids, known)

    def headers(self, trace: RequestTrace) -> dict[str, str]:
        """`traceparent` of the span, for the response."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._api.set_span_in_context(trace.span))
        return carrier

    def trace_id(self, trace: RequestTrace) -> str:
        """As log lines say it."""
        return f"{trace.span.get_span_context().trace_id:032x}"

    def close(
        self,
        trace: RequestTrace,
        error: str | None = None,
        *,
        computed: bool = True,
        parts: Sequence[Part] = (),
        **attributes: Any,
    ) -> None:
        """The answer is over; with an error, before its time. `parts` were done for it besides computing it.

        Where the engine has computed it, the span waits until it has told of that, too.
        """
        trace.span.set_attributes(_named(attributes))
        trace.error, trace.parts, trace.ended_ns = error, parts, time.time_ns()
        complete = []
        with self._lock:
            trace.missing = {name for name in trace.request_ids if computed and name not in self._finished}
            self._late |= dict.fromkeys(trace.missing, trace)
            if not trace.missing:
                complete.append(trace)
            while len(self._late) > KEPT:  # of requests that the engine never tells of
                oldest = next(iter(self._late.values()))
                for name in oldest.missing:
                    self._late.pop(name, None)
                complete.append(oldest)
        for one in complete:
            self._end(one)

    def _end(self, trace: RequestTrace) -> None:
        context = self._api.set_span_in_context(trace.span)
        for part in trace.parts:
            self._add(context, part)
        for name in trace.request_ids:
            request = self._finished.pop(name, None)
            if request is not None:
                for part in _computed(request):
                    self._add(context, part)
                self._observe(request)
        if trace.error is not None:  # the SDK leaves a span that was cancelled without a status
            trace.span.set_status(self._api.Status(self._api.StatusCode.ERROR, trace.error))
            trace.span.set_attribute("error.type", trace.error)
        trace.span.end(trace.ended_ns)

    def _add(self, context: Any, part: Part) -> None:
        start = _epoch_ns(part.start)
        span = self._tracer.start_span(part.name, context, attributes=dict(part.attributes), start_time=start)
        span.end(_epoch_ns(part.end))

    def _observe(self, request: FinishedRequest) -> None:
        labels = {"gen_ai.request.model": self._model, "gen_ai.provider.name": "pagoda"}
        values = {"gen_ai.server.request.duration": request.finished - request.arrival}
        if request.first_token is not None:
            values["gen_ai.server.time_to_first_token"] = request.first_token - request.arrival
            if request.completion_tokens > 1:
                seconds = (request.finished - request.first_token) / (request.completion_tokens - 1)
                values["gen_ai.server.time_per_output_token"] = seconds
        for name, value in values.items():
            self._histograms[name].record(value, labels)

    def shutdown(self) -> None:
        """Send what is left; a collector that does not answer keeps nobody longer than some seconds."""
        for trace in {id(trace): trace for trace in self._late.values()}.values():
            self._end(trace)
        self._spans.shutdown()
        self._meters.shutdown(timeout_millis=TIMEOUT_S * 1000)


def _computed(request: FinishedRequest) -> Iterator[Part]:
    """What the engine did for a request."""
    scheduled, first = request.first_scheduled, request.first_token
    yield Part("queue", request.arrival, scheduled or request.finished)
    if scheduled is not None:
        yield Part("prefill", scheduled, first or request.finished)
    if first is not None:
        yield Part("decode", first, request.finished)


def _exporters(endpoint: str) -> tuple[Any, Any]:
    base = endpoint.rstrip("/")
    spans = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter
    metrics = import_module("opentelemetry.exporter.otlp.proto.http.metric_exporter").OTLPMetricExporter
    return (
        spans(endpoint=f"{base}/v1/traces", timeout=TIMEOUT_S),
        metrics(endpoint=f"{base}/v1/metrics", timeout=TIMEOUT_S),
    )


def _views() -> list[Any]:
    view = import_module("opentelemetry.sdk.metrics.view")
    return [
        view.View(instrument_name=name, aggregation=view.ExplicitBucketHistogramAggregation(bounds))
        for name, bounds in HISTOGRAMS.items()
    ]


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """gen_ai__usage__input_tokens=3 → {"gen_ai.usage.input_tokens": 3}; None is left out."""
    return {name.replace("__", "."): value for name, value in attributes.items() if value is not None}


def _epoch_ns(moment: float) -> int:
    """Nanoseconds since the epoch of a time.monotonic() moment."""
    return time.time_ns() + round((moment - time.monotonic()) * 1e9)
