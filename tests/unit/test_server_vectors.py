"""/v1/embeddings, /score and /v1/rerank over HTTP, of an encoder, a cross-encoder and a decoder."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagoda.config import EngineSettings
from pagoda.engine.embedder import Embedder, load_embedder
from pagoda.engine.load import load_served
from pagoda.engine.vectors import cosine
from serving import Served, serving
from tiny_bert import BERT, CLS, SEP, VOCAB, weights, write_encoder
from tiny_blocks import noise
from tiny_models import TINY, write_safetensors

TEXTS = ["the cat sat on the mat", "the dog is not on the mat", "42"]


def cross_encoder(folder: Path) -> Path:
    head = {
        "bert.pooler.dense.weight": noise("pooler", (64, 64), 0.2),
        "bert.pooler.dense.bias": noise("pooler bias", (64,), 0.2),
        "classifier.weight": noise("classifier", (1, 64), 0.3),
        "classifier.bias": noise("classifier bias", (1,), 0.2),
    }
    config = {**BERT, "architectures": ["BertForSequenceClassification"]}
    return write_encoder(folder, config, tensors={**weights(BERT, prefix="bert."), **head}, pooling=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Iterator[Embedder]:
    loaded = load_embedder(str(folder))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(load_served(EngineSettings(model=str(folder))), served_model_name="tiny") as served:
        yield served


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = write_safetensors(tmp_path_factory.mktemp("qwen3"), TINY["qwen3"])
    with serving(load_served(EngineSettings(model=str(path), backend="cpu", max_context=96))) as served:
        yield served


def test_vectors_are_the_embedders(served: Served, embedder: Embedder) -> None:
    answer = served.ok("/v1/embeddings", model="tiny", input=TEXTS)
    assert answer["object"] == "list"
    assert answer["model"] == "tiny"
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    vectors = np.array([item["embedding"] for item in answer["data"]], np.float32)
    assert (vectors == embedder.embed(TEXTS)).all()
    num_tokens = sum(len(embedder.tokenize(text).token_ids) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_every_way_to_send_an_input(served: Served, embedder: Embedder) -> None:
    ids = [list(embedder.tokenize(text).token_ids) for text in TEXTS]
    want = embedder.embed(TEXTS)
    for sent, rows in ((TEXTS[0], [0]), (TEXTS, [0, 1, 2]), (ids[1], [1]), (ids, [0, 1, 2])):
        answer = served.ok("/v1/embeddings", input=sent, encoding_format="base64", user="someone")
        got = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]]
        assert (np.stack(got) == want[rows]).all()


def test_fewer_dimensions_are_the_first_ones_made_long(served: Served, embedder: Embedder) -> None:
    answer = served.ok("/v1/embeddings", input=TEXTS[0], dimensions=8)
    whole = embedder.embed(TEXTS[:1])[0, :8]
    np.testing.assert_allclose(answer["data"][0]["embedding"], whole / np.linalg.norm(whole), atol=1e-6)


def test_more_inputs_than_a_text_has_tokens(served: Served, embedder: Embedder) -> None:
    texts = [f"{i} dogs" for i in range(300)]
    answer = served.ok("/v1/embeddings", input=texts)
    got = np.array([item["embedding"] for item in answer["data"]], np.float32)
    assert (got == embedder.embed(texts)).all()
    assert str(served.refused("/v1/embeddings", input=["a"] * 2049)["param"]).startswith("input")


def test_more_inputs_than_may_wait(folder: Path, embedder: Embedder) -> None:
    texts = [f"{i} cats" for i in range(40)]
    with serving(load_served(EngineSettings(model=str(folder))), max_queue_requests=7) as small:
        answer = small.ok("/v1/embeddings", input=texts)
    got = np.array([item["embedding"] for item in answer["data"]], np.float32)
    assert (got == embedder.embed(texts)).all()


def test_what_is_too_long_is_refused_or_cut_and_said(served: Served, embedder: Embedder) -> None:
    text = "cat " * 500
    error = served.refused("/v1/embeddings", input=[TEXTS[0], text])
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "input"
    answer = served.ok("/v1/embeddings", input=[TEXTS[0], text], truncate_prompt_tokens=-1)
    assert [item.get("truncated", False) for item in answer["data"]] == [False, True]
    assert (np.array(answer["data"][1]["embedding"], np.float32) == embedder.embed([text])[0]).all()
    answer = served.ok("/v1/embeddings", input=text, truncate_prompt_tokens=10)
    assert answer["usage"]["prompt_tokens"] == 10
    ids = [CLS, *[6] * 100, SEP]
    answer = served.ok("/v1/embeddings", input=ids, truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == 80


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [CLS, VOCAB]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": "a", "dimensions": 65}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "stream": True}, "stream"),
        ({}, "input"),
    ],
)
def test_bodies_that_are_refused(served: Served, body: dict[str, object], param: str) -> None:
    assert str(served.refused("/v1/embeddings", **body)["param"]).startswith(param)


def test_an_encoder_says_why_it_does_not_chat(served: Served) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "the cat"}),
    ):
        assert "makes embeddings" in served.refused(path, **body)["message"]
    assert served.refused("/v1/embeddings", 404, model="other", input="a")["code"] == "model_not_found"
    assert served.client.get("/metrics").status_code == 200


def test_a_cosine_is_never_above_one() -> None:
    vectors = np.random.default_rng(0).standard_normal((200, 384)).astype(np.float32)
    for vector in vectors:
        assert 1 - 1e-6 < cosine(vector, 2 * vector) <= 1
        assert -1 <= cosine(vector, -vector) < -1 + 1e-6


def test_an_embedding_model_ranks_by_cosine(served: Served, embedder: Embedder) -> None:
    vectors = embedder.embed(TEXTS).astype(np.float64)
    answer = served.ok("/v1/rerank", query=TEXTS[0], documents=[TEXTS[2], {"text": TEXTS[1]}, TEXTS[0]], top_n=2)
    assert [result["index"] for result in answer["results"]] == [2, 1]
    assert [result["document"]["text"] for result in answer["results"]] == [TEXTS[0], TEXTS[1]]
    np.testing.assert_allclose(
        [result["relevance_score"] for result in answer["results"]], [1, vectors[0] @ vectors[1]], atol=1e-6
    )
    answer = served.ok("/score", text_1=TEXTS[0], text_2=TEXTS[1:])
    np.testing.assert_allclose([item["score"] for item in answer["data"]], vectors[1:] @ vectors[0], atol=1e-6)
    answer = served.ok("/v1/score", text_1=TEXTS[:2], text_2=TEXTS[1:])
    want = [vectors[0] @ vectors[1], vectors[1] @ vectors[2]]
    np.testing.assert_allclose([item["score"] for item in answer["data"]], want, atol=1e-6)
    assert "text_1 has 2" in served.refused("/score", text_1=TEXTS[:2], text_2=TEXTS)["message"]
    assert served.refused("/score", text_1="a", text_2="b", instruction="find")["param"] == "instruction"


def test_a_cross_encoder_scores_pairs(tmp_path: Path) -> None:
    path = cross_encoder(tmp_path)
    loaded = load_embedder(str(path))
    pairs = [loaded.tokenize_pair(TEXTS[0], text) for text in TEXTS]
    assert pairs[2].token_ids[-3:] == (pairs[2].token_ids[-3], pairs[2].token_ids[-2], SEP)
    assert pairs[1].token_types.count(1) == pairs[1].token_ids[::-1].index(SEP, 1)
    logits = loaded.embed_tokens(pairs)[:, 0].astype(np.float64)
    loaded.close()
    # transformers 5.24.0, BertForSequenceClassification, float32
    np.testing.assert_allclose(logits, [-0.99930, -0.77610, -0.12079], atol=2e-5)
    with serving(load_served(EngineSettings(model=str(path)))) as served:
        answer = served.ok("/rerank", query=TEXTS[0], documents=TEXTS, return_documents=False)
        scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
        np.testing.assert_allclose([scores[i] for i in range(3)], 1 / (1 + np.exp(-logits)), atol=1e-6)
        assert "document" not in answer["results"][0]
        assert "scores pairs" in served.refused("/v1/embeddings", input="a")["message"]
        long = served.ok("/score", text_1="cat", text_2="dog " * 300, truncate_prompt_tokens=-1)
        assert long["data"][0]["truncated"] is True
        assert long["usage"]["prompt_tokens"] == 80
        assert served.refused("/score", text_1="cat", text_2="dog " * 300)["code"] == "context_length_exceeded"


def test_a_decoder_embeds_between_chats(decoder: Served) -> None:
    answer = decoder.ok("/v1/embeddings", input=["the cat", "the cat and the dog", "the cat"])
    first, second, again = (np.array(item["embedding"]) for item in answer["data"])
    assert first.shape == (TINY["qwen3"].config["hidden_size"],)
    np.testing.assert_allclose(np.linalg.norm(first), 1, atol=1e-6)
    assert (first == again).all()
    assert (first != second).any()
    assert decoder.ok("/v1/completions", prompt="the cat", max_tokens=3)["usage"]["completion_tokens"] == 3
    assert decoder.refused("/v1/embeddings", input="the cat " * 200)["code"] == "context_length_exceeded"


def test_the_document_knows_the_routes(served: Served) -> None:
    paths = served.client.get("/openapi.json").json()["paths"]
    assert {"/v1/embeddings", "/score", "/v1/rerank"} <= set(paths)
