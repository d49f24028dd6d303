"""A conversation becomes a prompt: the model's own jinja template says how.

As everywhere in the field, the rendered prompt is tokenized as a whole, so the name of a control token inside of a
message becomes that token. Who serves people that must not be able to do so filters messages beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pagoda.errors import RequestError, UnsupportedError
from pagoda.text import sandbox
from pagoda.text.chat_sources import TemplateSource, template_sources
from pagoda.text.content_shape import PROBED_ROLES, ContentShape, find_shape, wants_json_arguments
from pagoda.text.sandbox import Budget
from pagoda.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

_HARMONY = "<|channel|>analysis<|message|>"  # of templates that call reasoning_content `thinking`
_END_MARK = "\ue000end of the last message\ue001"  # private-use characters: nothing trims or escapes them


class ChatTemplate:
    """Renders conversations for one model. Safe to use from several threads at once."""

    def __init__(self, sources: Mapping[str, str], tokenizer: Tokenizer, budget: Budget | None = None) -> None:
        """`sources`: "default", and "tool_use" for conversations with tools, if the model has one.

        Raises UnsupportedError for a template that jinja2 cannot parse.
        """
        self._tokenizer = tokenizer
        self._sources = dict(sources)
        self._budget = budget or Budget()
        self._shapes: dict[tuple[str, str], ContentShape] = {}  # by template and role
        self._json_arguments: dict[str, bool] = {}  # by template
        for source in sources.values():
            _check(source, self._budget)

    @property
    def source(self) -> str:
        """All that the templates say, by which it is told how the model thinks and calls."""
        return "\n".join(self._sources.values())

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt's text. `variables` are the template's own, such as `enable_thinking`.

        `continue_final_message` ends the prompt within the last message, so that the model goes on with it; then no
        generation prompt is added. Raises RequestError for messages that the template or a text model cannot take.
        """
        name = "tool_use" if tools and "tool_use" in self._sources else "default"
        prepared = [self._prepared(name, message) for message in messages]
        if continue_final_message:
            prepared = _mark_end(prepared)
        rendered = self._render(
            name,
            {
                **variables,
                "messages": prepared,
                "tools": self._described(name, tools) or None,
                "documents": documents or None,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            },
        )
        return _cut_at_mark(rendered) if continue_final_message else rendered

    def render_ids(
        self, messages: Sequence[Message], *, encode: Callable[[str], list[int]] | None = None, **options: Any
    ) -> list[int]:
        """The prompt's tokens; `options` are those of `render`. BOS stands there once, whoever brings it.

        `encode` tokenizes the rendered text, in place of the model's tokenizer.
        """
        text = self.render(messages, **options)
        ids = self._tokenizer.encode(text, add_special=False, parse_special=True) if encode is None else encode(text)
        prefix = list(self._tokenizer.vocabulary.prefix)
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def _render(self, name: str, variables: Mapping[str, Any]) -> str:
        try:
            return sandbox.render(self._sources[name], {**self._named_tokens, **variables}, self._budget)
        except sandbox.TemplateError as error:
            raise _refusal(error) from error

    def _prepared(self, name: str, message: Message) -> dict[str, Any]:
        """A message as the template called `name` expects it: content and arguments of tool calls in its shapes."""
        prepared = dict(message)
        content = prepared.get("content")
        if content is None:
            prepared["content"] = ""
        else:
            texts = content if isinstance(content, str) else [_text_of(part) for part in content]
            prepared["content"] = self._shape(name, prepared.get("role")).of(texts)
        if prepared.get("reasoning_content") and _HARMONY in self._sources[name]:
            prepared |= _as_thinking(prepared)
        if prepared.get("tool_calls"):
            written = _as_json if self._wants_json(name) else _as_object
            prepared["tool_calls"] = [_with_arguments(call, written) for call in prepared["tool_calls"]]
        return prepared

    def _described(self, name: str, tools: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]] | None:
        """The tools; each with a description, be it empty, for a template that fails without one."""
        if not tools or _HARMONY not in self._sources[name]:
            return tools
        return [{**tool, "function": {"description": "", **tool.get("function", {})}} for tool in tools]

    def _wants_json(self, name: str) -> bool:
        """Whether the template called `name` reads arguments as JSON; tried out once."""
        found = self._json_arguments.get(name)
        if found is None:
            found = self._json_arguments[name] = wants_json_arguments(lambda messages: self._try(name, messages))
        return found

    def _shape(self, name: str, role: Any) -> ContentShape:
        """How the template called `name` reads content of a role; tried out once."""
        key = (name, role if role in PROBED_ROLES else "user")
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = find_shape(key[1], lambda messages: self._try(name, messages))
        return found

    def _try(self, name: str, messages: Sequence[Message]) -> str | None:
        """What the template makes of a conversation; None when it refuses that."""
        variables = {**self._named_tokens, "messages": messages, "tools": None, "add_generation_prompt": False}
        try:
            return sandbox.render(self._sources[name], variables, self._budget)
        except sandbox.OverdrawnError as error:
            raise _refusal(error) from error
        except sandbox.TemplateError:
            return None

    @cached_property
    def _named_tokens(self) -> dict[str, str]:
        named = {"bos_token": self._tokenizer.bos_id, "eos_token": self._tokenizer.eos_id}
        spelled = {name: b"" if i is None else self._tokenizer.token_bytes(i) for name, i in named.items()}
        return {name: data.decode("utf-8", "replace") for name, data in spelled.items()}


