"""Costs of a model on this machine, from rates of the kernels that were measured on some of its layers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.hardware.device import Device
from pagoda.models.layers import Decoder
from pagoda.models.registry import load_model
from pagoda.plan.cost.roofline import peak_flops
from pagoda.plan.cost.work import Workload
from pagoda.plan.measured.probes import SLICE_BYTES
from pagoda.plan.measured.rates import MeasuredCosts
from pagoda.plan.measured.remembered import measured_rates, remembered_rates
from pagoda.plan.measured.setup import setup_here
from pagoda.plan.measured.slices import random_model, signatures
from pagoda.plan.model.shapes import ModelShape
from pagoda.plan.model.weights import ModelWeights


def measured_costs(
    shape: ModelShape,
    weights: ModelWeights,
    device: Device,
    kv_type: str,
    activation_type: str,
    *,
    say: Callable[[str], None] = lambda line: None,
    probe: bool = True,
) -> MeasuredCosts:
    """Costs of `shape` in `weights` on this machine, measured if they have not been before.

    UnsupportedError if the engine does not run such a model; or without `probe`, if nothing has been measured.
    """
    setup = setup_here(kv_type, activation_type)
    key = rates_key(shape, weights)
    rates = remembered_rates(key, setup)
    if rates is None and not probe:
        raise UnsupportedError(f"the kernels have not been measured for {shape.name}: run pagoda plan once")
    if rates is None:
        with sliced(shape, weights) as (model, counts):
            rates = measured_rates(model, counts, key, setup, device.bandwidth_bytes_s, say=say)
    peak = peak_flops(device, weights.computes_on(device.kind))[1]
    return MeasuredCosts(rates, Workload(shape, weights, kv_type), device.bandwidth_bytes_s, peak)


@contextmanager
def sliced(shape: ModelShape, weights: ModelWeights) -> Iterator[tuple[Decoder, dict[str, int]]]:
    """A model to cut a slice from, and how many layers of each signature it has: the file's model if `weights` are
    the file's, else a random one."""
    if not is_own(shape, weights):
        yield random_model(shape, weights, SLICE_BYTES)
        return
    assert shape.path is not None
    with open_checkpoint(shape.path) as checkpoint:
        model = load_model(checkpoint)
        yield model, signatures(model)


def is_own(shape: ModelShape, weights: ModelWeights) -> bool:
    """Whether `weights` are what the file at shape.path holds."""
    return shape.path is not None and weights.is_stored


def rates_key(shape: ModelShape, weights: ModelWeights) -> str:
    """A key that is equal for models whose layers and heads take equally long."""
    types = weights.types or {}
    matrices = Counter(
        f"{types.get(t.name)}{t.shape}{t.name.rsplit('.', 2)[-2]}" for t in (*shape.layer_matrices, shape.head)
    )
    listed = sorted(f"{count}*{what}" for what, count in matrices.items())
    attention = [(kind.num_layers, kind.num_heads, kind.num_kv_heads, kind.key_dim) for kind in shape.attention]
    return json.dumps([shape.architecture, is_own(shape, weights), listed, attention, shape.max_context])
