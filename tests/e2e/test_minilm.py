"""The default embedder as it comes from the index, against vectors of sentence-transformers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import BadRequestError, OpenAI

from pagoda.config import EngineSettings
from pagoda.engine.embedder import Embedder, load_embedder
from pagoda.engine.load import load_served
from serving import serving

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


def test_the_openai_client_gets_the_same_vectors(embedder: Embedder) -> None:
    loaded = load_served(EngineSettings(model="all-minilm-l6-v2"))
    with serving(loaded) as served, OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
        texts = [text for text in GOLDEN["texts"] if text and len(text) < 500]
        answer = client.embeddings.create(model="all-minilm-l6-v2", input=texts)
        got = np.array([item.embedding for item in answer.data], np.float32)
        assert (got == embedder.embed(texts)).all()
        with pytest.raises(BadRequestError, match="makes embeddings"):
            client.chat.completions.create(model="all-minilm-l6-v2", messages=[{"role": "user", "content": "Hi"}])


def test_meaning_is_near(embedder: Embedder) -> None:
    password, forgot, weather = embedder.embed(GOLDEN["texts"][:3])
    assert password @ forgot > 0.85 > 0.2 > password @ weather
