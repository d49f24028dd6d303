"""Drafters guess how sequences go on, and one step of the model checks the guesses.

A draft token is kept exactly when the sampler picks the same token from the model's logits, with the random number of
that position. So drafts change the speed of an answer and nothing else, at any temperature.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from pagoda.engine.sequence import Sequence
from pagoda.types import SamplingParams

Key = tuple[str, int]  # request id and choice index


@dataclass(frozen=True, slots=True)
class DraftQuery:
    """A sequence for which tokens may be proposed."""

    key: Key  # the same for the whole life of the sequence
    tokens: array[int]  # prompt and output so far, all of them certain; not to be changed
    prompt_len: int
    params: SamplingParams
    max_tokens: int  # at least 1; proposals beyond it are dropped


class Drafter(Protocol):
    """Proposes tokens. It is called on the engine's thread, between steps of the model."""

    @property
    def name(self) -> str:
        """Its name in metrics."""

    @property
    def active(self) -> bool:
        """Whether it may propose something now. While no drafter is active, an asynchronous model is planned ahead."""

    def propose(self, queries: Seq[DraftQuery]) -> Seq[Seq[int]]:
        """For each query the tokens that may follow, the next one first; none where it has no guess."""

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        """Of num_proposed tokens that one step checked, the first num_accepted were kept; the others never were.

        State that was advanced over the proposals is rewound here. The token after them comes with the next query.
        """

    def forget(self, key: Key) -> None:
        """The sequence has ended."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens proposed for one sequence, and by whom."""

    tokens: tuple[int, ...]
    drafter: Drafter


class Drafting:
    """All drafters. They are asked in order, each for the sequences for which no earlier one had a guess."""

    def __init__(self, drafters: Seq[Drafter], vocab_size: int) -> None:
        self._drafters = tuple(drafters)
        self._vocab_size = vocab_size

    @property
    def active(self) -> bool:
        return any(drafter.active for drafter in self._drafters)

    def propose(self, rooms: Mapping[Sequence, int]) -> dict[Sequence, Draft]:
        """Drafts of at most rooms[seq] tokens, for some of the sequences."""
        drafts: dict[Sequence, Draft] = {}
        for drafter in self._drafters:
            asked = [seq for seq in rooms if seq not in drafts]
            if not asked or not drafter.active:
                continue
            proposals = drafter.propose([_query(seq, rooms[seq]) for seq in asked])
            for seq, proposal in zip(asked, proposals, strict=True):
                tokens = tuple(proposal)[: rooms[seq]]
                assert all(0 <= token_id < self._vocab_size for token_id in tokens), f"{drafter.name} drafts {tokens}"
                if seq.constraint is not None:
                    tokens = tokens[: seq.constraint.count_allowed(tokens)]
                if tokens:
                    drafts[seq] = Draft(tokens, drafter)
        return drafts

    def forget(self, seq: Sequence) -> None:
        """The sequence has ended."""
        for drafter in self._drafters:
            drafter.forget((seq.request.id, seq.index))


def _query(seq: Sequence, room: int) -> DraftQuery:
    return DraftQuery((seq.request.id, seq.index), seq.tokens, seq.prompt_len, seq.request.params, room)
