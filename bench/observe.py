"""What observing costs: tokens a second with everything that watches, and with nothing, in turns on one engine.

    python bench/observe.py [MODEL] [--streams 1,16] [--rounds 8] [--tokens 96]
    python bench/observe.py [MODEL] --outside       # TTFT, TPOT and tokens: the series beside a client's clock

On: what steps report of each choice, the cost ledger, series, history, a scrape of /metrics and a look at the live
state every second. Off: none of it. Each round runs both, in alternating order, and the ratio of a round is
on / off; the median of the ratios and how far they spread are printed, as JSON with --json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from pagoda.config import EngineSettings
from pagoda.engine.load import LoadedEngine, load_engine
from pagoda.engine.recorder import StepRecorder
from pagoda.engine.scheduler import StepPlan
from pagoda.engine.snapshot import take_snapshot
from pagoda.observe.cost import CostLedger
from pagoda.observe.explain import explain
from pagoda.observe.history import History
from pagoda.observe.metrics import Metrics
from pagoda.observe.roofline import Roofline
from pagoda.types import Delta, Request, SamplingParams, StepResult


def count_prompt_tokens(self: StepRecorder, plan: StepPlan) -> None:
    """What a step reports of its work where nobody wants to know whose it is."""
    for seq, count in plan.counts.items():
        if seq.num_computed < seq.prompt_len:
            self._num_prompt_tokens += min(count, seq.prompt_len - seq.num_computed)


class Watchers:
    """Everything that watches an engine, which can be taken off and put on again."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self.loaded = loaded
        roofline = Roofline(1e8, 2e4, 2e8, 3e10, 9e11)
        self.ledger = CostLedger(1.0)
        self.metrics = Metrics("m", loaded.max_context, ledger=self.ledger)
        self.metrics.set_roofline(roofline)
        self.history = History(num_threads=2)
        self.history.roofline = roofline
        self._add_work = StepRecorder.add_work

    @contextmanager
    def put_on(self, on: bool) -> Iterator[None]:
        engine, over = self.loaded.engine, threading.Event()
        StepRecorder.add_work = self._add_work if on else count_prompt_tokens  # type: ignore[method-assign]
        engine.before_sinks[:] = [self.ledger.record] if on else []
        observers: list[Callable[[StepResult], None]] = [self.metrics.record, self.history.record]
        engine.on_step[:] = observers if on else []
        looker = threading.Thread(target=self._look, args=(over,))
        if on:
            looker.start()
        yield
        over.set()
        if on:
            looker.join()

    def _look(self, over: threading.Event) -> None:
        while not over.wait(1.0):
            self.metrics.exposition()
            self.loaded.engine.ask(take_snapshot).result(10)
            explain(self.history.facts())
            self.history.lines()


def outside(loaded: LoadedEngine) -> None:
    """Serve the engine over HTTP, load it, and print what a client measured beside what the series say."""
    from pagoda.benchmark.load import Load, parse_all, run_load
    from pagoda.config import ServerSettings
    from pagoda.server.listen import bind, url
    from pagoda.server.run import make_server

    sock, loading = bind("127.0.0.1", 0), Future[LoadedEngine]()
    server = make_server(ServerSettings(), loading)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]))
    thread.start()
    loading.set_result(loaded)
    service: Any = server.service
    while not service.ready:
        time.sleep(0.05)
    asked = Load(url(sock), concurrency=4, prompt=64, output=64, requests=32, model=loaded.model_name, vocab_size=30000)
    answers, errors = parse_all(asyncio.run(run_load(asked))[0])
    series = service.model().metrics.engine
    first, gap = series.time_to_first_token, series.time_per_output_token
    server.stop()
    thread.join()
    loaded.close()
    assert not errors, errors
    for name, mine, theirs in (
        ("TTFT ms", 1000 * first.sum / sum(first.counts), [1000 * answer.ttft for answer in answers]),
        ("TPOT ms", 1000 * gap.sum / sum(gap.counts), [1000 * (answer.tpot or 0.0) for answer in answers]),
        ("tokens", series.generation_tokens.value / len(answers), [float(answer.output_tokens) for answer in answers]),
    ):
        client = statistics.mean(theirs)
        print(f"{name}: {mine:.3f} by the series, {client:.3f} by a client, {100 * (mine / client - 1):+.2f} %")


def run(loaded: LoadedEngine, streams: int, tokens: int, name: str) -> float:
    """Tokens a second of so many streams that generate at once."""
    left = threading.Semaphore(0)

    def sink(delta: Delta) -> None:
        if delta.finish_reason is not None:
            left.release()

    start = time.perf_counter()
    for i in range(streams):
        prompt = tuple(1000 + (i * 37 + j * 11) % 20000 for j in range(32))
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        loaded.engine.submit(loaded.engine.validate(Request(f"{name}-{i}", prompt, params, time.monotonic())), sink)
    for _ in range(streams):
        left.acquire()
    return streams * tokens / (time.perf_counter() - start)


def measure(loaded: LoadedEngine, streams: int, rounds: int, tokens: int) -> dict[str, float]:
    """Median of on / off, the quartiles of the ratios, and the medians of tokens/s."""
    watchers = Watchers(loaded)
    rates: dict[bool, list[float]] = {True: [], False: []}
    run(loaded, streams, tokens, "warm")
    for number in range(rounds):
        for on in (True, False) if number % 2 else (False, True):
            with watchers.put_on(on):
                rates[on].append(run(loaded, streams, tokens, f"{number}-{on}"))
    ratios = sorted(on / off for on, off in zip(rates[True], rates[False], strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "streams": streams,
        "on_tok_s": round(statistics.median(rates[True]), 1),
        "off_tok_s": round(statistics.median(rates[False]), 1),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_p25": round(quartiles[0], 4),
        "ratio_p75": round(quartiles[2], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--streams", default="1,16")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--outside", action="store_true", help="compare series with what a client measures instead")
    args = parser.parse_args()
    loaded = load_engine(EngineSettings(model=args.model, max_context=1024, speculation=("off",)))
    if args.outside:
        return outside(loaded)
    loaded.engine.start()
    found = [measure(loaded, int(n), args.rounds, args.tokens) for n in args.streams.split(",")]
    loaded.close()
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for row in found:
        print(
            f"{row['streams']:>3} streams: {row['on_tok_s']} tokens/s watched, {row['off_tok_s']} not: watching costs "
            f"{100 * (1 - row['ratio']):+.2f} % (quartiles {100 * (1 - row['ratio_p75']):+.2f} to "
            f"{100 * (1 - row['ratio_p25']):+.2f} %)"
        )


if __name__ == "__main__":
    main()
