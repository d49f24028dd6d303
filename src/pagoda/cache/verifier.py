"""The probability that two questions want one answer, from their embeddings and their words.

A small network: what the words say and the cosine (`features.NAMES`), the products and the differences of the
embeddings' elements, one hidden layer, and a weight for each hash of a word that only one of both questions has.

    x = [(words - mean) / scale, 20 a·b, 20 |a - b|]                [F]   a·b: element by element
    log odds = w2 · relu(W1 x + b1) + w0 · x + Σ buckets + b        averaged over the networks of a file

A verifier belongs to one embedder. It holds counts of labelled pairs by score, from pairs that it was not trained on,
which say how far it can be trusted (`evidence`). Files are JSON; weights are bytes with a scale a row, in base 85.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.cache.embedder import Embedder
from pagoda.cache.evidence import EDGES, Region
from pagoda.cache.features import NAMES, NUM_BUCKETS, unmatched_buckets, word_features
from pagoda.cache.words import words_of
from pagoda.errors import ConfigError
from pagoda.types import FloatArray

VERSION = 1
EMBEDDING_SCALE = 20.0
DEFAULT = "default_verifier.json"
PROBE = "How do I enable the sound of my phone?"
MIN_PROBE_COSINE = 0.99


@dataclass(frozen=True, slots=True)
class Network:
    """One of the networks; F features, H hidden units."""

    hidden: FloatArray  # [H, F + 1], the last column the bias
    output: FloatArray  # [H]
    direct: FloatArray  # [F + 1]
    buckets: FloatArray  # [NUM_BUCKETS]

    def log_odds(self, x: FloatArray, unmatched: FloatArray) -> FloatArray:
        """`x`: [N, F + 1], the last column 1; `unmatched`: [N, NUM_BUCKETS] → [N]"""
        hidden = np.maximum(x @ self.hidden.T, 0)
        return np.asarray(hidden @ self.output + x @ self.direct + unmatched @ self.buckets, np.float32)


@dataclass(frozen=True)
class Verifier:
    """Immutable, for any number of threads."""

    networks: tuple[Network, ...]
    mean: FloatArray  # [words' features]
    scale: FloatArray
    probe: FloatArray  # [d] what its embedder makes of PROBE
    regions: tuple[Region, ...]
    about: str = ""  # what it was trained on

    def fits(self, embedder: Embedder) -> bool:
        """Whether these are the vectors that it has learned, be they computed a little differently."""
        vector = embedder.embed([PROBE])[0]
        return vector.shape == self.probe.shape and float(vector @ self.probe) >= MIN_PROBE_COSINE

    def log_odds(self, text: str, vector: FloatArray, others: Sequence[str], vectors: FloatArray) -> FloatArray:
        """The log odds that `text` wants the answer that each of `others` wants; `vectors`: [N, d] → [N]"""
        pairs = [(text, other) for other in others]
        return self.of_pairs(pairs, np.broadcast_to(vector, vectors.shape), vectors)

    def of_pairs(self, pairs: Sequence[tuple[str, str]], left: FloatArray, right: FloatArray) -> FloatArray:
        """`left`, `right`: [N, d], the vectors of the pairs' questions → log odds [N]"""
        words, unmatched = word_arrays(pairs, left, right)
        x = inputs(words, left, right, self.mean, self.scale)
        total = np.zeros(len(pairs), np.float32)
        for network in self.networks:
            total += network.log_odds(x, unmatched)
        return total / np.float32(len(self.networks))

    def to_json(self) -> dict[str, Any]:
        return {
            "pagoda_verifier": VERSION,
            "about": self.about,
            "probe": _packed(self.probe),
            "features": list(NAMES),
            "mean": [round(float(v), 6) for v in self.mean],
            "scale": [round(float(v), 6) for v in self.scale],
            "edges": list(EDGES),
            "regions": [[region.num_pairs, region.num_wrong] for region in self.regions],
            "networks": [
                {name: _packed(getattr(network, name)) for name in ("hidden", "output", "direct", "buckets")}
                for network in self.networks
            ],
        }

    @classmethod
    def from_json(cls, shape: Any) -> Verifier:
        """Raises ValueError."""
        try:
            if shape["pagoda_verifier"] != VERSION or shape["features"] != list(NAMES) or shape["edges"] != list(EDGES):
                raise ValueError("it was made by another version of Pagoda: train it again")
            networks = tuple(
                Network(**{name: _unpacked(network[name]) for name in ("hidden", "output", "direct", "buckets")})
                for network in shape["networks"]
            )
            regions = tuple(Region(float(pairs), float(wrong)) for pairs, wrong in shape["regions"])
            mean, scale = (np.array(shape[name], np.float32) for name in ("mean", "scale"))
            verifier = cls(networks, mean, scale, _unpacked(shape["probe"]), regions, str(shape["about"]))
            verifier._check()
            return verifier
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"it is no verifier: {error!r}") from None

    def _check(self) -> None:
        size = self.networks[0].hidden.shape[1]
        for network in self.networks:
            shapes = (network.hidden.shape[1:], network.direct.shape, network.buckets.shape, network.output.shape)
            if shapes != ((size,), (size,), (NUM_BUCKETS,), network.hidden.shape[:1]) or (size - 1 - len(NAMES)) % 2:
                raise ValueError("its parts do not fit each other")
        if self.probe.shape != ((size - 1 - len(NAMES)) // 2,):
            raise ValueError("its parts do not fit each other")
        if len(self.mean) != len(NAMES) or len(self.scale) != len(NAMES) or len(self.regions) != len(EDGES) + 1:
            raise ValueError("its parts do not fit each other")


def word_arrays(pairs: Sequence[tuple[str, str]], left: FloatArray, right: FloatArray) -> tuple[FloatArray, FloatArray]:
    """→ (what words and cosine say [N, features], which words stand on one side alone [N, NUM_BUCKETS])"""
    cosines = np.einsum("nd,nd->n", left, right)
    words = np.empty((len(pairs), len(NAMES)), np.float32)
    unmatched = np.zeros((len(pairs), NUM_BUCKETS), np.float32)
    for i, (one, other) in enumerate(pairs):
        a, b = words_of(one), words_of(other)
        words[i] = [cosines[i], *word_features(a, b)]
        unmatched[i, unmatched_buckets(a, b)] = 1
    return words, unmatched


def inputs(words: FloatArray, left: FloatArray, right: FloatArray, mean: FloatArray, scale: FloatArray) -> FloatArray:
    """→ [N, F + 1]"""
    ones = np.ones((len(words), 1), np.float32)
    parts = [(words - mean) / scale, EMBEDDING_SCALE * left * right, EMBEDDING_SCALE * np.abs(left - right), ones]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def load_verifier(path: Path | None = None) -> Verifier:
    """The verifier in a file; without one, that which comes with Pagoda. Raises ConfigError."""
    source = resources.files("pagoda.cache").joinpath(DEFAULT) if path is None else path
    try:
        return Verifier.from_json(json.loads(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _packed(array: FloatArray) -> dict[str, Any]:
    """Bytes from -127 to 127 with a scale a row."""
    rows = np.atleast_2d(array)
    scales = np.maximum(np.abs(rows).max(axis=1), 1e-12) / 127
    codes = np.rint(rows / scales[:, None]).astype(np.int8)
    data = base64.b85encode(codes.tobytes()).decode()
    return {"shape": list(array.shape), "scales": [float(f"{s:.6g}") for s in scales], "codes": data}


def _unpacked(packed: Any) -> FloatArray:
    shape = tuple(int(size) for size in packed["shape"])
    scales = np.array(packed["scales"], np.float32)
    codes = np.frombuffer(base64.b85decode(packed["codes"]), np.int8).reshape(len(scales), -1)
    return (codes * scales[:, None]).astype(np.float32).reshape(shape)
