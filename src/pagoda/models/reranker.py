"""Qwen3-Reranker: a decoder whose next token, yes or no, says how well a document answers a query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.formats.quantized import QuantizedTensor, as_floats
from pagoda.types import FloatArray, RawTensor


class _Files(Protocol):
    @property
    def architecture(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class YesNoHead:
    """By how much the logit of yes is above that of no: the log odds of yes, where nothing else may be said."""

    yes: FloatArray  # [E] rows of the output matrix
    no: FloatArray
    size: int = 1

    def scores(self, vector: FloatArray) -> FloatArray:
        return np.array([((self.yes.astype(np.float64) - self.no) * vector).sum()], np.float32)


def is_reranker(checkpoint: _Files, name: str) -> bool:
    """Whether the model is a Qwen3-Reranker: its files are those of any Qwen3 model but for its name."""
    said = f"{name} {checkpoint.metadata.get('general.name', '')} {checkpoint.metadata.get('_name_or_path', '')}"
    return checkpoint.architecture == "qwen3" and "reranker" in said.lower()


def yes_no_head(output: RawTensor, yes_ids: list[int], no_ids: list[int]) -> YesNoHead:
    """The head that reads the output matrix's rows of "yes" and "no". UnsupportedError where those are no tokens."""
    if len(yes_ids) != 1 or len(no_ids) != 1:
        raise UnsupportedError("a reranker answers yes or no, but the vocabulary has no such tokens")
    yes, no = _rows(output, [yes_ids[0], no_ids[0]])
    return YesNoHead(yes, no)


def _rows(matrix: RawTensor, ids: list[int]) -> FloatArray:
    if isinstance(matrix, QuantizedTensor):
        return as_floats(matrix)[ids]
    return dequantize(matrix.rows()[ids], matrix.type, (len(ids), matrix.shape[1]))
