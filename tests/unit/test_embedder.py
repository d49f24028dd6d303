"""Encoders: vectors against numpy, alone and in any company, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagoda import LLM
from pagoda.backends.arithmetic import gelu
from pagoda.backends.reference import ReferenceBackend
from pagoda.engine import embedder as embedder_module
from pagoda.engine.embedder import Embedder, load_embedder
from pagoda.errors import FormatError, GenerationError, RequestError, UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model
from pagoda.text.framing import TokenizedText
from tiny_bert import BERT, CLS, MEAN, ROBERTA, SEP, VOCAB, weights, write_encoder, write_encoder_gguf

TEXTS = ["the cat sat on the mat", "", "dogs", "is the dog not sitting on an 42, or is it?", "a " * 30]


def hidden_states(config: Mapping[str, Any], ids: list[int], types: list[int] | None = None) -> np.ndarray:
    """BERT as its paper has it, in float64: post-norm blocks, attention of each token to all. → [T, E]"""
    w = {name: values.astype(np.float64) for name, values in weights(config).items()}
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    offset = config["pad_token_id"] + 1 if config["model_type"] == "roberta" else 0

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        away = x - x.mean(-1, keepdims=True)
        scaled = away / np.sqrt((away**2).mean(-1, keepdims=True) + eps)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][np.arange(len(ids)) + offset]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][types or [0] * len(ids)], "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{part}").reshape(len(ids), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        attended = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = norm(x + linear(attended, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        hidden = gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


# transformers 5.24.0, torch 2.13.0, float32, eager: rows 0, 7 and 39, every 16th column
IDS = [5 + 7 * i % (VOCAB - 5) for i in range(40)]
GOLDENS = {
    "bert": [
        [0.75928, 0.95401, -1.33884, -0.16581],
        [0.74539, 1.25454, -1.07771, -0.07599],
        [0.72283, 0.97301, -1.09917, 0.07878],
    ],
    "roberta": [
        [0.64013, 1.45567, -1.08858, 0.36376],
        [0.62384, 1.58084, -0.94173, 0.03587],
        [0.79583, 1.41299, -1.06283, 0.04404],
    ],
}


@pytest.mark.parametrize("config", [BERT, ROBERTA], ids=lambda config: config["model_type"])
def test_numpys_hidden_states_are_those_of_transformers(config: Mapping[str, Any]) -> None:
    got = hidden_states(config, IDS)[[0, 7, 39], ::16]
    np.testing.assert_allclose(got, GOLDENS[config["model_type"]], atol=2e-5)


def expected(config: Mapping[str, Any], ids: list[int]) -> np.ndarray:
    mean = hidden_states(config, ids).mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Iterator[Embedder]:
    loaded = load_embedder(str(folder), threads=2)
    yield loaded
    loaded.close()


@pytest.mark.parametrize("config", [BERT, ROBERTA, {**BERT, "hidden_size": 60}], ids=["bert", "roberta", "odd width"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_vectors_are_those_of_numpy(tmp_path: Path, config: Mapping[str, Any], backend: str) -> None:
    chosen = ReferenceBackend() if backend == "reference" else None
    loaded = load_embedder(str(write_encoder(tmp_path, config)), threads=2, backend=chosen)
    for text, vector in zip(TEXTS, loaded.embed(TEXTS), strict=True):
        want = expected(config, list(loaded.tokenize(text).token_ids))
        np.testing.assert_allclose(vector, want, atol=2e-6)
    loaded.close()


def test_texts_of_more_than_one_chunk_of_keys(tmp_path: Path) -> None:
    config = {**BERT, "max_position_embeddings": 700}
    loaded = load_embedder(str(write_encoder(tmp_path, config)), threads=2)
    ids = [CLS, *((7 * i + 5) % VOCAB for i in range(640)), SEP]
    (vector,) = loaded.embed_tokens([TokenizedText(tuple(ids), len(ids))])
    np.testing.assert_allclose(vector, expected(config, ids), atol=2e-6)
    loaded.close()


def test_what_an_embedder_says_of_itself(embedder: Embedder, folder: Path, tmp_path: Path) -> None:
    assert (embedder.dimensions, embedder.max_tokens, embedder.vocab_size) == (64, 80, VOCAB)
    again, other = load_embedder(str(folder)), load_embedder(str(write_encoder(tmp_path, max_tokens=12)))
    assert again.digest == embedder.digest != other.digest
    assert len(embedder.digest) == 64
    assert embedder.embed([]).shape == (0, 64)


def test_a_text_is_framed_and_cannot_speak_in_control_tokens(embedder: Embedder) -> None:
    ids = embedder.tokenize("cat [SEP] dog").token_ids
    assert (ids[0], ids[-1], ids.count(SEP)) == (CLS, SEP, 1)


def test_how_much_is_read_is_what_the_files_say(tmp_path: Path) -> None:
    """As in sentence-transformers: its own setting, else the tokenizer's."""
    write_encoder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40}))
    assert load_embedder(str(tmp_path)).max_tokens == 40
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 60}))
    assert load_embedder(str(tmp_path)).max_tokens == 60


