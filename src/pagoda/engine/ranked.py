"""Of a step's logits what sampling needs: where a device ranks tokens, whole rows come only where they are needed."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import Likeliest, RankingModel
from pagoda.sampling.base import Sampled, SamplerState
from pagoda.sampling.likely import LikelySampler, LikelyState
from pagoda.types import FloatArray, Int32Array, TokenLogprobs

Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Logits of a step's states, by their places among the step's."""

    likeliest: Likeliest
    near: Places  # whom `likeliest` is enough for
    far: Places  # who needs whole rows,
    far_logits: FloatArray  # which are these [F, V]


def fetch(model: RankingModel, states: Seq[SamplerState], rows: Int32Array) -> Ranked | None:
    """State n's logits are row rows[n] of the launched step. None: everybody needs whole rows."""
    reach = [state.reach if isinstance(state, LikelyState) else 0 for state in states]
    if not any(reach):
        return None
    near, far = np.flatnonzero(reach), np.flatnonzero(np.equal(reach, 0))
    weights = any(_has_logprobs(states[n]) for n in near.tolist())
    likeliest = model.likeliest(max(reach), weights=weights)
    far_logits = model.wait(rows[far]) if len(far) else np.empty((0, 0), np.float32)
    return Ranked(likeliest, near, far, far_logits)


def _has_logprobs(state: SamplerState) -> bool:
    return isinstance(state, LikelyState) and state.params.logprobs is not None


def sample(sampler: LikelySampler, ranked: Ranked, states: Seq[SamplerState], rows: Int32Array) -> Sampled:
    """A token for every state; nothing is accepted yet."""
    near = [state for n in ranked.near.tolist() if isinstance(state := states[n], LikelyState)]
    parts = [(ranked.near, sampler.sample_likeliest(ranked.likeliest, near, rows[ranked.near]))]
    if len(ranked.far):
        parts.append((ranked.far, sampler.sample(ranked.far_logits, [states[n] for n in ranked.far.tolist()])))
    token_ids = np.empty(len(states), np.int32)
    logprobs: list[TokenLogprobs | None] = [None] * len(states)
    errors: dict[int, str] = {}
    for places, sampled in parts:
        token_ids[places] = sampled.token_ids
        for i, n in enumerate(places.tolist()):
            logprobs[n] = sampled.logprobs[i]
            if i in sampled.errors:
                errors[n] = sampled.errors[i]
    return Sampled(token_ids, logprobs, errors)
