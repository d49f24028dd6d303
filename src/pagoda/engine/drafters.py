"""Drafters guess how sequences go on, and one step of the model checks the guesses.

A draft token is kept exactly when the sampler picks the same token from the model's logits, with the random number of
that position. So drafts change the speed of an answer and nothing else, at any temperature.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from pagoda.constraint import TokenConstraint
from pagoda.engine.sequence import Sequence
from pagoda.sampling.base import SamplerState
from pagoda.types import FloatArray, Request

SURE = 3  # the strength of a proposal beside which no other is asked for
LONGEST_PRICED = 16  # tokens that a drafter whose guesses cost something is asked for

Key = tuple[str, int]  # request id and choice index


@dataclass(frozen=True, slots=True)
class DraftQuery:
    """A sequence for which tokens may be proposed."""

    key: Key  # the same for the whole life of the sequence
    tokens: array[int]  # prompt and output so far, all of them certain; not to be changed
    prompt_len: int
    request: Request
    sampler: SamplerState  # has accepted all output; a drafter that samples with it rewinds it before it returns
    max_tokens: int  # at least 1; proposals beyond it are dropped
    constraint: TokenConstraint | None = None  # as the sampler


@dataclass(frozen=True, slots=True)
class Proposal:
    """What may follow, the next token first, and how much the drafter trusts it: `strength` is from 0 to 3."""

    tokens: Seq[int] = ()
    strength: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds that the first token of proposals takes, for all sequences of a call together, and each further one."""

    first: float
    further: float
    strength: int  # of the proposals; who has one as strong already is not asked for


class Pace(Protocol):
    """Chooses how many tokens of each draft are checked; see `speculation.pacing`."""

    def choose(
        self, drafts: Mapping[Key, tuple[str, int, int]], num_decoding: int, num_tokens: int
    ) -> Mapping[Key, int]:
        """How many tokens of each draft (drafter, strength, length) to check, in a step of num_tokens without them."""

    def afford(self, name: str, price: Price, keys: Seq[Key], num_decoding: int, num_tokens: int) -> int:
        """How many tokens for each of these sequences are worth what this drafter takes to propose them; perhaps 0."""

    def may_pay(self, num_decoding: int, num_tokens: int) -> bool:
        """Whether any draft could be worth checking in such a step."""

    def verified(self, key: Key, name: str, strength: int, num_proposed: int, num_accepted: int) -> None:
        """What came of a draft."""

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step in which sequences decode took so long."""

    def forget(self, key: Key) -> None:
        """The sequence has ended."""


class Drafter(Protocol):
    """Proposes tokens. It is called on the engine's thread, between steps of the model. A proposal may go unused."""

    @property
    def name(self) -> str:
        """Its name in metrics."""

    @property
    def active(self) -> bool:
        """Whether it may propose something now. While no drafter is active, an asynchronous model is planned ahead."""

    def price(self, queries: Seq[DraftQuery]) -> Price | None:
        """What `propose` would take; None: next to nothing."""

    def propose(self, queries: Seq[DraftQuery]) -> Seq[Proposal]:
        """A proposal for each query, without tokens where it has no guess."""

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        """One step checked num_proposed tokens and kept the first num_accepted; the others never were.

        State that was advanced over the proposals is rewound here. The token after them comes with the next query.
        """

    def forget(self, key: Key) -> None:
        """The sequence has ended."""


@runtime_checkable
class HiddenReader(Protocol):
    """A `Drafter` that reads what the model computed of each token: its last hidden state, after the final norm."""

    def take(self, key: Key, request: Request, tokens: array[int], first: int, hidden: FloatArray) -> None:
        """The hidden states [T, E] of certain tokens from position `first` on, valid during the call.

        tokens: the sequence's, which grow: a reference may be kept. The one after the last of these is there.
        """

    def forked(self, parent: Key, child: Key, tokens: array[int]) -> None:
        """`child`, whose tokens these are, begins with all that was computed of `parent`."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens proposed for one sequence, by whom, and how much they are trusted."""

    tokens: tuple[int, ...]
    drafter: Drafter
    strength: int = 0


