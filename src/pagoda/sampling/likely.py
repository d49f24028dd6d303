"""Sampling from the few logits that a device ranked: tokens, logprobs and errors are those of whole rows, bit for bit.

    greedy            the likeliest token
    top_k up to 64    every token that may be drawn; its weight is beside the likeliest one's, whoever else there is
    logprobs          their sum comes from the device, which adds weights in the order of the sampler

A sequence with penalties, bias or bans, or one that draws from more tokens, needs its whole row. A drawing sequence has
a second state, over the ranked tokens alone, whose random numbers are the same: they go by seed, choice and position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import LOGIT_BLOCK, Likeliest
from pagoda.sampling.base import Sampled, SamplerState, TokenMasks, TokenSequences
from pagoda.sampling.reference import NOT_FINITE, NOTHING_ALLOWED
from pagoda.sampling.sampler import Sampler
from pagoda.types import FloatArray, Int32Array, Logprob, SamplingParams, TokenLogprobs

REACH = 64  # of the likeliest tokens that a device finds for whoever needs more than one


class LikelyState:
    """A `SamplerState` of whole rows, and what sampling from ranked tokens takes besides."""

    __slots__ = ("_reach", "near", "params", "whole")

    def __init__(self, whole: SamplerState, near: SamplerState | None, params: SamplingParams, reach: int) -> None:
        self.whole, self.near, self.params, self._reach = whole, near, params, reach

    @property
    def reach(self) -> int:
        """How many of the likeliest tokens decide the next one; 0: all."""
        return self._reach if self.whole.num_outputs >= self.params.min_tokens else 0

    @property
    def num_outputs(self) -> int:
        return self.whole.num_outputs

    def accept(self, token_id: int) -> None:
        self.whole.accept(token_id)
        if self.near is not None:
            self.near.accept(0)

    def rewind(self, num_outputs: int) -> None:
        self.whole.rewind(num_outputs)
        if self.near is not None:
            self.near.rewind(num_outputs)


class LikelySampler:
    """A `SamplerProtocol` that can also sample from `Likeliest`."""

    def __init__(self, vocab_size: int, *, isa: str | None = None) -> None:
        self._blocks = min(REACH, -(-vocab_size // LOGIT_BLOCK))
        self._whole = Sampler(vocab_size, isa=isa)
        self._near = Sampler(self._blocks * LOGIT_BLOCK, isa=isa)
        self._whole_blocks = vocab_size % LOGIT_BLOCK == 0

    def open(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        choice_index: int,
        seed: int,
        *,
        stop_token_ids: Sequence[int] = (),
        bad_words: TokenSequences = (),
    ) -> LikelyState:
        whole = self._whole.open(
            params, prompt_token_ids, choice_index, seed, stop_token_ids=stop_token_ids, bad_words=bad_words
        )
        reach = 0 if bad_words else self._reach_of(params)
        near = None
        if reach and params.temperature > 0:
            near = self._near.open(replace(params, min_tokens=0, logprobs=None), (), choice_index, seed)
        return LikelyState(whole, near, params, reach)

    def _reach_of(self, params: SamplingParams) -> int:
        plain = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
        if not plain or params.logit_bias or params.allowed_token_ids is not None:
            return 0
        if params.temperature > 0 and not 0 < params.top_k <= self._blocks:
            return 0
        if params.logprobs is not None and (params.logprobs > self._blocks or not self._whole_blocks):
            return 0
        return 1 if params.temperature == 0 and params.logprobs is None else self._blocks

    def sample(
        self,
        logits: FloatArray,
        states: Sequence[SamplerState],
        *,
        rows: Int32Array | None = None,
        masks: TokenMasks | None = None,
    ) -> Sampled:
        return self._whole.sample(logits, [_likely(state).whole for state in states], rows=rows, masks=masks)

    def prompt_logprobs(self, logits: FloatArray, targets: Int32Array, num_top: int) -> list[TokenLogprobs]:
        return self._whole.prompt_logprobs(logits, targets, num_top)

    def sample_likeliest(self, likeliest: Likeliest, states: Sequence[LikelyState], rows: Int32Array) -> Sampled:
        """State n reads row rows[n], which reaches as far as it needs. Nothing is accepted yet."""
        values = likeliest.logits.reshape(len(likeliest.logits), -1)
        places = values[rows].argmax(1).astype(np.int32)  # NaN is taken for the greatest
        errors = _errors(values[rows, places])
        drawn = [n for n, state in enumerate(states) if state.near is not None and n not in errors]
        if drawn:
            near = [state for n in drawn if (state := states[n].near) is not None]
            places[drawn] = self._near.sample(values, near, rows=rows[drawn]).token_ids
        token_ids = likeliest.blocks[rows, places // LOGIT_BLOCK] * LOGIT_BLOCK + places % LOGIT_BLOCK
        logprobs: list[TokenLogprobs | None] = [None] * len(states)
        for n, state in enumerate(states):
            if state.params.logprobs is not None and n not in errors:
                logprobs[n] = token_logprobs(likeliest, int(rows[n]), int(places[n]), state.params.logprobs)
        return Sampled(token_ids, logprobs, errors)


def _likely(state: SamplerState) -> LikelyState:
    assert isinstance(state, LikelyState)
    return state


def _errors(greatest: FloatArray) -> dict[int, str]:
    """Of rows by their greatest logit."""
    if np.isfinite(greatest).all():
        return {}
    return {
        n: NOTHING_ALLOWED if value == -math.inf else NOT_FINITE
        for n, value in enumerate(greatest.tolist())
        if not math.isfinite(value)
    }


def token_logprobs(likeliest: Likeliest, row: int, place: int, num_top: int) -> TokenLogprobs:
    """Of the token at `place` of the row's ranked ones, under the model's own distribution."""
    values: FloatArray = likeliest.logits[row].reshape(-1)
    assert likeliest.weights is not None
    total = float(np.cumsum(likeliest.weights[row].astype(np.float64))[-1])  # one after the other, as the sampler does
    log_sum = float(values.max()) + math.log(total)

    def logprob(at: int, rank: int) -> Logprob:
        token_id = int(likeliest.blocks[row, at // LOGIT_BLOCK]) * LOGIT_BLOCK + at % LOGIT_BLOCK
        return Logprob(token_id, float(values[at]) - log_sum, rank)

    chosen = logprob(place, 1 + int(np.count_nonzero(values > values[place])))
    return TokenLogprobs(chosen, tuple(logprob(at, rank) for rank, at in enumerate(_top(values, num_top), start=1)))


def _top(values: FloatArray, count: int) -> Sequence[int]:
    """Places of the greatest values, equals in their order; none that are -inf."""
    if count == 0:
        return []
    least = np.partition(values, -count)[-count]
    some: npt.NDArray[np.intp] = np.flatnonzero((values >= least) & (values > -math.inf))
    order = np.argsort(-values[some], kind="stable")[:count]
    return [int(at) for at in some[order]]
