"""Bodies that ask for vectors or scores → what the model is to compute, and what the answer needs besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from pagoda.errors import ContextLengthError, RequestError
from pagoda.server.prompts import Tokenizer
from pagoda.server.schema_embeddings import EmbeddingRequest, RerankRequest, ScoreRequest, VectorRequest
from pagoda.server.within import TooManyTokensError, encode_first, encode_within
from pagoda.text.framing import (
    RERANK_TASK,
    TokenizedText,
    VectorTraits,
    encoder_pair,
    fitted,
    frame_of,
    reranker_pair,
)


@dataclass(frozen=True, slots=True)
class VectorReading:
    """inputs: what is computed. pairs: of inputs whose vectors are compared; none: each input has a score already."""

    inputs: tuple[TokenizedText, ...]
    priority: int = 0
    base64: bool = False
    dimensions: int | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    documents: tuple[str, ...] = field(default=(), repr=False)  # that the answer repeats
    top_n: int | None = None
    model: str | None = None  # that the client names


class VectorReader:
    """Reads bodies for one model. Raises RequestError."""

    def __init__(self, tokenizer: Tokenizer, traits: VectorTraits) -> None:
        self._tokenizer = tokenizer
        self._traits = traits
        self._frame = frame_of(tokenizer)

    def embeddings(self, body: EmbeddingRequest) -> VectorReading:
        traits = self._traits
        if traits.kind != "embedding":
            raise RequestError("this model scores pairs of texts: ask /score or /v1/rerank", param="model")
        if body.dimensions is not None and body.dimensions > traits.dimensions:
            raise RequestError(f"the model's vectors have {traits.dimensions} dimensions", param="dimensions")
        special = body.add_special_tokens is not False
        inputs = tuple(self._input(item, body.truncate, special, "input") for item in body.inputs)
        return VectorReading(
            inputs, body.priority or 0, body.encoding_format == "base64", body.dimensions, model=body.model
        )

    def score(self, body: ScoreRequest) -> VectorReading:
        names = ("text_1", "text_2")
        inputs, pairs = self._pairs(body.pairs, body, body.instruction, names)
        return VectorReading(inputs, body.priority or 0, pairs=pairs, model=body.model)

    def rerank(self, body: RerankRequest) -> VectorReading:
        texts = body.texts
        inputs, pairs = self._pairs(
            [(body.query, text) for text in texts], body, body.instruction, ("query", "documents")
        )
        shown = tuple(texts) if body.return_documents is not False else ()
        priority, top_n = body.priority or 0, body.top_n
        return VectorReading(inputs, priority, pairs=pairs, documents=shown, top_n=top_n, model=body.model)

    def _pairs(
        self, pairs: Sequence[tuple[str, str]], body: VectorRequest, task: str | None, names: tuple[str, str]
    ) -> tuple[tuple[TokenizedText, ...], tuple[tuple[int, int], ...]]:
        """→ (what is computed, which of it is compared). A text that stands in several pairs is computed once."""
        kind = self._traits.kind
        if task is not None and kind != "reranker":
            raise RequestError("this model takes no instruction", param="instruction")
        if kind == "embedding":
            texts = list(dict.fromkeys(text for pair in pairs for text in pair))
            place = {text: i for i, text in enumerate(texts)}
            firsts = {first for first, _ in pairs}
            inputs = [self._input(text, body.truncate, True, names[text not in firsts]) for text in texts]
            return tuple(inputs), tuple((place[first], place[second]) for first, second in pairs)
        limit = min(body.truncate or self._traits.max_tokens, self._traits.max_tokens)
        read = [self._pair(first, second, task, limit, cut=body.truncate is not None) for first, second in pairs]
        for text in read:
            if text.truncated and body.truncate is None:
                raise _too_long(self._traits.max_tokens, text.num_tokens, names[1])
        return tuple(read), ()

    def _pair(self, first: str, second: str, task: str | None, limit: int, *, cut: bool) -> TokenizedText:
        longest = limit * self._tokenizer.longest_token
        if not cut and len(first) + len(second) > longest:
            raise _too_long(limit, (len(first) + len(second)) // self._tokenizer.longest_token, None)
        if self._traits.kind == "reranker":
            return reranker_pair(self._tokenizer, first, second[:longest], task or RERANK_TASK, limit)
        encode = partial(self._tokenizer.encode, add_special=False)
        ids = [encode_first(encode, text, limit) for text in (first, second)]
        return encoder_pair(ids[0], ids[1], self._frame, types=self._traits.types, limit=limit)

    def _input(self, item: str | list[int], truncate: int | None, special: bool, param: str) -> TokenizedText:
        most = self._traits.max_tokens
        limit = min(truncate or most, most)
        item = self._traits.prepared(item) if isinstance(item, str) else item
        if not isinstance(item, str):
            self._check_ids(item, param)
        elif truncate is None:
            encode = partial(self._tokenizer.encode, add_special=special)
            try:
                item = encode_within(encode, item, most, self._tokenizer.longest_token)
            except TooManyTokensError as error:
                raise _too_long(most, error.num_tokens, param) from None
        else:
            start, end = self._frame if special else ((), ())
            item = [*start, *encode_first(partial(self._tokenizer.encode, add_special=False), item, limit), *end]
        text = fitted(item, self._frame[1], limit)
        if truncate is None and text.truncated:
            raise _too_long(most, text.num_tokens, param)
        if not text.token_ids:
            raise RequestError(f"{param} holds a text without any tokens", param=param)
        return text

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        if min(ids) < 0 or max(ids) >= self._tokenizer.vocab_size:
            highest = self._tokenizer.vocab_size - 1
            raise RequestError(f"{param} holds a token id outside of the vocabulary (0 to {highest})", param=param)


def _too_long(limit: int, num_tokens: int, param: str | None) -> ContextLengthError:
    error = ContextLengthError.of(limit, num_tokens, None)
    error.param = param or error.param
    return error
