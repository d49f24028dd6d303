"""The default embedder as it comes from the index, against vectors of sentence-transformers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagoda.engine.embedder import Embedder, load_embedder

GOLDEN = json.loads((Path(__file__).parent.parent / "reference" / "goldens" / "minilm.json").read_text())
VECTORS = np.stack([np.frombuffer(base64.b64decode(vector), "<f4") for vector in GOLDEN["vectors"]])


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    loaded = load_embedder()
    yield loaded
    loaded.close()


def test_vectors_are_those_of_sentence_transformers(embedder: Embedder) -> None:
    assert (embedder.name, embedder.dimensions, embedder.max_tokens) == ("all-minilm-l6-v2", 384, 256)
    vectors = embedder.embed(GOLDEN["texts"])
    assert ((vectors.astype(np.float64) * VECTORS).sum(1) > 0.99999).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_company_changes_no_bit(embedder: Embedder) -> None:
    together = embedder.embed(GOLDEN["texts"])
    for text, vector in zip(GOLDEN["texts"], together, strict=True):
        assert (embedder.embed([text])[0] == vector).all()
