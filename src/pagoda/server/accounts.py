"""What is written down of each answered request: series, the cost ledger, the request log and the log line."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pagoda.config import ServerSettings
from pagoda.hardware.devices import device
from pagoda.observe.cost import CostLedger, CostSettings, WorkUnits
from pagoda.observe.metrics import Metrics
from pagoda.observe.request_log import RequestLine, RequestLog
from pagoda.server.answers import Answer
from pagoda.server.call import Call
from pagoda.server.record import RequestRecord


def make_ledger(settings: CostSettings) -> CostLedger:
    """The ledger at the price that the settings say. ConfigError: no such device, or it has no price."""
    price = settings.price
    if price is None and settings.price_of is not None:
        price = device(settings.price_of).usd_per_hour
    units = WorkUnits(decode=settings.decode_weight, kv=settings.kv_weight / 1024)
    return CostLedger(price, units)


class Accounts:
    """Of one model. Lives on the event loop."""

    def __init__(self, model: str, metrics: Metrics, settings: ServerSettings) -> None:
        self._model = model
        self._metrics = metrics
        self._ledger = metrics.ledger
        self._log = None if settings.request_log is None else RequestLog(settings.request_log)

    def open(self, call: Call, answer: Answer) -> None:
        """The answer can say what it has cost so far."""
        if self._ledger.is_priced:
            answer.cost_usd = lambda: sum(self._ledger.usd(request.id) for request in call.requests)

    def close(self, call: Call, answer: Answer, record: RequestRecord, *, stream: bool) -> None:
        """The answer has ended, one way or another."""
        answer.record(self._metrics)
        record.answer = answer.facts(record.start)
        server, usage = self._metrics.server, answer.usage()
        for choice in answer.choices:
            server.answers.add(choice.finish_reason or ("abort" if record.client_gone else "error"))
        server.tenant_tokens.add((call.tenant, "prompt"), usage["prompt_tokens"])
        server.tenant_tokens.add((call.tenant, "completion"), usage["completion_tokens"])
        if answer.cost_usd is not None:
            self._ledger.series.per_request.observe(answer.cost_usd())
        if self._log is not None:
            self._log.write(self._line(call, answer, record, stream=stream))

    def count_vectors(self, tenant: str, num_tokens: int) -> None:
        """So many tokens became vectors or scores."""
        self._metrics.server.tenant_tokens.add((tenant, "prompt"), num_tokens)

    def end(self) -> None:
        """No more requests come."""
        if self._log is not None:
            self._log.close()
            self._log = None

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
            model=self._model,
            tenant=call.tenant,
            adapter=call.adapter or "",
            stream=stream,
            n=request.params.n,
            max_tokens=request.params.max_tokens,
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            completion_tokens=usage["completion_tokens"],
            finish=facts["finish"],
            ttft=facts["ttft"],
            seconds=round(seconds, 4),
            machine_seconds=round(sum(self._ledger.seconds(request.id) for request in call.requests), 6),
            cost_usd=facts["cost_usd"],
            draft_tokens=facts.get("draft_tokens", 0),
            accepted_draft_tokens=facts.get("accepted_draft_tokens", 0),
        )
