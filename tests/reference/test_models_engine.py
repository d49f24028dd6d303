"""Models under the whole engine: with windows given back and prompts in chunks, tokens are those of one plain pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from paged_run import reference_run
from pagoda import LLM, SamplingParams
from pagoda.backends.cpu import CpuModel
from pagoda.engine.load import LoadedEngine
from pagoda.models.registry import load_model
from pagoda.types import Int32Array
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


@pytest.mark.parametrize("kv_type", ["int16", "f16"])
def test_latents_come_back_from_files(kv_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, together with too little memory for all, and after a restart that finds them in files: the same tokens."""
    folder = write_safetensors(tmp_path / "model", TINY["deepseek3"])
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    options: dict[str, Any] = {
        "backend": "cpu",
        "threads": 2,
        "kv_type": kv_type,
        "kv_offload": f"{tmp_path / 'kv'}:16MiB",
    }
    with LLM(str(folder), **options) as llm:
        assert isinstance(llm.loaded, LoadedEngine)
        block = llm.loaded.model.block_bytes(0)
        alone = [llm.generate([prompt], params)[0].outputs[0].token_ids for prompt in PROMPTS]
    restored: list[int] = []
    write = CpuModel.write_blocks

    def written(model: CpuModel, group: int, blocks: Int32Array, data: npt.NDArray[np.uint8]) -> None:
        restored.extend(blocks.tolist())
        write(model, group, blocks, data)

    monkeypatch.setattr(CpuModel, "write_blocks", written)
    for _ in range(2):
        restored.clear()
        with LLM(str(folder), **options, kv_memory_bytes=12 * block) as llm:
            outputs = llm.generate(PROMPTS, params)
            assert [output.outputs[0].token_ids for output in outputs] == alone
        assert len(restored) > 2
