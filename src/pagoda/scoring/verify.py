"""Whether a copy of a model is one: it loads, and predicts a text as its source does.

A conversion that drops a setting leaves a file that loads and answers, only worse; what it says of a text shows it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pagoda.errors import FormatError, GenerationError
from pagoda.scoring.score import KeptPredictions, predictions, scoring
from pagoda.scoring.self_text import probe_text
from pagoda.types import FloatArray, Int32Array

TOKENS = 256  # of the text; its second half is predicted


def check_serves(model: Path, threads: int = 0) -> None:
    """Load a model and compute a text. Raises what loading raises; GenerationError for logits that are not finite."""
    with scoring(str(model), TOKENS, threads) as engine:
        _finite(predictions(engine, _window(engine.tokenizer.encode(probe_text()), engine.max_context)))


def divergence(copy: Path, source: Path, threads: int = 0) -> float:
    """Mean KL(source || copy) of the next token, in nats. FormatError where they cut the text into other tokens."""
    with scoring(str(source), TOKENS, threads) as engine:
        ids = engine.tokenizer.encode(probe_text())
        kept = KeptPredictions.of(_finite(predictions(engine, _window(ids, engine.max_context))))
    with scoring(str(copy), TOKENS, threads) as engine:
        if engine.tokenizer.encode(probe_text()) != ids:
            raise FormatError("its tokenizer cuts a text into other tokens than the source's", path=str(copy))
        found = kept.divergence(_finite(predictions(engine, _window(ids, engine.max_context))))
    return float(found.mean())


def _window(ids: list[int], max_context: int) -> Int32Array:
    return np.array(ids[: min(TOKENS, max_context)], np.int32)


def _finite(logits: FloatArray) -> FloatArray:
    if not np.isfinite(logits).all():
        raise GenerationError("its logits are not finite")
    return logits
