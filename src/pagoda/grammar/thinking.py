"""Thinking before an answer that a grammar rules: free until its closing mark, which is forced when a budget is spent.

The mark is told by the bytes of tokens, so it may be one control token or several tokens of text. A token that goes on
beyond it is not allowed where a grammar follows: it would have to obey that in part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

import numpy as np

from pagoda.constraint import CompiledConstraint, TokenConstraint
from pagoda.types import UInt32Array


class ThinkingTokenizer(Protocol):
    """What thinking needs of a tokenizer."""

    @property
    def eos_ids(self) -> Collection[int]: ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands around the thinking; see `pagoda.text.reasoning.ReasoningFormat`."""

    open: str
    close: str
    after: str  # between the closing mark and an answer that a grammar rules


class ThinkingVocabulary:
    """What a vocabulary has to do with some marks. Looks at every token: made once for a model."""

    def __init__(self, tokenizer: ThinkingTokenizer, marks: Marks) -> None:
        self.close = marks.close.encode()
        self.open = marks.open.strip().encode()
        self.open_ids = _encode(tokenizer, marks.open)
        self.close_ids = _encode(tokenizer, marks.close)
        self.after_ids = _encode(tokenizer, marks.after) if marks.after else []
        self.token_bytes = tokenizer.token_bytes
        self.anything = _all_bits(tokenizer.vocab_size)
        self.unfinished = self.anything.copy()  # anything but the end of the text
        for token_id in tokenizer.eos_ids:
            _clear(self.unfinished, token_id)
        last = self.close[-1:]
        ids = range(tokenizer.vocab_size)
        self.beyond = [i for i in ids if last in tokenizer.token_bytes(i)[:-1]]  # may go on beyond the closing mark


class Thinking:
    """A `CompiledConstraint` for a model that thinks first."""

    def __init__(
        self,
        vocabulary: ThinkingVocabulary,
        *,
        opened: bool,
        budget: int | None = None,
        answer: CompiledConstraint | None = None,
    ) -> None:
        """opened: the prompt has opened the thinking; otherwise the model may open it, or answer at once.

        budget: tokens of thinking, marks not counted; None: no limit. answer: None is a free one.
        """
        self.vocabulary, self.opened, self.budget, self.answer = vocabulary, opened, budget, answer

    def start(self) -> ThinkingConstraint:
        return ThinkingConstraint(self)


class _Phase(Enum):
    BEFORE = auto()  # the model may open the thinking
    THINKING = auto()
    ANSWER = auto()


@dataclass(frozen=True, slots=True)
class _State:
    """Where a sequence stands after some token."""

    phase: _Phase
    queue: tuple[int, ...] = ()  # tokens that come next, whatever the phase
    tail: bytes = b""  # the last bytes, as far as they may belong to a mark
    num_thoughts: int = 0


