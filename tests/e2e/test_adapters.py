"""Adapters on the default model: beside each other in one batch, in prefix caching, and while they come and go."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagoda import LLM, SamplingParams
from pagoda.adapters.adapter import Delta
from pagoda.adapters.files import read_adapter
from pagoda.adapters.gguf import write_gguf_adapter
from pagoda.adapters.peft import write_peft
from pagoda.adapters.place import Base, base_names
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import family_of, load_model
from pagoda.sources import resolve

SHAPES = {  # of the default model's linears
    "self_attn.q_proj": (576, 576), "self_attn.k_proj": (192, 576), "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576), "mlp.gate_proj": (1536, 576), "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}  # fmt: skip
PROMPTS = ["The capital of France is", "def add(a, b):", "Once upon a time there was a", "Water boils at"]
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def deltas(seed: int, rank: int) -> dict[str, Delta]:
    rng = np.random.default_rng(seed)

    def factors(rows: int, columns: int) -> Delta:
        a = rng.standard_normal((rank, columns), np.float32) * np.float32(columns**-0.5)
        return Delta(a, rng.standard_normal((rows, rank), np.float32) * np.float32(0.02), 2.0)

    return {f"model.layers.{layer}.{name}": factors(*shape) for layer in range(30) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters: a, b and c."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, rank) in enumerate({"a": 8, "b": 3, "c": 16}.items()):
        write_peft(root / name, deltas(seed, rank), {})
    return root


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(lora=tuple(f"{name}={folder / name}" for name in "abc"), threads=2, max_context=512) as made:
        yield made


def test_each_adapter_says_in_a_batch_what_it_says_alone(llm: LLM) -> None:
    adapters: list[str | None] = ["a", "b", "c", None] * 4
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    together = llm.generate(prompts, GREEDY, adapter=adapters)
    alone = [llm.generate(prompt, GREEDY, adapter=name)[0] for prompt, name in zip(prompts, adapters, strict=True)]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert len({one.token_ids for one in together[:4]}) > 1  # adapters say other things than the model


def test_prefixes_are_not_shared_between_adapters(llm: LLM) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 8
    first = llm.generate(prompt, GREEDY, adapter="a")[0]
    assert llm.generate(prompt, GREEDY, adapter="a")[0].outputs[0].usage.cached_tokens > 0
    assert llm.generate(prompt, GREEDY, adapter="b")[0].outputs[0].usage.cached_tokens == 0
    assert llm.generate(prompt, GREEDY, adapter="a")[0].token_ids == first.token_ids


def test_the_same_adapter_as_gguf_says_the_same(llm: LLM, folder: Path) -> None:
    with open_checkpoint(resolve("smollm2-135m").path) as checkpoint:
        family = family_of(checkpoint)
        base = Base(load_model(checkpoint), family, True, family.gguf)
        renamed = base_names(read_adapter(folder / "a").deltas, base, from_gguf=False, to_gguf=True)
    write_gguf_adapter(folder / "a.gguf", "llama", renamed)
    llm.loaded.adapters.add("gguf", folder / "a.gguf")
    outputs = llm.generate(PROMPTS * 2, GREEDY, adapter=["a"] * 4 + ["gguf"] * 4)
    assert [one.token_ids for one in outputs[:4]] == [one.token_ids for one in outputs[4:]]


def test_adapters_come_and_go_while_others_are_answered_and_memory_stays(llm: LLM, folder: Path) -> None:
    store, core = llm.loaded.adapters, llm.loaded.core
    expected = llm.generate(PROMPTS[0], GREEDY, adapter="c")[0].token_ids

    def cycle(count: int) -> None:
        for i in range(count):
            store.add("passing", folder / "b")
            request = llm._request(llm.tokenize(PROMPTS[0]), SamplingParams(max_tokens=2), None, "passing", frozenset())
            core.enter(request)
            core.step()
            store.remove("passing")  # while it is computed with
            while core.has_work:
                core.step()
            if i % 10 == 0:
                assert llm.generate(PROMPTS[0], GREEDY, adapter="c")[0].token_ids == expected

    cycle(20)
    gc.collect()
    before = resident_bytes()
    cycle(40)
    gc.collect()
    assert resident_bytes() - before < 8e6  # an adapter takes 2 MB


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
