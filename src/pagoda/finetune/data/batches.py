"""Which examples a step sees, and how they are divided for memory.

Examples are not padded: they stand one after the other, and attention sees each alone (`model/attention.py`). So a
step's work is its tokens, whatever their lengths, and only memory bounds how many go through the model at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagoda.finetune.data.render import Example


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Examples one after the other: ids and positions [T]; rows whose hidden state predicts a learned token, and that
    token [R]."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    lengths: tuple[int, ...]
    rows: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


def micro_batches(examples: Sequence[Example], max_tokens: int) -> Iterator[MicroBatch]:
    """The examples in as few runs as fit `max_tokens`; one that is longer goes alone."""
    run: list[Example] = []
    tokens = 0
    for example in examples:
        if run and tokens + len(example) > max_tokens:
            yield _join(run)
            run, tokens = [], 0
        run.append(example)
        tokens += len(example)
    if run:
        yield _join(run)


def _join(examples: Sequence[Example]) -> MicroBatch:
    ids = np.concatenate([example.ids for example in examples]).astype(np.int64)
    learned = np.flatnonzero(np.concatenate([example.trained for example in examples]))
    return MicroBatch(
        ids=ids,
        positions=np.concatenate([np.arange(len(example)) for example in examples]),
        lengths=tuple(map(len, examples)),
        rows=learned - 1,
        targets=ids[learned],
    )


def num_trained(examples: Sequence[Example]) -> int:
    return sum(example.num_trained for example in examples)
