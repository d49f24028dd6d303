"""The answer of /v1/chat/completions: what was said, what was thought before it, and what is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pagoda.server.answers import Answer
from pagoda.server.call import Call
from pagoda.server.choice import AnswerOptions, Choice
from pagoda.server.logprob_json import LogprobWriter
from pagoda.server.output_parser import CallPiece, OutputParser, Parsed
from pagoda.server.prompts import Prompt
from pagoda.types import Delta


class ChatAnswer(Answer):
    """An answer of /v1/chat/completions."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    nothing_new = MappingProxyType({"delta": {}, "logprobs": None})

    def __init__(
        self, call: Call, model: str, prompts: Sequence[Prompt], options: AnswerOptions, writer: LogprobWriter
    ) -> None:
        super().__init__(call, model, prompts, options, writer)
        self._plan = call.output
        if OutputParser.is_needed(call.output):
            for choice in self.choices:
                choice.parser = OutputParser(call.output)

    def _completion_details(self) -> dict[str, int]:
        if self._plan.reasoning is None:
            return super()._completion_details()
        thoughts = sum(choice.parser.num_thoughts for choice in self.choices if choice.parser)
        return super()._completion_details() | {"reasoning_tokens": thoughts}

    def _take(self, delta: Delta) -> tuple[Choice, Delta]:
        choice, delta = super()._take(delta)
        if choice.parser is None:
            return choice, delta
        is_last = delta.finish_reason is not None
        choice.parsed = choice.parser.push(delta.text, len(delta.token_ids), last=is_last)
        if choice.finish_reason == "stop" and choice.parser.num_calls:
            choice.finish_reason = "tool_calls"
        return choice, replace(delta, text=choice.parsed.content)

    def _keep(self, choice: Choice, delta: Delta) -> None:
        super()._keep(choice, delta)
        choice.thoughts.append(choice.parsed.thought)
        self._keep_calls(choice)

    def _keep_calls(self, choice: Choice) -> None:
        for piece in choice.parsed.calls:
            if piece.id is not None:
                function = {"name": piece.name, "arguments": ""}
                choice.calls.append({"id": piece.id, "type": "function", "function": function})
            choice.calls[-1]["function"]["arguments"] += piece.arguments

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        shape = self._ending(choice)
        text = "".join(choice.texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.calls:
            message |= {"content": text or None, "tool_calls": choice.calls}
        if self._plan.reasoning is not None:
            thought = "".join(choice.thoughts) or None
            message |= {"reasoning_content": thought, "reasoning": thought}
        shape["message"] = message
        shape["logprobs"] = self.writer.chat(choice.logprobs) if self.options.logprobs else None
        if self.options.token_ids:
            shape["token_ids"] = choice.token_ids
        return shape

    def _chunk_choices(self, choice: Choice, delta: Delta) -> list[dict[str, Any]]:
        shapes = []
        if not choice.started:
            opening = {"role": "assistant", "content": ""}
            shapes.append({"index": choice.index, "delta": opening, "logprobs": None, "finish_reason": None})
        shape = self._ending(choice)
        shape["delta"] = _chat_delta(delta.text, choice.parsed)
        shape["logprobs"] = self.writer.chat(delta.logprobs) if self.options.logprobs and delta.logprobs else None
        if self.options.token_ids:
            shape["token_ids"] = delta.token_ids
        says_nothing = not (shape["delta"] or shape["logprobs"] or self.options.token_ids or delta.finish_reason)
        return shapes if shapes and says_nothing else [*shapes, shape]

    def _top_level(self) -> dict[str, Any]:
        return self._prompt_extras(self.choices[0])


def _chat_delta(text: str, parsed: Parsed) -> dict[str, Any]:
    """What a chunk adds to a message: of each call its id and name once, then pieces of its arguments."""
    delta: dict[str, Any] = {"content": text} if text else {}
    if parsed.thought:
        delta |= {"reasoning_content": parsed.thought, "reasoning": parsed.thought}
    if parsed.calls:
        delta["tool_calls"] = [_chunk_of(piece) for piece in parsed.calls]
    return delta


def _chunk_of(piece: CallPiece) -> dict[str, Any]:
    if piece.id is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}
