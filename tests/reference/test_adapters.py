"""Adapters of every kind against peft and transformers (goldens/adapters/, written by make_adapter_goldens.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paged_run import PagedRun, reference_run
from pagoda.adapters.files import read_adapter
from pagoda.adapters.merge import MergedView
from pagoda.adapters.place import Base, place
from pagoda.backends.base import Backend
from pagoda.backends.cpu import CpuBackend
from pagoda.backends.reference import ReferenceBackend
from pagoda.errors import UnsupportedError
from pagoda.models.registry import family_of, load_model
from pagoda.types import FloatArray
from tiny_adapters import ADAPTERS, HYBRIDS, OF_FOLDERS, golden, write_adapter
from tiny_models import TINY, memory_checkpoint

MERGED_ONLY = {"whole_head", "whole_norms", "embedding"}
KINDS = ("safetensors", "gguf")
SERVED = sorted(ADAPTERS.keys() - MERGED_ONLY)
ON_KINDS = [(name, kind) for name in SERVED for kind in KINDS if name not in OF_FOLDERS or kind == "safetensors"]
NOT_CONVERTED = HYBRIDS | {"latent"}
MERGED = [(name, kind) for name in sorted(ADAPTERS) for kind in KINDS if name not in NOT_CONVERTED or kind == KINDS[0]]
BACKENDS: dict[str, Callable[[], Backend]] = {"reference": ReferenceBackend, "cpu": lambda: CpuBackend(threads=2)}


def base_of(name: str, kind: str = "safetensors") -> Base:
    checkpoint: Any = memory_checkpoint(TINY[ADAPTERS[name].base], kind=kind)
    family = family_of(checkpoint)
    return Base(load_model(checkpoint, max_context=128), family, kind == "gguf", family.gguf)


def logits(name: str, base: Base, folder: Path, backend: Backend) -> FloatArray:
    expected = golden(name)
    loaded = backend.load(base.decoder, max_batch_tokens=64, max_batch_seqs=64, kv_type="f32")
    adapter = loaded.place_adapter(place(read_adapter(write_adapter(folder, name)), base), type="f32")
    rows = PagedRun(base.decoder, loaded).step({"s": expected["tokens"]}, adapters={"s": adapter})["s"]
    return rows[expected["rows"]][:, :: expected["every"]]


def cosine(a: FloatArray, b: FloatArray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "kind"), ON_KINDS)
def test_logits_with_the_adapter_are_pefts(name: str, kind: str, backend: str, tmp_path: Path) -> None:
    found = logits(name, base_of(name, kind), tmp_path, BACKENDS[backend]())
    expected = np.array(golden(name)["logits"], np.float32)
    assert cosine(found, expected) >= 0.9999
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("name", sorted(MERGED_ONLY))
def test_what_cannot_be_served_apart_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="pagoda merge"):
        place(read_adapter(write_adapter(tmp_path, name)), base_of(name))


@pytest.mark.parametrize("name", sorted(HYBRIDS))
def test_bits_beside_states_do_not_depend_on_the_batch(name: str, tmp_path: Path) -> None:
    """Alone in one step, and in chunks beside a sequence without the adapter."""
    base, tokens = base_of(name), golden(name)["tokens"]
    weights = place(read_adapter(write_adapter(tmp_path, name)), base)
    loaded = BACKENDS["cpu"]().load(base.decoder, max_batch_tokens=64, max_batch_seqs=64, kv_type="f32")
    adapters = {"s": loaded.place_adapter(weights, type="f32")}
    alone = PagedRun(base.decoder, loaded).step({"s": tokens}, adapters=adapters)["s"]
    run = PagedRun(base.decoder, loaded, seed=1)
    chunks = [{"t": tokens[:5], "s": tokens[:9]}, {"s": tokens[9:10], "t": tokens[5:20]}, {"s": tokens[10:]}]
    mixed = np.concatenate([run.step(chunk, adapters=adapters)["s"] for chunk in chunks])
    np.testing.assert_array_equal(mixed, alone)


@pytest.mark.parametrize(("name", "said"), [("mamba_beside", "multiplied already"), ("all_delta", "another order")])
def test_other_matrices_of_gguf_files_are_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=said):
        place(read_adapter(write_adapter(tmp_path, name)), base_of(name, "gguf"))


@pytest.mark.parametrize(("name", "kind"), MERGED)
def test_logits_of_the_merged_model_are_pefts(name: str, kind: str, tmp_path: Path) -> None:
    checkpoint: Any = memory_checkpoint(TINY[ADAPTERS[name].base], kind=kind)
    merged: Any = MergedView(checkpoint, read_adapter(write_adapter(tmp_path, name)))
    expected = golden(name)
    rows = reference_run(load_model(merged, max_context=128)).step({"s": expected["tokens"]})["s"]
    found = rows[expected["rows"]][:, :: expected["every"]]
    np.testing.assert_allclose(found, np.array(expected["logits"], np.float32), atol=1e-3)


@pytest.mark.parametrize("name", SERVED)
def test_merged_in_float32_is_within_rounding_of_unmerged(name: str, tmp_path: Path) -> None:
    checkpoint: Any = memory_checkpoint(TINY[ADAPTERS[name].base])
    merged: Any = MergedView(checkpoint, read_adapter(write_adapter(tmp_path, name)))
    expected = golden(name)
    loaded = BACKENDS["cpu"]().load(
        (model := load_model(merged, max_context=128)), max_batch_tokens=64, max_batch_seqs=64, kv_type="f32"
    )
    rows = PagedRun(model, loaded).step({"s": expected["tokens"]})["s"]
    unmerged = logits(name, base_of(name), tmp_path, BACKENDS["cpu"]())
    np.testing.assert_allclose(rows[expected["rows"]][:, :: expected["every"]], unmerged, atol=1e-4)
