"""OpenAI's Responses API: items in a conversation, an answer of items, and its numbered events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from pagoda.server.call import DeltaStream
from pagoda.server.dialects.blocks import Block, BlockAnswer
from pagoda.server.dialects.responses_schema import (
    CallItem,
    Content,
    MessageItem,
    ReasoningItem,
    ResponsesRequest,
    ResultItem,
)
from pagoda.server.dialects.translated import Translated, given
from pagoda.server.schema import ChatRequest
from pagoda.types import Delta

LOGPROBS = "message.output_text.logprobs"
# The event that comes for every token, with room for its number, the place, the text and logprobs.
TEXT_DELTA = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","sequence_number":%d,%s,"delta":%s,"logprobs":%s}\n\n'
)


def translate(parsed: Any) -> Translated:
    """A request to /v1/responses."""
    body = ResponsesRequest.model_validate(parsed)
    messages = [] if not body.instructions else [{"role": "system", "content": body.instructions}]
    messages += _messages(body)
    wants_logprobs = bool(body.top_logprobs) or LOGPROBS in (body.include or ())
    tools = [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in body.tools or ()]
    choice: Any = body.tool_choice
    if choice is not None and not isinstance(choice, str):
        choice = {"type": "function", "function": {"name": choice.name}}
    fields = given(
        model=body.model,
        messages=messages,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        logprobs=wants_logprobs or None,
        top_logprobs=body.top_logprobs,
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_response_format(body),
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        stream=body.stream,
    )
    return Translated(ChatRequest.model_validate(fields), _echo(body))


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type != "json_schema":
        return None if wanted is None else {"type": wanted.type}
    schema = given(name=wanted.name, schema=wanted.schema_, strict=wanted.strict)
    return {"type": "json_schema", "json_schema": schema}


def _echo(body: ResponsesRequest) -> dict[str, Any]:
    """What the response repeats of its request."""
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    reasoning = body.reasoning.model_dump(include={"effort", "summary"}) if body.reasoning else {}
    return {
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None} | reasoning,
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}} | text,
        "tool_choice": "auto" if body.tool_choice is None else _plain(body.tool_choice),
        "tools": [{"strict": None, "parameters": None} | _plain(tool) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else value.model_dump(exclude_none=True)


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    """Items as messages. What the assistant thinks, says and calls in a row is one message of it."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    messages: list[dict[str, Any]] = []
    for item in body.input:
        last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
        match item:
            case ResultItem():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _texts(item.output)})
            case MessageItem(role="assistant") if last is not None and last["content"] is None and not _calls(last):
                last["content"] = _texts(item.content)
            case MessageItem():
                messages.append({"role": item.role, "content": _texts(item.content)})
            case ReasoningItem():
                thought = "".join(part.said for part in item.content or item.summary)
                messages.append({"role": "assistant", "content": None} | given(reasoning_content=thought or None))
            case CallItem():
                if last is None:
                    last = {"role": "assistant", "content": None}
                    messages.append(last)
                call = {"name": item.name, "arguments": item.arguments}
                last.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": call})
    return messages


def _calls(message: dict[str, Any]) -> Sequence[Any]:
    calls: Sequence[Any] = message.get("tool_calls", ())
    return calls


def _texts(content: Content) -> Any:
    if isinstance(content, str):
        return content
    parts = [{"type": "text", "text": part.said} for part in content]
    return parts[0]["text"] if len(parts) == 1 else parts or ""


