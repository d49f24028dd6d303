"""What requests for vectors and scores may say: OpenAI's embeddings, vLLM's score, Jina's and Cohere's rerank."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pagoda.errors import RequestError
from pagoda.server.schema import Harmless
from pagoda.server.schema_base import MAX_TOKENS, Int, Int64, Strict, Text, TokenIds

MAX_INPUTS = 2048  # OpenAI's

Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
IdList = Annotated[TokenIds, Field(min_length=1)]
IdLists = Annotated[list[IdList], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]


class VectorRequest(Harmless):
    """What all of them share."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[Int, Field(ge=-1, le=MAX_TOKENS)] | None = None  # -1: to what the model reads
    priority: Int64 | None = None

    @property
    def truncate(self) -> int | None:
        """Tokens that are kept of an input; 0: as many as the model reads; None: one that is too long is refused."""
        return 0 if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens or None


class EmbeddingRequest(VectorRequest):
    """POST /v1/embeddings."""

    input: Text | Texts | IdList | IdLists
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Int, Field(ge=1)] | None = None
    add_special_tokens: bool | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """One string or list of ids each."""
        if isinstance(self.input, list) and not isinstance(self.input[0], int):
            return list(self.input)
        return [self.input]


class ScoreRequest(VectorRequest):
    """POST /score: each text of the first against its own of the second, or one against all."""

    text_1: str | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    text_2: str | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    instruction: Text | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """RequestError where the numbers of texts do not go together."""
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        if len(first) not in (1, len(second)):
            message = f"text_1 has {len(first)} texts and text_2 {len(second)}: send one, or as many"
            raise RequestError(message, param="text_1")
        return list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))


class RerankDocument(Strict):
    text: str


class RerankRequest(VectorRequest):
    """POST /v1/rerank."""

    query: Text
    documents: Annotated[list[str | RerankDocument], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    top_n: Annotated[Int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    instruction: Text | None = None

    @property
    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]