def test_long_texts_lose_their_last_words_and_keep_their_end(embedder: Embedder) -> None:
    whole, cut = embedder.tokenize("cat " * 78), embedder.tokenize("cat " * 79)
    assert not whole.truncated
    assert cut.truncated
    assert cut.num_tokens == 81
    assert cut.token_ids == whole.token_ids
    assert cut.token_ids[-1] == SEP
    assert (embedder.embed(["cat " * 500]) == embedder.embed(["cat " * 78])).all()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(st.integers(5, VOCAB - 1), min_size=1, max_size=80), min_size=1, max_size=12))
def test_company_changes_no_bit(embedder: Embedder, texts: list[list[int]]) -> None:
    tokenized = [TokenizedText(tuple(ids), len(ids)) for ids in texts]
    together = embedder.embed_tokens(tokenized)
    for i, text in enumerate(tokenized):
        assert (embedder.embed_tokens([text])[0] == together[i]).all()
    assert (embedder.embed_tokens(tokenized[::-1])[::-1] == together).all()


def test_more_texts_than_a_step_has_room_for(embedder: Embedder) -> None:
    texts = [f"{i} cats" for i in range(embedder_module.STEP_TEXTS + 50)] + ["the dog " * 30] * 40
    together = embedder.embed(texts)
    for i in (0, 255, 256, 305, 306, 345):
        assert (embedder.embed([texts[i]])[0] == together[i]).all()


def test_threads_take_turns(embedder: Embedder) -> None:
    want, got = embedder.embed(TEXTS), {}

    def work(number: int) -> None:
        got[number] = [embedder.embed([text])[0] for text in TEXTS]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((np.stack(got[i]) == want).all() for i in range(4))


@pytest.mark.parametrize(
    ("pooling", "row"), [({"pooling_mode_cls_token": True}, 0), ({"pooling_mode": "lasttoken"}, -1)]
)
def test_pooling_is_what_the_files_say(tmp_path: Path, pooling: dict[str, Any], row: int) -> None:
    loaded = load_embedder(str(write_encoder(tmp_path, pooling=pooling, normalize=False)))
    ids = list(loaded.tokenize("the cat").token_ids)
    np.testing.assert_allclose(loaded.embed(["the cat"])[0], hidden_states(BERT, ids)[row], atol=2e-5)


def test_a_folder_without_modules_takes_the_mean(tmp_path: Path, embedder: Embedder) -> None:
    bare = load_embedder(str(write_encoder(tmp_path, pooling=None)))
    assert (bare.embed(TEXTS) == embedder.embed(TEXTS)).all()


def test_old_and_prefixed_names(tmp_path: Path, embedder: Embedder) -> None:
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): values
        for name, values in weights(BERT, prefix="bert.").items()
    }
    renamed["bert.pooler.dense.weight"] = np.zeros((64, 64), np.float32)
    old = load_embedder(str(write_encoder(tmp_path, tensors=renamed)))
    assert (old.embed(TEXTS) == embedder.embed(TEXTS)).all()