def load_chat_template(checkpoint: TemplateSource, tokenizer: Tokenizer, fallback: str | None = None) -> ChatTemplate:
    """The checkpoint's own template, else one that fits its control tokens, else `fallback`, its family's.

    Raises UnsupportedError where there is none or it does not parse.
    """
    sources = template_sources(checkpoint, tokenizer.vocabulary, fallback)
    return ChatTemplate(sources, tokenizer, Budget.of_context(_context(checkpoint)))


def _context(checkpoint: TemplateSource) -> int | None:
    """Tokens of context that the checkpoint states."""
    names = ("max_position_embeddings",)
    if checkpoint.kind == "gguf":
        names = (f"{checkpoint.architecture}.context_length",)
    text = checkpoint.metadata.get("text_config")
    found = [
        source.get(name) for source in (checkpoint.metadata, text) if isinstance(source, Mapping) for name in names
    ]
    return next((value for value in found if isinstance(value, int)), None)


def _check(source: str, budget: Budget) -> None:
    """Raises UnsupportedError for a template that does not parse."""
    try:
        sandbox.check(source, budget)
    except sandbox.OverdrawnError:
        pass  # it will be refused when it is used
    except sandbox.TemplateError as error:
        raise UnsupportedError(f"the chat template does not parse: line {error.line}: {error}") from error


def _refusal(error: sandbox.TemplateError) -> RequestError:
    return RequestError(f"the model's chat template refuses this: {error}", param="messages")


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise RequestError(f"a content part of type {kind!r}: this model takes text only", param="messages")
    return text


def _as_thinking(message: Message) -> dict[str, Any]:
    """Beside a call the template takes either thoughts or content, so that both become thoughts."""
    thought, content = message["reasoning_content"], message["content"]
    if message.get("tool_calls") and isinstance(content, str) and content:
        return {"thinking": f"{thought}\n\n{content}", "content": ""}
    return {"thinking": thought}


def _with_arguments(call: Mapping[str, Any], written: Callable[[Any], Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or "arguments" not in function:
        return dict(call)
    return {**call, "function": {**function, "arguments": written(function["arguments"])}}


def _as_object(arguments: Any) -> Any:
    """The object that a string of JSON stands for, as the API carries arguments; what is none stays as it is."""
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _as_json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _mark_end(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not messages:
        raise RequestError("there is no message to continue", param="continue_final_message")
    content = messages[-1]["content"]
    if isinstance(content, str):
        marked: Any = content + _END_MARK
    else:
        *before, last = content or [{"type": "text", "text": ""}]
        marked = [*before, {**last, "text": last["text"] + _END_MARK}]
    return [*messages[:-1], {**messages[-1], "content": marked}]


def _cut_at_mark(rendered: str) -> str:
    text, mark, _ = rendered.rpartition(_END_MARK)
    if not mark:
        raise RequestError(
            "the model's chat template leaves the last message out, so it cannot be continued",
            param="continue_final_message",
        )
    return text
