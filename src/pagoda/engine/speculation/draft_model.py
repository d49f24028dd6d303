"""Drafts what a smaller model of the same vocabulary would say.

The draft model has a KV cache of its own, in which it follows each sequence: `_Follower.tokens` are those whose keys
and values are there. What was guessed wrong is found by comparing them with the sequence's certain tokens, so rejected
drafts, preemption and pauses need nothing of their own: what differs is dropped, what is missing is computed, in
chunks, for all sequences at once.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from pagoda.backends.base import run_batch
from pagoda.engine.drafters import DraftQuery, Key, Price, Proposal
from pagoda.engine.speculation.computing import ComputingDrafter, proposals
from pagoda.engine.speculation.followers import Stretch, batch_of
from pagoda.engine.speculation.guessing import Guess, price_of
from pagoda.kv.prefix import prefix_root
from pagoda.kv.table import BlockTable
from pagoda.types import FloatArray


@dataclass(slots=True, eq=False)
class _Follower:
    """How far the draft model has followed a sequence."""

    table: BlockTable
    tokens: array[int] = field(default_factory=lambda: array("i"))  # in the KV cache; the last ones may be guesses
    num_certain: int = 0  # of them, those that are known to be the sequence's own


@dataclass(frozen=True, slots=True)
class _Drafting:
    """A sequence in one call of `propose`."""

    guess: Guess
    follower: _Follower

    @property
    def owed(self) -> array[int]:
        """Tokens to compute before the next can be guessed."""
        return self.guess.query.tokens[len(self.follower.tokens) :]

    @property
    def owes_nothing(self) -> bool:
        return len(self.follower.tokens) >= len(self.guess.query.tokens)


class DraftModelDrafter(ComputingDrafter[_Follower]):
    """A `Drafter` over a loaded model that nobody else uses."""

    name = "draft"

    # What it costs

    def price(self, queries: Seq[DraftQuery]) -> Price | None:
        lags = [(query, len(query.tokens) - self._num_followed(query)) for query in queries if self._takes(query)]
        return price_of(self.times, lags, self._max_context)

    def _takes(self, query: DraftQuery) -> bool:
        """Not before the first token is there, which nobody should wait for longer, and within the model's context."""
        return query.prompt_len < len(query.tokens) < self._max_context

    def _num_followed(self, query: DraftQuery) -> int:
        follower = self._followers.get(query.key)
        return 0 if follower is None else len(follower.tokens)

    # Proposing

    def propose(self, queries: Seq[DraftQuery]) -> list[Proposal]:
        drafting = self._follow(queries)
        try:
            self._draft(drafting)
        finally:
            for one in drafting:
                one.guess.rewind()
        return proposals((one.guess for one in drafting), len(queries))

    def _follow(self, queries: Seq[DraftQuery]) -> list[_Drafting]:
        """Those of the sequences that can be followed, brought back to what is certain of them."""
        found: list[_Drafting] = []
        for place, query in enumerate(queries):
            if not self._takes(query) or len(found) == self._max_num_seqs:
                continue
            follower = self._followers.get(query.key)
            if follower is not None and not self._drop_guesses(follower, query.tokens):
                self.forget(query.key)
                follower = None
            follower = follower or self._open(query, [one.guess.query.key for one in found])
            if follower is not None:
                self._followers.put(query.key, follower)
                found.append(_Drafting(Guess.begin(place, query), follower))
        return found

    def _open(self, query: DraftQuery, keep: Seq[Key]) -> _Follower | None:
        """Begin to follow a sequence, from what is cached of its prompt. None: there is no room even without others."""
        root = prefix_root(query.request.cache_salt, None, query.request.tenant)  # the draft runs without adapters
        table = self._followers.open(root, query.tokens, None, keep)
        if table is None:
            return None
        return _Follower(table, query.tokens[: table.num_tokens], table.num_tokens)

    def _drop_guesses(self, follower: _Follower, tokens: array[int]) -> bool:
        """Keep what the follower has computed of the certain `tokens`, but for the last, whose logits are wanted.

        False: a window has passed what is needed for that.
        """
        most = min(len(follower.tokens), len(tokens) - 1)
        count = min(follower.num_certain, most)
        while count < most and follower.tokens[count] == tokens[count]:
            count += 1
        self.kv.commit(follower.table, tokens, max(count, follower.table.num_tokens))
        if not self.kv.can_truncate(follower.table, count):
            return False
        self.kv.truncate(follower.table, count)
        del follower.tokens[count:]
        follower.num_certain = count
        return True

    def _draft(self, drafting: list[_Drafting]) -> None:
        """Fill the drafts: a step that computes what is owed, then one for each further token."""
        keep = [one.guess.query.key for one in drafting]
        parts, left = [], self._max_batch_tokens
        for one in drafting:
            count = min(len(one.owed), left)
            if count and self._make_room(one.follower, count, keep):
                parts.append((one, one.owed[:count]))
                left -= count
        while parts:
            logits = self._run(parts)
            ready = [one for one, _ in parts if one.owes_nothing]
            goes_on = {id(guess) for guess in self._guesser.extend([one.guess for one in ready], logits)}
            parts = [
                (one, array("i", one.guess.tokens[-1:]))
                for one in ready
                if id(one.guess) in goes_on and not one.guess.is_full and self._make_room(one.follower, 1, keep)
            ]

    def _make_room(self, follower: _Follower, count: int, keep: Seq[Key]) -> bool:
        return self._followers.make_room(follower.table, len(follower.tokens) + count, keep)

    def _run(self, parts: list[tuple[_Drafting, array[int]]]) -> FloatArray:
        """Compute so many tokens of each. → a row of logits for each that owes nothing then [R, V]"""
        stretches = []
        for one, tokens in parts:
            first = len(one.follower.tokens)
            one.follower.tokens.extend(tokens)
            stretches.append(Stretch(one.follower.table, first, tokens, one.owes_nothing))
        batch = batch_of(self.kv, stretches)
        start = time.perf_counter()
        logits = run_batch(self._model, batch)
        self.times.observe(len(batch.tokens), time.perf_counter() - start)
        for one, _ in parts:
            certain = min(len(one.follower.tokens), len(one.guess.query.tokens))
            self.kv.commit(one.follower.table, one.guess.query.tokens, certain)
            one.follower.num_certain = certain
        return logits

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        """The next query says what was kept."""
