"""What drafters that compute share: guesses that are sampled as the sequence itself would sample, and what they cost.

A guess is drawn by the sequence's own sampler state, under the mask of its constraint, and so with the random number of
its position: two models agree more often than two independent draws would. The states are rewound afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from pagoda.engine.drafters import DraftQuery, Price
from pagoda.engine.speculation.pacing import StepTimes
from pagoda.sampling.base import SamplerProtocol, SamplingBatch, TokenMasks
from pagoda.types import FloatArray

STRENGTH = 2  # of their proposals: a long match of texts is surer
USUAL_LAG = 16  # tokens that a sequence may be behind in every step; what is more is paid once
PAYBACK = 64  # steps over which that is worth its time at most; fewer where the answer ends before
TOKENS_A_STEP = 2  # that a step gives with drafts, to tell how many steps are left


@dataclass(slots=True)
class Guess:
    """The draft of one sequence in one call of `propose`, as far as it is there."""

    place: int  # of its query
    query: DraftQuery
    num_outputs: int  # that its sampler state had accepted before
    num_constrained: int  # and its constraint
    tokens: list[int] = field(default_factory=list)

    @classmethod
    def begin(cls, place: int, query: DraftQuery) -> Guess:
        constrained = 0 if query.constraint is None else query.constraint.num_outputs
        return cls(place, query, query.sampler.num_outputs, constrained)

    def accept(self, token_id: int) -> None:
        self.tokens.append(token_id)
        self.query.sampler.accept(token_id)
        if self.query.constraint is not None:
            self.query.constraint.accept(token_id)

    def rewind(self) -> None:
        """Leave the sequence's states as they were."""
        self.query.sampler.rewind(self.num_outputs)
        if self.query.constraint is not None:
            self.query.constraint.rewind(self.num_constrained)

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be guessed."""
        constraint = self.query.constraint
        return len(self.tokens) >= self.query.max_tokens or (constraint is not None and constraint.finished)


class Guesser:
    """Samples guesses. `sampler` and vocab_size are the target's."""

    def __init__(self, sampler: SamplerProtocol, vocab_size: int) -> None:
        self._sampler = sampler
        self._vocab_size = vocab_size

    def extend(self, guesses: Seq[Guess], logits: FloatArray) -> list[Guess]:
        """A token more for each guess, from its row of logits [R, V]. → those that got one"""
        if not guesses:
            return []
        states = [guess.query.sampler for guess in guesses]
        masks, failed = self._masks(guesses)
        sampled = self._sampler.sample(SamplingBatch(self._as_targets(logits), states, masks=masks))
        goes_on = []
        for i, guess in enumerate(guesses):
            if i not in sampled.errors and i not in failed:
                guess.accept(int(sampled.token_ids[i]))
                goes_on.append(guess)
        return goes_on

    def _masks(self, guesses: Seq[Guess]) -> tuple[TokenMasks | None, set[int]]:
        """What constraints allow next, and the places of those that give up."""
        places = [i for i, guess in enumerate(guesses) if guess.query.constraint is not None]
        allowed = np.zeros((len(places), -(-self._vocab_size // 32)), np.uint32)
        failed = set()
        for i, row in zip(places, allowed, strict=True):
            constraint = guesses[i].query.constraint
            if constraint is None or constraint.fill(row) is not None:
                failed.add(i)
        return (TokenMasks(np.array(places, np.int32), allowed) if places else None), failed

    def _as_targets(self, logits: FloatArray) -> FloatArray:
        """Rows as long as the target's: models pad their vocabulary to different lengths."""
        missing = self._vocab_size - logits.shape[1]
        if missing > 0:
            return np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf)
        return logits if not missing else np.ascontiguousarray(logits[:, : self._vocab_size])


def price_of(times: StepTimes, lags: Seq[tuple[DraftQuery, int]], max_context: int) -> Price:
    """What guesses cost for sequences that are so many tokens behind; `times` are those of the drafter's steps."""
    if not lags:
        return Price(0.0, 0.0, STRENGTH)
    usual = sum(min(lag, USUAL_LAG) for _, lag in lags)
    once, step = times.seconds(usual), times.seconds(len(lags))
    if once is None or step is None:
        return Price(0.0, 0.0, STRENGTH)  # unknown before it was tried
    a_token = (times.seconds(usual + 1) or once) - once
    late = sum(max(0, lag - USUAL_LAG) / _payback(query, max_context) for query, lag in lags)
    return Price(once + a_token * late, step, STRENGTH)


def _payback(query: DraftQuery, max_context: int) -> float:
    """Steps in which it can pay that a sequence is followed."""
    most = query.request.params.max_tokens
    left = max_context if most is None else query.prompt_len + most
    return max(1.0, min(PAYBACK, (left - len(query.tokens)) / TOKENS_A_STEP))
