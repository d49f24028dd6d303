"""What is written down of each answered request: series, the cost ledger, the request log and the log line."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace

import orjson

from pagoda.config import ServerSettings
from pagoda.errors import ConfigError
from pagoda.hardware.devices import device
from pagoda.observe.cost import CostLedger, CostSettings, WorkUnits
from pagoda.observe.metrics import Metrics
from pagoda.observe.request_log import BillLine, RequestLine, RequestLog
from pagoda.observe.tracing import Part, Tracing
from pagoda.server.answers import Answer
from pagoda.server.caching import HEADER, is_cached
from pagoda.server.call import UPSTREAM, Call
from pagoda.server.record import RequestRecord

BILL_EVERY_S = 60.0
LATE_S = 2.0  # in which a step ends that a request was in when its client went away
LOGGED_PIECES = 256  # of a prompt: 16,384 tokens


def make_ledger(settings: CostSettings) -> CostLedger:
    """The ledger at the price that the settings say. ConfigError: no such device, or it has no price."""
    price = settings.price
    if price is None and settings.price_of is not None:
        price = device(settings.price_of).usd_per_hour
        if price is None:
            raise ConfigError(f"--price-of {settings.price_of}: no list price is known; give --price")
    units = WorkUnits(decode=settings.decode_weight, kv=settings.kv_weight / 1024)
    return CostLedger(price, units)


class Accounts:
    """What answers of one model took, written down. Lives on the event loop."""

    def __init__(self, model: str | None, metrics: Metrics, settings: ServerSettings) -> None:
        """`model`: None where each call names its own, which is then in the place of an adapter."""
        self._model = model
        self._metrics = metrics
        self._ledger = metrics.ledger
        self._log = None if settings.request_log is None else RequestLog(settings.request_log)
        self._late: deque[tuple[Call, RequestLine]] = deque()
        self._billed = self._ledger.account()  # up to where the log has bills
        self._trace_content = settings.trace_content
        self.tracing = None if settings.otlp_endpoint is None else Tracing(settings.otlp_endpoint, model or "gateway")

    def open(self, call: Call, answer: Answer) -> None:
        """The answer can say what it has cost so far."""
        if self._ledger.is_priced:
            answer.cost_usd = lambda: sum(self._ledger.usd(request.id) for request in call.requests)

    def trace(self, call: Call, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """The call is being answered: begin its span, and tell the client of it."""
        if self.tracing is None:
            return
        content = call.messages if self._trace_content and call.messages is not None else None
        params = call.requests[0].params
        trace = self.tracing.open(
            [request.id for request in call.requests],
            headers,
            record.start,
            gen_ai__operation__name="text_completion" if call.messages is None else "chat",
            gen_ai__response__id=call.id,
            gen_ai__request__max_tokens=params.max_tokens,
            gen_ai__request__temperature=params.temperature,
            gen_ai__request__top_p=params.top_p,
            gen_ai__input__messages=None if content is None else orjson.dumps(content).decode(),
            pagoda__tenant=call.tenant or None,
            pagoda__adapter=call.adapter,
            http__request__id=record.id,
        )
        record.trace = trace
        record.headers |= self.tracing.headers(trace)

    def _end_trace(self, call: Call, answer: Answer, record: RequestRecord) -> None:
        if self.tracing is None or record.trace is None:
            return
        reasons = [choice.finish_reason for choice in answer.choices if choice.finish_reason]
        usage = answer.usage()
        complete = len(reasons) == len(answer.choices)
        self.tracing.close(
            record.trace,
            None if complete else "cancelled" if record.client_gone else "error",
            computed=not is_cached(call),
            parts=[*call.parts, *_parsed_calls(answer)],
            pagoda__cache=call.headers.get(HEADER),
            gen_ai__response__finish_reasons=reasons,
            gen_ai__usage__input_tokens=usage["prompt_tokens"],
            gen_ai__usage__output_tokens=usage["completion_tokens"],
            gen_ai__usage__cache_read__input_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            pagoda__cost_usd=record.answer["cost_usd"],
        )
        record.answer["trace_id"] = self.tracing.trace_id(record.trace)

    def close(self, call: Call, answer: Answer, record: RequestRecord, *, stream: bool) -> None:
        """The answer has ended, one way or another."""
        answer.record(self._metrics)
        record.answer = answer.facts(record.start)
        self._end_trace(call, answer, record)
        server, usage = self._metrics.server, answer.usage()
        for choice in answer.choices:
            server.answers.add(choice.finish_reason or ("abort" if record.client_gone else "error"))
        server.tenant_tokens.add((call.tenant, "prompt"), usage["prompt_tokens"])
        server.tenant_tokens.add((call.tenant, "completion"), usage["completion_tokens"])
        if call.adapter is not None:
            server.adapter_requests.add(call.adapter)
            server.adapter_tokens.add((call.adapter, "prompt"), usage["prompt_tokens"])
            server.adapter_tokens.add((call.adapter, "completion"), usage["completion_tokens"])
        if answer.cost_usd is not None:
            self._ledger.series.per_request.observe(answer.cost_usd())
        if self._log is not None:
            line = self._line(call, answer, record, stream=stream)
            if line.finish == "unfinished":  # it pays for the step that runs now, too
                self._late.append((call, line))
                asyncio.get_running_loop().call_later(LATE_S, self._write_late)
            else:
                self._log.write(line)
            self._bill(self._log, BILL_EVERY_S)

    def count_vectors(self, tenant: str, num_tokens: int) -> None:
        """So many tokens became vectors or scores."""
        self._metrics.server.tenant_tokens.add((tenant, "prompt"), num_tokens)

    def end(self) -> None:
        """No more requests come."""
        if self._log is not None:
            while self._late:
                self._write_late()
            self._bill(self._log, 0.0)
            self._log.close()
            self._log = None
        if self.tracing is not None:
            self.tracing.shutdown()

    def _write_late(self) -> None:
        """The oldest of the lines that waited for what their requests cost in the end."""
        if self._log is None or not self._late:
            return
        call, line = self._late.popleft()
        seconds = self._seconds(call)
        usd = None if line.cost_usd is None else sum(self._ledger.usd(request.id) for request in call.requests)
        self._log.write(replace(line, machine_seconds=seconds, cost_usd=usd))

    def _seconds(self, call: Call) -> float:
        """The machine's time that a call has been charged."""
        return round(sum(self._ledger.seconds(request.id) for request in call.requests), 6)

    def _bill(self, log: RequestLog, least_s: float) -> None:
        """Write down where the time since the last bill went, if it is at least so much."""
        now, last = self._ledger.account(), self._billed
        if not self._ledger.counts_time or now.at <= last.at or now.at - last.at < least_s:
            return
        epoch = time.time() - time.monotonic()
        charged, recomputed = now.charged_s - last.charged_s, now.recomputed_s - last.recomputed_s
        times = (charged, recomputed, now.idle_s - last.idle_s)
        log.write(BillLine(epoch + last.at, epoch + now.at, *times, self._ledger.usd_per_hour))
        self._billed = now

    def count_headers(self, headers: Mapping[str, str], allowed: tuple[str, ...]) -> None:
        """Series by the values of headers that the operator named."""
        for name in allowed:
            if value := headers.get(name):
                self._metrics.server.header_requests.add((name.lower(), value[:64]))

    def _line(self, call: Call, answer: Answer, record: RequestRecord, *, stream: bool) -> RequestLine:
        request, facts, usage = call.requests[0], record.answer, answer.usage()
        seconds = time.monotonic() - record.start
        return RequestLine(
            arrival=round(time.time() - seconds, 4),
            id=call.id,
            model=(call.adapter or "") if self._model is None else self._model,
            tenant=call.tenant,
            adapter="" if self._model is None else call.adapter or "",
            stream=stream,
            n=request.params.n,
            max_tokens=request.params.max_tokens,
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            completion_tokens=usage["completion_tokens"],
            finish=facts["finish"],
            ttft=facts["ttft"],
            seconds=round(seconds, 4),
            machine_seconds=self._seconds(call),
            cost_usd=facts["cost_usd"],
            draft_tokens=facts.get("draft_tokens", 0),
            accepted_draft_tokens=facts.get("accepted_draft_tokens", 0),
            upstream=call.headers.get(UPSTREAM, ""),
            prefix=tuple(one & 0xFFFFFFFF for one in call.prefix_hashes()[:LOGGED_PIECES]),
        )


def _parsed_calls(answer: Answer) -> Iterator[Part]:
    """For each choice that calls tools, from its first call's beginning to its last one's end."""
    for choice in answer.choices:
        parser = choice.parser
        if parser is not None and parser.first_call is not None:
            facts = {"pagoda.tool_calls": parser.num_calls, "pagoda.parser_seconds": parser.seconds}
            yield Part("tool parsing", parser.first_call, parser.last_call, facts)
