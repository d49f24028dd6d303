"""The same load through `transformers`: its paged continuous batching, with a model of the same shape in BF16."""

from __future__ import annotations

import importlib.util
import logging as python_logging
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from gpu_load import LOAD, SMALL_LOAD
from gpu_models import Shape
from gpu_steps import Device


def missing() -> str | None:
    """Why the peer cannot run here."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    from transformers import LlamaForCausalLM

    return None if hasattr(LlamaForCausalLM, "generate_batch") else f"transformers {version('transformers')} is too old"


def random_llama(shape: Shape, device: Device) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=8192,
        attn_implementation="sdpa",  # it takes flash attention by itself, where that is installed
    )
    with torch.device(device.name):
        return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()


def _batching(device: Device) -> Any:
    """On a GPU as it comes: it sizes itself by the free memory. On a CPU it would take all of it."""
    from transformers import ContinuousBatchingConfig

    if device.is_gpu:
        return ContinuousBatchingConfig()
    return ContinuousBatchingConfig(num_blocks=16, page_size=32, max_batch_tokens=64, use_cuda_graph=False)


def measure_peer(device: Device, shape: Shape, ours: float | None, add: Callable[..., None]) -> None:
    """`ours`: output tokens a second of the engine under the same load, if they were measured."""
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    python_logging.getLogger("ContinuousBatchingLogger").setLevel(python_logging.ERROR)
    work = LOAD if device.is_gpu else SMALL_LOAD
    model = random_llama(shape, device)
    prompts = work.prompts(shape.vocab)

    def run(output: int) -> float:
        config = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
        device.wait()
        start = time.perf_counter()
        found = model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=_batching(device),
            persistent_manager=True,  # so that its memory and graphs are there the second time
        )
        device.wait()
        seconds = time.perf_counter() - start
        lengths = [len(result.generated_tokens) for result in found.values()]
        assert lengths == [output] * work.requests, f"transformers answered {len(lengths)} requests: {set(lengths)}"
        return seconds

    run(work.output)
    seconds = run(work.output)
    rate = work.requests * work.output / seconds
    add(
        case=f"transformers {version('transformers')}, {work.title}",
        weights="BF16",
        ms=1e3 * seconds,
        tokens_s=rate,
        ratio=None if ours is None else ours / rate,
        note="" if ours is None else f"Pagoda is {ours / rate:.1f} times as fast",
    )
    model.destroy_cached_continuous_batching_manager()
    device.free()
