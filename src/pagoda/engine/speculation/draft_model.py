"""Drafts what a smaller model of the same vocabulary would say.

The draft model has a KV cache of its own, in which it follows each sequence: `_Follower.tokens` are those whose keys
and values are there. What was guessed wrong is found by comparing them with the sequence's certain tokens, so rejected
drafts, preemption and pauses need nothing of their own: what differs is dropped, what is missing is computed, in
chunks, for all sequences at once. Where blocks run out, the sequence that was followed longest ago is given up.

Guesses are sampled by the sequences' own sampler states, under the masks of their constraints, and so with the random
numbers of their positions: the two models agree more often than two independent draws would.
"""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from pagoda.backends.base import LoadedModel, run_batch
from pagoda.engine.drafters import DraftQuery, Key, Price, Proposal
from pagoda.engine.speculation.pacing import StepTimes
from pagoda.kv.cache import KVCache
from pagoda.kv.prefix import prefix_root
from pagoda.kv.table import BlockTable
from pagoda.sampling.base import SamplerProtocol, SamplingBatch, TokenMasks
from pagoda.types import Batch, FloatArray

STRENGTH = 2  # of its proposals: a long match of texts is surer
USUAL_LAG = 16  # tokens that a sequence may be behind in every step; what is more is paid once
PAYBACK = 64  # steps over which that is worth its time at most; fewer where the answer ends before
TOKENS_A_STEP = 2  # that a step gives with drafts, to tell how many steps are left


@dataclass(slots=True, eq=False)
class _Follower:
    """How far the draft model has followed a sequence."""

    table: BlockTable
    tokens: array[int] = field(default_factory=lambda: array("i"))  # in the KV cache; the last ones may be guesses
    num_certain: int = 0  # of them, those that are known to be the sequence's own


@dataclass(slots=True)
class _Drafting:
    """A sequence in one call of `propose`."""

    place: int  # of its query
    query: DraftQuery
    follower: _Follower
    num_outputs: int  # that its sampler state has accepted
    num_constrained: int  # and its constraint
    draft: list[int] = field(default_factory=list)

    def accept(self, token_id: int) -> None:
        self.draft.append(token_id)
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
        return len(self.draft) >= self.query.max_tokens or (constraint is not None and constraint.finished)

    @property
    def owed(self) -> array[int]:
        """Tokens to compute before the next can be guessed."""
        return self.query.tokens[len(self.follower.tokens) :]


