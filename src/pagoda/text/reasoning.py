"""What a model thinks before it answers: how that is marked, and telling it from the answer as the text comes.

A format is a row of FORMATS. Thinking stands once, before the answer: a mark later on is text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_Reader = Callable[[], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The marks around the thinking, and what the model writes between them and its answer."""

    name: str
    open: str
    close: str
    after: str = "\n\n"

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that are control tokens in some vocabularies, and that the parser has to see."""
        return (self.open.strip(), self.close)

    def is_of(self, template: str) -> bool:
        """Whether a chat template knows the format: by one of its marks, and all that follows the closing one."""
        return self.open.strip() in template or self.close + self.after.strip() in template

    def is_open(self, prompt: str, *, within: bool = False) -> bool:
        """Whether a prompt, or the end of one, leaves the model thinking: the mark is the last that it says.

        within: the prompt ends in the middle of an answer, whose beginning may be thoughts.
        """
        mark = self.open.strip()
        return prompt.rfind(mark) > prompt.rfind(self.close) if within else prompt.rstrip().endswith(mark)

    def is_closed(self, prompt: str) -> bool:
        """Whether a prompt says that the thinking is over, as it does for answers without any."""
        return prompt.rstrip().endswith(self.close.strip())


_HARMONY_FINAL = "<|start|>assistant<|channel|>final<|message|>"

FORMATS: dict[str, ReasoningFormat] = {
    row.name: row
    for row in (
        ReasoningFormat("gemma4", "<|channel>thought\n", "<channel|>", after=""),
        ReasoningFormat("harmony", "<|channel|>analysis<|message|>", "<|end|>", after=_HARMONY_FINAL),
        ReasoningFormat("mistral", "[THINK]", "[/THINK]", after=""),
        ReasoningFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>", after=""),
        ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>"),
        ReasoningFormat("minimax", "<mm:think>", "</mm:think>"),
        ReasoningFormat("apriel", "<thinking>", "</thinking>"),
        ReasoningFormat("think", "<think>", "</think>"),
    )
}


def reasoning_of(template: str) -> ReasoningFormat | None:
    """The format that a chat template knows; None: its model does not think aloud."""
    return next((row for row in FORMATS.values() if row.is_of(template)), None)


class ReasoningParser:
    """Divides an answer into thinking and the rest. Blank space around the marks belongs to neither.

    What `push` and `finish` return does not depend on how the text was cut.
    """

    def __init__(self, row: ReasoningFormat, *, opened: bool) -> None:
        """`opened`: the prompt has opened the thinking already."""
        self._open, self._close, self._after = row.open.strip(), row.close, row.after.strip()
        self._held = ""
        self._read = self._begin_thinking if opened else self._before
        self.thinking = opened

    def push(self, text: str) -> tuple[str, str]:
        """→ (thinking, answer) that are certain with this text"""
        self._held += text
        return self._read()

    def finish(self) -> tuple[str, str]:
        """No more text comes."""
        thought, answer = self._read()
        held, self._held = self._held, ""
        return (thought + held.rstrip(), answer) if self.thinking else (thought, answer + held)

    def _before(self) -> tuple[str, str]:
        """The mark comes first, or none does."""
        solid = self._held.lstrip()
        if solid.startswith(self._open):
            self._held = solid[len(self._open) :]
            self.thinking = True
            return self._then(self._begin_thinking)
        if self._open.startswith(solid):
            return "", ""
        return self._then(self._answer)

    def _begin_thinking(self) -> tuple[str, str]:
        self._held = self._held.lstrip()
        return self._then(self._within) if self._held else ("", "")

    def _within(self) -> tuple[str, str]:
        thought, mark, rest = self._held.partition(self._close)
        if mark:
            self._held = rest
            self.thinking = False
            _, answer = self._then(self._begin_answer)
            return thought.rstrip(), answer
        certain = len(self._held) - _overlap(self._held, self._close)
        thought = self._held[:certain].rstrip()
        self._held = self._held[len(thought) :]
        return thought, ""

    def _begin_answer(self) -> tuple[str, str]:
        self._held = self._held.lstrip()
        if self._held == self._after[: len(self._held)] and self._held != self._after:
            return "", ""
        self._held = self._held.removeprefix(self._after).lstrip()
        return self._then(self._answer) if self._held else ("", "")

    def _answer(self) -> tuple[str, str]:
        answer, self._held = self._held, ""
        return "", answer

    def _then(self, read: _Reader) -> tuple[str, str]:
        self._read = read
        return read()


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of the text may be the beginning of the mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
