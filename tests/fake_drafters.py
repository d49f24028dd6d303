"""Drafters that guess well, badly, and both; they check that the engine treats them as it promises."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fake_backend import VOCAB_SIZE
from pagoda.engine.drafters import DraftQuery, Key, Proposal


class FakeDrafter:
    """Proposes the tokens that are known to come, and each of them wrong with probability 1 - `accuracy`.

    answers[key] are all tokens of a sequence, prompt and output. A key that is not there gets nonsense.
    """

    def __init__(
        self,
        answers: dict[Key, list[int]] | None = None,
        *,
        accuracy: float = 1.0,
        longest: int = 6,
        name: str = "fake",
        vocab_size: int = VOCAB_SIZE,
    ) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.active = True
        self.answers = {} if answers is None else answers
        self.accuracy = accuracy
        self.longest = longest
        self.proposed: dict[Key, list[int]] = {}  # and not verified yet
        self.rng = random.Random(0)
        self.outcomes: list[tuple[int, int]] = []  # of each draft: tokens proposed, tokens kept

    def price(self, queries: Sequence[DraftQuery]) -> None:
        """Nothing."""

    def propose(self, queries: Sequence[DraftQuery]) -> list[Proposal]:
        return [Proposal(self._propose(query)) for query in queries]

    def _propose(self, query: DraftQuery) -> list[int]:
        assert query.max_tokens > 0
        tokens = query.tokens.tolist()
        known = self.answers.get(query.key)
        if known is not None:
            assert tokens == known[: len(tokens)], "a token that is not certain"
        right = (known or [])[len(tokens) :]
        count = self.rng.randint(0 if self.accuracy < 1 else self.longest, self.longest)
        draft = [token if self.rng.random() < self.accuracy else self._other_than(token) for token in right[:count]]
        draft += [self.rng.randrange(self.vocab_size) for _ in range(count - len(draft))]
        self.proposed[query.key] = draft
        return draft  # perhaps longer than is of use

    def _other_than(self, token_id: int) -> int:
        return (token_id + self.rng.randrange(1, self.vocab_size)) % self.vocab_size

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_proposed <= len(self.proposed.pop(key))
        self.outcomes.append((num_proposed, num_accepted))

    def forget(self, key: Key) -> None:
        self.proposed.pop(key, None)
