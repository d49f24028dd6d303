"""Picking the next token of every row of a batch, natively (csrc/sampler.cpp).

Cost: a state is made once for each sequence, a step is one native call without the GIL, and a plain row (no penalty,
bias, ban or logprobs) costs Python nothing of its own. The vocabulary is never sorted.

A sequence's tokens depend on its logits, params, seed and choice index alone: random numbers are counter-based
(`pagoda.sampling.philox`), weights and sums have one order of operations on every machine and instruction set.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagoda._native import BatchSampler, sampler_isas
from pagoda._native import SamplerState as NativeState
from pagoda.errors import ConfigError
from pagoda.sampling.base import Sampled, SamplerState, SamplingBatch, StateSpec
from pagoda.sampling.reference import with_listed
from pagoda.types import FloatArray, Int32Array, Logprob, SamplingParams, TokenLogprobs, UInt32Array

RawLogprobs = tuple[float, int, list[int], list[float]]  # the chosen one's, its rank, the likeliest ids, theirs


class _ListingState(NativeState):
    """The state of a sequence that wants logprobs of certain tokens besides the likeliest."""

    logprob_token_ids: tuple[int, ...]


class Sampler:
    """See `pagoda.sampling.base.SamplerProtocol`.

    `isa` forces an instruction set, which changes speed only; ConfigError where the machine lacks it.
    """

    def __init__(self, vocab_size: int, *, isa: str | None = None) -> None:
        if isa is not None and isa not in sampler_isas():
            raise ConfigError(f"isa {isa!r} is not available on this machine; available: {', '.join(sampler_isas())}")
        self.vocab_size = vocab_size
        self._native = BatchSampler(vocab_size, isa)

    def open(self, spec: StateSpec) -> NativeState:
        params = spec.params
        state = (_ListingState if params.logprob_token_ids else NativeState)(
            vocab_size=self.vocab_size,
            prompt_ids=spec.prompt_token_ids if _looks_at_prompt(params) else (),
            seed=spec.seed & (2**64 - 1),
            choice=spec.choice_index,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            min_tokens=params.min_tokens,
            num_logprobs=params.logprobs,
            allowed_ids=params.allowed_token_ids,
            stop_ids=[token_id for token_id in spec.stop_token_ids if token_id < self.vocab_size],
            bias=list(params.logit_bias.items()),
            bad_words=[word for word in spec.bad_words if max(word) < self.vocab_size],
            top_n_sigma=params.top_n_sigma,
            typical_p=params.typical_p,
            xtc_probability=params.xtc_probability,
            xtc_threshold=params.xtc_threshold,
            dynatemp_range=params.dynatemp_range,
            dynatemp_exponent=params.dynatemp_exponent,
            mirostat=params.mirostat,
            mirostat_tau=params.mirostat_tau,
            mirostat_eta=params.mirostat_eta,
            temperature_last=params.temperature_last,
            dry_multiplier=params.dry_multiplier,
            dry_base=params.dry_base,
            dry_allowed_length=params.dry_allowed_length,
            dry_last_n=params.dry_penalty_last_n,
            dry_breakers=[breaker for breaker in spec.dry_breakers if max(breaker) < self.vocab_size],
        )
        if isinstance(state, _ListingState):
            state.logprob_token_ids = params.logprob_token_ids
        return state

    def sample(self, batch: SamplingBatch) -> Sampled:
        num_states, masks = len(batch.states), batch.masks
        token_ids = np.empty(num_states, dtype=np.int32)
        mask_rows, allowed = (None, None) if masks is None else (masks.rows, masks.allowed)
        details = self._native.sample(batch.logits, tuple(batch.states), token_ids, batch.rows, mask_rows, allowed)
        logprobs: list[TokenLogprobs | None] = [None] * num_states
        if details is None:
            return Sampled(token_ids, logprobs)
        errors, found = details
        for n, raw in found:
            logprobs[n] = made = _token_logprobs(int(token_ids[n]), raw)
            state = batch.states[n]
            if isinstance(state, _ListingState):
                row = batch.logits[n if batch.rows is None else batch.rows[n]]
                logprobs[n] = with_listed(made, row, state.logprob_token_ids)
        return Sampled(token_ids, logprobs, dict(errors))

    def distribution(
        self, logits: FloatArray, state: SamplerState, *, mask: UInt32Array | None = None
    ) -> tuple[Int32Array, npt.NDArray[np.float64]]:
        """Every token that sampling from logits [V] can pick, by id, and how likely. Raises ValueError if none can."""
        ids, probs = self._native.distribution(logits, state, mask)
        return np.array(ids, dtype=np.int32), np.array(probs, dtype=np.float64)

    def prompt_logprobs(self, logits: FloatArray, targets: Int32Array, num_top: int) -> list[TokenLogprobs]:
        """Raises ValueError where the model's logits are not finite."""
        found = self._native.prompt_logprobs(logits, targets, num_top)
        return [_token_logprobs(target, raw) for target, raw in zip(targets.tolist(), found, strict=True)]


def _looks_at_prompt(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.dry_multiplier != 0.0


def _token_logprobs(token_id: int, raw: RawLogprobs) -> TokenLogprobs:
    logprob, rank, top_ids, top = raw
    likeliest = tuple(map(Logprob, top_ids, top, range(1, len(top) + 1)))
    return TokenLogprobs(Logprob(token_id, logprob, rank), likeliest)
