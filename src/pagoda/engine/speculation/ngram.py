"""Drafts what followed the same words before in the sequence's own prompt and answer: edits and quotes repeat them."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from pagoda.engine.drafters import DraftQuery, Key, Proposal
from pagoda.engine.speculation.matching import NgramIndex, best_match


class NgramDrafter:
    """A `Drafter`: the longest match of the text's end, and what came after it (prompt lookup decoding)."""

    name = "ngram"
    active = True

    def __init__(self) -> None:
        self._indexes: dict[Key, NgramIndex] = {}

    def price(self, queries: Seq[DraftQuery]) -> None:
        """Looking up takes next to nothing."""

    def propose(self, queries: Seq[DraftQuery]) -> list[Proposal]:
        return [self._propose(query) for query in queries]

    def _propose(self, query: DraftQuery) -> Proposal:
        tokens = query.tokens
        index = self._indexes.setdefault(query.key, NgramIndex())
        index.extend(tokens, len(tokens) - 1)  # not the end itself, which matches itself
        match = best_match(index, tokens, tokens)
        if match is None:
            return Proposal()
        return Proposal(tokens[match.end : match.end + query.max_tokens].tolist(), match.strength)

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        """Nothing was advanced."""

    def forget(self, key: Key) -> None:
        self._indexes.pop(key, None)
