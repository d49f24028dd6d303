"""Vectors and scores of texts, whoever asks: what a pair of texts is to the model, and what its numbers say."""

from __future__ import annotations

import math

import numpy as np

from pagoda.models.pooling import unit
from pagoda.text.framing import (
    RERANK_TASK,
    FramingTokenizer,
    TokenizedText,
    VectorTraits,
    encoder_pair,
    frame_of,
    reranker_pair,
)
from pagoda.types import FloatArray


def pair_of(
    tokenizer: FramingTokenizer, traits: VectorTraits, first: str, second: str, task: str | None = None
) -> TokenizedText:
    """Two texts as one input of a model that scores pairs; what it cannot read of them is left out."""
    if traits.kind == "reranker":
        return reranker_pair(tokenizer, first, second, task or RERANK_TASK, traits.max_tokens)
    ids = [tokenizer.encode(text, add_special=False) for text in (first, second)]
    return encoder_pair(ids[0], ids[1], frame_of(tokenizer), types=traits.types, limit=traits.max_tokens)


def probability(scores: FloatArray) -> float:
    """The sigmoid of the logit that a model which scores pairs gives for one."""
    x = float(scores[0])
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def cosine(first: FloatArray, second: FloatArray) -> float:
    """The cosine of the angle between two vectors: from -1 to 1, also where rounding would lead beyond."""
    return min(1.0, max(-1.0, float(unit(first).astype(np.float64) @ unit(second))))
