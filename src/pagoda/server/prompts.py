"""Text → token ids: tokenization, chat templates, truncation. What cannot fit the context is refused on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pagoda.errors import ContextLengthError, RequestError
from pagoda.server.infill import Infill, find_fim_tokens
from pagoda.server.schema import CompletionRequest, Conversation
from pagoda.server.schema_messages import Message
from pagoda.server.within import TooManyTokensError, encode_last, encode_within
from pagoda.text.tools.table import GENERIC

MAX_CHARS = 2**20  # of what is tokenized without a look at the context: a second or two
TEMPLATE_NAMES = {"self", "messages", "tools", "add_generation_prompt", "continue_final_message", "documents", "encode"}


class Tokenizer(Protocol):
    """What the server needs of `pagoda.text`'s tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def longest_token(self) -> int: ...

    @property
    def eos_ids(self) -> Collection[int]: ...

    def encode(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_special(self, token_id: int) -> bool: ...


class ChatTemplate(Protocol):
    """What the server needs of `pagoda.text`'s chat template. `encode` tokenizes the rendered text."""

    @property
    def source(self) -> str: ...

    def render_ids(
        self, messages: list[dict[str, Any]], *, encode: Callable[[str], list[int]] | None = None, **kwargs: Any
    ) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, and its text when it came as text and was taken whole."""

    ids: tuple[int, ...]
    text: str | None = None


class Prompts:
    """Makes prompts for one model. What cannot fit is refused with ContextLengthError, however long it is."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        max_context: int,
        *,
        no_chat_reason: str | None = None,
        completes: bool = True,
        tells_of_tools: bool = False,
    ) -> None:
        """tells_of_tools: the template does not say which tools there are, so a message has to."""
        self.tokenizer = tokenizer
        self._tells_of_tools = tells_of_tools
        self.max_context = max_context
        self._template = template
        remedy = "/v1/completions works without one" if completes else "ask /v1/embeddings"
        self._no_chat_reason = f"{no_chat_reason or 'this model has no chat template'}; {remedy}"

    def of_chat(self, body: Conversation, keep: int | None = None) -> Prompt:
        """The conversation as the model's template renders it, its last `keep` tokens. RequestError: it cannot."""
        num_chars = sum(_num_chars(message) for message in body.messages)
        if keep is None and num_chars > self.max_context * self.tokenizer.longest_token:
            raise ContextLengthError.of(self.max_context, num_chars // self.tokenizer.longest_token, None)
        ids = self._rendered(body, lambda text: self._encoded(text, keep, add_special=False))
        return Prompt(tuple(ids[-keep:] if keep else ids))

    def of_completion(self, body: CompletionRequest, keep: int | None = None) -> list[Prompt]:
        """One prompt a string or list of ids, its last `keep` tokens.

        Control tokens of a text become tokens, as with vLLM and llama-server.
        """
        add_special = body.add_special_tokens is not False
        return [self._item(item, keep, add_special=add_special) for item in body.prompts]

    def of_infill(self, asked: Infill) -> Prompt:
        """What is to be filled in between two texts. RequestError: the model has no tokens that mark them."""
        tokens = find_fim_tokens(self.tokenizer)
        if tokens is None:
            raise RequestError(
                "this model has no tokens for filling in the middle: leave the suffix out", param="suffix"
            )
        before = self.tokenizer.encode("", add_special=True)
        ids = [*before, *tokens.prompt(asked, self._part)]
        if len(ids) >= self.max_context:
            raise ContextLengthError.of(self.max_context, len(ids), None)
        return Prompt(tuple(ids))

    def _part(self, text: str) -> list[int]:
        """The tokens of a part, whose control tokens stay text. ContextLengthError: it is too long by itself."""
        encode = partial(self.tokenizer.encode, add_special=False)
        try:
            return encode_within(encode, text, self.max_context - 1, self.tokenizer.longest_token)
        except TooManyTokensError as error:
            raise ContextLengthError.of(self.max_context, error.num_tokens, None) from None

    def num_kept(self, max_tokens: int | None, truncate: int | None) -> int | None:
        """Tokens that `truncate_prompt_tokens` keeps of a prompt (-1: as many as fit); None: all."""
        keep = self.max_context - (max_tokens or 1) if truncate == -1 else truncate
        return keep if keep is not None and keep > 0 else None

    def tokens_of_chat(self, body: Conversation) -> list[int]:
        """As `of_chat`, but of a conversation that may have more tokens than fit."""
        _check_chars(sum(_num_chars(message) for message in body.messages))
        return self._rendered(body, None)

    def text_of_chat(self, body: Conversation) -> str:
        """The conversation as the template renders it, before any of it becomes tokens."""
        _check_chars(sum(_num_chars(message) for message in body.messages))
        rendered: list[str] = []
        self._rendered(body, lambda text: rendered.append(text) or [])  # type: ignore[func-returns-value]
        return rendered[0]

    def tokens_of_text(self, text: str, *, add_special: bool) -> list[int]:
        """The tokens of a text, which may have more of them than fit."""
        return self.tokens_of_pieces([text], add_special=add_special, parse_special=True)

    def tokens_of_pieces(self, pieces: Sequence[str | int], *, add_special: bool, parse_special: bool) -> list[int]:
        """The tokens of texts and ids mixed; special ones are added to the first, if it is a text."""
        _check_chars(sum(len(piece) if isinstance(piece, str) else 1 for piece in pieces))
        self.check_ids([piece for piece in pieces if not isinstance(piece, str)], "content")
        ids: list[int] = []
        for place, piece in enumerate(pieces):
            if isinstance(piece, str):
                ids += self.tokenizer.encode(piece, add_special=add_special and not place, parse_special=parse_special)
            else:
                ids.append(piece)
        return ids

    def first_tokens(self, text: str, count: int) -> list[int]:
        """At most `count` tokens of a text's beginning, without BOS."""
        head = text[: count * self.tokenizer.longest_token]
        return self.tokenizer.encode(head, add_special=False)[:count]

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise RequestError for an id that is not in the vocabulary."""
        if ids and (max(ids) >= self.tokenizer.vocab_size or min(ids) < 0):
            highest = self.tokenizer.vocab_size - 1
            raise RequestError(f"{param} holds a token id outside of the vocabulary (0 to {highest})", param=param)

    def _item(self, item: str | list[int], keep: int | None, *, add_special: bool) -> Prompt:
        ids = item if isinstance(item, list) else self._encoded(item, keep, add_special=add_special)
        if keep is not None and keep < len(ids):
            return Prompt(tuple(ids[-keep:]))
        if len(ids) >= self.max_context:
            raise ContextLengthError.of(self.max_context, len(ids), None)
        return Prompt(tuple(ids), item if isinstance(item, str) else None)

    def _encoded(self, text: str, keep: int | None, *, add_special: bool) -> list[int]:
        encode = partial(self.tokenizer.encode, add_special=add_special, parse_special=True)
        if keep is not None:
            return encode_last(encode, text, keep)
        try:
            return encode_within(encode, text, self.max_context - 1, self.tokenizer.longest_token)
        except TooManyTokensError as error:
            raise ContextLengthError.of(self.max_context, error.num_tokens, None) from None

    def _rendered(self, body: Conversation, encode: Callable[[str], list[int]] | None) -> list[int]:
        if self._template is None:
            raise RequestError(self._no_chat_reason, param="messages")
        going_on = bool(body.continue_final_message)
        if going_on and body.add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        kwargs = self._with_effort(body)
        if not TEMPLATE_NAMES.isdisjoint(kwargs):
            raise RequestError("chat_template_kwargs sets what has a field of its own", param="chat_template_kwargs")
        start_answer = not going_on if body.add_generation_prompt is None else body.add_generation_prompt
        messages, tools = body.plain_messages(), [tool.plain() for tool in body.offered]
        if tools and self._tells_of_tools:
            messages, tools = GENERIC.told(messages, tools), []
        elif self._tells_of_tools:
            messages = GENERIC.shown(messages)
        return self._template.render_ids(
            messages,
            tools=tools or None,
            add_generation_prompt=start_answer,
            continue_final_message=going_on,
            encode=encode,
            **kwargs,
        )

    def _with_effort(self, body: Conversation) -> dict[str, Any]:
        """The template's variables, with what reasoning_effort means to it. RequestError: it means nothing."""
        kwargs = dict(body.chat_template_kwargs or {})
        effort, source = body.reasoning_effort, "" if self._template is None else self._template.source
        if effort is None:
            return kwargs
        if "reasoning_effort" in source:
            kwargs.setdefault("reasoning_effort", effort)
        if "enable_thinking" in source:
            kwargs.setdefault("enable_thinking", effort != "none")
        elif effort != "none" and "reasoning_effort" not in source:
            raise RequestError("this model's template knows no reasoning effort", param="reasoning_effort")
        return kwargs


def _check_chars(num_chars: int) -> None:
    if num_chars > MAX_CHARS:
        raise RequestError(f"the text has {num_chars} characters, but {MAX_CHARS} are tokenized at once: cut it")


def _num_chars(message: Message) -> int:
    content = message.content
    return sum(len(part.text) for part in content) if isinstance(content, list) else len(content or "")
