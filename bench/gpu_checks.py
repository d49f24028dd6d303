"""Whether what is timed is right: logits beside the float32 reference, the default model's answers beside the CPU's.

A relative error is ‖got - right‖ / ‖right‖ over all logits of a prompt and of the steps after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpu_load import answer, make_engine
from gpu_models import SHAPES, random_model
from gpu_steps import Device, load
from pagoda.backends.base import LoadedModel, run_batch
from pagoda.backends.cpu import CpuBackend
from pagoda.backends.reference import ReferenceBackend
from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.layers import Decoder
from pagoda.models.registry import load_model
from pagoda.text.tokenizer import load_tokenizer
from pagoda.types import BLOCK_SIZE, Batch, FloatArray, RawTensor
from texts import code

MOST_ERROR = 2e-2  # of logits, relative
LEAST_EQUAL = 0.95  # of answers
ANSWER, PROMPT = 64, 32  # tokens


def check_logits(device: Device, types: list[str], add: Callable[..., None]) -> None:
    """Of random models with a GPU's usual head sizes, in every type."""
    shape = SHAPES["small" if device.is_gpu else "tiny"]
    lengths = [301, 37] if device.is_gpu else [19, 5]
    for type in types:
        model = random_model(shape, type, max_context=512)
        right = logits_of(reference(model, max(lengths) + 3), model, lengths)
        for invariant in (False, True):
            loaded = load(device, model, invariant=invariant, tokens=512, seqs=512, kv_type="f16")
            off = relative_error(logits_of(loaded, model, lengths), right)
            loaded.close()
            name = "logits of a small model" + (", batch-invariant" if invariant else "")
            add(case=name, weights=type, value=off, most=MOST_ERROR, note="relative error")


def check_default(device: Device, path: Path, add: Callable[..., None]) -> None:
    """The default model's logits, and its greedy answers beside the CPU backend's in F16."""
    checkpoint = open_checkpoint(path)
    own = load_model(checkpoint)
    assert isinstance(own, Decoder)
    ids = load_tokenizer(checkpoint).encode(code()[:20_000], add_special=False)
    lengths = [160, 24] if device.is_gpu else [40]
    half = in_half(own)
    right = logits_of(reference(half, max(lengths) + 3), half, lengths, ids)
    for name, model in (("F16", half), ("its own types", own)):
        loaded = load(device, model, invariant=False, tokens=512, seqs=512, kv_type="f16")
        off = relative_error(logits_of(loaded, model, lengths, ids), right)
        loaded.close()
        add(case="logits of the default model", weights=name, value=off, most=MOST_ERROR, note="relative error")
    _check_answers(device, half, own, ids, add)


def _check_answers(device: Device, half: Decoder, own: Decoder, ids: list[int], add: Callable[..., None]) -> None:
    count = 64 if device.is_gpu else 4
    prompts = [ids[at : at + PROMPT] for at in range(0, count * 97, 97)]
    cpu = CpuBackend().load(half, max_batch_tokens=512, max_batch_seqs=count, kv_type="f16")
    wanted = _answers(cpu, half, prompts)
    for name, model in (("F16", half), ("its own types", own)):
        got = _answers(load(device, model, invariant=False, tokens=512, seqs=count, kv_type="f16"), model, prompts)
        equal = sum(a == b for a, b in zip(got, wanted, strict=True)) / count
        tokens = np.mean([next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), ANSWER)
                          for pair in zip(got, wanted, strict=True)])  # fmt: skip
        add(
            case=f"{count} greedy answers of {ANSWER} tokens equal to the CPU's in F16",
            weights=name,
            value=equal,
            least=LEAST_EQUAL if name == "F16" else None,
            note=f"alike for {tokens:.1f} tokens on average",
        )


def _answers(model: LoadedModel, decoder: Decoder, prompts: list[list[int]]) -> list[list[int]]:
    engine = make_engine(model, decoder, tokens=512, seqs=len(prompts), context=PROMPT + ANSWER)
    try:
        return answer(engine, prompts, ANSWER)
    finally:
        model.close()


def reference(model: Decoder, tokens: int) -> LoadedModel:
    return ReferenceBackend().load(model, max_batch_tokens=512, max_batch_seqs=512, kv_type="f32")


def relative_error(got: FloatArray, right: FloatArray) -> float:
    off = float(np.linalg.norm(got - right) / np.linalg.norm(right))
    return off if np.isfinite(off) else np.inf


def logits_of(model: LoadedModel, decoder: Decoder, lengths: list[int], ids: list[int] | None = None) -> FloatArray:
    """Of prompts side by side in one step, and of three steps of one token each. → [R, V]"""
    width = -(-(max(lengths) + 3) // BLOCK_SIZE)
    tables = np.random.default_rng(0).permutation(len(lengths) * width).astype(np.int32).reshape(len(lengths), width)
    model.allocate_kv((tables.size,) * len(decoder.kv_groups))
    given = np.array(
        ids if ids is not None else np.random.default_rng(2).integers(0, decoder.vocab_size, 4096), np.int32
    )
    found = []
    for firsts, counts in [
        ([0] * len(lengths), lengths),
        *(([n + i for n in lengths], [1] * len(lengths)) for i in range(3)),
    ]:
        positions = np.concatenate([np.arange(f, f + n, dtype=np.int32) for f, n in zip(firsts, counts, strict=True)])
        starts = np.cumsum([0, *counts]).astype(np.int32)
        last = positions[starts[1:] - 1] + 1
        batch = Batch(
            given[positions + np.repeat(np.arange(len(counts)), counts) * 500],
            positions,
            starts,
            last,
            (tables,) * len(decoder.kv_groups),
            np.arange(len(positions), dtype=np.int32),
        )
        found.append(run_batch(model, batch).copy())
    return np.concatenate(found)


def in_half(model: Decoder) -> Decoder:
    """The same model with its matrices decoded to F16."""
    made: dict[str, RawTensor] = {}

    def convert(x: Any) -> Any:
        if isinstance(x, RawTensor):
            if len(x.shape) == 1:
                return x
            if x.name not in made:
                data = dequantize(x.data, x.type, x.shape).astype(np.float16).reshape(-1).view(np.uint8)
                made[x.name] = RawTensor(x.name, "F16", x.shape, data)
            return made[x.name]
        if isinstance(x, tuple):
            return tuple(convert(part) for part in x)
        if dataclasses.is_dataclass(x) and not isinstance(x, type) and type(x).__module__ == Decoder.__module__:
            return dataclasses.replace(x, **{f.name: convert(getattr(x, f.name)) for f in dataclasses.fields(x)})
        return x

    converted = convert(model)
    assert isinstance(converted, Decoder)
    return converted
