"""Labelled pairs → a verifier: Adam on the log loss, written out in numpy.

The pairs are cut in FOLDS. For each fold a network is trained on the others; what the networks say of pairs that they
have not seen is the verifier's evidence, and all networks together are the verifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagoda.cache.embedder import Embedder
from pagoda.cache.evidence import regions_of
from pagoda.cache.features import NUM_BUCKETS
from pagoda.cache.pairs import Pair
from pagoda.cache.verifier import PROBE, Network, Verifier, inputs, word_arrays
from pagoda.errors import ConfigError
from pagoda.types import FloatArray

FOLDS = 3
HIDDEN = 16
EPOCHS = 30
BATCH = 256
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-3
DROPOUT = 0.4
MIN_PAIRS = 200

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Data:
    """Pairs as the networks see them. Products and differences of 20,000 pairs are 60 MB."""

    x: FloatArray  # [N, F + 1]
    unmatched: FloatArray  # [N, NUM_BUCKETS]
    same: FloatArray  # [N] 0 or 1


def train(
    pairs: Sequence[Pair], embedder: Embedder, *, seed: int = 0, about: str = "", progress: Progress = lambda text: None
) -> Verifier:
    """Raises ConfigError for too few pairs."""
    num_same = sum(pair.same for pair in pairs)
    if min(num_same, len(pairs) - num_same) < MIN_PAIRS:
        raise ConfigError(
            f"{num_same} pairs of the same meaning and {len(pairs) - num_same} others, but a verifier needs "
            f"{MIN_PAIRS} each"
        )
    progress(f"embedding {2 * len(pairs)} questions")
    left, right = vectors_of(pairs, embedder)
    return train_on(pairs, left, right, embedder.embed([PROBE])[0], seed=seed, about=about, progress=progress)


def train_on(
    pairs: Sequence[Pair], left: FloatArray, right: FloatArray, probe: FloatArray, *, seed: int = 0, about: str = "",
    progress: Progress = lambda text: None,
) -> Verifier:  # fmt: skip
    """`left`, `right`: the vectors of the pairs' questions, [N, d], whose embedder makes `probe` of PROBE."""
    words, unmatched = word_arrays([(pair.a, pair.b) for pair in pairs], left, right)
    mean, scale = words.mean(axis=0), words.std(axis=0) + 1e-6
    same = np.array([pair.same for pair in pairs], np.float32)
    data = Data(inputs(words, left, right, mean, scale), unmatched, same)
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(pairs)) % FOLDS
    networks, odds = [], np.empty(len(pairs), np.float32)
    for number in range(FOLDS):
        progress(f"training network {number + 1} of {FOLDS}")
        network = fit(data, np.flatnonzero(fold != number), rng)
        held_out = fold == number
        odds[held_out] = network.log_odds(data.x[held_out], data.unmatched[held_out])
        networks.append(network)
    regions = regions_of(odds.tolist(), [pair.same for pair in pairs])
    return Verifier(tuple(networks), mean, scale, probe, tuple(regions), about)


def vectors_of(pairs: Sequence[Pair], embedder: Embedder) -> tuple[FloatArray, FloatArray]:
    """The vectors of both sides, each text embedded once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.a, pair.b)))
    vectors = embedder.embed(texts)
    place = {text: i for i, text in enumerate(texts)}
    return vectors[[place[pair.a] for pair in pairs]], vectors[[place[pair.b] for pair in pairs]]


def fit(data: Data, rows: npt.NDArray[np.intp], rng: np.random.Generator) -> Network:
    """A network trained on these rows."""
    size = data.x.shape[1]
    hidden = (rng.normal(size=(HIDDEN, size)) / np.sqrt(size)).astype(np.float32)
    hidden[:, -1] = 0
    weights = {
        "hidden": hidden,
        "output": (rng.normal(size=HIDDEN) / np.sqrt(HIDDEN)).astype(np.float32),
        "direct": np.zeros(size, np.float32),
        "buckets": np.zeros(NUM_BUCKETS, np.float32),
    }
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in weights.items()}
    num_steps, step = EPOCHS * -(-len(rows) // BATCH), 0
    for _ in range(EPOCHS):
        for batch in np.array_split(rng.permutation(rows), -(-len(rows) // BATCH)):
            step += 1
            gradients = _gradients(weights, data, batch, rng)
            _adam(weights, gradients, moments, step, LEARNING_RATE * (1 - step / (num_steps + 1)))
    return Network(**weights)


def _gradients(
    weights: dict[str, FloatArray], data: Data, batch: npt.NDArray[np.intp], rng: np.random.Generator
) -> dict[str, FloatArray]:
    """The gradients of a batch's mean log loss, with dropout of inputs and hidden units."""
    x = data.x[batch]
    kept = (rng.random((len(batch), x.shape[1] - 1)) >= DROPOUT) / np.float32(1 - DROPOUT)
    x[:, :-1] *= kept.astype(np.float32)
    unmatched, same = data.unmatched[batch], data.same[batch]
    before = x @ weights["hidden"].T
    alive = ((before > 0) * (rng.random(before.shape) >= DROPOUT) / (1 - DROPOUT)).astype(np.float32)
    hidden = before * alive
    odds = hidden @ weights["output"] + x @ weights["direct"] + unmatched @ weights["buckets"]
    error = ((1 / (1 + np.exp(-np.clip(odds, -30, 30))) - same) / len(batch)).astype(np.float32)
    back = error[:, None] * weights["output"] * alive
    return {
        "hidden": back.T @ x,
        "output": hidden.T @ error,
        "direct": x.T @ error,
        "buckets": unmatched.T @ error,
    }


def _adam(
    weights: dict[str, FloatArray],
    gradients: dict[str, FloatArray],
    moments: dict[str, tuple[FloatArray, FloatArray]],
    step: int,
    rate: float,
) -> None:
    """One step of AdamW (Loshchilov and Hutter, 2019)."""
    for name, weight in weights.items():
        first, second = moments[name]
        first += 0.1 * (gradients[name] - first)
        second += 0.001 * (gradients[name] ** 2 - second)
        update = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        weight -= (rate * (update + WEIGHT_DECAY * weight)).astype(np.float32)
