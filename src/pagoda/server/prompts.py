"""Text → token ids: tokenization, chat templates, truncation, and whether it all fits in the context.

Long texts are taken off the event loop, so that other streams keep flowing while one prompt is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pagoda.errors import RequestError
from pagoda.server.schema import CompletionRequest, Conversation

T = TypeVar("T")

OFFLOAD_CHARS = 8192  # about a millisecond of tokenization; a thread hop costs a tenth of that
MESSAGE_CHARS = 16  # about what the frame of a message costs
TEMPLATE_NAMES = {"self", "messages", "tools", "add_generation_prompt", "continue_final_message", "documents"}


class Tokenizer(Protocol):
    """What the server needs of `pagoda.text`'s tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class ChatTemplate(Protocol):
    """What the server needs of `pagoda.text`'s chat template."""

    def render_ids(self, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, and its text when it came as text and was taken whole."""

    ids: tuple[int, ...]
    text: str | None = None


class Prompts:
    """Makes prompts for one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        max_context: int,
        *,
        no_chat_reason: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_context = max_context
        self._template = template
        self._no_chat_reason = no_chat_reason or "this model has no chat template"

    async def of_chat(self, body: Conversation) -> Prompt:
        """Render the conversation. Raises RequestError when the model has no template or the template refuses."""
        size = sum(len(str(message.content)) + MESSAGE_CHARS for message in body.messages)
        return await _off_loop(size, lambda: self._render(body))

    async def of_completion(self, body: CompletionRequest) -> list[Prompt]:
        """One prompt a string or list of ids. Control tokens of a text become tokens, as with vLLM and llama-server."""
        items = body.prompts
        add_special = body.add_special_tokens is not False
        size = sum(len(item) for item in items if isinstance(item, str))
        return await _off_loop(size, lambda: [self._item(item, add_special) for item in items])

    async def of_text(self, text: str, *, add_special: bool = True) -> Prompt:
        """One text."""
        return await _off_loop(len(text), lambda: self._item(text, add_special))

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise RequestError for an id that is not in the vocabulary."""
        if ids and (max(ids) >= self.tokenizer.vocab_size or min(ids) < 0):
            highest = self.tokenizer.vocab_size - 1
            raise RequestError(f"{param} holds a token id outside of the vocabulary (0 to {highest})", param=param)

    def truncated(self, prompt: Prompt, max_tokens: int | None, truncate: int | None) -> Prompt:
        """The last `truncate` tokens of the prompt; -1: as many as fit; None: all."""
        if truncate is None:
            return prompt
        keep = self.max_context - (max_tokens or 1) if truncate == -1 else truncate
        return Prompt(prompt.ids[-keep:]) if 0 < keep < len(prompt.ids) else prompt

    def _item(self, item: str | list[int], add_special: bool) -> Prompt:
        if isinstance(item, list):
            return Prompt(tuple(item))
        return Prompt(tuple(self.tokenizer.encode(item, add_special=add_special, parse_special=True)), item)

    def _render(self, body: Conversation) -> Prompt:
        if self._template is None:
            raise RequestError(f"{self._no_chat_reason}; /v1/completions works without one", param="messages")
        going_on = bool(body.continue_final_message)
        if going_on and body.add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        kwargs = body.chat_template_kwargs or {}
        if not TEMPLATE_NAMES.isdisjoint(kwargs):
            raise RequestError("chat_template_kwargs sets what has a field of its own", param="chat_template_kwargs")
        start_answer = not going_on if body.add_generation_prompt is None else body.add_generation_prompt
        ids = self._template.render_ids(
            body.plain_messages(), add_generation_prompt=start_answer, continue_final_message=going_on, **kwargs
        )
        return Prompt(tuple(ids))


async def _off_loop(size: int, work: Callable[[], T]) -> T:
    """Run `work`, in a thread when the text of `size` characters is long."""
    return work() if size < OFFLOAD_CHARS else await asyncio.to_thread(work)
