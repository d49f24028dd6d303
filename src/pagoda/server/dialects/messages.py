"""Anthropic's Messages API: blocks of content in a conversation, an answer of blocks, and its events.

message_start, then for each block content_block_start, content_block_delta …, content_block_stop, then message_delta
with the reason for the end, and message_stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from pagoda.server.dialects.blocks import Block, BlockAnswer, event
from pagoda.server.dialects.errors import anthropic_error
from pagoda.server.dialects.messages_schema import (
    CountTokensRequest,
    MessageParam,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from pagoda.server.dialects.translated import Translated, given, object_of
from pagoda.server.schema import ChatRequest
from pagoda.types import Delta

SIGNATURE = "unsigned"  # clients send thoughts back only with one


def translate(parsed: Any) -> Translated:
    """A request to /v1/messages."""
    body = MessagesRequest.model_validate(parsed)
    budget = body.thinking.budget_tokens if body.thinking and body.thinking.type == "enabled" else None
    fields = _conversation(body) | given(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences,
        stream=body.stream,
        thinking_token_budget=budget,
        include_reasoning=False if body.thinking and body.thinking.display == "omitted" else None,
    )
    if body.output_config and body.output_config.format:
        schema = {"name": "answer", "schema": body.output_config.format.schema_}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return Translated(ChatRequest.model_validate(fields), {"max_tokens": body.max_tokens}, may_be_cut=True)


def translate_count(parsed: Any) -> Translated:
    """A request to /v1/messages/count_tokens."""
    return Translated(ChatRequest.model_validate(_conversation(CountTokensRequest.model_validate(parsed))))


def _conversation(body: CountTokensRequest) -> dict[str, Any]:
    """The fields that say what the prompt is. A last message of the assistant is gone on with."""
    messages = [] if not body.system else [{"role": "system", "content": _texts(body.system)}]
    messages += [plain for message in body.messages for plain in _messages(message)]
    tools = [_tool(tool.name, tool.description, tool.input_schema, tool.strict) for tool in body.tools or ()]
    effort = "none" if body.thinking and body.thinking.type == "disabled" else None
    if body.output_config and body.output_config.effort:
        effort = effort or body.output_config.effort
    fields = given(model=body.model, messages=messages, tools=tools or None, reasoning_effort=effort)
    if body.messages[-1].role == "assistant":
        fields["continue_final_message"] = True
    return fields | _choice(body.tool_choice)


def _tool(name: str, description: str | None, parameters: Any, strict: bool | None) -> dict[str, Any]:
    function = given(name=name, description=description, parameters=parameters, strict=strict)
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    names: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
    named = {"type": "function", "function": {"name": choice.name}}
    parallel = {} if choice.disable_parallel_tool_use is None else {"parallel_tool_calls": False}
    if choice.disable_parallel_tool_use is False:
        parallel = {}
    return {"tool_choice": names.get(choice.type, named)} | parallel


def _texts(content: str | Sequence[TextBlock] | None) -> Any:
    """One text as it is, several as parts."""
    if isinstance(content, str) or content is None:
        return content or ""
    parts = [{"type": "text", "text": block.text} for block in content]
    return parts[0]["text"] if len(parts) == 1 else parts or ""


def _messages(message: MessageParam) -> Iterator[dict[str, Any]]:
    """One message, or for the user's the results of tools, each by itself, and what is said besides."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    texts: list[TextBlock] = []
    thoughts, calls = "", []
    for block in message.content:
        match block:
            case TextBlock():
                texts.append(block)
            case ThinkingBlock():
                thoughts += block.thinking
            case ToolUseBlock():
                call = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": call})
            case ToolResultBlock():
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _texts(block.content)}
    if texts or calls or thoughts:
        content = _texts(texts) if texts or not calls else None
        optional = given(tool_calls=calls or None, reasoning_content=thoughts or None)
        yield {"role": message.role, "content": content, **optional}


class MessagesAnswer(BlockAnswer):
    """An answer of /v1/messages."""

    def _whole(self) -> bytes:
        content = [_content(block) for block in self.blocks]
        return orjson.dumps(self._message(content) | self._ending_of_message() | {"usage": self._usage()})

    def failure(self, status: int, body: dict[str, Any]) -> bytes:
        return event("error", error=anthropic_error(status, body)["error"])

    def _opening(self) -> bytes:
        usage = self._usage() | {"output_tokens": 0}
        message = self._message([]) | {"stop_reason": None, "stop_sequence": None, "usage": usage}
        return event("message_start", message=message)

    def _opened(self, block: Block) -> bytes:
        return event("content_block_start", index=block.index, content_block=_content(block, empty=True))

    def _grown(self, block: Block, text: str, delta: Delta) -> bytes:
        kind, name = DELTAS[block.kind]
        return GROWN % (block.index, kind, name, orjson.dumps(text))

    def _closed(self, block: Block) -> bytes:
        signed = b""
        if block.kind == "thinking":
            signature = {"type": "signature_delta", "signature": SIGNATURE}
            signed = event("content_block_delta", index=block.index, delta=signature)
        return signed + event("content_block_stop", index=block.index)

    def _closing(self) -> bytes:
        return event("message_delta", delta=self._ending_of_message(), usage=self._usage()) + event("message_stop")

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content}

    def _usage(self) -> dict[str, int]:
        """Tokens that were in the prefix cache are counted apart."""
        usage = self.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }

    def _ending_of_message(self) -> dict[str, Any]:
        choice = self.choice
        sequence = choice.stop_reason if isinstance(choice.stop_reason, str) else None
        reason = "end_turn" if sequence is None else "stop_sequence"
        if choice.finish_reason == "tool_calls":
            reason = "tool_use"
        elif choice.finish_reason == "length":
            whole = choice.completion_tokens >= self.options.extra["max_tokens"]
            reason = "max_tokens" if whole else "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": sequence}


# kind of block → the type of its deltas, and the field that holds the text
DELTAS = {
    "thinking": (b"thinking_delta", b"thinking"),
    "text": (b"text_delta", b"text"),
    "call": (b"input_json_delta", b"partial_json"),
}
# The event that comes for every token, with room for the place, the type, the field and the text.
GROWN = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%s","%s":%s}}\n\n'


def _content(block: Block, *, empty: bool = False) -> dict[str, Any]:
    text = "" if empty else block.text
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": text, "signature": "" if empty else SIGNATURE}
    if block.kind == "text":
        return {"type": "text", "text": text}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": object_of(text)}
