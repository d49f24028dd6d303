"""A body's bytes → all that is asked of the model, with nothing left to do that a client could make long.

A `Reader` depends on nothing but its own values, so that it runs where the size of the body says: on the event loop,
in a thread, or in a process of its own (`readers.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import BaseModel

from pagoda.errors import ContextLengthError, ModelNotFoundError, RequestError
from pagoda.server.dialects.llama_schema import LlamaTokenizeRequest
from pagoda.server.dialects.table import TRANSLATIONS
from pagoda.server.dialects.translated import Translated
from pagoda.server.infill import Infill
from pagoda.server.json_body import parse_json
from pagoda.server.logprob_json import LogprobWriter
from pagoda.server.output_plan import OutputPlan, OutputPlanner
from pagoda.server.prompts import ChatTemplate, Prompt, Prompts, Tokenizer
from pagoda.server.requests import GenerationSpec, chat_spec, check_total, completion_spec
from pagoda.server.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Generation,
    TokenizeChat,
    TokenizeText,
)
from pagoda.server.schema_base import HOTTEST
from pagoda.server.schema_embeddings import EmbeddingRequest, RerankRequest, ScoreRequest
from pagoda.server.vector_reading import VectorReader, VectorReading
from pagoda.text.framing import NO_VECTORS, VectorTraits

M = TypeVar("M", bound=BaseModel)
G = TypeVar("G", bound=Generation)

MAX_FIELDS = 256
LENGTH = 8  # bytes of the number that says how long a conversation before a body is

# The tokenizer; the chat template, or None and why there is none.
TextParts = tuple[Tokenizer, ChatTemplate | None, str | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a request for tokens asks."""

    spec: GenerationSpec
    prompts: tuple[Prompt, ...]
    messages: tuple[Mapping[str, Any], ...] | None = None  # as they were asked; None: text completions
    prediction: tuple[int, ...] | None = None  # tokens that the client says the answer will mostly be
    output: OutputPlan = field(default_factory=OutputPlan)
    model: str | None = None  # as the body names it


def framed(messages: bytes, body: bytes) -> bytes:
    """A conversation and a body as one, for `Reader.continued`."""
    return len(messages).to_bytes(LENGTH, "little") + messages + body


class AdapterNames(Protocol):
    """Of adapters that may be asked for."""

    @property
    def names(self) -> Collection[str]: ...

    def has(self, name: str) -> bool: ...


class ServedNames:
    """The names that requests may give their model: its own, and those of adapters, which come and go.

    In another process all names are taken; the server looks again.
    """

    def __init__(self, model: str, adapters: AdapterNames | None = None) -> None:
        self._model = model
        self._adapters = adapters

    def check(self, name: str) -> None:
        """Raise ModelNotFoundError unless something here is called so."""
        adapters = self._adapters
        if name != self._model and (adapters is None or not adapters.has(name)):
            raise unknown_model(name, self._model, () if adapters is None else adapters.names)

    def __reduce__(self) -> tuple[type[AnyName], tuple[str]]:
        return AnyName, (self._model,)


