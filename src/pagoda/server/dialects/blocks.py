"""An answer as a list of blocks, one open at a time: what is thought, what is said, what is called.

The Responses API calls them output items and the Messages API content blocks; both number them, announce each, send it
in pieces and close it. `BlockAnswer` finds out which block a piece belongs to, and its subclasses write the events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from pagoda.server.call import Call
from pagoda.server.chat_answer import ChatAnswer
from pagoda.server.choice import AnswerOptions, Choice
from pagoda.server.logprob_json import LogprobWriter
from pagoda.server.prompts import Prompt
from pagoda.types import Delta

Kind = Literal["thinking", "text", "call"]


@dataclass(slots=True)
class Block:
    """What belongs together in an answer."""

    kind: Kind
    index: int
    id: str = ""  # of a call
    name: str = ""
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a delta adds to the answer; `starts` where it begins a call."""

    kind: Kind
    text: str
    starts: bool = False
    id: str = ""
    name: str = ""


def event(kind: str, **fields: Any) -> bytes:
    """A server-sent event that is named by its type."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


class BlockAnswer(ChatAnswer):
    """The answer with one choice, in blocks. Subclasses say what is written when a block opens, grows and closes."""

    def __init__(
        self, call: Call, model: str, prompts: Sequence[Prompt], options: AnswerOptions, writer: LogprobWriter
    ) -> None:
        super().__init__(call, model, prompts, options, writer)
        self.model = model
        self.blocks: list[Block] = []
        self._block: Block | None = None  # which is open
        (self.choice,) = self.choices

    def _opened(self, block: Block) -> bytes:
        raise NotImplementedError

    def _grown(self, block: Block, text: str, delta: Delta) -> bytes:
        raise NotImplementedError

    def _closed(self, block: Block) -> bytes:
        raise NotImplementedError

    def _keep(self, choice: Choice, delta: Delta) -> None:
        choice.logprobs.extend(delta.logprobs or ())
        for _ in self._grow(choice, delta):
            pass
        if delta.finish_reason is not None:
            self._finish()

    def _event(self, delta: Delta) -> bytes:
        choice, delta = self._take(delta)
        block = self._block
        if choice.parser is None and delta.finish_reason is None and block is not None:  # more of the same text
            if not delta.text:
                return b""
            block.texts.append(delta.text)
            return self._grown(block, delta.text, delta)
        written = []
        for happened, block, text in self._grow(choice, delta):
            written.append(self._written(happened, block, text, delta))
        if delta.finish_reason is not None:
            written += [self._written(happened, block, "", delta) for happened, block in self._finish()]
        return b"".join(written)

    def _written(self, happened: str, block: Block, text: str, delta: Delta) -> bytes:
        if happened == "grown":
            return self._grown(block, text, delta)
        return self._opened(block) if happened == "opened" else self._closed(block)

    def _grow(self, choice: Choice, delta: Delta) -> Iterator[tuple[str, Block, str]]:
        """Put what has come into blocks. → what happened to which block, in order"""
        for piece in _pieces(choice, delta):
            block = self._block
            if block is None or block.kind != piece.kind or piece.starts:
                if block is not None:
                    yield "closed", block, ""
                block = self._open(Block(piece.kind, len(self.blocks), piece.id, piece.name))
                yield "opened", block, ""
            if piece.text:
                block.texts.append(piece.text)
                yield "grown", block, piece.text

    def _open(self, block: Block) -> Block:
        self.blocks.append(block)
        self._block = block
        return block

    def _finish(self) -> list[tuple[str, Block]]:
        """The end. An answer that says nothing has one empty text."""
        happened: list[tuple[str, Block]] = []
        if self._block is None:
            happened.append(("opened", self._open(Block("text", 0))))
        assert self._block is not None
        happened.append(("closed", self._block))
        self._block = None
        return happened

    def said(self) -> dict[str, Any]:
        """The answer as a message of a conversation, which a further request may go on with."""
        texts: dict[Kind, str] = {
            kind: "".join(block.text for block in self.blocks if block.kind == kind) for kind in ("text", "thinking")
        }
        calls = [
            {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.text or "{}"}}
            for block in self.blocks
            if block.kind == "call"
        ]
        message: dict[str, Any] = {"role": "assistant", "content": texts["text"] or (None if calls else "")}
        if texts["thinking"]:
            message["reasoning_content"] = texts["thinking"]
        return message | {"tool_calls": calls} if calls else message


def _pieces(choice: Choice, delta: Delta) -> list[Piece]:
    pieces = []
    if choice.parsed.thought:
        pieces.append(Piece("thinking", choice.parsed.thought))
    if delta.text:
        pieces.append(Piece("text", delta.text))
    for call in choice.parsed.calls:
        pieces.append(Piece("call", call.arguments, call.id is not None, call.id or "", call.name or ""))
    return pieces
