"""Prompts that become vectors in the engine: against the hidden states of numpy, in chunks, and beside chats."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paged_run import PagedRun
from pagoda import LLM, SamplingParams
from pagoda.backends.reference import ReferenceBackend
from pagoda.errors import RequestError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model
from pagoda.text.framing import RERANK_TASK, TokenizedText, reranker_pair
from pagoda.types import Request
from tiny_bert import MEAN, write_encoder
from tiny_models import TINY, write_safetensors

TEXTS = ["the cat", "on the other hand, there is an answer to that in the end", "an", "the cat and the dog"]


def write_decoder(folder: Path, pooling: dict[str, object] | None = None, family: str = "qwen3") -> Path:
    spec = TINY[family]
    write_safetensors(folder, replace(spec, config={**spec.config, "max_position_embeddings": 1024}))
    if pooling is not None:
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def hidden_states(folder: Path, ids: list[int]) -> np.ndarray:
    with open_checkpoint(folder) as checkpoint:
        model = load_model(checkpoint)
        run = PagedRun(model, ReferenceBackend().load(model, max_batch_tokens=512, max_batch_seqs=8, kv_type="f32"))
        run.step({"a": ids}, hidden_rows=range(len(ids)))
    return run.hidden


@pytest.mark.parametrize(
    ("family", "pooling", "mean"),
    [
        ("qwen3", None, False),
        ("qwen3", MEAN, True),
        ("gemma3", MEAN, True),
        ("llama", {"pooling_mode_lasttoken": True}, False),
    ],
)
def test_vectors_are_those_of_numpy(tmp_path: Path, family: str, pooling: dict[str, object] | None, mean: bool) -> None:
    folder = write_decoder(tmp_path, pooling, family)
    with LLM(str(folder), backend="cpu", kv_type="f32", max_context=96) as llm:
        for text, vector in zip(TEXTS, llm.embed(TEXTS), strict=True):
            hidden = hidden_states(folder, llm.loaded.tokenizer.encode(text))
            want = hidden.mean(0) if mean else hidden[-1]
            np.testing.assert_allclose(vector, want / np.linalg.norm(want), atol=2e-5)


@pytest.mark.parametrize("pooling", [None, MEAN], ids=["last", "mean"])
def test_chunks_and_company_change_no_bit(tmp_path: Path, pooling: dict[str, object] | None) -> None:
    folder = str(write_decoder(tmp_path, pooling))
    with LLM(folder, backend="cpu", max_context=96) as llm:
        alone = np.stack([llm.embed(text)[0] for text in TEXTS])
        assert (llm.embed(TEXTS) == alone).all()
        assert (llm.embed(TEXTS) == alone).all()  # and with the prefixes in the cache
    for budget in (3, 7, 16):
        with LLM(folder, backend="cpu", max_context=96, max_batch_tokens=budget, max_num_seqs=3) as llm:
            assert (llm.embed(TEXTS) == alone).all()


@pytest.mark.parametrize("pooling", [None, MEAN], ids=["last", "mean"])
def test_chats_go_on_beside_and_blocks_may_run_out(tmp_path: Path, pooling: dict[str, object] | None) -> None:
    folder = str(write_decoder(tmp_path, pooling))
    with LLM(folder, backend="cpu", max_context=96, max_batch_tokens=16, kv_memory_bytes=1 << 17) as llm:
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        want_text, want = llm.generate(TEXTS, params), llm.embed(TEXTS)
        core = llm.loaded.core
        chats = [core.validate(Request(text, tuple(llm.tokenize(text)), params, time.monotonic())) for text in TEXTS]
        pooled = [llm._pooled(_tokenized(llm, text)) for text in TEXTS]
        got: dict[str, np.ndarray] = {}
        texts = {request.id: "" for request in chats}
        for delta in llm._deltas([request for pair in zip(chats, pooled, strict=True) for request in pair]):
            core.check()  # type: ignore[union-attr]
            if delta.embedding is not None:
                assert (delta.text, delta.token_ids, delta.finish_reason) == ("", (), "stop")
                assert delta.usage is not None
                assert delta.usage.completion_tokens == 0
                got[delta.request_id] = delta.embedding
            elif delta.request_id in texts:
                texts[delta.request_id] += delta.text
        assert (np.stack([got[request.id] for request in pooled]) == want).all()
        assert list(texts.values()) == [output.text for output in want_text]


def _tokenized(llm: LLM, text: str) -> TokenizedText:
    ids = llm.loaded.tokenizer.encode(text)
    return TokenizedText(tuple(ids), len(ids))


def test_a_folder_of_the_bare_decoder(tmp_path: Path) -> None:
    """As Qwen3-Embedding is published: no `model.` before the names of its tensors."""
    folder = write_decoder(tmp_path / "whole", {"pooling_mode_lasttoken": True}, "qwen3")
    bare = write_decoder(tmp_path / "bare", {"pooling_mode_lasttoken": True}, "qwen3")
    held = (bare / "model.safetensors").read_bytes()
    size = int.from_bytes(held[:8], "little")
    header = {name.removeprefix("model."): place for name, place in json.loads(held[8 : 8 + size]).items()}
    text = json.dumps(header).encode()
    (bare / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + held[8 + size :])
    with LLM(str(folder), backend="cpu", max_context=96) as llm:
        want = llm.embed(TEXTS)
    with LLM(str(bare), backend="cpu", max_context=96) as llm:
        assert (llm.embed(TEXTS) == want).all()


def test_a_reranker_says_how_likely_yes_is(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "tiny-Reranker")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for i, word in ((270, "yes"), (271, "no")):
        tokenizer["added_tokens"].append({"id": i, "content": word, "special": False, "single_word": False,
                                          "lstrip": False, "rstrip": False, "normalized": False})  # fmt: skip
    vocabulary = tokenizer["model"]["vocab"]
    for word in [word for word, i in vocabulary.items() if i >= 270]:
        del vocabulary[word]
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-2]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with LLM(str(folder), backend="cpu", max_context=1024) as llm:
        scores = llm.score("the cat", ["a cat", "a dog"])
        pair = llm.loaded.tokenizer.encode("yes", add_special=False)
        assert pair == [270]
        with pytest.raises(RequestError, match="score"):
            llm.embed("a")
        for text, score in zip(["a cat", "a dog"], scores, strict=True):
            ids = reranker_pair(llm.loaded.tokenizer, "the cat", text, RERANK_TASK, 1023).token_ids
            yes, no = (
                llm.generate([list(ids)], SamplingParams(max_tokens=1, logprobs=0, allowed_token_ids=(token,)))[0]
                .outputs[0]
                .logprobs[0]  # type: ignore[index]
                .chosen.logprob
                for token in (270, 271)
            )
            np.testing.assert_allclose(score, np.exp(yes) / (np.exp(yes) + np.exp(no)), rtol=1e-3)


def test_an_encoder_in_an_llm(tmp_path: Path) -> None:
    with LLM(str(write_encoder(tmp_path))) as llm:
        vectors = llm.embed(TEXTS)
        assert vectors.shape == (4, 64)
        assert (llm.embed(TEXTS[1])[0] == vectors[1]).all()
        assert llm.embed([]).shape == (0, 64)
        np.testing.assert_allclose(llm.score(TEXTS[0], TEXTS), vectors @ vectors[0], atol=1e-6)
        with pytest.raises(RequestError, match="makes embeddings"):
            llm.generate("the cat")
        with pytest.raises(RequestError, match="texts and"):
            llm.score(TEXTS[:2], TEXTS)
