"""Sampling from the few logits that a device ranked: tokens, logprobs and errors are those of whole rows, bit for bit.

    greedy            the likeliest token
    top_k up to 64    every token that may be drawn; its weight depends on the likeliest token's and on no other
    logprobs          their sum comes from the device, which adds weights in the order of the sampler

A sequence with penalties, bias, bans or token masks, or one that draws from more tokens, needs its whole row. A drawing
sequence has a second state, over the ranked tokens alone, whose random numbers are the same: they depend on seed,
choice and position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import LOGIT_BLOCK, TopKBlocks
from pagoda.sampling.base import Sampled, SamplerState, SamplingBatch, StateSpec
from pagoda.sampling.reference import NOT_FINITE, NOTHING_ALLOWED
from pagoda.sampling.reference_reshape import reshapes
from pagoda.sampling.sampler import Sampler
from pagoda.types import FloatArray, Int32Array, Logprob, SamplingParams, TokenLogprobs

MAX_TOP_K = 64  # tokens that a device ranks for a sequence that needs more than the likeliest one


class TopKState:
    """A `SamplerState` over whole rows, and one over ranked tokens for a sequence that draws from them."""

    __slots__ = ("_top_k_needed", "params", "ranked", "whole")

    def __init__(
        self, whole: SamplerState, ranked: SamplerState | None, params: SamplingParams, top_k_needed: int
    ) -> None:
        self.whole, self.ranked, self.params, self._top_k_needed = whole, ranked, params, top_k_needed

    @property
    def top_k_needed(self) -> int:
        """How many of the likeliest tokens decide the next one; 0: it takes the whole row."""
        return self._top_k_needed if self.whole.num_outputs >= self.params.min_tokens else 0

    @property
    def num_outputs(self) -> int:
        return self.whole.num_outputs

    def accept(self, token_id: int) -> None:
        self.whole.accept(token_id)
        if self.ranked is not None:
            self.ranked.accept(0)

    def rewind(self, num_outputs: int) -> None:
        self.whole.rewind(num_outputs)
        if self.ranked is not None:
            self.ranked.rewind(num_outputs)


class TopKSampler:
    """A `SamplerProtocol` that can also sample from `TopKBlocks`."""

    def __init__(self, vocab_size: int, *, isa: str | None = None) -> None:
        self._max_top_k = min(MAX_TOP_K, -(-vocab_size // LOGIT_BLOCK))
        self._whole = Sampler(vocab_size, isa=isa)
        self._ranked = Sampler(self._max_top_k * LOGIT_BLOCK, isa=isa)
        self._whole_blocks = vocab_size % LOGIT_BLOCK == 0

    def open(self, spec: StateSpec) -> TopKState:
        params = spec.params
        top_k_needed = 0 if spec.bad_words else self._top_k_needed(params)
        ranked = None
        if top_k_needed and params.temperature > 0:
            drawing = replace(params, min_tokens=0, logprobs=None)
            ranked = self._ranked.open(StateSpec(drawing, (), spec.choice_index, spec.seed))
        return TopKState(self._whole.open(spec), ranked, params, top_k_needed)

    def _top_k_needed(self, params: SamplingParams) -> int:
        plain = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
        if not plain or params.logit_bias or params.allowed_token_ids is not None or params.dry_multiplier:
            return 0
        if params.logprob_token_ids:
            return 0
        if params.temperature > 0 and reshapes(params):
            return 0
        if params.temperature > 0 and not 0 < params.top_k <= self._max_top_k:
            return 0
        if params.logprobs is not None and (params.logprobs > self._max_top_k or not self._whole_blocks):
            return 0
        return 1 if params.temperature == 0 and params.logprobs is None else self._max_top_k

    def sample(self, batch: SamplingBatch) -> Sampled:
        states = [state.whole if isinstance(state, TopKState) else state for state in batch.states]
        return self._whole.sample(replace(batch, states=states))

    def prompt_logprobs(self, logits: FloatArray, targets: Int32Array, num_top: int) -> list[TokenLogprobs]:
        return self._whole.prompt_logprobs(logits, targets, num_top)

    def sample_ranked(self, ranked: TopKBlocks, states: Sequence[TopKState], rows: Int32Array) -> Sampled:
        """Pick the next token of each state; state n reads row rows[n], of which it needs no more than was ranked."""
        values = ranked.logits.reshape(len(ranked.logits), -1)
        places = values[rows].argmax(1).astype(np.int32)  # NaN is taken for the greatest
        errors = _errors(values[rows, places])
        drawn = [n for n, state in enumerate(states) if state.ranked is not None and n not in errors]
        if drawn:
            drawing = [state for n in drawn if (state := states[n].ranked) is not None]
            places[drawn] = self._ranked.sample(SamplingBatch(values, drawing, rows[drawn])).token_ids
        token_ids = ranked.blocks[rows, places // LOGIT_BLOCK] * LOGIT_BLOCK + places % LOGIT_BLOCK
        logprobs: list[TokenLogprobs | None] = [None] * len(states)
        for n, state in enumerate(states):
            if state.params.logprobs is not None and n not in errors:
                logprobs[n] = token_logprobs(ranked, int(rows[n]), int(places[n]), state.params.logprobs)
        return Sampled(token_ids, logprobs, errors)


def _errors(greatest: FloatArray) -> dict[int, str]:
    """Which rows allow no token, by the greatest logit of each, and why."""
    if np.isfinite(greatest).all():
        return {}
    return {
        n: NOTHING_ALLOWED if value == -math.inf else NOT_FINITE
        for n, value in enumerate(greatest.tolist())
        if not math.isfinite(value)
    }


def token_logprobs(ranked: TopKBlocks, row: int, place: int, num_top: int) -> TokenLogprobs:
    """Logprobs, under the model's own distribution, of the token at `place` of the row's ranked logits."""
    values: FloatArray = ranked.logits[row].reshape(-1)
    assert ranked.weights is not None
    total = float(np.cumsum(ranked.weights[row].astype(np.float64))[-1])  # one after the other, as the sampler does
    log_sum = float(values.max()) + math.log(total)

    def logprob(at: int, rank: int) -> Logprob:
        token_id = int(ranked.blocks[row, at // LOGIT_BLOCK]) * LOGIT_BLOCK + at % LOGIT_BLOCK
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