class AnyName(ServedNames):
    def check(self, name: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """What a body is read against."""

    model_name: str
    max_context: int  # tokens
    max_tokens: int  # of all prompts of a body together
    tool_call_format: str = "auto"
    reasoning_format: str = "auto"
    names: ServedNames | None = None  # None: model_name alone
    traits: VectorTraits = NO_VECTORS


class Reader:
    """Reads bodies for one model. Each of `KINDS` is a method: bytes of JSON → what it asks, or its answer.

    Kinds of `TRANSLATIONS` are other dialects' requests.

    Raises RequestError, or pydantic's ValidationError.
    """

    KINDS = ("chat", "completion", "tokenize", "detokenize", "embeddings", "score", "rerank",
             "template", "count", "continued")  # fmt: skip

    def __init__(self, text: TextParts, limits: ReaderLimits) -> None:
        tokenizer, template, no_chat_reason = text
        self._tokenizer = tokenizer
        self._limits = limits
        self._names = limits.names or ServedNames(limits.model_name)
        source = "" if template is None else template.source
        self._planner = OutputPlanner(tokenizer, source, limits.tool_call_format, limits.reasoning_format)
        self._vectors = VectorReader(tokenizer, limits.traits)
        self._prompts = Prompts(
            tokenizer,
            template,
            limits.max_context,
            no_chat_reason=no_chat_reason,
            completes=not limits.traits.is_encoder,
            tells_of_tools=self._planner.tells_of_tools,
        )

    def read(self, kind: str, data: bytes) -> Any:
        """What the method called `kind` makes of `data`."""
        try:
            if kind in TRANSLATIONS:
                return self._translated(TRANSLATIONS[kind](self._parsed(data)))
            assert kind in self.KINDS
            return getattr(self, kind)(data)
        except RecursionError:  # of whoever writes as text what the body holds
            raise RequestError("the body holds objects or lists that are nested too deeply") from None

    def continued(self, data: bytes) -> Reading:
        """A request to /v1/responses behind the conversation that it goes on with, as `framed` puts them."""
        start = LENGTH + int.from_bytes(data[:LENGTH], "little")
        asked = TRANSLATIONS["responses"](self._parsed(data[start:]))
        return self._translated(asked.after(orjson.loads(data[LENGTH:start])))

    def count(self, data: bytes) -> bytes:
        """The JSON that answers /v1/messages/count_tokens."""
        body = self._checked(TRANSLATIONS["count_tokens"](self._parsed(data)).body)
        assert isinstance(body, ChatRequest)
        return orjson.dumps({"input_tokens": len(self._prompts.tokens_of_chat(body))})

    def template(self, data: bytes) -> bytes:
        """The JSON that answers /apply-template."""
        return orjson.dumps({"prompt": self._prompts.text_of_chat(self._body(data, TokenizeChat))})

    def _translated(self, asked: Translated) -> Reading:
        """What a request in another dialect asks."""
        body = self._checked(asked.body)
        if asked.needs_context is not None and asked.needs_context > self._limits.max_context:
            message = f"num_ctx is {asked.needs_context}, but the server has {self._limits.max_context} (--max-context)"
            raise RequestError(message, param="num_ctx")
        match body:
            case ChatRequest():
                reading = self._chat(body)
            case CompletionRequest():
                reading = self._completion(body, asked.infill)
        spec, longest = reading.spec, max(len(prompt.ids) for prompt in reading.prompts)
        limit = spec.params.max_tokens
        if asked.may_be_cut and limit is not None and longest + limit > self._limits.max_context:
            spec = replace(spec, params=replace(spec.params, max_tokens=None))
        return replace(reading, spec=replace(spec, options=replace(spec.options, extra=asked.extra)))

    def chat(self, data: bytes) -> Reading:
        return self._chat(_as_openai(self._body(data, ChatRequest)))

    def completion(self, data: bytes) -> Reading:
        return self._completion(_as_openai(self._body(data, CompletionRequest)))

    def _chat(self, body: ChatRequest) -> Reading:
        spec = chat_spec(body)
        prompt = self._prompts.of_chat(body, self._num_kept(spec, body))
        output = self._planner.of_chat(body, prompt.ids)
        return Reading(spec, (prompt,), tuple(body.plain_messages()), self._predicted(body), output, body.model)

    def _completion(self, body: CompletionRequest, infill: Infill | None = None) -> Reading:
        spec = completion_spec(body)
        check_total(len(body.prompts), spec.params.n)
        if infill is None and body.suffix is not None:
            infill = infill_of(body)
        if infill is not None:
            prompts = [self._prompts.of_infill(infill)]
        else:
            prompts = self._prompts.of_completion(body, self._num_kept(spec, body))
        num_tokens = sum(len(prompt.ids) for prompt in prompts)
        if len(prompts) > 1 and num_tokens > self._limits.max_tokens:
            raise RequestError(
                f"the prompts hold {num_tokens} tokens together, but at most {self._limits.max_tokens} may wait "
                "(--max-queue-tokens): send fewer in one request",
                param="prompt",
            )
        output = self._planner.of_completion(body)
        return Reading(spec, tuple(prompts), prediction=self._predicted(body), output=output, model=body.model)

    def embeddings(self, data: bytes) -> VectorReading:
        return self._vectors.embeddings(self._vector_body(data, EmbeddingRequest))

    def score(self, data: bytes) -> VectorReading:
        return self._vectors.score(self._vector_body(data, ScoreRequest))

    def rerank(self, data: bytes) -> VectorReading:
        return self._vectors.rerank(self._vector_body(data, RerankRequest))

    def tokenize(self, data: bytes) -> bytes:
        """The JSON that answers /tokenize: vLLM's, or where a `content` comes llama-server's."""
        parsed = self._parsed(data)
        if isinstance(parsed, dict) and "content" in parsed:
            if isinstance(parsed["content"], list):
                self._check_count(len(parsed["content"]))
            return self._tokenize_content(self._checked(LlamaTokenizeRequest.model_validate(parsed)))
        body: TokenizeChat | TokenizeText
        if isinstance(parsed, dict) and "messages" in parsed:
            body = self._checked(TokenizeChat.model_validate(parsed))
            ids = self._prompts.tokens_of_chat(body)
        else:
            body = self._checked(TokenizeText.model_validate(parsed))
            ids = self._prompts.tokens_of_text(body.prompt, add_special=body.add_special_tokens is not False)
        writer = LogprobWriter(self._tokenizer)
        texts = [writer.text(token_id) for token_id in ids] if body.return_token_strs else None
        shape = {"count": len(ids), "max_model_len": self._limits.max_context, "tokens": ids, "token_strs": texts}
        return orjson.dumps(shape)

    def _tokenize_content(self, body: LlamaTokenizeRequest) -> bytes:
        pieces = [body.content] if isinstance(body.content, str) else body.content
        special = {"add_special": bool(body.add_special), "parse_special": body.parse_special is not False}
        ids = self._prompts.tokens_of_pieces(pieces, **special)
        shown = [{"id": id, "piece": self._piece(id)} for id in ids] if body.with_pieces else ids
        return orjson.dumps({"tokens": shown})

    def _piece(self, token_id: int) -> str | list[int]:
        """The token's text, or its bytes where they are no whole characters."""
        piece = self._tokenizer.token_bytes(token_id)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return list(piece)

    def detokenize(self, data: bytes) -> bytes:
        """The JSON that answers /detokenize. vLLM and llama-server take the same: each finds its own field."""
        body = self._body(data, DetokenizeRequest)
        self._prompts.check_ids(body.tokens, "tokens")
        text = self._tokenizer.decode(body.tokens, skip_special=False)
        return orjson.dumps({"prompt": text, "content": text})

    def _predicted(self, body: Generation) -> tuple[int, ...] | None:
        """The prediction's tokens, as far as an answer can be long."""
        if body.prediction is None:
            return None
        longest = self._limits.max_context
        return tuple(self._prompts.first_tokens(body.prediction.text, longest))

    def _num_kept(self, spec: GenerationSpec, body: Generation) -> int | None:
        return self._prompts.num_kept(spec.params.max_tokens, body.truncate_prompt_tokens)

    def _body(self, data: bytes, model: type[M]) -> M:
        return self._checked(model.model_validate(self._parsed(data)))

    def _vector_body(self, data: bytes, model: type[M]) -> M:
        """Its lists are of texts, each of which may fill the context."""
        return self._checked(model.model_validate(parse_json(data)))

    def _parsed(self, data: bytes) -> Any:
        """The JSON, unless it has more parts than any request that could be answered: those take seconds to check."""
        return self._with_bounds(parse_json(data))

    def _with_bounds(self, parsed: Any) -> Any:
        if not isinstance(parsed, dict):
            return parsed
        if len(parsed) > MAX_FIELDS:
            raise RequestError(f"the body has {len(parsed)} fields, but no request has more than {MAX_FIELDS}")
        messages, prompt = parsed.get("messages") or parsed.get("input"), parsed.get("prompt")
        if isinstance(messages, list):
            self._check_count(sum(_num_parts(message) for message in messages))
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            check_total(len(prompt), 1)
        elif isinstance(prompt, list) and not parsed.get("truncate_prompt_tokens"):
            self._check_count(len(prompt))
        return parsed

    def _check_count(self, count: int) -> None:
        """Refuse so many things, of which each is a token at least."""
        if count > self._limits.max_context:
            raise ContextLengthError.of(self._limits.max_context, count, None)

    def _checked(self, body: M) -> M:
        name = getattr(body, "model", None)
        if name is not None:
            self._names.check(name)
        return body


def _as_openai(body: G) -> G:
    """The body, within bounds that are the API's and not the sampler's: other dialects have none. RequestError."""
    if body.temperature is not None and body.temperature > HOTTEST:
        raise RequestError(
            f"temperature is {body.temperature:g}, but at most {HOTTEST:g} here, as in OpenAI's API; POST /completion, "
            "which is llama-server's, takes more",
            param="temperature",
        )
    return body


def infill_of(body: CompletionRequest) -> Infill:
    """What a completion with a suffix asks. RequestError: it asks for something else besides."""
    assert body.suffix is not None
    if not isinstance(body.prompt, str):
        raise RequestError("suffix needs the prompt to be one text", param="suffix")
    if body.echo or body.truncate_prompt_tokens is not None:
        raise RequestError("suffix excludes echo and truncate_prompt_tokens", param="suffix")
    return Infill(body.prompt, body.suffix)


def _num_parts(message: Any) -> int:
    content = message.get("content") if isinstance(message, dict) else None
    return max(len(content), 1) if isinstance(content, list) else 1


def unknown_model(name: str, served: str, adapters: Collection[str] = ()) -> ModelNotFoundError:
    others = f" and {len(adapters)} adapters of it (GET /v1/models)" if adapters else ""
    return ModelNotFoundError(f"The model `{name}` does not exist. This server has `{served}`{others}.")


TextLoader = Callable[[], TextParts]