class ThinkingConstraint:
    """A `TokenConstraint`: the thinking obeys nothing but its budget, and the answer what is asked of it."""

    def __init__(self, thinking: Thinking) -> None:
        self._vocabulary = thinking.vocabulary
        self._budget = thinking.budget
        self._answer: TokenConstraint | None = thinking.answer.start() if thinking.answer is not None else None
        self._states = [self._first_state(thinking.opened)]  # after each number of tokens

    @property
    def num_outputs(self) -> int:
        return len(self._states) - 1

    @property
    def finished(self) -> bool:
        return self._in_answer and self._answer is not None and self._answer.finished

    def fill(self, allowed: UInt32Array) -> str | None:
        state = self._states[-1]
        if state.queue:
            allowed[:] = 0
            allowed[state.queue[0] // 32] = 1 << state.queue[0] % 32
            return None
        if self._answer is not None and state.phase is not _Phase.THINKING:
            error = self._answer.fill(allowed)
            if state.phase is _Phase.BEFORE:
                first = self._vocabulary.open_ids[0]
                allowed[first // 32] |= np.uint32(1 << first % 32)
            return error
        self._fill_thinking(allowed, state)
        return None

    def forced(self) -> Sequence[int]:
        state = self._states[-1]
        if state.queue:
            return state.queue
        return self._answer.forced() if self._answer is not None and state.phase is _Phase.ANSWER else ()

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        state = self._states[-1]
        if state.queue:
            same = [a == b for a, b in zip(token_ids, state.queue, strict=False)]
            return same.index(False) if False in same else len(same)
        if self._in_answer:
            return len(token_ids) if self._answer is None else self._answer.count_allowed(token_ids)
        if self._budget is None:
            return len(token_ids)
        return min(len(token_ids), self._budget - state.num_thoughts)

    def accept(self, token_id: int) -> None:
        state = self._states[-1]
        if state.queue:
            assert token_id == state.queue[0]
            self._states.append(replace(state, queue=state.queue[1:]))
        elif state.phase is _Phase.ANSWER:
            self._states.append(state)
            if self._answer is not None:
                self._answer.accept(token_id)
        elif state.phase is _Phase.BEFORE:
            self._states.append(self._after_first(state, token_id))
        else:
            self._states.append(self._after_thought(state, token_id))

    def rewind(self, num_outputs: int) -> None:
        assert 0 <= num_outputs <= self.num_outputs
        dropped = sum(self._is_answer(n) for n in range(num_outputs, self.num_outputs))
        del self._states[num_outputs + 1 :]
        if self._answer is not None and dropped:
            self._answer.rewind(self._answer.num_outputs - dropped)

    # Inside

    @property
    def _in_answer(self) -> bool:
        return self._states[-1].phase is _Phase.ANSWER and not self._states[-1].queue

    def _is_answer(self, n: int) -> bool:
        """Whether token n went to the answer's own constraint."""
        before, after = self._states[n], self._states[n + 1]
        return after.phase is _Phase.ANSWER and not before.queue and before.phase is not _Phase.THINKING

    def _first_state(self, opened: bool) -> _State:
        marks = self._vocabulary
        if self._budget == 0:
            opening = () if opened else tuple(marks.open_ids)
            return _State(_Phase.ANSWER, (*opening, *marks.close_ids, *marks.after_ids))
        return _State(_Phase.THINKING if opened else _Phase.BEFORE)

    def _fill_thinking(self, allowed: UInt32Array, state: _State) -> None:
        marks = self._vocabulary
        mask = marks.anything if self._answer is None else marks.unfinished
        allowed[: len(mask)] = mask
        allowed[len(mask) :] = 0
        if state.phase is not _Phase.THINKING or self._answer is None:
            return
        for token_id in marks.beyond:
            text = state.tail + marks.token_bytes(token_id)
            if marks.close in text and not text.endswith(marks.close):
                _clear(allowed, token_id)

    def _after_first(self, state: _State, token_id: int) -> _State:
        """The text so far is the beginning of the opening mark, or the answer has begun."""
        marks = self._vocabulary
        if self._answer is not None:
            if token_id == marks.open_ids[0]:
                return _State(_Phase.THINKING, tuple(marks.open_ids[1:]))
            self._answer.accept(token_id)
            return _State(_Phase.ANSWER)
        text = (state.tail + marks.token_bytes(token_id)).lstrip()
        if text.startswith(marks.open):
            return _State(_Phase.THINKING)
        return replace(state, tail=text) if marks.open.startswith(text) else _State(_Phase.ANSWER)

    def _after_thought(self, state: _State, token_id: int) -> _State:
        marks = self._vocabulary
        text = state.tail + marks.token_bytes(token_id)
        if marks.close in text:
            return _State(_Phase.ANSWER, tuple(marks.after_ids if self._answer is not None else ()))
        count = state.num_thoughts + 1
        if count == self._budget:
            return _State(_Phase.ANSWER, (*marks.close_ids, *marks.after_ids))
        return _State(_Phase.THINKING, (), _overlap(text, marks.close), count)


def _encode(tokenizer: ThinkingTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False, parse_special=True)


def _all_bits(vocab_size: int) -> UInt32Array:
    words = np.full(-(-vocab_size // 32), 2**32 - 1, np.uint32)
    if vocab_size % 32:
        words[-1] = (1 << vocab_size % 32) - 1
    return words


def _clear(allowed: UInt32Array, token_id: int) -> None:
    allowed[token_id // 32] &= np.uint32(~(1 << token_id % 32) & 0xFFFFFFFF)


def _overlap(text: bytes, mark: bytes) -> bytes:
    """The longest end of the text that the mark begins with."""
    return next((text[-n:] for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), b"")
