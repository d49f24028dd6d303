"""Harmony, the format of gpt-oss's answers: messages one after the other, each on a channel, told apart as they come.

    <|channel|>analysis<|message|>What it thinks.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>What it says.<|return|>

Of the first message the prompt holds `<|start|>assistant`. A call's recipient may stand before its channel. The
analysis is thinking, a message to a function a call, and every other message text: `commentary` without a recipient is
what the model says before it calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pagoda.text.tools.base import ArgumentsPiece, CallStart, Event, TextPiece

START, CHANNEL, MESSAGE, END, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>"
CALL, RETURN = "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, MESSAGE, END, CONSTRAIN)
RECIPIENT = "to=functions."

_ENDS = re.compile("|".join(map(re.escape, (END, CALL, RETURN, START, CHANNEL))))  # the last two begin another one
_BEGINNINGS = (START, CHANNEL, "to=")  # of a header, after blank space
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_TO = re.compile(r"\bto=(?!assistant\b)")
_LONGEST_MARK = max(map(len, (*MARKERS, CALL, RETURN)))
_MAX_HEADER = 512


@dataclass(frozen=True, slots=True)
class ThoughtPiece:
    """A piece of what the model thinks."""

    text: str


Piece = Event | ThoughtPiece


class HarmonyParser:
    """Turns one answer into pieces, which do not depend on how the text was cut.

    A header that the answer's end cuts off says nothing, and is left out.
    """

    def __init__(self, functions: Collection[str], *, thinking: bool = False) -> None:
        """`functions`: the names of those that may be called. `thinking`: the prompt ends within an analysis."""
        self._functions = sorted(functions, key=len, reverse=True)
        self._held = ""
        self._read = self._body if thinking else self._header
        self._piece: Callable[[str], Piece] = ThoughtPiece if thinking else TextPiece
        self._said: set[Callable[[str], Piece]] = set()  # kinds of messages that have said something
        self._at_start = True  # of a message
        self._pieces: list[Piece] = []

    @property
    def thinking(self) -> bool:
        return self._piece is ThoughtPiece

    def push(self, text: str) -> list[Piece]:
        self._held += text
        return self._take()

    def finish(self) -> list[Piece]:
        """No more text comes."""
        self._take_in(final=True)
        if self._read == self._body:
            self._say(self._held)
        self._held = ""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _take(self) -> list[Piece]:
        self._take_in(final=False)
        pieces, self._pieces = self._pieces, []
        return pieces

    def _take_in(self, *, final: bool) -> None:
        while self._held and self._read():
            pass

    # Each reads what it can, and says whether something else may be read now.

    def _header(self) -> bool:
        text = self._held.lstrip()
        begun = [mark for mark in _BEGINNINGS if text.startswith(mark) or mark.startswith(text)]
        if not begun or len(text) > _MAX_HEADER:
            self._begin(TextPiece)
            if begun:  # the mark is text, too: the body would take it for the next header's
                end = self._held.index(begun[0]) + len(begun[0])
                self._say(self._held[:end])
                self._held = self._held[end:]
            return True
        header, mark, rest = text.partition(MESSAGE)
        if not mark:
            return False
        self._held = rest
        self._begin(self._kind(header))
        if self._piece is TextPiece and _TO.search(header):  # a call of something that nobody offers stays text
            self._say(header + mark)
        return True

    def _kind(self, header: str) -> Callable[[str], Piece]:
        _, recipient, name = header.partition(RECIPIENT)
        called = next(
            (known for known in self._functions if name == known or name.startswith((f"{known} ", f"{known}<"))), ""
        )
        if recipient and called:
            self._pieces.append(CallStart(called))
            return ArgumentsPiece
        channel = _CHANNEL.search(header)
        is_analysis = channel is not None and channel[1] == "analysis" and not _TO.search(header)
        return ThoughtPiece if is_analysis else TextPiece

    def _begin(self, piece: Callable[[str], Piece]) -> None:
        self._piece, self._at_start, self._read = piece, True, self._body

    def _body(self) -> bool:
        end = _ENDS.search(self._held)
        if end is None:
            certain = len(self._held) - _begun_mark(self._held)
            self._say(self._held[:certain])
            self._held = self._held[certain:]
            return False
        self._say(self._held[: end.start()])
        self._held = self._held[end.start() if end[0] in (START, CHANNEL) else end.end() :]
        self._read, self._piece = self._header, TextPiece
        return True

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._at_start and self._piece in self._said and self._piece is not ArgumentsPiece:
            text = "\n\n" + text  # between two messages of a kind
        self._at_start = False
        self._said.add(self._piece)
        self._pieces.append(self._piece(text))


def _begun_mark(text: str) -> int:
    """How many characters at the end of the text may be the beginning of a mark."""
    at = text.rfind("<", max(len(text) - _LONGEST_MARK + 1, 0))
    tail = text[at:] if at >= 0 else ""
    return len(tail) if tail and any(mark.startswith(tail) for mark in (*MARKERS, CALL, RETURN)) else 0
