"""A grammar in Python: a random automaton over the fake tokenizer's tokens, with stretches that force tokens."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fake_backend import EOS_ID, VOCAB_SIZE
from pagoda.types import UInt32Array

NUM_STATES = 12
LONGEST_FORCED = 9


@dataclass(frozen=True)
class FakeGrammar:
    """A `CompiledConstraint`. `forces`: whether it tells which tokens are forced; masks are the same either way.

    fails_after: masks after so many tokens are errors.
    """

    seed: int
    forces: bool = True
    fails_after: int | None = None

    def start(self) -> FakeConstraint:
        return FakeConstraint(self)


class FakeConstraint:
    """A `TokenConstraint` that checks that one thread at a time uses it, and that only allowed tokens come."""

    def __init__(self, grammar: FakeGrammar) -> None:
        self.grammar = grammar
        rng = random.Random(grammar.seed)
        self.rules = [_rule(rng) for _ in range(NUM_STATES)]  # of each state: token → next state
        self.states = [0]  # None: ended
        self.num_forced = 0
        self.lock = threading.Lock()

    @property
    def num_outputs(self) -> int:
        return len(self.states) - 1

    @property
    def finished(self) -> bool:
        return not self.rules[self.states[-1]]

    def fill(self, allowed: UInt32Array) -> str | None:
        with self._alone():
            allowed[:] = 0
            for token_id in self.rules[self.states[-1]] or [EOS_ID]:
                allowed[token_id // 32] |= np.uint32(1 << token_id % 32)
            failed = self.grammar.fails_after is not None and self.num_outputs >= self.grammar.fails_after
            return "the grammar is too complex" if failed else None

    def forced(self) -> list[int]:
        with self._alone():
            tokens: list[int] = []
            rules = self.rules[self.states[-1]]
            while self.grammar.forces and len(rules) == 1 and len(tokens) < LONGEST_FORCED:
                tokens += rules
                rules = self.rules[rules[tokens[-1]]]
            return tokens

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        with self._alone():
            state = self.states[-1]
            for count, token_id in enumerate(token_ids):
                if token_id not in self.rules[state]:
                    return count
                state = self.rules[state][token_id]
            return len(token_ids)

    def accept(self, token_id: int) -> None:
        with self._alone():
            rules = self.rules[self.states[-1]]
            assert token_id in (rules or [EOS_ID]), f"{token_id} is not allowed after {self.num_outputs} tokens"
            self.states.append(rules.get(token_id, self.states[-1]))

    def rewind(self, num_outputs: int) -> None:
        with self._alone():
            assert 0 <= num_outputs <= self.num_outputs
            del self.states[num_outputs + 1 :]

    def _alone(self) -> _Alone:
        return _Alone(self.lock)


class _Alone:
    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock

    def __enter__(self) -> None:
        assert self.lock.acquire(blocking=False), "two threads at once"

    def __exit__(self, *args: object) -> None:
        self.lock.release()


def _rule(rng: random.Random) -> dict[int, int]:
    """Many tokens, few, one, or the end."""
    count = rng.choice([25, 6, 6, 2, 1, 1, 1, 1, 0])
    tokens = rng.sample(range(VOCAB_SIZE), count)
    return {token_id: rng.randrange(1, NUM_STATES) for token_id in tokens}
