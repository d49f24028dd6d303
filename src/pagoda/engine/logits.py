"""What the logits of a step are for, and how they are fetched: whole rows, or tokens that the device has ranked."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import LoadedModel, TokenRanker, TopKBlocks
from pagoda.engine.drafters import Draft
from pagoda.engine.sequence import Sequence, Status
from pagoda.sampling.base import Sampled, SamplerProtocol, SamplerState, SamplingBatch, TokenMasks
from pagoda.sampling.top_k import TopKSampler, TopKState
from pagoda.types import FloatArray, Int32Array, TokenLogprobs

Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows [first, first + len(targets)) of the logits predict `targets`, tokens of seq's prompt."""

    seq: Sequence
    first: int
    targets: Int32Array


@dataclass(frozen=True, slots=True)
class LogitsPlan:
    """What the rows of a step's logits are for.

    Row rows[i] predicts the next token of sequences[i]. Where it has a draft of k tokens, the k rows after that predict
    what follows each of them.
    """

    sequences: list[Sequence]  # those that owe nothing after the step, and the choices that start from the same prompt
    rows: Int32Array  # [N]
    prompt: list[PromptRows]
    num_rows: int  # R
    drafts: Mapping[Sequence, Draft] = field(default_factory=dict)

    @property
    def decides_tokens_only(self) -> bool:
        """Whether everything that follows from these logits is predictable but for the tokens' ids."""
        return not self.prompt and not self.drafts and not any(seq.children for seq in self.sequences)

    @property
    def is_constrained(self) -> bool:
        """Whether a token mask applies to some of the logits."""
        return any(seq.constraint is not None for seq in self.sequences)

    def only(self, live: Seq[bool]) -> LogitsPlan:
        """The plan of some of the sequences: live[i] says whether sequences[i] is one of them."""
        if all(live):
            return self
        places = np.flatnonzero(live)
        prompt = [part for part in self.prompt if part.seq.status is not Status.FINISHED]
        return replace(self, sequences=[self.sequences[i] for i in places], rows=self.rows[places], prompt=prompt)


class StepLogits(Protocol):
    """The logits of a step, as far as sampling needs them."""

    def sample(self, states: Seq[SamplerState], rows: Int32Array, masks: TokenMasks | None = None) -> Sampled:
        """Pick the next token of each state, of which states[n] reads row rows[n]; nothing is accepted yet."""


@dataclass(frozen=True, slots=True)
class WholeRows:
    """`StepLogits` that are all here."""

    sampler: SamplerProtocol
    logits: FloatArray  # [R, V]

    def sample(self, states: Seq[SamplerState], rows: Int32Array, masks: TokenMasks | None = None) -> Sampled:
        return self.sampler.sample(SamplingBatch(self.logits, states, rows, masks))


@dataclass(frozen=True, slots=True)
class TopKLogits:
    """`StepLogits` of which the device ranked the likeliest tokens; rows that need more than those are here whole."""

    sampler: TopKSampler
    ranked: TopKBlocks
    covered: npt.NDArray[np.bool_]  # [R] whether the ranked tokens are enough
    fallback: FloatArray  # [F, V] the other rows
    fallback_index: Int32Array  # [R] which of them a row is that is not covered

    def sample(self, states: Seq[SamplerState], rows: Int32Array, masks: TokenMasks | None = None) -> Sampled:
        is_covered = self.covered[rows]
        assert masks is None or not is_covered[masks.rows].any(), "masks apply to whole rows alone"
        parts: list[tuple[Places, Sampled]] = []
        if len(places := np.flatnonzero(is_covered)):
            known = [state for n in places.tolist() if isinstance(state := states[n], TopKState)]
            parts.append((places, self.sampler.sample_ranked(self.ranked, known, rows[places])))
        if len(places := np.flatnonzero(~is_covered)):
            if masks is not None:
                masks = replace(masks, rows=np.searchsorted(places, masks.rows).astype(np.int32))
            others = [states[n] for n in places.tolist()]
            whole = SamplingBatch(self.fallback, others, self.fallback_index[rows[places]], masks)
            parts.append((places, self.sampler.sample(whole)))
        return _merged(parts, len(states))


def _merged(parts: Seq[tuple[Places, Sampled]], count: int) -> Sampled:
    if len(parts) == 1:
        return parts[0][1]
    token_ids = np.empty(count, np.int32)
    logprobs: list[TokenLogprobs | None] = [None] * count
    errors: dict[int, str] = {}
    for places, sampled in parts:
        token_ids[places] = sampled.token_ids
        for i, n in enumerate(places.tolist()):
            logprobs[n] = sampled.logprobs[i]
            if i in sampled.errors:
                errors[n] = sampled.errors[i]
    return Sampled(token_ids, logprobs, errors)


class LogitsReader:
    """Waits for a launched step, and fetches no more of its logits than its plan needs."""

    def __init__(self, model: LoadedModel, sampler: SamplerProtocol) -> None:
        self._model = model
        self._sampler = sampler

    def read(self, plan: LogitsPlan) -> StepLogits:
        """`WholeRows` where the plan scores prompts."""
        ranker = self._model.ranker
        if ranker is not None and isinstance(self._sampler, TopKSampler) and not plan.prompt:
            needed = [_top_k_needed(seq) for seq in plan.sequences]
            if any(needed):
                return self._read_ranked(ranker, self._sampler, plan, needed)
        return WholeRows(self._sampler, self._model.wait())

    def _read_ranked(
        self, ranker: TokenRanker, sampler: TopKSampler, plan: LogitsPlan, needed: list[int]
    ) -> TopKLogits:
        covered = np.ones(plan.num_rows, np.bool_)
        for seq, row, count in zip(plan.sequences, plan.rows.tolist(), needed, strict=True):
            if not count:
                covered[row : row + 1 + len(plan.drafts[seq].tokens if seq in plan.drafts else ())] = False
        fallback = np.flatnonzero(~covered).astype(np.int32)
        weights = any(_has_logprobs(seq) for seq, count in zip(plan.sequences, needed, strict=True) if count)
        ranked = ranker.top_k_blocks(max(needed), weights=weights)
        whole = self._model.wait(fallback) if len(fallback) else np.empty((0, 0), np.float32)
        index = np.zeros(plan.num_rows, np.int32)
        index[fallback] = np.arange(len(fallback))
        return TopKLogits(sampler, ranked, covered, whole, index)


def _top_k_needed(seq: Sequence) -> int:
    """How many ranked tokens sampling needs; 0: the whole row, for that is what a token mask applies to."""
    return seq.sampler.top_k_needed if isinstance(seq.sampler, TopKState) and seq.constraint is None else 0


def _has_logprobs(seq: Sequence) -> bool:
    return seq.request.params.logprobs is not None
