"""Models under the whole engine: with windows given back and prompts in chunks, tokens are those of one plain pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from paged_run import reference_run
from pagoda import LLM, SamplingParams
from pagoda.models.registry import load_model
from tiny_models import TINY, VOCAB, memory_checkpoint, write_safetensors

PROMPTS = [[(37 * i + 11 + 7 * j) % VOCAB for i in range(60 + 17 * j)] for j in range(3)]


@pytest.mark.parametrize("max_batch_tokens", [8, 50, 512])
@pytest.mark.parametrize("name", ["mistral", "qwen2_windowed", "gemma3", "gemma4", "gemma3n"])
def test_greedy_tokens_are_those_of_one_pass(name: str, max_batch_tokens: int, tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path, TINY[name])
    llm = LLM(str(folder), backend="reference", kv_memory_bytes=1 << 24, max_batch_tokens=max_batch_tokens)
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
    run = reference_run(load_model(memory_checkpoint(TINY[name])))
    for i, (prompt, output) in enumerate(zip(PROMPTS, outputs, strict=True)):
        tokens = list(output.outputs[0].token_ids)
        logits = run.step({str(i): prompt + tokens})[str(i)]
        assert logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == tokens
