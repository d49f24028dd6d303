"""A record as token ids, with the tokens marked that are learned: the assistant's, and the one that ends an answer.

Each answer stands, by the model's own template, between the prompt that a server would make of the messages before it
and the end of the text after it. So the conversation is rendered up to each of the two, and the difference is the
answer. The pieces are tokenized one by one, as a server tokenizes a prompt before its answer comes.

Some templates change earlier turns when later ones follow (they drop what was thought). Then no single text holds all
answers as they are asked for, and each answer becomes an example of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.errors import FormatError, RequestError, UnsupportedError
from pagoda.finetune.data.records import Record
from pagoda.text.chat import ChatTemplate
from pagoda.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """ids [T], and which of them are learned: predicted from the tokens before. Token 0 never is."""

    where: str
    ids: npt.NDArray[np.int32]
    trained: Bools

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        return int(self.trained.sum())

    @property
    def key(self) -> bytes:
        """Equal for equal examples."""
        return self.ids.tobytes() + self.trained.tobytes()


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    is_answer: bool


class Renderer:
    """Makes examples of records, for one model."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, why_none: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._why_none = why_none

    def examples(self, record: Record) -> list[Example]:
        """One, or one for each answer; none where nothing in the record is to be learned.

        FormatError for messages that the template refuses; UnsupportedError for a model without a template, and for
        templates that end no answer or leave it out.
        """
        if record.trained is not None:
            return [self._of_text(record)]
        if self._template is None:
            raise UnsupportedError(f"this model has no chat template, so messages cannot be trained: {self._why_none}")
        try:
            return [self._of_pieces(record, pieces) for pieces in self._conversations(record)]
        except RequestError as error:
            raise FormatError(f"{record.where}: {error}") from error

    def _of_text(self, record: Record) -> Example:
        """A prompt, if any, then what is learned of it, and the end."""
        assert record.trained is not None
        before = self._tokenizer.encode(record.prompt, add_special=False) if record.prompt else []
        learned = self._tokenizer.encode(record.trained, add_special=False)
        if self._tokenizer.eos_id is not None:
            learned.append(self._tokenizer.eos_id)
        return _example(record.where, [*self._tokenizer.vocabulary.prefix, *before], learned)

    def _conversations(self, record: Record) -> list[list[_Piece]]:
        """The pieces of each example that the record becomes."""
        answers = [i for i, message in enumerate(record.messages) if is_answer(message) and not is_empty(message)]
        if not answers:
            return []
        whole = self._whole(record, answers)
        if whole is not None:
            return [whole]
        return [self._last_answer(record, i) for i in answers]

    def _whole(self, record: Record, answers: Sequence[int]) -> list[_Piece] | None:
        """All answers in one text; None where the template writes earlier turns otherwise once later ones follow."""
        text = self._render(record, len(record.messages))
        pieces, at = [], 0
        for i in answers:
            before, after = self._bounds(record, i)
            if not (text.startswith(before) and text.startswith(after) and len(before) >= at):
                return None
            pieces += [_Piece(text[at : len(before)], False), _Piece(text[len(before) : len(after)], True)]
            at = len(after)
        return pieces

    def _last_answer(self, record: Record, i: int) -> list[_Piece]:
        before, after = self._bounds(record, i)
        if not after.startswith(before):
            raise UnsupportedError(
                f"{record.where}: the chat template writes the prompt before messages[{i}] otherwise once the answer "
                "follows, so its answer cannot be told from the prompt"
            )
        return [_Piece(before, False), _Piece(after[len(before) :], True)]

    def _bounds(self, record: Record, i: int) -> tuple[str, str]:
        """The prompt that messages[i] answers, and the text with the answer."""
        before, after = self._render(record, i, prompt=True), self._render(record, i + 1)
        content = record.messages[i].get("content")
        if isinstance(content, str) and content.strip() not in after[len(before) :]:
            raise UnsupportedError(f"{record.where}: the chat template leaves out or changes messages[{i}]")
        return before, after

    def _render(self, record: Record, count: int, *, prompt: bool = False) -> str:
        assert self._template is not None
        messages = [{k: v for k, v in m.items() if k != "weight"} for m in record.messages[:count]]
        return self._template.render(messages, tools=record.tools or None, add_generation_prompt=prompt)

    def _of_pieces(self, record: Record, pieces: Sequence[_Piece]) -> Example:
        ids: list[int] = []
        trained: list[bool] = []
        for piece in pieces:
            found = self._tokenizer.encode(piece.text, add_special=False, parse_special=True)
            learned = self._end_of_answer(record, piece.text, found) if piece.is_answer else 0
            ids += found
            trained += [True] * learned + [False] * (len(found) - learned)
        prefix = list(self._tokenizer.vocabulary.prefix)
        if ids[: len(prefix)] != prefix:
            ids, trained = prefix + ids, [False] * len(prefix) + trained
        return Example(record.where, np.array(ids, np.int32), np.array(trained))

    def _end_of_answer(self, record: Record, text: str, ids: Sequence[int]) -> int:
        """How many of an answer's tokens the model has to write: up to the last one that ends it."""
        ends = [i for i, token in enumerate(ids) if token in self._tokenizer.eos_ids]
        if not ends:
            raise UnsupportedError(
                f"{record.where}: the chat template ends an answer with {text[-20:]!r}, which holds no token that ends "
                "answers; a model that is trained on it would never stop"
            )
        return ends[-1] + 1


def is_answer(message: Message) -> bool:
    """Whether the message is the assistant's, and to be learned."""
    return bool(message["role"] == "assistant" and message.get("weight", 1) == 1)


def is_empty(message: Message) -> bool:
    """Whether it says nothing and calls nothing."""
    content = message.get("content")
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
    return not message.get("tool_calls") and not "".join(texts).strip()


def _example(where: str, before: list[int], learned: list[int]) -> Example:
    trained = np.array([False] * len(before) + [True] * len(learned))
    trained[:1] = False  # nothing stands before it
    return Example(where, np.array(before + learned, np.int32), trained)
