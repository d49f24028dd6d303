"""`deadline_ms`: an answer that would come too late is refused at once, and one that has become hopeless is dropped.

Expected seconds of an answer, by what the engine's steps have taken lately, or where none have been taken, by the
planner's figures: half of the machine's arithmetic for prompts, and its whole bandwidth for further tokens:

    prompt tokens that wait / prompt tokens a second + own prompt tokens / prompt tokens a second
      + (max_tokens − 1) · seconds between two tokens

Without max_tokens only the first token can be promised. A request that has no token yet when its prompt could no longer
be computed in time, or that has not ended at its deadline, is dropped (504).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from pagoda.errors import DeadlineError
from pagoda.observe.history import History
from pagoda.observe.metrics import Metrics
from pagoda.server.admission import Admission, PromptSpeed
from pagoda.server.call import Call, DeltaStream, Serve

PREFILL_SHARE = 0.5  # of the measured peak, that prompts reach where nothing is known yet


class Deadlines:
    """A layer that looks at calls with a deadline."""

    def __init__(
        self,
        admission: Admission,
        speed: PromptSpeed,
        history: History,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admission, self._speed, self._history, self._metrics = admission, speed, history, metrics
        self._clock = clock

    async def __call__(self, call: Call, serve: Serve) -> DeltaStream:
        """Raises DeadlineError where the answer would come too late."""
        if call.deadline is None:
            return await serve(call)
        prompt_s, answer_s, waiting_s = self._expected(call)
        left = call.deadline - self._clock()
        if waiting_s + prompt_s + answer_s > left:
            self._metrics.server.http_rejected.add("deadline")
            raise DeadlineError(
                f"deadline_ms cannot be met: {1000 * max(left, 0):.0f} ms are left, and the answer is expected in "
                f"{1000 * (waiting_s + prompt_s + answer_s):.0f} ms ({1000 * waiting_s:.0f} waiting, "
                f"{1000 * prompt_s:.0f} for the prompt, {1000 * answer_s:.0f} for up to {_longest(call)} tokens)",
                retry_after=waiting_s,
                code="deadline_unreachable",
            )
        return await serve(replace(call, start_by=call.deadline - prompt_s))

    def _expected(self, call: Call) -> tuple[float, float, float]:
        """Seconds for the prompts, for the tokens after the first, and of waiting before both."""
        per_second, tpot = self._figures()
        prompt_s = sum(len(request.prompt_token_ids) for request in call.requests) / per_second
        return prompt_s, max(0, _longest(call) - 1) * tpot, self._admission.tokens.waiting / per_second

    def _figures(self) -> tuple[float, float]:
        """Prompt tokens a second, and seconds between two tokens."""
        line, tpot, per_second = self._history.roofline, self._history.facts().tpot_s, self._speed.measured()
        if line is not None and line.peak and line.bandwidth and line.token_operations:
            per_second = per_second or PREFILL_SHARE * line.peak / line.token_operations
            tpot = tpot or line.weight_bytes / line.bandwidth
        return per_second or self._speed.per_second(), tpot or 0.0


def _longest(call: Call) -> int:
    return max((request.params.max_tokens or 1 for request in call.requests), default=1)
