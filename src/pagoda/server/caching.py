"""The layer that answers from the cache: exact repeats, then questions that want the same answer, then who asks below.

Lookups run on threads of their own and get a bounded time; what takes longer, or fails, is a miss. Answers are kept
after they have been given.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from pagoda.cache.cache import Candidate, Found, SemanticCache, is_shadowed
from pagoda.cache.entry import Answer
from pagoda.cache.policy import Question
from pagoda.cache.question_log import Logged, QuestionLog
from pagoda.cache.store import StoreError
from pagoda.errors import ModelNotFoundError
from pagoda.observe.cache_series import CacheSeries
from pagoda.observe.tracing import Part
from pagoda.server.call import Call, DeltaStream, Serve
from pagoda.server.flight import Flight
from pagoda.server.question import Asked, Asks, Bypass
from pagoda.server.replay import Replay, answer_of
from pagoda.server.shadow import Judge, Shadow
from pagoda.types import FloatArray

logger = logging.getLogger("pagoda.cache")

HEADER = "X-Pagoda-Cache"
EMBED_S = 0.2  # that an embedding may take; the store's time is a setting
THREADS = 4
MAX_WRITES = 1000  # answers that wait to be kept; more are not kept
REST_S = 1.0  # that a store is left alone after it has failed or was slow several times
FAILURES = 3
AWAY_S = 30.0  # that it is called away after that
COUNTED_S = 30.0  # that a count of entries is shown before they are counted anew

T = TypeVar("T")


class SlowError(Exception):
    """Something took longer than it may."""


@dataclass(slots=True)
class Health:
    """Whether the store is worth asking."""

    failures: int = 0
    rests_until: float = 0.0
    away_until: float = 0.0  # so long it is thought away, unless it answers

    def failed(self) -> None:
        self.failures += 1
        now = time.monotonic()
        if self.failures >= FAILURES:
            self.failures, self.rests_until = 0, now + REST_S
            self.away_until = now + AWAY_S

    def answered(self) -> None:
        self.failures, self.away_until = 0, 0.0

    @property
    def is_away(self) -> bool:
        return time.monotonic() < self.away_until

    @property
    def rests(self) -> bool:
        return time.monotonic() < self.rests_until


def is_cached(call: Call) -> bool:
    """Whether the call was answered without the engine, as far as its headers tell."""
    return call.headers.get(HEADER, "").startswith("hit")


class Caching:
    """The layer. `ask` makes a question of a call, or says why there is none."""

    def __init__(
        self,
        cache: SemanticCache,
        ask: Asks,
        series: CacheSeries,
        *,
        budget: float = 0.02,
        shadow: float = 0.05,
        open_judge: Callable[[], Awaitable[Judge]] | None = None,
        log: QuestionLog | None = None,
    ) -> None:
        """`budget`: seconds that one question to the store may take; `shadow`: share of hits that are checked, by the
        judge too where there is one; `log` gets what the model answered, and repeats of the same words."""
        self.cache = cache
        self.series = series
        self._ask = ask
        self._budget = budget
        self._shadow_share = shadow
        self._shadow = Shadow(cache, series, open_judge)
        self._log = log
        self._flights: dict[str, Flight] = {}
        self._lookups = ThreadPoolExecutor(THREADS, "pagoda-cache")
        self._writer = ThreadPoolExecutor(1, "pagoda-cache-writer")
        self._num_writes = 0
        self._health = Health()
        self._writing = Health()  # of writes: a full disk can still be read
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_hit: Callable[[Call, Answer], None] = lambda call, answer: None

    @property
    def is_away(self) -> bool:
        """Whether the store has failed again and again of late, and not answered since."""
        return self._health.is_away

    async def __call__(self, call: Call, serve: Serve) -> DeltaStream:
        try:
            asked = await self._run(self._lookups, lambda: self._ask(call), EMBED_S)
        except SlowError:
            return await self._pass(call, serve, Bypass("too much work"))
        if isinstance(asked, Bypass):
            return await self._pass(call, serve, asked)
        question = asked.question
        found, vector = Found(None, "not asked"), None
        if call.cache.reads:
            start = time.monotonic()
            found, vector = await self._find(question)
            end = time.monotonic()
            self.series.lookup.observe(end - start)
            call.parts.append(Part("cache lookup", start, end, {"pagoda.cache.why": found.why}))
            if found.entry is not None:
                return self._replay(question, call, serve, found)
            if asked.flight_key in self._flights and call.cache.writes:
                self._note(call, "hit", "under way")
                return await self._flights[asked.flight_key].join(call.requests[0].id, free=True)
        self._note(call, "miss", found.why, found.candidate)
        flight = self._fly(call, serve, asked, found, vector)
        return await flight.join(call.requests[0].id, free=False)

    async def _pass(self, call: Call, serve: Serve, bypass: Bypass) -> DeltaStream:
        self._note(call, "bypass", bypass.why)
        return await serve(call)

    async def _find(self, question: Question) -> tuple[Found, FloatArray | None]:
        """What is there for the question, and its vector if that was needed. Never raises, and takes a bounded time."""
        if self._health.rests:
            return Found(None, "store away"), None
        vector = None
        try:
            found = await self._run(self._lookups, lambda: self.cache.find_same(question), self._budget)
            if found.kind is None and question.is_comparable and self.cache.embedder is not None:
                vector = await self._run(self._lookups, lambda: self.cache.embed(question.text), EMBED_S)
                if vector is not None:
                    here = vector
                    found = await self._run(self._lookups, lambda: self.cache.find_alike(question, here), self._budget)
            self._health.answered()
            return found, vector
        except SlowError:
            self._health.failed()
            return Found(None, "too slow"), vector
        except StoreError as error:
            self._health.failed()
            logger.warning("the cache's store failed", extra={"facts": {"why": str(error)[:300]}})
            return Found(None, "store failed"), vector
        except Exception:  # a cache never fails a request
            logger.exception("a lookup in the cache failed")
            return Found(None, "failed"), vector

    def _replay(self, question: Question, call: Call, serve: Serve, found: Found) -> DeltaStream:
        entry = found.entry
        assert entry is not None
        assert found.candidate is not None
        self._note(call, "hit", found.why, found.candidate)
        answer = entry.answer
        self.series.save(call.tenant, call.adapter or "", answer.prompt_tokens, answer.completion_tokens)
        self.on_hit(call, answer)
        if found.kind == "meaning" and is_shadowed(self._shadow_share):
            self._in_background(self._shadow.check(question.text, call, serve, found.candidate))
        elif self._log is not None and found.kind != "meaning":
            self._writer.submit(self._log.write, Logged(question.text, answer.text, question.partition))
        return Replay(call.requests[0].id, answer)

    def _fly(self, call: Call, serve: Serve, asked: Asked, found: Found, vector: FloatArray | None) -> Flight:
        key = asked.flight_key

        def end(flight: Flight) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not flight.is_whole or (answer := answer_of(call, flight.deltas)) is None:
                return
            with contextlib.suppress(ModelNotFoundError):  # the adapter is gone, or another one has its name
                if self._ask.identity.of(call) == asked.identity:
                    self._write(asked.question, answer, vector, found.candidate, keeps=call.cache.writes)

        flight = Flight(call, serve, end)
        if call.cache.writes and key not in self._flights:
            self._flights[key] = flight
        return flight

    def _write(
        self, question: Question, answer: Answer, vector: FloatArray | None, candidate: Candidate | None, *, keeps: bool
    ) -> None:
        """Keep an answer and learn from it, on the writer's thread."""
        if self._num_writes >= MAX_WRITES:
            self.series.lost_writes.value += 1
            return
        self._num_writes += 1

        def work() -> None:
            try:
                if self._log is not None:
                    self._log.write(Logged(question.text, answer.text, question.partition))
                if candidate is not None:
                    self.cache.compare(candidate, answer.text, hit=False)
                if keeps:
                    self._keep(question, answer, vector)
            except Exception:
                self.series.lost_writes.value += keeps
                logger.exception("an answer was not kept")
            finally:
                self._num_writes -= 1

        self._writer.submit(work)

    def _keep(self, question: Question, answer: Answer, vector: FloatArray | None) -> None:
        """Keep the answer, unless the store is left alone."""
        if self._health.rests or self._writing.rests:
            self.series.lost_writes.value += 1
            return
        if vector is None and question.is_comparable:
            vector = self.cache.embed(question.text)
        try:
            self.cache.keep(question, answer, vector)
            self._writing.answered()
            self.series.writes.value += 1
        except StoreError as error:
            self._writing.failed()
            self.series.lost_writes.value += 1
            logger.warning("an answer was not kept", extra={"facts": {"why": str(error)[:300]}})

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T], seconds: float) -> T:
        """`work` on a thread. Raises SlowError when it takes longer; it then goes on, and nobody looks at it."""
        future = asyncio.get_running_loop().run_in_executor(pool, work)
        done, _ = await asyncio.wait([future], timeout=seconds)
        if not done:
            future.add_done_callback(lambda late: late.exception())
            raise SlowError
        return future.result()

    def _note(self, call: Call, outcome: str, why: str, candidate: Candidate | None = None) -> None:
        """Tell the client and the metrics. No text of anybody's is in it."""
        self.series.count(outcome, why, call.tenant, call.adapter or "")
        parts = [outcome, why]
        if candidate is not None:
            parts.append(f"similarity={candidate.similarity:.3f}")
            if outcome == "hit":
                parts += [f"age={max(0.0, time.time() - candidate.entry.created):.0f}", f"id={candidate.entry.id}"]
        call.headers[HEADER] = "; ".join(parts)

    def update_series(self) -> None:
        """Set the gauges, from any thread."""
        state, series = self.cache.evidence.state(), self.series
        series.checked_hits.value = state.num_checked
        series.wrong_ratio.value = state.num_checked_wrong / state.num_checked if state.num_checked else 0.0
        series.wrong_ratio_low.value, series.wrong_ratio_high.value = state.interval
        series.wrong_ratio_max.value = state.max_wrong
        series.expected_wrong.value = state.expected_wrong
        for tenant, checked in self.cache.checked:
            series.set_checked(tenant, checked.num_hits, checked.share, checked.interval)
        series.evictions.value = self.cache.num_evicted
        if not self._health.rests:
            with contextlib.suppress(StoreError):
                series.entries.value = self.cache.num_entries(COUNTED_S)

    async def flush(self) -> None:
        """Until all answers so far are kept. For tests, and before the end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._writer, lambda: None)

    def close(self) -> None:
        """Keep what waits to be kept, and let go of the store."""
        self._shadow.close()
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown(wait=True)
        if self._log is not None:
            self._log.close()
        self.cache.close()