class Drafting:
    """All drafters. They are asked in order, each for the sequences that no earlier one is sure of; the strongest
    proposal is taken, of equally strong ones the first. With a `pace`, drafts are cut to what is worth checking.
    """

    def __init__(self, drafters: Seq[Drafter], vocab_size: int, pace: Pace | None = None) -> None:
        self._drafters = tuple(drafters)
        self._readers = tuple(drafter for drafter in drafters if isinstance(drafter, HiddenReader))
        self._vocab_size = vocab_size
        self._pace = pace
        self._seconds = 0.0

    @property
    def active(self) -> bool:
        return any(drafter.active for drafter in self._drafters)

    def take_seconds(self) -> float:
        """Seconds that drafts have taken since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def propose(self, rooms: Mapping[Sequence, int], num_tokens: int) -> dict[Sequence, Draft]:
        """Drafts of at most rooms[seq] tokens, for some of the sequences. Without them the step has num_tokens."""
        start = time.perf_counter()
        drafts = self._propose(rooms, num_tokens)
        self._seconds += time.perf_counter() - start
        return drafts

    def _propose(self, rooms: Mapping[Sequence, int], num_tokens: int) -> dict[Sequence, Draft]:
        if self._pace is not None and not self._pace.may_pay(len(rooms), num_tokens):
            return {}
        drafts: dict[Sequence, Draft] = {}
        for drafter in self._drafters:
            if not drafter.active:
                continue
            queries = {
                seq: _query(seq, room)
                for seq in rooms
                if (room := _room(seq, rooms[seq])) and (seq not in drafts or drafts[seq].strength < SURE)
            }
            queries = self._affordable(drafter, queries, drafts, len(rooms), num_tokens)
            if queries:
                self._take(drafter, queries, drafts)
        return drafts if self._pace is None else self._paced(drafts, self._pace, len(rooms), num_tokens)

    def _affordable(
        self,
        drafter: Drafter,
        queries: dict[Sequence, DraftQuery],
        drafts: Mapping[Sequence, Draft],
        num_decoding: int,
        num_tokens: int,
    ) -> dict[Sequence, DraftQuery]:
        """The queries that are worth what the drafter takes for them, and for how many tokens."""
        price = drafter.price(list(queries.values())) if queries else None
        if price is None:
            return queries
        weaker = {
            seq: query for seq, query in queries.items() if seq not in drafts or drafts[seq].strength < price.strength
        }
        length = LONGEST_PRICED
        if self._pace is not None and weaker:
            keys = [query.key for query in weaker.values()]
            length = min(length, self._pace.afford(drafter.name, price, keys, num_decoding, num_tokens))
        if not length:
            return {}
        return {seq: replace(query, max_tokens=min(query.max_tokens, length)) for seq, query in weaker.items()}

    def _take(self, drafter: Drafter, queries: Mapping[Sequence, DraftQuery], drafts: dict[Sequence, Draft]) -> None:
        """Ask the drafter, and keep of each sequence the strongest draft, as far as its constraint allows."""
        for (seq, query), proposal in zip(queries.items(), drafter.propose(list(queries.values())), strict=True):
            tokens = tuple(proposal.tokens)[: query.max_tokens]
            assert all(0 <= token_id < self._vocab_size for token_id in tokens), f"{drafter.name} drafts {tokens}"
            if seq.constraint is not None:
                tokens = tokens[: seq.constraint.count_allowed(tokens)]
            if tokens and (seq not in drafts or proposal.strength > drafts[seq].strength):
                drafts[seq] = Draft(tokens, drafter, proposal.strength)

    def _paced(
        self, drafts: dict[Sequence, Draft], pace: Pace, num_decoding: int, num_tokens: int
    ) -> dict[Sequence, Draft]:
        described = {_key(seq): (d.drafter.name, d.strength, len(d.tokens)) for seq, d in drafts.items()}
        lengths = pace.choose(described, num_decoding, num_tokens)
        return {
            seq: replace(draft, tokens=draft.tokens[:length])
            for seq, draft in drafts.items()
            if (length := lengths[_key(seq)])
        }

    def verified(self, seq: Sequence, draft: Draft, num_accepted: int) -> None:
        """The draft's first num_accepted tokens were kept."""
        key = _key(seq)
        draft.drafter.verified(key, len(draft.tokens), num_accepted)
        if self._pace is not None:
            self._pace.verified(key, draft.drafter.name, draft.strength, len(draft.tokens), num_accepted)

    def follows(self, seq: Sequence) -> bool:
        """Whether the hidden states of its tokens are wanted."""
        return bool(self._readers) and not seq.request.pooled and seq.request.max_draft_tokens != 0

    def take(self, seq: Sequence, first: int, hidden: FloatArray) -> None:
        """What the model computed of a sequence's tokens from position `first` on, hidden states [T, E]."""
        start = time.perf_counter()
        for reader in self._readers:
            reader.take(_key(seq), seq.request, seq.tokens, first, hidden)
            for child in seq.children if first + len(hidden) >= seq.prompt_len else ():  # they fork off after this step
                reader.forked(_key(seq), _key(child), child.tokens)
        self._seconds += time.perf_counter() - start

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step in which sequences decode took so long."""
        if self._pace is not None:
            self._pace.observe(num_tokens, seconds)

    def forget(self, seq: Sequence) -> None:
        """The sequence has ended."""
        for drafter in self._drafters:
            drafter.forget(_key(seq))
        if self._pace is not None:
            self._pace.forget(_key(seq))


def _key(seq: Sequence) -> Key:
    return seq.request.id, seq.index


def _room(seq: Sequence, room: int) -> int:
    most = seq.request.max_draft_tokens
    return room if most is None else min(room, most)


def _query(seq: Sequence, room: int) -> DraftQuery:
    return DraftQuery(_key(seq), seq.tokens, seq.prompt_len, seq.request, seq.sampler, room, seq.constraint)
