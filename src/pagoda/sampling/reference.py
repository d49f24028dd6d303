"""Sampling in plain numpy, by sorting: slow, and the truth that the native sampler is tested against.

Order, as vLLM's: allowed ids, masks, bad words, min_tokens, bias, penalties, temperature, min_p, top_k, top_p, draw.
Tokens rank by logit, ties by id, lower first. The draw walks the kept tokens by id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pagoda.sampling.base import Sampled, SamplingBatch, StateSpec
from pagoda.sampling.philox import uniform
from pagoda.sampling.reference_reshape import candidates, dry_penalties, reshapes
from pagoda.types import FloatArray, Int32Array, Logprob, SamplingParams, TokenLogprobs, UInt32Array

Float64Array = npt.NDArray[np.float64]

XTC_STREAM = 1  # of random numbers
NOT_FINITE = "the model's logits hold NaN or +inf"
NOTHING_ALLOWED = "every token is ruled out by masks, allowed_token_ids, bad_words or min_tokens together"


class ReferenceState:
    """Everything is recomputed from the token lists whenever it is needed."""

    def __init__(self, spec: StateSpec) -> None:
        self.params = spec.params
        self.prompt_token_ids = tuple(spec.prompt_token_ids)
        self.choice_index = spec.choice_index
        self.seed = spec.seed
        self.stop_token_ids = tuple(spec.stop_token_ids)
        self.bad_words = tuple(tuple(word) for word in spec.bad_words)
        self.dry_breakers = tuple(tuple(breaker) for breaker in spec.dry_breakers)
        self.output_token_ids: list[int] = []
        self.mus = [2 * spec.params.mirostat_tau]  # mirostat's, after each number of outputs
        self.sampled: tuple[int, float] | None = None  # the token sampled last, and its surprise in bits

    @property
    def num_outputs(self) -> int:
        return len(self.output_token_ids)

    def accept(self, token_id: int) -> None:
        self.output_token_ids.append(token_id)
        surprise = self.sampled[1] if self.sampled is not None and self.sampled[0] == token_id else None
        error = 0.0 if surprise is None else surprise - self.params.mirostat_tau
        self.mus.append(self.mus[-1] - self.params.mirostat_eta * error)
        self.sampled = None

    def rewind(self, num_outputs: int) -> None:
        assert num_outputs <= self.num_outputs
        del self.output_token_ids[num_outputs:]
        del self.mus[num_outputs + 1 :]
        self.sampled = None

    def adjust(self, raw: FloatArray, mask: UInt32Array | None) -> FloatArray:
        """The logits that this sequence's params make of the model's. → [V] float32, banned tokens -inf"""
        banned = self._banned(raw.shape[0], mask)
        logits = np.where(banned, np.float32(-np.inf), raw)
        for token_id, bias in self.params.logit_bias.items():
            logits[token_id] += np.float32(bias)
        return self._penalised(logits)

    def _banned(self, vocab_size: int, mask: UInt32Array | None) -> npt.NDArray[np.bool_]:
        banned = np.zeros(vocab_size, dtype=np.bool_)
        if self.params.allowed_token_ids is not None:
            banned[:] = True
            banned[list(self.params.allowed_token_ids)] = False
        if mask is not None:
            banned |= np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab_size] == 0
        for *prefix, last in self.bad_words:
            if self.output_token_ids[self.num_outputs - len(prefix) :] == prefix:
                banned[last] = True
        if self.num_outputs < self.params.min_tokens:
            banned[list(self.stop_token_ids)] = True
        return banned

    def _penalised(self, logits: FloatArray) -> FloatArray:
        outputs = Counter(self.output_token_ids)
        repetition = np.float32(self.params.repetition_penalty)
        for token_id in {*self.prompt_token_ids, *outputs}:
            logit = logits[token_id]
            logits[token_id] = logit / repetition if logit > 0 else logit * repetition
        for token_id, count in outputs.items():
            logits[token_id] -= np.float32(self.params.frequency_penalty) * np.float32(count)
            logits[token_id] -= np.float32(self.params.presence_penalty)
        history = (*self.prompt_token_ids, *self.output_token_ids)
        for token_id, penalty in dry_penalties(history, self.params, self.dry_breakers).items():
            logits[token_id] -= np.float32(penalty)
        return logits


class ReferenceSampler:
    """See `pagoda.sampling.base.SamplerProtocol`."""

    def open(self, spec: StateSpec) -> ReferenceState:
        return ReferenceState(spec)

    def sample(self, batch: SamplingBatch) -> Sampled:
        states, masks = batch.states, batch.masks
        token_ids = np.zeros(len(states), dtype=np.int32)
        logprobs: list[TokenLogprobs | None] = [None] * len(states)
        errors: dict[int, str] = {}
        mask_of = {} if masks is None else dict(zip(masks.rows.tolist(), masks.allowed, strict=True))
        for n, state in enumerate(states):
            assert isinstance(state, ReferenceState)
            raw = batch.logits[n if batch.rows is None else batch.rows[n]]
            adjusted = state.adjust(raw, mask_of.get(n))
            if error := find_error(raw, adjusted, state.params):
                errors[n] = error
                continue
            token_ids[n] = pick(adjusted, state)
            if state.params.logprobs is not None:
                found = token_logprobs(raw, int(token_ids[n]), state.params.logprobs)
                logprobs[n] = with_listed(found, raw, state.params.logprob_token_ids)
        return Sampled(token_ids, logprobs, errors)

    def prompt_logprobs(self, logits: FloatArray, targets: Int32Array, num_top: int) -> list[TokenLogprobs]:
        if np.isnan(logits).any() or np.isposinf(logits).any():
            raise ValueError(NOT_FINITE)
        return [token_logprobs(row, int(target), num_top) for row, target in zip(logits, targets, strict=True)]


def find_error(raw: FloatArray, adjusted: FloatArray, params: SamplingParams) -> str | None:
    """Why no token can be chosen from this row, if so. What bans hide does no harm, except to logprobs."""
    if any(np.isnan(x).any() or np.isposinf(x).any() for x in (adjusted, raw)[: 1 if params.logprobs is None else 2]):
        return NOT_FINITE
    return NOTHING_ALLOWED if np.isneginf(adjusted).all() else None


def pick(adjusted: FloatArray, state: ReferenceState) -> int:
    """Greedy, or one draw from the distribution."""
    if state.params.temperature == 0:
        return int(np.argmax(adjusted))
    ids, probs = distribution_of(adjusted, state)
    cumulative = np.cumsum(probs)
    target = uniform(state.seed, state.choice_index, state.num_outputs) * cumulative[-1]
    place = int(np.searchsorted(cumulative, target, side="right"))
    if state.params.mirostat:
        state.sampled = (int(ids[place]), -float(np.log2(probs[place])))
    return int(ids[place])


def distribution_of(adjusted: FloatArray, state: ReferenceState) -> tuple[Int32Array, Float64Array]:
    """The distribution of a sequence's next token, which XTC's random number and mirostat's past decide with."""
    if not reshapes(state.params):
        return distribution(adjusted, state.params)
    chance = uniform(state.seed, state.choice_index, state.num_outputs, stream=XTC_STREAM)
    order, weights = candidates(adjusted, state.params, chance=chance, mu=state.mus[-1])
    by_id = np.argsort(order)
    return order[by_id].astype(np.int32), weights[by_id] / weights.sum()