def test_gguf_files(tmp_path: Path, embedder: Embedder) -> None:
    texts = [*TEXTS, "Cats, dogs... UNSITTING! naïve 東 x1y2", "[SEP] [CLS] [unused]"]
    whole = load_embedder(str(write_encoder_gguf(tmp_path / "whole.gguf")))
    for text in texts:
        assert whole.tokenize(text) == embedder.tokenize(text)
        assert (
            whole.tokenizer.decode(whole.tokenize(text).token_ids[1:-1]).strip()[:3]
            == (embedder.tokenizer.decode(embedder.tokenize(text).token_ids[1:-1])[:3])
        )
    assert (whole.embed(texts) == embedder.embed(texts)).all()
    small = load_embedder(str(write_encoder_gguf(tmp_path / "small.gguf", type="Q8_0")))
    assert ((small.embed(texts) * embedder.embed(texts)).sum(1) > 0.999).all()
    first = load_embedder(str(write_encoder_gguf(tmp_path / "first.gguf", pooling=2)))
    ids = list(first.tokenize("the cat").token_ids)
    want = hidden_states(BERT, ids)[0]
    np.testing.assert_allclose(first.embed(["the cat"])[0], want / np.linalg.norm(want), atol=2e-6)
    with pytest.raises(UnsupportedError, match="pooling_type is 9"):
        load_embedder(str(write_encoder_gguf(tmp_path / "other.gguf", pooling=9)))


def test_eight_bits(folder: Path, embedder: Embedder) -> None:
    small = load_embedder(str(folder), weights="q8_0")
    vectors = small.embed(TEXTS)
    assert ((vectors * embedder.embed(TEXTS)).sum(1) > 0.999).all()
    assert small.digest != embedder.digest
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert (small.embed([text])[0] == vector).all()


def test_half_precision(tmp_path: Path, embedder: Embedder) -> None:
    half = load_embedder(str(write_encoder(tmp_path, type="F16")))
    assert (
        (half.embed(TEXTS) * embedder.embed(TEXTS)).sum(1) > 0.9999
    ).all()  # products of bfloat16, where they are fast


@pytest.mark.parametrize("ids", [(), tuple(range(5, 86)), (CLS, VOCAB, SEP), (CLS, -1, SEP)])
def test_tokens_that_cannot_be(embedder: Embedder, ids: tuple[int, ...]) -> None:
    with pytest.raises(RequestError):
        embedder.embed_tokens([TokenizedText(ids, len(ids))])


def test_numbers_that_are_none(tmp_path: Path) -> None:
    broken = {name: values.copy() for name, values in weights(BERT).items()}
    broken["embeddings.word_embeddings.weight"][6] = np.nan  # "cat"
    loaded = load_embedder(str(write_encoder(tmp_path, tensors=broken)))
    assert np.isfinite(loaded.embed(["the dog"])).all()
    with pytest.raises(GenerationError, match="text 1"):
        loaded.embed(["the dog", "the cat"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "mish"}, "mish"),
    ],
)
def test_encoders_that_are_not_served(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        load_embedder(str(write_encoder(tmp_path, {**BERT, **change})))


def test_a_prompt_that_the_files_want(tmp_path: Path, embedder: Embedder) -> None:
    write_encoder(tmp_path)
    config = {"prompts": {"query": "is the ", "passage": ""}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    loaded = load_embedder(str(tmp_path))
    assert (loaded.embed(["cat"]) == embedder.embed(["is the cat"])).all()
    assert loaded.digest != embedder.digest
    with LLM(str(tmp_path)) as llm:
        assert (llm.embed("cat") == embedder.embed(["is the cat"])).all()
    config["default_prompt_name"] = "other"
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="other"):
        load_embedder(str(tmp_path))


def test_texts_that_the_files_want_lowercased(tmp_path: Path) -> None:
    """sentence-transformers lowercases for cased tokenizers, too."""
    write_encoder(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    cased = load_embedder(str(tmp_path))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    lowered = load_embedder(str(tmp_path))
    assert (lowered.embed(["The CAT"]) == cased.embed(["the cat"])).all()
    assert (cased.embed(["The CAT"]) != cased.embed(["the cat"])).any()


def test_pooling_without_the_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="prompts"):
        load_embedder(str(write_encoder(tmp_path, pooling={**MEAN, "include_prompt": False})))


def test_unknown_modules_are_refused(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedError, match="Dense"):
        load_embedder(str(tmp_path))


def test_tensors_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    more = {**weights(BERT), "encoder.layer.0.attention.self.distance_embedding.weight": np.zeros((3, 4), np.float32)}
    with pytest.raises(UnsupportedError, match="distance_embedding"):
        load_embedder(str(write_encoder(tmp_path, tensors=more)))


def test_an_encoder_is_no_chat_model(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint, pytest.raises(UnsupportedError, match="makes embeddings"):
        load_model(checkpoint)
