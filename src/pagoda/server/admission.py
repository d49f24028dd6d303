"""Who may wait: a queue bounded by requests and by prompt tokens, and how long the refused should stay away.

A request waits from its arrival until its first token. `Retry-After` is what the queue's own drain says: the work
that must leave before this request fits, over the rate at which work has been leaving. While nothing has left yet, the
prompt tokens that stand before it, over the speed at which steps have computed prompts.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable

from pagoda.errors import OverloadedError, RequestError
from pagoda.server.call import Call, DeltaStream, Serve
from pagoda.types import Delta, StepResult

MIN_RETRY_S = 1.0
MAX_RETRY_S = 120.0
COLD_SPEED = 200.0  # prompt tokens a second, before the first step has told: a slow machine's


class DrainRate:
    """Work leaving per second, over about the last `memory` seconds of a busy queue."""

    def __init__(self, memory: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory = memory
        self._clock = clock
        self._work = 0.0
        self._seconds = 0.0
        self._since: float | None = None  # None: the queue is empty, and idle time says nothing of its speed

    def start(self) -> None:
        """Work waits, from now at the latest."""
        if self._since is None:
            self._since = self._clock()

    def leave(self, work: float, *, empty: bool) -> None:
        """`work` has left the queue, which is now empty or not."""
        self._age()
        self._work += work
        if empty:
            self._since = None

    def per_second(self) -> float | None:
        """None while nothing has left yet."""
        self._age()
        return self._work / self._seconds if self._work and self._seconds else None

    def _age(self) -> None:
        if self._since is None:
            return
        now = self._clock()
        elapsed, self._since = now - self._since, now
        kept = math.exp(-elapsed / self._memory)
        self._work *= kept
        self._seconds = self._seconds * kept + elapsed


class PromptSpeed:
    """Prompt tokens a second in the engine's steps, over about the last `memory` seconds of them."""

    def __init__(self, memory: float = 10.0) -> None:
        self._memory = memory
        self._tokens = 0.0
        self._seconds = 0.0

    def record(self, step: StepResult) -> None:
        """An observer of steps, on the engine's thread."""
        if step.num_prompt_tokens and step.step_s:
            kept = math.exp(-step.step_s / self._memory)
            self._tokens = self._tokens * kept + step.num_prompt_tokens
            self._seconds = self._seconds * kept + step.step_s

    def measured(self) -> float | None:
        """None before the first step with a prompt."""
        return self._tokens / self._seconds if self._seconds else None

    def per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds else COLD_SPEED


class Bounded:
    """One bound of the queue: how much waits, how much may, how fast it drains."""

    def __init__(self, what: str, flag: str, limit: int, clock: Callable[[], float]) -> None:
        self.what, self.flag, self.limit = what, flag, limit
        self.waiting = 0
        self.rate = DrainRate(clock=clock)

    def excess(self, amount: int) -> int:
        """How much must leave before `amount` more fits. An empty queue takes anything."""
        return max(0, self.waiting + amount - self.limit) if self.waiting else 0

    def enter(self, amount: int) -> None:
        self.rate.start()
        self.waiting += amount

    def leave(self, amount: int) -> None:
        self.waiting -= amount
        self.rate.leave(amount, empty=not self.waiting)

    def seconds_until_fits(self, amount: int) -> float | None:
        """None while nothing has left."""
        rate = self.rate.per_second()
        return min(self.excess(amount), self.waiting) / rate if rate else None


class Admission:
    """A layer that refuses what does not fit in the queue."""

    def __init__(
        self, max_requests: int, max_tokens: int, speed: PromptSpeed, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._speed = speed
        self.requests = Bounded("requests", "--max-queue-requests", max_requests, clock)
        self.tokens = Bounded("prompt tokens", "--max-queue-tokens", max_tokens, clock)

    async def __call__(self, call: Call, serve: Serve) -> DeltaStream:
        """Raises OverloadedError when the queue is full."""
        requests = call.requests
        if len(requests) > self.requests.limit:
            raise RequestError(
                f"{len(requests)} prompts in one request, but at most {self.requests.limit} may wait", param="prompt"
            )
        self._check(self.requests, len(requests))
        self._check(self.tokens, sum(len(request.prompt_token_ids) for request in requests))
        waiting = {request.id: len(request.prompt_token_ids) for request in requests}
        for num_tokens in waiting.values():
            self.requests.enter(1)
            self.tokens.enter(num_tokens)
        try:
            return AdmittedStream(self, await serve(call), waiting)
        except BaseException:
            for num_tokens in waiting.values():
                self.leave(num_tokens)
            raise

    def leave(self, num_tokens: int) -> None:
        """A request of that many prompt tokens waits no longer."""
        self.requests.leave(1)
        self.tokens.leave(num_tokens)

    def _check(self, bound: Bounded, amount: int) -> None:
        if bound.excess(amount):
            seconds = bound.seconds_until_fits(amount)
            if seconds is None:
                share = min(bound.excess(amount) / bound.waiting, 1.0)  # of the queue that must leave
                seconds = share * self.tokens.waiting / self._speed.per_second()
            raise OverloadedError(
                f"the queue is full: {bound.waiting} {bound.what} wait, {bound.limit} may ({bound.flag})",
                retry_after=min(max(seconds, MIN_RETRY_S), MAX_RETRY_S),
            )


class AdmittedStream:
    """Passes deltas through; a request leaves the queue with its first one, or when the stream is closed."""

    def __init__(self, admission: Admission, stream: DeltaStream, waiting: dict[str, int]) -> None:
        self._admission = admission
        self._stream = stream
        self._waiting = waiting  # request id → prompt tokens

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        async for deltas in self._stream:
            if self._waiting:
                for delta in deltas:
                    self._leave(delta.request_id)
            yield deltas

    def close(self) -> None:
        self._stream.close()
        for request_id in list(self._waiting):
            self._leave(request_id)

    def _leave(self, request_id: str) -> None:
        num_tokens = self._waiting.pop(request_id, None)
        if num_tokens is not None:
            self._admission.leave(num_tokens)