def distribution(adjusted: FloatArray, params: SamplingParams) -> tuple[Int32Array, Float64Array]:
    """The tokens that may be drawn, by id, and their probabilities. → ([N] int32, [N] float64)"""
    order = np.lexsort((np.arange(adjusted.shape[0]), -adjusted))
    scaled = (adjusted[order] - adjusted[order[0]]).astype(np.float64) / params.temperature
    weights = np.exp(scaled)
    keep = weights >= params.min_p
    keep &= weights > 0
    if params.top_k > 0:
        keep[params.top_k :] = False
    order, weights = order[keep], weights[keep]
    if params.top_p < 1.0:
        mass_before = np.cumsum(weights) - weights
        keep = mass_before < params.top_p * weights.sum()
        order, weights = order[keep], weights[keep]
    by_id = np.argsort(order)
    return order[by_id].astype(np.int32), weights[by_id] / weights.sum()


def token_logprobs(raw: FloatArray, token_id: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities by the model's own distribution: before penalties, masks and temperature."""
    logits = raw.astype(np.float64)
    logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    order = np.lexsort((np.arange(raw.shape[0]), -raw))[:num_top]
    top = tuple(Logprob(int(i), float(logprobs[i]), rank) for rank, i in enumerate(order, start=1))
    chosen = Logprob(token_id, float(logprobs[token_id]), 1 + int((raw > raw[token_id]).sum()))
    return TokenLogprobs(chosen, top)


def with_listed(found: TokenLogprobs, raw: FloatArray, token_ids: Sequence[int]) -> TokenLogprobs:
    """`found` in the logits `raw` [V], with those of `token_ids` behind the likeliest, unless they are among them."""
    log_sum = float(raw[found.chosen.token_id]) - found.chosen.logprob
    among = {one.token_id for one in found.top}
    listed = [Logprob(i, float(raw[i]) - log_sum, 1 + int((raw > raw[i]).sum())) for i in token_ids if i not in among]
    return replace(found, top=(*found.top, *listed))
