"""The text of one choice → what it says, what was thought before it, and what it calls, as it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.server.output_plan import OutputPlan
from pagoda.text.harmony import HarmonyParser, ThoughtPiece
from pagoda.text.reasoning import FORMATS as REASONING_FORMATS
from pagoda.text.reasoning import ReasoningParser
from pagoda.text.tools.base import ArgumentsPiece, CallStart, Event, TextPiece
from pagoda.text.tools.table import FORMATS as TOOL_FORMATS

HARMONY = "harmony"  # whose thinking and calls are messages of one kind


@dataclass(slots=True)
class CallPiece:
    """A piece of call number `index`; the first one has its id and name."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a piece of text has brought."""

    content: str = ""
    thought: str = ""
    calls: Sequence[CallPiece] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.thought or self.calls)


class OutputParser:
    """Follows one choice."""

    def __init__(self, plan: OutputPlan) -> None:
        self._plan = plan
        self._reasoning: ReasoningParser | None = None
        if plan.reasoning is not None:
            self._reasoning = ReasoningParser(REASONING_FORMATS[plan.reasoning], opened=plan.thinking_open)
        self._format = None if plan.tool_format is None else TOOL_FORMATS[plan.tool_format]
        self._messages: HarmonyParser | None = None  # in place of both
        if HARMONY in (plan.reasoning, plan.tool_format) and plan.tool_format in (None, HARMONY):
            names = frozenset(function.name for function in plan.functions)
            self._messages = HarmonyParser(names, thinking=plan.thinking_open)
        self._tools = None if self._format is None else self._format.parser(plan.functions)
        self.num_calls = 0
        self.num_thoughts = 0  # tokens of thinking, its marks among them
        self.first_call: float | None = None  # time.monotonic() when the first call began
        self.last_call = 0.0  # and when the last piece of one was read
        self.seconds = 0.0  # spent in the tool-call parser

    @staticmethod
    def is_needed(plan: OutputPlan) -> bool:
        """Whether text means anything but itself."""
        return plan.reasoning is not None or plan.tool_format is not None

    def push(self, text: str, num_tokens: int, *, last: bool) -> Parsed:
        """What `num_tokens` further tokens have brought, whose text is `text`."""
        if self._messages is not None:
            return self._push_messages(self._messages, text, num_tokens, last=last)
        thought, answer = "", text
        if self._reasoning is not None:
            was_thinking = self._reasoning.thinking
            thought, answer = self._reasoning.push(text)
            if last:
                rest = self._reasoning.finish()
                thought, answer = thought + rest[0], answer + rest[1]
            if was_thinking or self._reasoning.thinking:
                self.num_thoughts += num_tokens
        if not self._plan.shows_reasoning:
            thought = ""
        if self._tools is None:
            return Parsed(answer, thought)
        start = time.monotonic()
        events = self._tools.push(answer) if answer else []
        if last:
            events += self._tools.finish()
        parsed, end = self._parsed(events, thought), time.monotonic()
        self.seconds += end - start
        if parsed.calls:
            self.first_call, self.last_call = self.first_call or start, end
        return parsed

    def _push_messages(self, parser: HarmonyParser, text: str, num_tokens: int, *, last: bool) -> Parsed:
        was_thinking = parser.thinking
        pieces = parser.push(text) + (parser.finish() if last else [])
        if was_thinking or parser.thinking:
            self.num_thoughts += num_tokens
        if self._plan.reasoning is None:  # it is not told apart
            pieces = [TextPiece(piece.text) if isinstance(piece, ThoughtPiece) else piece for piece in pieces]
        thought = "".join(piece.text for piece in pieces if isinstance(piece, ThoughtPiece))
        events = [piece for piece in pieces if not isinstance(piece, ThoughtPiece)]
        return self._parsed(events, thought if self._plan.shows_reasoning else "")

    def _parsed(self, events: Sequence[Event], thought: str) -> Parsed:
        content: list[str] = []
        calls: list[CallPiece] = []
        for event in events:
            match event:
                case TextPiece(text):
                    content.append(text)
                case CallStart(name):
                    assert self._format is not None
                    calls.append(CallPiece(self.num_calls, "", self._format.new_id(), name))
                    self.num_calls += 1
                case ArgumentsPiece(text):
                    if not calls:
                        calls.append(CallPiece(self.num_calls - 1))
                    calls[-1].arguments += text
        return Parsed("".join(content), thought, calls)
