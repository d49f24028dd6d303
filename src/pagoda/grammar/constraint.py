"""A compiled grammar, and where one sequence stands in it: the `Constraint` that sampling obeys.

Where the grammar allows one continuation only, the mask holds the one token that the model's tokenizer would write it
with. So whoever takes `forced` tokens at once gets the tokens, and thereby the text, of who samples one by one.
"""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

UInt32Array = npt.NDArray[np.uint32]

# Processor seconds that masks may take: so much a token, of which so much may be spent at once. JSON takes a hundredth;
# what takes longer are ambiguous grammars, whose masks take the longer the longer the text is.
SECONDS_A_TOKEN = 0.004
SECONDS_AT_ONCE = 0.2

_ENDS = frozenset({"NotStopped", "NoExtension", "NoExtensionBias", "EndOfSentence"})


class Constraint(Protocol):
    """What may come next in one sequence. Token ids are the model's; the end of a text is a token too."""

    @property
    def num_outputs(self) -> int:
        """Tokens accepted so far."""

    @property
    def finished(self) -> bool:
        """Whether nothing may follow, so that the sequence has ended, with or without a token that says so."""

    def fill(self, allowed: UInt32Array) -> str | None:
        """Set bit i % 32 of allowed[i // 32] where token i may come next, and no other bit. → an error, if any.

        An error means that the grammar has grown too complex, and the sequence cannot go on.
        """

    def forced(self) -> list[int]:
        """Tokens that come next whatever the model says; often none."""

    def accept(self, token_id: int) -> None:
        """The token was appended. It must be one that was allowed."""

    def rewind(self, num_outputs: int) -> None:
        """Forget all accepted tokens but the first num_outputs."""


class Grammar(Protocol):
    """Something compiled that many sequences obey, each in its own place. Safe to use from several threads at once."""

    def start(self) -> Constraint:
        """A sequence that has no tokens yet."""


class CompiledGrammar:
    """A `Grammar` of llguidance. `matcher` stands at its start and is only ever copied."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._num_words = -(-vocab_size // 32)

    def start(self) -> GrammarConstraint:
        return GrammarConstraint(self._matcher.deep_copy(), self._num_words)


class GrammarConstraint:
    """See `Constraint`. For one thread at a time; the interpreter's lock is let go while a mask is computed."""

    __slots__ = ("_error", "_matcher", "_num_words", "_past_end", "_seconds", "num_outputs")

    def __init__(self, matcher: LLMatcher, num_words: int) -> None:
        self._matcher = matcher
        self._num_words = num_words
        self._error: str | None = None
        self._seconds = SECONDS_AT_ONCE  # that masks may still take
        self._past_end = 0  # tokens accepted since the matcher stopped, which it does not count
        self.num_outputs = 0

    @property
    def finished(self) -> bool:
        return self._error is None and self._matcher.is_stopped()

    def fill(self, allowed: UInt32Array) -> str | None:
        allowed[self._num_words :] = 0
        start = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(allowed.ctypes.data, self._num_words * 4)
        self._seconds = min(self._seconds + SECONDS_A_TOKEN, SECONDS_AT_ONCE) - (time.thread_time() - start)
        return self._failure()  # only now: where a mask cannot be computed, the matcher lets the text end

    def forced(self) -> list[int]:
        return self._matcher.compute_ff_tokens()

    def accept(self, token_id: int) -> None:
        self.num_outputs += 1
        if self._matcher.is_stopped():
            self._past_end += 1
        elif not self._matcher.consume_token(token_id):
            self._error = self._failure()

    def rewind(self, num_outputs: int) -> None:
        assert 0 <= num_outputs <= self.num_outputs
        dropped = self.num_outputs - num_outputs
        of_matcher = max(0, dropped - self._past_end)
        self._past_end = max(0, self._past_end - dropped)
        self.num_outputs = num_outputs
        if of_matcher:
            self._matcher.rollback(of_matcher)

    def _failure(self) -> str | None:
        """Why the matcher has given up, if it has."""
        if self._error is None and self._matcher.is_stopped() and self._matcher.stop_reason() not in _ENDS:
            what = self._matcher.get_error() or self._matcher.stop_reason()
            self._error = f"the grammar has become too complex to go on: {what}"
        if self._error is None and self._seconds < 0:
            self._error = f"the grammar is too complex: its masks take more than {SECONDS_A_TOKEN} s a token"
        return self._error
