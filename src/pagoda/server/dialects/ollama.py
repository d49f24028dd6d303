"""Ollama's /api/chat and /api/generate: a JSON object a line, the last of which says `done` and counts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import orjson

from pagoda.server.answers import MARK
from pagoda.server.chat_answer import ChatAnswer
from pagoda.server.choice import Choice
from pagoda.server.dialects.errors import ollama_error
from pagoda.server.dialects.ollama_schema import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaOptions,
    OllamaRequest,
)
from pagoda.server.dialects.translated import Translated, given, object_of
from pagoda.server.schema import ChatRequest, CompletionRequest
from pagoda.types import Delta

LATEST = ":latest"  # which Ollama's clients put behind names
SAME = ("temperature", "top_k", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "seed", "stop",
        "mirostat", "mirostat_tau", "mirostat_eta")  # fmt: skip


def translate_chat(parsed: Any) -> Translated:
    """A request to /api/chat."""
    body = OllamaChatRequest.model_validate(parsed)
    messages = list(_messages(body.messages))
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    fields = _fields(body) | given(messages=messages, tools=tools or None)
    if messages and messages[-1]["role"] == "assistant":
        fields["continue_final_message"] = True
    return _translated(ChatRequest.model_validate(fields), body)


def translate_generate(parsed: Any) -> Translated:
    """A request to /api/generate: one message, a prompt as it is, or what stands between two texts."""
    body = OllamaGenerateRequest.model_validate(parsed)
    if body.raw or body.suffix:
        fields = _fields(body) | {"prompt": body.prompt, "suffix": body.suffix}
        fields["max_tokens"] = fields.get("max_tokens", -1)
        return _translated(CompletionRequest.model_validate(fields), body)
    system = [{"role": "system", "content": body.system}] if body.system else []
    fields = _fields(body) | {"messages": [*system, {"role": "user", "content": body.prompt}]}
    return _translated(ChatRequest.model_validate(fields), body)


def _translated(request: ChatRequest | CompletionRequest, body: OllamaRequest) -> Translated:
    context = body.options.num_ctx if body.options else None
    return Translated(request, {"model": body.model}, may_be_cut=True, needs_context=context)


def _fields(body: OllamaRequest) -> dict[str, Any]:
    """What both share, in our names."""
    options = body.options or OllamaOptions()
    limit = options.num_predict
    fields = {name: getattr(options, name) for name in SAME}
    response_format: Any = None
    if body.format == "json":
        response_format = {"type": "json_object"}
    elif body.format:
        response_format = {"type": "json_schema", "json_schema": {"schema": body.format}}
    return given(
        **fields,
        model=body.model.removesuffix(LATEST),
        stream=body.stream is not False,
        max_tokens=None if limit is None or limit < 0 else limit,
        repetition_penalty=options.repeat_penalty,
        response_format=response_format,
        reasoning_effort=_effort(body),
    )


def _effort(body: OllamaRequest) -> str | None:
    """`false` is none; `true` is what the template does by itself where it can."""
    if body.think is None or body.think is True:
        return None
    return "none" if body.think is False else body.think


def _messages(messages: Sequence[OllamaMessage]) -> Iterator[dict[str, Any]]:
    """Calls have no ids: those of a message get numbers, and the results that follow are theirs in turn."""
    number, waiting = 0, list[str]()
    for message in messages:
        calls = []
        for call in message.tool_calls or ():
            id = call.id or f"call_{number}"
            number += 1
            waiting.append(id)
            function = {"name": call.function.name, "arguments": call.function.arguments}
            calls.append({"id": id, "type": "function", "function": function})
        optional: dict[str, Any] = given(tool_calls=calls or None, reasoning_content=message.thinking or None)
        if message.role == "tool":
            first = waiting.pop(0) if waiting else None
            optional = given(tool_call_id=message.tool_call_id or first, name=message.tool_name)
        content = None if calls and not message.content else message.content or ""
        yield {"role": message.role, "content": content, **optional}


def now() -> str:
    """As Ollama writes a time."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


class OllamaAnswer(ChatAnswer):
    """An answer of /api/chat and, as its subclass writes it, of /api/generate."""

    stream_type = "application/x-ndjson"
    _text_frame: tuple[bytes, bytes] | tuple[()] = ()  # what stands around the text in lines that bring nothing else

    def failure(self, status: int, body: dict[str, Any]) -> bytes:
        return orjson.dumps(ollama_error(body)) + b"\n"

    def _whole(self) -> bytes:
        (choice,) = self.choices
        thoughts, calls = "".join(choice.thoughts), _calls_of(choice)
        return orjson.dumps(self._shape("".join(choice.texts), thoughts, calls) | self._done(choice))

    def _closing(self) -> bytes:
        return b""

    def _event(self, delta: Delta) -> bytes:
        """Calls come whole, when all of them are known."""
        choice, delta = self._take(delta)
        if choice.parser is None and delta.finish_reason is None:
            return self._text_line(delta.text) if delta.text else b""
        self._keep_calls(choice)
        thought, lines = choice.parsed.thought, []
        if delta.text or thought:
            lines.append(self._shape(delta.text, thought, []) | {"done": False})
        if delta.finish_reason is not None:
            if choice.calls:
                lines.append(self._shape("", "", _calls_of(choice)) | {"done": False})
            lines.append(self._shape("", "", []) | self._done(choice))
        return b"".join([orjson.dumps(line) + b"\n" for line in lines])

    def _text_line(self, text: str) -> bytes:
        """A line with nothing but text, as comes for every token."""
        if not self._text_frame:
            line = {"created_at": "", **self._shape(MARK, "", []), "done": False} | {"created_at": ""}
            before, after = orjson.dumps(line).split(orjson.dumps(MARK))
            self._text_frame = before.removeprefix(b'{"created_at":""'), after
        before, after = self._text_frame
        return b'{"created_at":"%s"%s%s%s\n' % (now().encode(), before, orjson.dumps(text), after)

    def _shape(self, text: str, thought: str, calls: Sequence[Any]) -> dict[str, Any]:
        model = self.options.extra["model"]
        return {"model": model, "created_at": now()} | self._said(text, thought, calls)

    def _said(self, text: str, thought: str, calls: Sequence[Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        return {"message": message | _optional(thinking=thought, tool_calls=calls)}

    def _done(self, choice: Choice) -> dict[str, Any]:
        """What the last object says besides. Durations are in nanoseconds."""
        end = time.monotonic()
        first = end if self.first_token is None else self.first_token
        return {
            "done": True,
            "done_reason": "length" if choice.finish_reason == "length" else "stop",
            "total_duration": round((end - self._start) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": len(choice.prompt.ids),
            "prompt_eval_duration": round((first - self._start) * 1e9),
            "eval_count": choice.completion_tokens,
            "eval_duration": round((end - first) * 1e9),
        }


class OllamaGenerateAnswer(OllamaAnswer):
    """An answer of /api/generate."""

    def _said(self, text: str, thought: str, calls: Sequence[Any]) -> dict[str, Any]:
        return {"response": text} | _optional(thinking=thought)


def _optional(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _calls_of(choice: Choice) -> list[dict[str, Any]]:
    """Calls with their arguments as an object."""
    functions = [(call["id"], call["function"]) for call in choice.calls]
    return [
        {"id": id, "function": {"name": function["name"], "arguments": object_of(function["arguments"])}}
        for id, function in functions
    ]
