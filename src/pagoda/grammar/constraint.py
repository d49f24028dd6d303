"""A compiled grammar, and where one sequence stands in it: the `TokenConstraint` that sampling obeys.

Where the grammar allows one continuation only, the mask holds the one token that the model's tokenizer would write it
with. So whoever takes `forced` tokens at once gets the tokens, and thereby the text, of who samples one by one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from llguidance import LLMatcher

from pagoda.types import UInt32Array

# Processor seconds that masks may take: so much a token, of which so much may be spent at once. JSON takes a hundredth;
# what takes longer are ambiguous grammars, whose masks take the longer the longer the text is.
SECONDS_A_TOKEN = 0.004
SECONDS_AT_ONCE = 0.2

_ENDS = frozenset({"NotStopped", "NoExtension", "NoExtensionBias", "EndOfSentence"})


class CompiledGrammar:
    """A `CompiledConstraint` of llguidance. `matcher` stands at its start and is only ever copied."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._num_words = -(-vocab_size // 32)

    def start(self) -> GrammarConstraint:
        return GrammarConstraint(self._matcher.deep_copy(), self._num_words)


class GrammarConstraint:
    """A `TokenConstraint`. For one thread at a time; the interpreter's lock is let go while a mask is computed."""

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

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        return 0 if self._matcher.is_stopped() else self._matcher.validate_tokens(list(token_ids))

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
