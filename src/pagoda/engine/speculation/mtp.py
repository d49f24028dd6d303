"""Drafts what the model's own head says that predicts one token more (`models/mtp.py`).

The head reads what the model computed of each token, its last hidden state, so it goes through the same positions: what
a step gave waits until the head is asked, or until it is much. Slot j of its KV cache holds position `start` + j of the
sequence: hidden states of tokens that came from the prefix cache were never seen, so where the head's own cache does
not have them, it begins after them, and sees what comes from there on. Rotary embedding knows distances alone.

A guess is made from the model's hidden state, the next from the head's own: such slots are given up again, and computed
from the model's once it has verified them. The last slot of a published block also depends on the token behind it,
which may be another's: a draft may be worse for it, an answer is not.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from pagoda.engine.drafters import DraftQuery, Key, Price, Proposal
from pagoda.engine.speculation.computing import ComputingDrafter, proposals
from pagoda.engine.speculation.followers import Stretch, batch_of
from pagoda.engine.speculation.guessing import Guess, price_of
from pagoda.kv.prefix import prefix_root
from pagoda.kv.table import BlockTable
from pagoda.types import FloatArray, Request

STEPS_WAITING = 4  # steps' worth of hidden states that wait, of all sequences together
FEWEST_WAITING, MOST_WAITING = 32, 256  # of one that is decoding
HEAD = "mtp"


def waiting_bytes(batch_tokens: int, hidden_size: int) -> int:
    """The most that hidden states which wait take, of all sequences together."""
    return STEPS_WAITING * batch_tokens * hidden_size * 4


@dataclass(slots=True, eq=False)
class _Follower:
    """How far the head has followed a sequence; `table` holds what it made of certain tokens."""

    table: BlockTable
    start: int  # position of the table's first slot
    tokens: array[int]  # the sequence's own, which grow
    waiting: list[FloatArray] = field(default_factory=list)  # hidden states of the positions after those in the table
    num_waiting: int = 0
    is_used: bool = True  # it was asked for since waiting ones were last computed

    @property
    def end(self) -> int:
        """Positions of the sequence before this one are in the table, or wait."""
        return self.start + self.table.num_tokens + self.num_waiting

    def wait(self, hidden: FloatArray) -> None:
        self.waiting.append(hidden)
        self.num_waiting += len(hidden)

    def take(self, count: int) -> FloatArray:
        """The first `count` of what waits."""
        rows = np.concatenate(self.waiting)
        self.waiting = [rows[count:]] if count < len(rows) else []
        self.num_waiting -= count
        return rows[:count]

    def next_tokens(self, count: int) -> array[int]:
        """Those that came after so many positions behind the table."""
        first = self.start + self.table.num_tokens + 1
        return self.tokens[first : first + count]


@dataclass(slots=True)
class _Drafting:
    """A sequence in one call of `propose`. hidden [1, E]: what the next guess is made of, once there is one."""

    guess: Guess
    follower: _Follower
    hidden: FloatArray | None = None


class MtpDrafter(ComputingDrafter[_Follower]):
    """A `Drafter` and `HiddenReader` over a loaded head that nobody else uses."""

    name = HEAD

    # What the model computed

    def take(self, key: Key, request: Request, tokens: array[int], first: int, hidden: FloatArray) -> None:
        """The model's hidden states [T, E] of the tokens from position `first` on; tokens[first + T] is there."""
        follower = self._followers.get(key)
        if follower is None or first > follower.end:
            self.forget(key)
            follower = self._open(key, request, tokens, first)
        if follower is None or follower.end >= first + len(hidden):
            return
        self._put(key, follower).wait(hidden[follower.end - first :].copy())
        in_prompt = follower.end < len(request.prompt_token_ids)
        if follower.num_waiting <= (self._max_batch_tokens if in_prompt else self._most_waiting):
            return
        if in_prompt or follower.is_used:
            self._compute(follower, follower.num_waiting - 1, [key])
        else:
            self._skip(key, follower)

    @property
    def _most_waiting(self) -> int:
        share = STEPS_WAITING * self._max_batch_tokens // max(1, len(self._followers))
        return min(MOST_WAITING, max(FEWEST_WAITING, share))

    def _open(self, key: Key, request: Request, tokens: array[int], first: int) -> _Follower | None:
        """Begin to follow a sequence, from what is cached up to position `first`, or from there. None: no room."""
        adapter = None if request.adapter is None else request.adapter.digest
        table = self._followers.open(prefix_root(request.cache_salt, adapter, request.tenant), tokens, first, [])
        if table is not None and table.num_tokens < first:
            self.kv.free(table)
            return self._begin(key, tokens, first)
        return None if table is None else self._put(key, _Follower(table, 0, tokens))

    def _begin(self, key: Key, tokens: array[int], start: int) -> _Follower | None:
        """Follow a sequence from `start` on, under a root that no other has: its blocks are of no use to others."""
        table = self._followers.open(os.urandom(16), array("i"), None, [])
        return None if table is None else self._put(key, _Follower(table, start, tokens))

    def _put(self, key: Key, follower: _Follower) -> _Follower:
        self._followers.put(key, follower)
        return follower

    def _skip(self, key: Key, follower: _Follower) -> None:
        """Begin anew with the later half of what waits: nobody has asked for long."""
        end, rest = follower.end, follower.take(follower.num_waiting)
        rest = rest[len(rest) // 2 :].copy()
        self.forget(key)
        begun = self._begin(key, follower.tokens, end - len(rest))
        if begun is not None:
            begun.is_used = False
            begun.wait(rest)

    def _compute(self, follower: _Follower, count: int, keep: Seq[Key]) -> None:
        """Put the first `count` of what waits into the cache; without room for it, the sequence is given up."""
        while count:
            some = min(count, self._max_batch_tokens)
            if not self._followers.make_room(follower.table, follower.table.num_tokens + some, keep):
                self.forget(keep[0])
                return
            self._run([self._stretch(follower, some, wants_logits=False)])
            self._commit(follower, some)
            count -= some
        follower.is_used = False

    def forked(self, parent: Key, child: Key, tokens: array[int]) -> None:
        """`child`, whose tokens these are, begins with all that `parent` has computed."""
        follower = self._followers.get(parent)
        table = None if follower is None else self.kv.fork(follower.table)
        if follower is not None and table is not None:
            self._put(child, _Follower(table, follower.start, tokens, list(follower.waiting), follower.num_waiting))

    # What it costs

    def price(self, queries: Seq[DraftQuery]) -> Price | None:
        found = [(query, self._ready(query)) for query in queries]
        lags = [(query, follower.num_waiting) for query, follower in found if follower is not None]
        return price_of(self.times, lags, self._max_context)

    def _ready(self, query: DraftQuery) -> _Follower | None:
        """What is followed of a sequence, if the model's hidden state before its last token is there.

        None before its first token, which nobody should wait for longer.
        """
        follower = self._followers.get(query.key)
        if follower is None or not follower.num_waiting or len(query.tokens) == query.prompt_len:
            return None
        return follower if follower.end == len(query.tokens) - 1 else None

    # Proposing

    def propose(self, queries: Seq[DraftQuery]) -> list[Proposal]:
        drafting = self._chosen(queries)
        try:
            self._draft(drafting)
        finally:
            for one in drafting:
                one.guess.rewind()
                self.kv.truncate(one.follower.table, one.follower.table.num_tokens)
        return proposals((one.guess for one in drafting), len(queries))

    def _chosen(self, queries: Seq[DraftQuery]) -> list[_Drafting]:
        """Those sequences whose waiting positions fit into a step together, with room for them."""
        found: list[_Drafting] = []
        left = self._max_batch_tokens
        for place, query in enumerate(queries):
            follower = self._ready(query)
            if follower is None:
                continue
            keep = [query.key, *(one.guess.query.key for one in found)]
            if follower.num_waiting > self._max_batch_tokens:
                self._compute(follower, follower.num_waiting - 1, keep)
            if follower.num_waiting > left or self._ready(query) is None:
                continue
            if self._followers.make_room(follower.table, follower.table.num_tokens + follower.num_waiting, keep):
                left -= follower.num_waiting
                follower.is_used = True
                self._put(query.key, follower)
                found.append(_Drafting(Guess.begin(place, query), follower))
        return found

    def _draft(self, drafting: list[_Drafting]) -> None:
        """Fill the drafts: a step over what waits, then one for each further token."""
        keep = [one.guess.query.key for one in drafting]
        stretches = [self._stretch(one.follower, one.follower.num_waiting, wants_logits=True) for one in drafting]
        going = drafting
        while going:
            logits, hidden = self._run(stretches)
            for one, stretch, row in zip(going, stretches, hidden, strict=True):
                if not one.guess.tokens:  # positions of certain tokens
                    self._commit(one.follower, len(stretch.tokens))
                one.hidden = row[None].copy()
            extended = {guess.place for guess in self._guesser.extend([one.guess for one in going], logits)}
            going = [one for one in going if one.guess.place in extended and self._goes_on(one, keep)]
            stretches = [
                Stretch(one.follower.table, self._num_slots(one) - 1, one.guess.tokens[-1:], True, one.hidden)
                for one in going
            ]

    def _goes_on(self, one: _Drafting, keep: Seq[Key]) -> bool:
        if one.guess.is_full:
            return False
        return self._followers.make_room(one.follower.table, self._num_slots(one), keep)

    def _num_slots(self, one: _Drafting) -> int:
        """Slots with the next guess's: those of certain tokens, and one for each token that is guessed."""
        return one.follower.table.num_tokens + len(one.guess.tokens)

    def _stretch(self, follower: _Follower, count: int, *, wants_logits: bool) -> Stretch:
        tokens = follower.next_tokens(count)
        return Stretch(follower.table, follower.table.num_tokens, tokens, wants_logits, follower.take(count))

    def _run(self, stretches: Seq[Stretch]) -> tuple[FloatArray, FloatArray]:
        """→ logits and hidden states of those that want some [R, V], [R, E]"""
        batch = batch_of(self.kv, stretches, hidden=True)
        start = time.perf_counter()
        self._model.stage(batch)
        self._model.launch(batch.tokens)
        logits, hidden = self._model.wait(), self._model.hidden_states()
        self.times.observe(len(batch.tokens), time.perf_counter() - start)
        return logits, hidden

    def _commit(self, follower: _Follower, count: int) -> None:
        """`count` positions more are in the table."""
        tokens = follower.tokens[follower.start :] if follower.start else follower.tokens
        self.kv.commit(follower.table, tokens, follower.table.num_tokens + count)

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        """What was kept comes with the model's hidden states."""
