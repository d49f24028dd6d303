"""An encoder behind the interface of the engine, so that a server serves it as it serves any other model.

A step computes the texts that wait, first come first served, as many as fit in it. There is no KV cache, no sampling
and nothing to preempt: a text is computed in one step, or not yet.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pagoda.backends.base import PlacedAdapter
from pagoda.config import EngineSettings
from pagoda.engine.adapters import AdapterStore
from pagoda.engine.embedder import STEP_TEXTS, STEP_TOKENS, Embedder, encoder_backend, open_embedder
from pagoda.engine.thread import EngineThread
from pagoda.engine.validation import POOLED
from pagoda.errors import ConfigError, ContextLengthError, GenerationError, RequestError, UnsupportedError
from pagoda.formats.checkpoint import Checkpoint, open_checkpoint
from pagoda.sources import LocalModel
from pagoda.text.chat import ChatTemplate
from pagoda.text.framing import TokenizedText, VectorTraits
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from pagoda.types import (
    BLOCK_SIZE,
    Delta,
    FinishedRequest,
    FinishReason,
    FloatArray,
    Request,
    SequenceWork,
    StepResult,
    Usage,
)


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """What `LoadedEngine` is for other models, of an encoder. `engine` is not started."""

    engine: EngineThread
    core: EncoderEngine
    settings: EngineSettings
    source: LocalModel
    checkpoint: Checkpoint
    adapters: AdapterStore
    chat_template: None = None
    kv_store: None = None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.core.embedder.tokenizer

    @property
    def no_chat_reason(self) -> str:
        return f"{self.model_name} is an encoder: it makes embeddings and writes no text"

    @property
    def model_name(self) -> str:
        return self.source.name

    @property
    def load_text(self) -> Callable[[], tuple[Tokenizer, ChatTemplate | None, str | None]]:
        """Makes the tokenizer once more; may be pickled."""
        return partial(_load_text, self.source.path, self.no_chat_reason)

    @property
    def max_context(self) -> int:
        return self.core.embedder.max_tokens

    @property
    def traits(self) -> VectorTraits:
        return self.core.embedder.traits

    @property
    def cache_config(self) -> dict[str, str]:
        """There is no KV cache."""
        return {"block_size": str(BLOCK_SIZE), "num_gpu_blocks": "0"}

    def changed(self) -> str | None:
        """What has become of the model's files since they were opened; None: nothing that could be seen here."""
        return self.checkpoint.changed()

    def content_digest(self) -> str:
        """What tells this model from others of its name."""
        return self.checkpoint.content_digest()

    def close(self) -> None:
        """Stop the engine and free everything. Idempotent."""
        self.engine.stop()
        self.core.close()
        self.checkpoint.close()


def load_encoder_engine(settings: EngineSettings, source: LocalModel, checkpoint: Checkpoint) -> LoadedEncoder:
    """The encoder in `checkpoint`, ready to be served. Raises what `load_embedder` raises."""
    if settings.lora or settings.lora_dir is not None:
        given = f"--lora {settings.lora[0]}" if settings.lora else f"--lora-dir {settings.lora_dir}"
        raise ConfigError(f"{given}: {source.name} is an encoder, which takes no adapters")
    core = EncoderEngine(open_embedder(encoder_backend(settings), checkpoint, source.name, settings.encoder_weights))
    adapters = AdapterStore(_no_adapters, max_in_memory=1)
    return LoadedEncoder(EngineThread(core), core, settings, source, checkpoint, adapters)


def _no_adapters(path: Path) -> tuple[str, PlacedAdapter]:
    raise UnsupportedError(f"{path}: encoders take no adapters")


def _load_text(path: Path, reason: str) -> tuple[Tokenizer, ChatTemplate | None, str | None]:
    with open_checkpoint(path) as checkpoint:
        return load_tokenizer(checkpoint), None, reason