class ResponsesAnswer(BlockAnswer):
    """An answer of /v1/responses."""

    status = "in_progress"
    error: dict[str, Any] | None = None
    number = 0  # of the next event
    _place_of_text = b""  # in events of the block that grows, which come for every token
    _growing: Block | None = None

    async def whole(self, stream: DeltaStream) -> bytes:
        content = await super().whole(stream)
        self._completed()
        return content

    def _whole(self) -> bytes:
        self._end()
        return orjson.dumps(self.response())

    def _completed(self) -> None:
        """Keep it before its client can ask for it."""
        if self.on_complete is not None:
            self.on_complete(self)

    def response(self) -> dict[str, Any]:
        """The response object as it is now."""
        done = self.status == "completed"
        details = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        response: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self._common["created"],
            "completed_at": int(time.time()) if done else None,
            "status": self.status,
            "error": self.error,
            "incomplete_details": details,
            "model": self.model,
            "output": [self._item(block) for block in self.blocks],
            "usage": self._usage() if self.status in ("completed", "incomplete") else None,
        }
        return {**response, **self.options.extra}

    def failure(self, status: int, body: dict[str, Any]) -> bytes:
        self.fail(body)
        return self._event_of("response.failed", response=self.response())

    def fail(self, body: dict[str, Any]) -> None:
        """An error that `body` describes has ended it."""
        self.status = "failed"
        self.error = {"code": "server_error", "message": body["error"]["message"]}

    def _end(self) -> None:
        self.status = "incomplete" if self.choice.finish_reason == "length" else "completed"

    def _event_of(self, kind: str, **fields: Any) -> bytes:
        number, self.number = self.number, self.number + 1
        data = {"type": kind, "sequence_number": number, **fields}
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(data))

    def _opening(self) -> bytes:
        response = self.response()
        return self._event_of("response.created", response=response) + self._event_of(
            "response.in_progress", response=response
        )

    def _closing(self) -> bytes:
        self._end()
        self._completed()
        return self._event_of(f"response.{self.status}", response=self.response())

    def _opened(self, block: Block) -> bytes:
        item = self._item(block, begun=True)
        added = self._event_of("response.output_item.added", output_index=block.index, item=item)
        if block.kind == "call":
            return added
        return added + self._event_of("response.content_part.added", **self._place(block), part=self._part(block))

    def _grown(self, block: Block, text: str, delta: Delta) -> bytes:
        if block.kind == "text":
            if self._growing is not block:
                self._growing, self._place_of_text = block, orjson.dumps(self._place(block))[1:-1]
            number, self.number = self.number, self.number + 1
            logprobs = orjson.dumps(self._logprobs(delta.logprobs or ())) if self.options.logprobs else b"[]"
            return TEXT_DELTA % (number, self._place_of_text, orjson.dumps(text), logprobs)
        if block.kind == "thinking":
            return self._event_of("response.reasoning_text.delta", **self._place(block), delta=text)
        place = {"item_id": self._item_id(block), "output_index": block.index}
        return self._event_of("response.function_call_arguments.delta", **place, delta=text)

    def _closed(self, block: Block) -> bytes:
        return b"".join(self._closing_events(block))

    def _closing_events(self, block: Block) -> Iterator[bytes]:
        place, text = self._place(block), block.text
        if block.kind == "text":
            part = self._part(block)
            yield self._event_of("response.output_text.done", **place, text=text, logprobs=part["logprobs"])
            yield self._event_of("response.content_part.done", **place, part=part)
        elif block.kind == "thinking":
            yield self._event_of("response.reasoning_text.done", **place, text=text)
            yield self._event_of("response.content_part.done", **place, part=self._part(block))
        else:
            del place["content_index"]
            said = {"name": block.name, "arguments": text or "{}"}
            yield self._event_of("response.function_call_arguments.done", **place, **said)
        yield self._event_of("response.output_item.done", output_index=block.index, item=self._item(block))

    def _event(self, delta: Delta) -> bytes:
        if self.options.logprobs and self.options.extra["store"]:
            self.choice.logprobs.extend(delta.logprobs or ())
        return super()._event(delta)

    def _item_id(self, block: Block) -> str:
        prefix = {"thinking": "rs", "text": "msg", "call": "fc"}[block.kind]
        return f"{prefix}_{self.id.removeprefix('resp_')}_{block.index}"

    def _place(self, block: Block) -> dict[str, Any]:
        return {"item_id": self._item_id(block), "output_index": block.index, "content_index": 0}

    def _item(self, block: Block, *, begun: bool = False) -> dict[str, Any]:
        id, status = self._item_id(block), "in_progress" if begun else "completed"
        content = [] if begun else [self._part(block)]
        if not begun and self.choice.finish_reason == "length" and block is self.blocks[-1]:
            status = "incomplete"
        if block.kind == "thinking":
            return {"id": id, "type": "reasoning", "summary": [], "content": content, "status": status}
        if block.kind == "text":
            return {"id": id, "type": "message", "role": "assistant", "content": content, "status": status}
        said = {"call_id": block.id, "name": block.name, "arguments": "" if begun else block.text or "{}"}
        return {"id": id, "type": "function_call", **said, "status": status}

    def _part(self, block: Block) -> dict[str, Any]:
        if block.kind == "thinking":
            return {"type": "reasoning_text", "text": block.text}
        logprobs = self._logprobs(self.choice.logprobs) if block.text else []
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, entries: Sequence[Any]) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = self.writer.chat(entries)["content"] if self.options.logprobs else []
        return content

    def _usage(self) -> dict[str, Any]:
        usage = self.usage()
        thoughts = usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": thoughts},
            "total_tokens": usage["total_tokens"],
        }
