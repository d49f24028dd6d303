"""Drafters guess how sequences go on, and one step of the model checks the guesses.

A draft token is kept exactly when the sampler picks the same token from the model's logits, with the random number of
that position. So drafts change the speed of an answer and nothing else, at any temperature.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Protocol

from pagoda.engine.sequence import Sequence
from pagoda.types import Request

SURE = 3  # the strength of a proposal beside which no other is asked for

Key = tuple[str, int]  # request id and choice index


@dataclass(frozen=True, slots=True)
class DraftQuery:
    """A sequence for which tokens may be proposed."""

    key: Key  # the same for the whole life of the sequence
    tokens: array[int]  # prompt and output so far, all of them certain; not to be changed
    prompt_len: int
    request: Request
    max_tokens: int  # at least 1; proposals beyond it are dropped


@dataclass(frozen=True, slots=True)
class Proposal:
    """What may follow, the next token first, and how much the drafter trusts it: `strength` is from 0 to 3."""

    tokens: Seq[int] = ()
    strength: int = 0


class Pace(Protocol):
    """Chooses how many tokens of each draft are checked; see `speculation.pacing`."""

    def choose(
        self, drafts: Mapping[Key, tuple[str, int, int]], num_decoding: int, num_tokens: int
    ) -> Mapping[Key, int]:
        """How many tokens of each draft (drafter, strength, length) to check, in a step of num_tokens without them."""

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

    def propose(self, queries: Seq[DraftQuery]) -> Seq[Proposal]:
        """A proposal for each query, without tokens where it has no guess."""

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        """Of num_proposed tokens that one step checked, the first num_accepted were kept; the others never were.

        State that was advanced over the proposals is rewound here. The token after them comes with the next query.
        """

    def forget(self, key: Key) -> None:
        """The sequence has ended."""


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
        self._vocab_size = vocab_size
        self._pace = pace

    @property
    def active(self) -> bool:
        return any(drafter.active for drafter in self._drafters)

    def propose(self, rooms: Mapping[Sequence, int], num_tokens: int) -> dict[Sequence, Draft]:
        """Drafts of at most rooms[seq] tokens, for some of the sequences. Without them the step has num_tokens."""
        if self._pace is not None and not self._pace.may_pay(len(rooms), num_tokens):
            return {}
        drafts: dict[Sequence, Draft] = {}
        for drafter in self._drafters:
            asked = [seq for seq in rooms if _room(seq, 1) and (seq not in drafts or drafts[seq].strength < SURE)]
            if not asked or not drafter.active:
                continue
            proposals = drafter.propose([_query(seq, rooms[seq]) for seq in asked])
            for seq, proposal in zip(asked, proposals, strict=True):
                tokens = tuple(proposal.tokens)[: _room(seq, rooms[seq])]
                assert all(0 <= token_id < self._vocab_size for token_id in tokens), f"{drafter.name} drafts {tokens}"
                if seq.constraint is not None:
                    tokens = tokens[: seq.constraint.count_allowed(tokens)]
                if tokens and (seq not in drafts or proposal.strength > drafts[seq].strength):
                    drafts[seq] = Draft(tokens, drafter, proposal.strength)
        return drafts if self._pace is None else self._paced(drafts, self._pace, len(rooms), num_tokens)

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
        """Of the draft the first num_accepted tokens were kept."""
        key = _key(seq)
        draft.drafter.verified(key, len(draft.tokens), num_accepted)
        if self._pace is not None:
            self._pace.verified(key, draft.drafter.name, draft.strength, len(draft.tokens), num_accepted)

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
    return DraftQuery(_key(seq), seq.tokens, seq.prompt_len, seq.request, room)
