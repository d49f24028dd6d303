"""A conversation becomes a prompt: the model's own jinja template says how.

As everywhere in the field, the rendered prompt is tokenized as a whole, so the name of a control token inside of a
message becomes that token. Who serves people that must not be able to do so filters messages beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateSyntaxError

from pagoda.errors import RequestError, UnsupportedError
from pagoda.text import sandbox
from pagoda.text.chat_sources import TemplateSource, template_sources
from pagoda.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

_END_MARK = "\ue000end of the last message\ue001"  # private-use characters: nothing trims or escapes them
_PROBE = "a-probe-text"


class ChatTemplate:
    """Renders conversations for one model. Safe to use from several threads at once."""

    def __init__(self, sources: Mapping[str, str], tokenizer: Tokenizer) -> None:
        """`sources`: "default", and "tool_use" for conversations with tools, if the model has one.

        Raises UnsupportedError for a template that jinja2 cannot parse.
        """
        self._tokenizer = tokenizer
        environment = sandbox.environment()
        try:
            self._templates = {name: environment.from_string(source) for name, source in sources.items()}
        except TemplateSyntaxError as error:
            raise UnsupportedError(f"the chat template does not parse: line {error.lineno}: {error.message}") from error

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
        prepared = [_prepare(message, self._takes_parts) for message in messages]
        if continue_final_message:
            prepared = _mark_end(prepared)
        rendered = self._render(
            {
                **variables,
                "messages": prepared,
                "tools": tools or None,
                "documents": documents or None,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            }
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

    def _render(self, variables: Mapping[str, Any]) -> str:
        with_tools = variables["tools"] and "tool_use" in self._templates
        template = self._templates["tool_use" if with_tools else "default"]
        try:
            return sandbox.render(template, {**self._named_tokens, **variables})
        except Exception as error:  # a template may raise anything, down to TypeError for a missing field
            raise RequestError(f"the model's chat template refuses this: {error}", param="messages") from error

    @cached_property
    def _named_tokens(self) -> dict[str, str]:
        vocabulary = self._tokenizer.vocabulary
        named = {"bos_token": vocabulary.bos_id, "eos_token": vocabulary.eos_id}
        return {name: "" if i is None else vocabulary.tokens[i] for name, i in named.items()}

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template reads content as a list of parts; told by what it does to one."""
        message = {"role": "user", "content": [{"type": "text", "text": _PROBE}]}
        try:
            rendered = self._render({"messages": [message], "tools": None, "add_generation_prompt": False})
        except RequestError:
            return False
        return _PROBE in rendered and "'type'" not in rendered and '"type"' not in rendered


def load_chat_template(checkpoint: TemplateSource, tokenizer: Tokenizer, fallback: str | None = None) -> ChatTemplate:
    """The checkpoint's own template, else one that fits its control tokens, else `fallback`, its family's.

    Raises UnsupportedError where there is none or it does not parse.
    """
    return ChatTemplate(template_sources(checkpoint, tokenizer.vocabulary, fallback), tokenizer)


def _prepare(message: Message, takes_parts: bool) -> dict[str, Any]:
    """A message as templates expect it: content is there, and arguments of tool calls are objects."""
    prepared = dict(message)
    content = prepared.get("content")
    texts = None if content is None or isinstance(content, str) else [_text_of(part) for part in content]
    if content is None:
        prepared["content"] = ""
    elif texts is not None:
        prepared["content"] = [{"type": "text", "text": text} for text in texts] if takes_parts else "\n".join(texts)
    if prepared.get("tool_calls"):
        prepared["tool_calls"] = [_parse_arguments(call) for call in prepared["tool_calls"]]
    return prepared


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise RequestError(f"a content part of type {kind!r}: this model takes text only", param="messages")
    return text


def _parse_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """The API carries arguments as a JSON string, templates expect the object; what is not JSON stays as it is."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(arguments, str):
        return dict(call)
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return dict(call)
    return {**call, "function": {**function, "arguments": parsed if isinstance(parsed, dict) else arguments}}


def _mark_end(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not messages:
        raise RequestError("there is no message to continue", param="continue_final_message")
    content = messages[-1]["content"]
    if isinstance(content, str):
        marked: Any = content + _END_MARK
    else:
        marked = [*content, {"type": "text", "text": _END_MARK}]
    return [*messages[:-1], {**messages[-1], "content": marked}]


def _cut_at_mark(rendered: str) -> str:
    text, mark, _ = rendered.rpartition(_END_MARK)
    if not mark:
        raise RequestError(
            "the model's chat template leaves the last message out, so it cannot be continued",
            param="continue_final_message",
        )
    return text
