"""Offline use: `LLM` steps the engine itself until all prompts are answered.

>>> from pagoda import LLM, SamplingParams
>>> with LLM("smollm2-135m") as llm:
...     print(llm.generate("The capital of France is", SamplingParams(max_tokens=8))[0].text)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, cast

import numpy as np
from rich.progress import Progress

from pagoda.config import EngineSettings
from pagoda.engine.encoder_engine import LoadedEncoder
from pagoda.engine.load import LoadedEngine, load_served
from pagoda.engine.vectors import cosine, pair_of, probability
from pagoda.errors import GenerationError, RequestError
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.grammar.source import GrammarSource
from pagoda.text.framing import TokenizedText, fitted, frame_of
from pagoda.text.tools.offered import FunctionCall, OfferedTools
from pagoda.types import (
    Delta,
    FinishReason,
    FloatArray,
    LoadedAdapter,
    Request,
    SamplingParams,
    TokenLogprobs,
    Usage,
)

Prompt = str | Seq[int]
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished choice."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str | None = None
    tool_calls: tuple[FunctionCall, ...] = ()  # where tools were offered; `text` is what is said besides


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and all that was made of it. `text` and `token_ids` are the first choice's."""

    prompt: str | None  # None: it came as token ids
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[Completion, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.outputs[0].token_ids


class LLM:
    """A loaded model. `settings` are the fields of `EngineSettings`. For one thread at a time."""

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """Raises what `load_engine` raises."""
        if model is not None:
            settings["model"] = model
        self.loaded: LoadedEngine | LoadedEncoder = load_served(EngineSettings(**settings))
        self._num_requests = 0
        self._grammars = GrammarCompiler(self.loaded.tokenizer)

    def generate(
        self,
        prompts: Prompt | Seq[Prompt],
        params: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        grammar: GrammarSource | Seq[GrammarSource | None] | None = None,
        adapter: str | Seq[str | None] | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt: a text, or token ids. One set of params for all, or one each; default: 16 tokens.

        `grammar` is what all outputs obey, or one for each prompt's; None: nothing. `adapter` names an adapter of the
        setting `lora` for all, or one each; None: the model itself.

        Raises RequestError, for any prompt that cannot be served, before anything is computed.
        """
        listed = _listed(prompts)
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        ids = [self.tokenize(prompt) if isinstance(prompt, str) else list(prompt) for prompt in listed]
        return self._run(texts, ids, params or SamplingParams(), grammar, adapter, progress)

    def chat(
        self,
        messages: Seq[Message] | Seq[Seq[Message]],
        params: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        tools: Seq[Mapping[str, Any]] = (),
        grammar: GrammarSource | Seq[GrammarSource | None] | None = None,
        adapter: str | Seq[str | None] | None = None,
        progress: bool = False,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, until the model ends its turn.

        `tools` may be called, and are in OpenAI's shape; calls are found in the answers, which nothing holds to the
        tools' schemas. `grammar` and `adapter` are as in `generate`; `template_kwargs` go to the template.
        """
        template = self.loaded.chat_template
        if template is None:
            raise RequestError(self.loaded.no_chat_reason or "the model has no chat template", param="messages")
        is_one = len(messages) > 0 and isinstance(messages[0], Mapping)
        chats = [cast(Seq[Message], messages)] if is_one else cast(Seq[Seq[Message]], messages)
        params = params or SamplingParams(max_tokens=None)
        if not tools:
            ids = [template.render_ids(chat, **template_kwargs) for chat in chats]
            return self._run([None] * len(ids), ids, params, grammar, adapter, progress)
        offered = OfferedTools(tools, template.source)
        told = [offered.told(chat) for chat in chats]
        ids = [template.render_ids(chat, **kwargs, **template_kwargs) for chat, kwargs in told]
        shown = offered.shown_ids(self.loaded.tokenizer)
        outputs = self._run([None] * len(ids), ids, params, grammar, adapter, progress, shown_ids=shown)
        return [replace(one, outputs=tuple(_with_calls(offered, each) for each in one.outputs)) for one in outputs]

    def embed(self, texts: str | Seq[str]) -> FloatArray:
        """The vector of each text: what an embedding model is made for, and any other model has some, too.

        Of a text longer than the model reads, the last tokens are left out. → [N, dimensions]
        """
        traits, tokenizer = self.loaded.traits, self.loaded.tokenizer
        if traits.kind != "embedding":
            raise RequestError("this model scores pairs of texts: call score()", param="texts")
        listed = [texts] if isinstance(texts, str) else list(texts)
        end = frame_of(tokenizer)[1]
        return self._vectors(
            [fitted(tokenizer.encode(traits.prepared(text)), end, traits.max_tokens) for text in listed]
        )

    def score(self, first: str | Seq[str], second: str | Seq[str], *, instruction: str | None = None) -> list[float]:
        """How well each text of `second` answers its own of `first`, or the only one.

        A probability, of a cross-encoder or reranker, which may read an `instruction`; of others the cosine of vectors.
        """
        answers = [second] if isinstance(second, str) else list(second)
        queries = [first] * len(answers) if isinstance(first, str) else list(first)
        if len(queries) != len(answers):
            raise RequestError(f"there are {len(queries)} texts and {len(answers)} to score them with", param="first")
        if self.loaded.traits.kind == "embedding":
            vectors = self.embed([*queries, *answers])
            return [cosine(vectors[i], vectors[len(queries) + i]) for i in range(len(queries))]
        tokenizer, traits = self.loaded.tokenizer, self.loaded.traits
        pairs = [pair_of(tokenizer, traits, *texts, instruction) for texts in zip(queries, answers, strict=True)]
        return [probability(scores) for scores in self._vectors(pairs)]

    def _vectors(self, texts: Seq[TokenizedText]) -> FloatArray:
        """What the model makes of each text or pair. → [N, dimensions]"""
        requests = [self._pooled(text) for text in texts]
        vectors: dict[str, FloatArray] = {}
        for delta in self._deltas(requests):
            if delta.embedding is None:
                raise GenerationError(delta.error or "the text was not computed")
            vectors[delta.request_id] = delta.embedding
        size = self.loaded.traits.dimensions
        return np.array([vectors[request.id] for request in requests], np.float32).reshape(len(texts), size)

    def _pooled(self, text: TokenizedText) -> Request:
        self._num_requests += 1
        name, ids = str(self._num_requests), text.token_ids
        arrival = time.monotonic()
        request = Request(name, ids, SamplingParams(), arrival, pooled=True, token_types=text.token_types)
        return self.loaded.core.validate(request)

    def tokenize(self, text: str) -> list[int]:
        """As `generate` does it: control tokens of the text become tokens."""
        return self.loaded.tokenizer.encode(text, parse_special=True)

    def close(self) -> None:
        """Free the model. Idempotent."""
        self.loaded.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        texts: list[str | None],
        ids: list[list[int]],
        params: SamplingParams | Seq[SamplingParams],
        grammar: GrammarSource | Seq[GrammarSource | None] | None,
        adapter: str | Seq[str | None] | None,
        progress: bool,
        *,
        shown_ids: frozenset[int] = frozenset(),
    ) -> list[RequestOutput]:
        each = [params] * len(ids) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(ids):
            raise RequestError(f"there are {len(ids)} prompts, but {len(each)} sets of params", param="params")
        grammars = [grammar] * len(ids) if grammar is None or isinstance(grammar, GrammarSource) else list(grammar)
        if len(grammars) != len(ids):
            raise RequestError(f"there are {len(ids)} prompts, but {len(grammars)} grammars", param="grammar")
        adapters = [adapter] * len(ids) if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(adapters) != len(ids):
            raise RequestError(f"there are {len(ids)} prompts, but {len(adapters)} adapters", param="adapter")
        requests = [self._request(*parts, shown_ids) for parts in zip(ids, each, grammars, adapters, strict=True)]
        gathered = {request.id: _Gathered(request) for request in requests}
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task("generating", total=sum(request.params.n for request in requests))
            self._answer(requests, gathered, lambda: bar.advance(task))
        return [gathered[request.id].output(text) for request, text in zip(requests, texts, strict=True)]

    def _request(
        self,
        prompt: list[int],
        params: SamplingParams,
        grammar: GrammarSource | None,
        adapter: str | None,
        shown_ids: frozenset[int],
    ) -> Request:
        self._num_requests += 1
        constraint = None if grammar is None else self._grammars.compile(grammar)
        request = Request(
            str(self._num_requests),
            tuple(prompt),
            params,
            time.monotonic(),
            adapter=None if adapter is None else self._adapter(adapter),
            constraint=constraint,
            shown_token_ids=shown_ids,
        )
        return self.loaded.core.validate(request)

    def _adapter(self, name: str) -> LoadedAdapter:
        """In memory for as long as its requests hold it."""
        if isinstance(self.loaded, LoadedEncoder):
            raise RequestError(f"{self.loaded.model_name} is an encoder, which takes no adapters", param="adapter")
        store = self.loaded.adapters
        if store.is_stale(name):
            store.refresh(name)
        version = store.pin(name)
        try:
            return store.load(version, name)
        finally:
            store.unpin(version)

    def _answer(self, requests: Seq[Request], gathered: dict[str, _Gathered], done: Callable[[], None]) -> None:
        for delta in self._deltas(requests):
            gathered[delta.request_id].take(delta)
            if delta.finish_reason is not None:
                done()

    def _deltas(self, requests: Seq[Request]) -> Iterator[Delta]:
        """All that comes of the requests."""
        core = self.loaded.core
        try:
            for request in requests:
                core.enter(request)
            while core.has_work:
                yield from core.step().deltas
        finally:  # interrupted: leave nothing behind
            for request in requests:
                core.abort(request.id)
            if core.has_work:
                core.step()


def _with_calls(offered: OfferedTools, completion: Completion) -> Completion:
    text, calls = offered.divided(completion.text)
    return replace(completion, text=text, tool_calls=calls)


def _listed(prompts: Prompt | Seq[Prompt]) -> list[Prompt]:
    is_one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return [cast(Prompt, prompts)] if is_one else list(cast(Seq[Prompt], prompts))


class _Gathered:
    """The deltas of one request, put together."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._deltas: list[list[Delta]] = [[] for _ in range(request.params.n)]

    def take(self, delta: Delta) -> None:
        self._deltas[delta.index].append(delta)

    def output(self, prompt: str | None) -> RequestOutput:
        outputs = tuple(self._completion(index, deltas) for index, deltas in enumerate(self._deltas))
        return RequestOutput(prompt, self._request.prompt_token_ids, outputs, self._deltas[0][0].prompt_logprobs)

    def _completion(self, index: int, deltas: list[Delta]) -> Completion:
        last = deltas[-1]
        assert last.finish_reason is not None
        assert last.usage is not None
        logprobs = [one for delta in deltas for one in delta.logprobs or ()]
        return Completion(
            index,
            "".join(delta.text for delta in deltas),
            tuple(token_id for delta in deltas for token_id in delta.token_ids),
            last.finish_reason,
            last.stop_reason,
            last.usage,
            tuple(logprobs) if self._request.params.logprobs is not None else None,
            last.error,
        )