class EncoderEngine:
    """Takes pooled requests and no others."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._waiting: OrderedDict[str, Request] = OrderedDict()
        self._ended: list[tuple[Delta, FinishedRequest]] = []  # by aborts, since the last step

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or bool(self._ended)

    def validate(self, request: Request) -> Request:
        """RequestError for a request that wants tokens; ContextLengthError for a text that is too long."""
        name, prompt, longest = self.embedder.name, request.prompt_token_ids, self.embedder.max_tokens
        if not request.pooled:
            raise RequestError(
                f"{name} is an encoder: it makes embeddings and writes no text; ask /v1/embeddings", param="model"
            )
        if len(prompt) > longest:
            raise ContextLengthError.of(longest, len(prompt), None)
        request = replace(request, params=POOLED, constraint=None, prediction=None)
        self.embedder.check(_text_of(request))
        return request

    def enter(self, request: Request) -> None:
        if request.id in self._waiting:
            raise RequestError(f"a request with id {request.id!r} is running already", param="request_id")
        self._waiting[request.id] = request

    def abort(self, request_id: str) -> bool:
        request = self._waiting.pop(request_id, None)
        if request is None:
            return False
        now = time.monotonic()
        usage = Usage(len(request.prompt_token_ids), 0, 0)
        delta = Delta(request.id, 0, "", (), finish_reason="abort", usage=usage)
        self._ended.append((delta, _finished(request, "abort", None, now)))
        return True

    def step(self) -> StepResult:
        """Compute the texts that have waited longest, and report them."""
        started = time.monotonic()
        requests = self._next()
        done = [self._outcome(request, vector) for request, vector in self._vectors(requests)]
        now = time.monotonic()
        finished = [_finished(r, d.finish_reason or "error", started, now) for r, d in zip(requests, done, strict=True)]
        ended, self._ended = self._ended, []
        return StepResult(
            deltas=(*(delta for delta, _ in ended), *done),
            finished=(*(facts for _, facts in ended), *finished),
            queue_s=tuple(started - request.arrival for request in requests),
            num_running=len(requests),
            num_waiting=len(self._waiting),
            num_prompt_tokens=sum(len(request.prompt_token_ids) for request in requests),
            step_s=now - started,
            forward_s=now - started,
            work=tuple(_work(request) for request in requests),
            ended=now,
        )

    def close(self) -> None:
        self.embedder.close()

    def _next(self) -> list[Request]:
        chosen: list[Request] = []
        num_tokens = 0
        for request in self._waiting.values():
            num_tokens += len(request.prompt_token_ids)
            if chosen and (num_tokens > STEP_TOKENS or len(chosen) == STEP_TEXTS):
                break
            chosen.append(request)
        for request in chosen:
            del self._waiting[request.id]
        return chosen

    def _vectors(self, requests: list[Request]) -> list[tuple[Request, FloatArray | None]]:
        """None for a text whose numbers are not finite: the others do not suffer from it."""
        texts = [_text_of(request) for request in requests]
        try:
            return list(zip(requests, self.embedder.embed_tokens(texts), strict=True))
        except GenerationError:
            if len(requests) == 1:
                return [(requests[0], None)]
            return [pair for request in requests for pair in self._vectors([request])]

    def _outcome(self, request: Request, vector: FloatArray | None) -> Delta:
        usage = Usage(len(request.prompt_token_ids), 0, 0)
        if vector is None:
            error = "the model computes numbers that are not finite"
            return Delta(request.id, 0, "", (), finish_reason="error", usage=usage, error=error, fault="model")
        return Delta(request.id, 0, "", (), finish_reason="stop", usage=usage, embedding=np.array(vector))


def _text_of(request: Request) -> TokenizedText:
    return TokenizedText(request.prompt_token_ids, len(request.prompt_token_ids), request.token_types)


def _finished(request: Request, reason: FinishReason, started: float | None, now: float) -> FinishedRequest:
    return FinishedRequest(
        request_id=request.id,
        tenant=request.tenant,
        finish_reason=reason,
        prompt_tokens=len(request.prompt_token_ids),
        completion_tokens=0,
        cached_tokens=0,
        arrival=request.arrival,
        first_scheduled=started,
        first_token=None,
        finished=now,
    )


def _work(request: Request) -> SequenceWork:
    return SequenceWork(request.id, request.tenant, None, len(request.prompt_token_ids), 0, 0, 0, 0)
