"""What a drafter that computes has: a loaded model, a KV cache of its own, and guesses sampled as the target would."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Generic

from pagoda.backends.base import LoadedModel
from pagoda.engine.drafters import Key, Proposal
from pagoda.engine.speculation.followers import F, Followers
from pagoda.engine.speculation.guessing import STRENGTH, Guess, Guesser
from pagoda.engine.speculation.pacing import StepTimes
from pagoda.kv.cache import KVCache
from pagoda.sampling.base import SamplerProtocol


class ComputingDrafter(Generic[F]):
    """Base of `Drafter`s over a loaded model that nobody else uses."""

    active = True

    def __init__(
        self,
        model: LoadedModel,
        sampler: SamplerProtocol,
        *,
        vocab_size: int,
        windows: Seq[int | None],
        num_blocks: Seq[int],
        max_context: int,
        max_batch_tokens: int,
        max_num_seqs: int,
    ) -> None:
        """`sampler` and vocab_size are the target's; the rest describes the drafter's model, as `Engine` takes it."""
        model.allocate_kv(tuple(num_blocks))
        self._model = model
        self._guesser = Guesser(sampler, vocab_size)
        self._max_context = max_context
        self._max_batch_tokens = max_batch_tokens
        self._max_num_seqs = min(max_num_seqs, max_batch_tokens)
        self._followers: Followers[F] = Followers(
            windows,
            num_blocks,
            max_seqs=self._max_num_seqs,
            max_context=max_context,
            chunk=max_batch_tokens,
            copy=model.copy_blocks,
        )
        self.times = StepTimes()  # of the drafter's model

    @property
    def kv(self) -> KVCache:
        return self._followers.kv

    def forget(self, key: Key) -> None:
        self._followers.forget(key)

    def check(self) -> None:
        """Every block belongs to a sequence that is followed, or to nobody."""
        self._followers.check()


def proposals(guesses: Iterable[Guess], num_queries: int) -> list[Proposal]:
    """Each query's proposal, from the guesses that were made; nothing for the others."""
    found = [Proposal()] * num_queries
    for guess in guesses:
        found[guess.place] = Proposal(guess.tokens, STRENGTH)
    return found
