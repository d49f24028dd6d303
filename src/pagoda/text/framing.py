"""What a model that makes vectors or scores reads of a text or a pair: framed, and no longer than it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Encode = Callable[[str], list[int]]

# How Qwen3-Reranker asks; its answer is the next token, yes or no.
RERANK_HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
RERANK_TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
RERANK_TASK = "Given a web search query, retrieve relevant passages that answer the query"

# What a model makes of its input: the vector of a text, or the score of a pair, in one of two ways.
VectorKind = Literal["embedding", "cross_encoder", "reranker"]


@dataclass(frozen=True, slots=True)
class VectorTraits:
    """What who reads requests has to know of the model. max_tokens: of one input, special tokens included.

    dimensions: of a vector; 1 where it is a score. types: pairs are told apart by token types, not by two separators.
    """

    kind: VectorKind
    max_tokens: int
    dimensions: int = 0
    normalize: bool = True
    types: bool = False
    prompt: str = ""  # that is put before every text
    lowercase: bool = False
    is_encoder: bool = False  # there is no text to go on with

    def prepared(self, text: str) -> str:
        """The text as it is tokenized."""
        whole = self.prompt + text
        return whole.lower() if self.lowercase else whole


NO_VECTORS = VectorTraits("embedding", 0)


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """What a model reads of one text or pair, its special tokens included."""

    token_ids: tuple[int, ...]
    num_tokens: int  # that the whole text has, as far as it was tokenized
    token_types: tuple[int, ...] = ()  # one a token, or none: all 0

    @property
    def truncated(self) -> bool:
        return self.num_tokens > len(self.token_ids)


class FramingTokenizer(Protocol):
    """What is asked of `pagoda.text`'s tokenizer."""

    def encode(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...


def frame_of(tokenizer: FramingTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that stand before a text, and those behind it."""
    bare, framed = tokenizer.encode("a", add_special=False), tokenizer.encode("a")
    at = next((i for i in range(len(framed) - len(bare) + 1) if framed[i : i + len(bare)] == bare), 0)
    return tuple(framed[:at]), tuple(framed[at + len(bare) :])


def fitted(ids: Sequence[int], end: Sequence[int], limit: int) -> TokenizedText:
    """At most `limit` tokens: the first ones, and `end`, if the text has it."""
    if len(ids) <= limit:
        return TokenizedText(tuple(ids), len(ids))
    kept = tuple(end) if len(end) < limit and tuple(ids[len(ids) - len(end) :]) == tuple(end) else ()
    return TokenizedText((*ids[: limit - len(kept)], *kept), len(ids))


def encoder_pair(
    first: Sequence[int], second: Sequence[int], frame: tuple[Sequence[int], Sequence[int]], *, types: bool, limit: int
) -> TokenizedText:
    """Two texts as a cross-encoder reads them. Of the longer one the last tokens go, where both do not fit.

    frame: what stands before a text and behind it. types: BERT's way, one separator and the second text of type 1;
    otherwise RoBERTa's, two separators.
    """
    start, end = frame
    between = tuple(end) if types else (*end, *end)
    room = max(limit - len(start) - len(between) - len(end), 0)
    num_tokens = len(start) + len(first) + len(between) + len(second) + len(end)
    a, b = len(first), len(second)
    if a + b > room:
        a, b = min(a, max(room - b, (room + 1) // 2)), min(b, max(room - a, room // 2))
    head, tail = (*start, *first[:a], *between), (*second[:b], *end)
    kinds = (*[0] * len(head), *[1] * len(tail)) if types else ()
    return TokenizedText((*head, *tail), num_tokens, kinds)


def reranker_pair(tokenizer: FramingTokenizer, query: str, document: str, task: str, limit: int) -> TokenizedText:
    """A query and a document as Qwen3-Reranker reads them; the document's last tokens go where all does not fit."""
    head = tokenizer.encode(RERANK_HEAD, add_special=False, parse_special=True)
    tail = tokenizer.encode(RERANK_TAIL, add_special=False, parse_special=True)
    body = tokenizer.encode(f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}", add_special=False)
    room = max(limit - len(head) - len(tail), 0)
    return TokenizedText((*head, *body[:room], *tail), len(head) + len(body) + len(tail))