class DraftModelDrafter:
    """A `Drafter` over a loaded model that nobody else uses."""

    name = "draft"
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
        """`sampler` and vocab_size are the target's; the rest describes the draft model, as `Engine` takes it."""
        model.allocate_kv(tuple(num_blocks))
        self._model = model
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._max_context = max_context
        self._max_batch_tokens = max_batch_tokens
        self._max_num_seqs = min(max_num_seqs, max_batch_tokens)
        self.kv = KVCache(
            windows, num_blocks, max_seqs=self._max_num_seqs, max_context=max_context, copy=model.copy_blocks
        )
        self._followers: OrderedDict[Key, _Follower] = OrderedDict()  # the one asked for longest ago first
        self.times = StepTimes()  # of the draft model

    # What it costs

    def price(self, queries: Seq[DraftQuery]) -> Price | None:
        ready = [query for query in queries if self._takes(query)]
        if not ready:
            return Price(0.0, 0.0, STRENGTH)
        lags = [len(query.tokens) - self._num_followed(query) for query in ready]
        usual = sum(min(lag, USUAL_LAG) for lag in lags)
        once, step = self.times.seconds(usual), self.times.seconds(len(ready))
        if once is None or step is None:
            return Price(0.0, 0.0, STRENGTH)  # unknown before it was tried
        a_token = (self.times.seconds(usual + 1) or once) - once
        late = sum(max(0, lag - USUAL_LAG) / self._payback(query) for query, lag in zip(ready, lags, strict=True))
        return Price(once + a_token * late, step, STRENGTH)

    def _payback(self, query: DraftQuery) -> float:
        """Steps in which it can pay that a sequence is followed."""
        most = query.request.params.max_tokens
        left = self._max_context if most is None else query.prompt_len + most
        return max(1.0, min(PAYBACK, (left - len(query.tokens)) / TOKENS_A_STEP))

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
                one.rewind()
        proposals = [Proposal()] * len(queries)
        for one in drafting:
            proposals[one.place] = Proposal(one.draft, STRENGTH)
        return proposals

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
            follower = follower or self._open(query, [one.query.key for one in found])
            if follower is not None:
                self._followers.move_to_end(query.key)
                constrained = 0 if query.constraint is None else query.constraint.num_outputs
                found.append(_Drafting(place, query, follower, query.sampler.num_outputs, constrained))
        return found

    def _open(self, query: DraftQuery, keep: Seq[Key]) -> _Follower | None:
        """Begin to follow a sequence, from what is cached of its prompt. None: there is no room even without others."""
        root = prefix_root(query.request.cache_salt, None, query.request.tenant)  # the draft runs without adapters
        keys: list[bytes] = []
        none_reserved = [0] * self.kv.num_pools
        while True:
            num_cached = self.kv.match(root, keys, query.tokens, len(query.tokens))
            if self.kv.can_open(keys, num_cached, len(query.tokens), self._max_batch_tokens, none_reserved):
                break
            if not self._give_up_one(keep):
                return None
        follower = _Follower(self.kv.open(root, keys, num_cached))
        follower.num_certain = follower.table.num_tokens
        follower.tokens = query.tokens[: follower.num_certain]
        self._followers[query.key] = follower
        return follower

    def _give_up_one(self, keep: Seq[Key]) -> bool:
        """Take the blocks of the sequence that was followed longest ago, but for those in `keep`."""
        victim = next((key for key in self._followers if key not in keep), None)
        if victim is None:
            return False
        self.forget(victim)
        return True

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
        keep = [one.query.key for one in drafting]
        parts, left = [], self._max_batch_tokens
        for one in drafting:
            count = min(len(one.owed), left)
            if count and self._make_room(one.follower, count, keep):
                parts.append((one, one.owed[:count]))
                left -= count
        while parts:
            logits = self._run(parts)
            ready = [one for one, _ in parts if len(one.follower.tokens) >= len(one.query.tokens)]
            goes_on = self._sample(ready, logits)
            parts = [
                (one, array("i", one.draft[-1:]))
                for one in goes_on
                if not one.is_full and self._make_room(one.follower, 1, keep)
            ]

    def _make_room(self, follower: _Follower, count: int, keep: Seq[Key]) -> bool:
        num_tokens = len(follower.tokens) + count
        if num_tokens > self._max_context:
            return False
        while not self.kv.can_grow(follower.table, num_tokens):
            if not self._give_up_one(keep):
                return False
        self.kv.grow(follower.table, num_tokens)
        return True

    def _run(self, parts: list[tuple[_Drafting, array[int]]]) -> FloatArray:
        """Compute so many tokens of each. → a row of logits for each that owes nothing then [R, V]"""
        ends = np.cumsum([len(tokens) for _, tokens in parts], dtype=np.int32)
        positions: list[int] = []
        rows = []
        for (one, tokens), end in zip(parts, ends, strict=True):
            follower = one.follower
            positions.extend(range(len(follower.tokens), len(follower.tokens) + len(tokens)))
            follower.tokens.extend(tokens)
            if len(follower.tokens) >= len(one.query.tokens):
                rows.append(int(end) - 1)
        batch = Batch(
            tokens=np.concatenate([np.frombuffer(tokens, np.int32) for _, tokens in parts]),
            positions=np.array(positions, np.int32),
            seq_starts=np.concatenate([np.zeros(1, np.int32), ends]),
            context_lens=np.array([len(one.follower.tokens) for one, _ in parts], np.int32),
            block_tables=self.kv.rows([one.follower.table for one, _ in parts]),
            logit_rows=np.array(rows, np.int32),
        )
        start = time.perf_counter()
        logits = run_batch(self._model, batch)
        self.times.observe(len(positions), time.perf_counter() - start)
        for one, _ in parts:
            certain = min(len(one.follower.tokens), len(one.query.tokens))
            self.kv.commit(one.follower.table, one.query.tokens, certain)
            one.follower.num_certain = certain
        return logits

    def _sample(self, ready: list[_Drafting], logits: FloatArray) -> list[_Drafting]:
        """A token more for each draft. → those that got one"""
        if not ready:
            return []
        states = [one.query.sampler for one in ready]
        masks, failed = self._masks(ready)
        sampled = self._sampler.sample(SamplingBatch(self._as_targets(logits), states, masks=masks))
        goes_on = []
        for i, one in enumerate(ready):
            if i not in sampled.errors and i not in failed:
                one.accept(int(sampled.token_ids[i]))
                goes_on.append(one)
        return goes_on

    def _masks(self, ready: list[_Drafting]) -> tuple[TokenMasks | None, set[int]]:
        """What constraints allow next, and the places of those that give up."""
        places = [i for i, one in enumerate(ready) if one.query.constraint is not None]
        allowed = np.zeros((len(places), -(-self._vocab_size // 32)), np.uint32)
        failed = set()
        for i, row in zip(places, allowed, strict=True):
            constraint = ready[i].query.constraint
            if constraint is None or constraint.fill(row) is not None:
                failed.add(i)
        return (TokenMasks(np.array(places, np.int32), allowed) if places else None), failed

    def _as_targets(self, logits: FloatArray) -> FloatArray:
        """Rows as long as the target's: models pad their vocabulary to different lengths."""
        missing = self._vocab_size - logits.shape[1]
        if missing > 0:
            return np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf)
        return logits if not missing else np.ascontiguousarray(logits[:, : self._vocab_size])

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        """The next query says what was kept."""

    def forget(self, key: Key) -> None:
        follower = self._followers.pop(key, None)
        if follower is not None:
            self.kv.free(follower.table)

    def check(self) -> None:
        """Every block belongs to a sequence that is followed, or to nobody."""
        self.kv.check([follower.table for follower in self._followers.values()])
