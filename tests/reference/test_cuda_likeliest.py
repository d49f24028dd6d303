"""Sampling from what a device ranked gives what whole rows give, bit for bit: by kernels, in torch, in the engine."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from cuda_cases import NO_GPU, need_torch

need_torch(triton=True)
if NO_GPU is None:
    pytest.skip("there is a GPU: tests/device runs the kernels on it", allow_module_level=True)

import torch

from paged_run import chunk
from pagoda.backends.base import LOGIT_BLOCK, TopKBlocks
from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.fast import FastOps
from pagoda.engine.llm import LLM
from pagoda.sampling.base import SamplingBatch, StateSpec
from pagoda.sampling.params import validate
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.top_k import TopKSampler, TopKState
from pagoda.types import FloatArray, SamplingParams
from tiny_models import TINY, write_gguf

# of infinities and NaN, in the interpreter
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

OPS: dict[str, EagerOps] = {
    "eager": EagerOps(torch.float32),
    "kernels": FastOps(torch.float32, max_context=64, max_seqs=4),
}
V = 70 * LOGIT_BLOCK
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, logprobs=5),
    SamplingParams(temperature=0.8, top_k=40),
    SamplingParams(temperature=1.3, top_k=64, top_p=0.8, logprobs=2),
    SamplingParams(temperature=1.0, top_k=5, min_p=0.1, logprobs=0),
]


def rows_of_logits(seed: int = 0) -> FloatArray:
    """Flat and steep ones, with ties, zeros of both signs, few finite ones, none, NaN, and an infinite one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(scale=4, size=(8, V)).astype(np.float32)
    x[1] = np.round(x[1] / 20) * -0.0
    x[2] = np.round(x[2])
    x[3, :] = -np.inf
    x[4] = np.where(np.arange(V) % 1000 == 7, x[4], -np.inf)
    x[5, 3000], x[6, 100] = np.nan, np.inf
    x[7] /= 100
    return x


@functools.cache
def likeliest(name: str, count: int) -> TopKBlocks:
    on_device = torch.from_numpy(rows_of_logits())
    blocks, values, maxima = OPS[name].likeliest(on_device, count)
    return TopKBlocks(blocks.numpy(), values.numpy(), OPS[name].weights(on_device, maxima).numpy())


@pytest.mark.parametrize("name", OPS)
def test_blocks_rank_by_their_maxima_and_then_their_place(name: str) -> None:
    logits = rows_of_logits()[:, : V - 30]  # the last block is short
    maxima = np.pad(logits, ((0, 0), (0, 30)), constant_values=-np.inf).reshape(8, -1, LOGIT_BLOCK).max(2)
    ranked = np.argsort(np.where(np.isnan(maxima), np.inf, maxima) * -1, axis=1, kind="stable")
    for count in (7, 70):
        blocks, values, _ = OPS[name].likeliest(torch.from_numpy(logits), count)
        np.testing.assert_array_equal(blocks.numpy(), np.sort(ranked[:, :count], axis=1))
        for r, found in enumerate(blocks.tolist()):
            for i, block in enumerate(found):
                part = logits[r, block * LOGIT_BLOCK : (block + 1) * LOGIT_BLOCK]
                np.testing.assert_array_equal(values[r, i, : len(part)].numpy(), part)
                assert (values[r, i, len(part) :] == -torch.inf).all()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("params", PARAMS)
def test_tokens_logprobs_and_errors_are_those_of_whole_rows(name: str, params: SamplingParams) -> None:
    logits = rows_of_logits()
    params = validate(params, V, 1000)
    near, whole = TopKSampler(V), Sampler(V)
    states = [near.open(StateSpec(params, (), choice, 9)) for choice in range(16)]
    expected_states = [whole.open(StateSpec(params, (), choice, 9)) for choice in range(16)]
    rows = (np.arange(16) % 8).astype(np.int32)
    needed = states[0].top_k_needed
    assert needed == (1 if params == PARAMS[0] else 64)
    found = likeliest(name, needed)
    for _ in range(3):
        got = near.sample_ranked(found, states, rows)
        expected = whole.sample(SamplingBatch(logits, expected_states, rows))
        assert got.errors == expected.errors
        assert len(got.errors) == 6
        fine = [n for n in range(16) if n not in got.errors]
        assert got.token_ids[fine].tolist() == expected.token_ids[fine].tolist()
        assert got.logprobs == expected.logprobs
        for n, (state, other) in enumerate(zip(states, expected_states, strict=True)):
            state.accept(int(expected.token_ids[n]))
            other.accept(int(expected.token_ids[n]))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=0.7, top_k=65),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=0.0, repetition_penalty=1.1),
        SamplingParams(temperature=0.0, presence_penalty=1.0),
        SamplingParams(temperature=0.0, logit_bias={3: 1.0}),
        SamplingParams(temperature=0.0, allowed_token_ids=(1, 2)),
    ],
)
def test_who_needs_whole_rows(params: SamplingParams) -> None:
    assert TopKSampler(V).open(StateSpec(validate(params, V, 1000), (), 0, 0)).top_k_needed == 0


def test_whole_rows_until_min_tokens_and_where_words_are_banned() -> None:
    sampler, greedy = TopKSampler(V), SamplingParams(temperature=0.0)
    assert sampler.open(StateSpec(greedy, (), 0, 0, bad_words=[[1, 2]])).top_k_needed == 0
    state = sampler.open(StateSpec(SamplingParams(temperature=0.0, min_tokens=2), (), 0, 0, stop_token_ids=[3]))
    assert state.top_k_needed == 0
    state.accept(1)
    state.accept(1)
    assert state.top_k_needed == 1
    state.rewind(1)
    assert state.top_k_needed == 0
    odd = TopKSampler(V + 1)  # a block that is not whole: its sum of weights is not the sampler's
    assert odd.open(StateSpec(SamplingParams(temperature=0.0, logprobs=1), (), 0, 0)).top_k_needed == 0


def test_an_engine_gives_the_same_answers_with_and_without_ranking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of all kinds in one batch, forks and prompt logprobs among them."""
    path = write_gguf(tmp_path / "model.gguf", TINY["llama_256"], type="Q8_0")
    settings = {"backend": "torch-cpu", "kv_memory_bytes": 1 << 22, "kv_type": "f32", "max_context": 64}
    kinds = [
        SamplingParams(temperature=0.0, logprobs=3),
        SamplingParams(temperature=0.9, top_k=3, seed=1, n=2),
        SamplingParams(temperature=0.9, seed=2),
        SamplingParams(temperature=0.0, presence_penalty=1.0),
        SamplingParams(temperature=0.0, prompt_logprobs=1),
    ]
    params = [SamplingParams(**{**_fields(kind), "max_tokens": 6 + i}) for i, kind in enumerate(kinds)]
    prompts = [chunk(name, 0, 9) for name in "abcde"]
    answers = []
    for ranking in (True, False):
        asked = []
        original = TopKSampler.sample_ranked
        monkeypatch.setattr(
            TopKSampler,
            "sample_ranked",
            lambda self, *args, original=original, asked=asked: asked.append(1) or original(self, *args),
        )
        if not ranking:
            monkeypatch.setattr(TopKState, "top_k_needed", property(lambda self: 0))
        with LLM(str(path), **settings) as llm:
            outputs = llm.generate(prompts, params)
        answers.append([(o.token_ids, o.logprobs) for output in outputs for o in output.outputs])
        assert bool(asked) == ranking
    assert answers[0] == answers[1]


def _fields(params: SamplingParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in params.__dataclass_fields__}
