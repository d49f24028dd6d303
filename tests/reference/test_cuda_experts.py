"""Kernels of a mixture of experts, in Triton's interpreter, against the same in plain torch, one expert after the
other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cuda_cases import NO_GPU, need_torch

need_torch(triton=True)
if NO_GPU is None:
    pytest.skip("there is a GPU: tests/device runs the kernels on it", allow_module_level=True)

import torch

from pagoda.backends.cuda.arithmetic import expert_weights
from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.fast import FastOps
from pagoda.backends.cuda.kernels import experts
from pagoda.backends.cuda.planes import Weight
from pagoda.backends.cuda.weights import WeightLoader
from pagoda.backends.specs import ExpertGroups, ExpertsSpec
from pagoda.types import RawTensor
from tiny_blocks import encode, noise

N, E, F, F32 = 12, 64, 96, torch.float32
SPEC = ExpertsSpec(3, normalize=True, activation="silu")
PLAIN = ExpertsSpec(2, normalize=False, activation="clamped_swiglu")
BY_BEST = replace(PLAIN, groups=ExpertGroups(4, 2, 1))
BY_TWO = ExpertsSpec(3, normalize=True, activation="silu", scoring="sigmoid", groups=ExpertGroups(3, 1, 2))
SIGMOID = ExpertsSpec(3, normalize=True, activation="silu", scoring="sigmoid", scale=2.5)


def numbers(*shape: int, name: str) -> torch.Tensor:
    return torch.from_numpy(noise(name, shape).copy())


def stack(name: str, rows: int, columns: int, type: str) -> Weight:
    raws = []
    for e in range(N):
        data = np.ascontiguousarray(encode(noise(f"{name}{e}", (rows, columns), 0.3), type)).view(np.uint8).reshape(-1)
        raws.append(RawTensor(f"{name}{e}", type, (rows, columns), data))
    return WeightLoader(F32, torch.device("cpu")).matrix(*raws)


def mixture(type: str, spec: ExpertsSpec, *, biased: bool) -> dict[str, Any]:
    sizes = {"gate": (F, E), "up": (F, E), "down": (E, F)}
    found: dict[str, Any] = {name: stack(name, *shape, type) for name, shape in sizes.items()} | {"spec": spec}
    if biased:
        found["biases"] = tuple(numbers(N, rows, name=f"{name}b") for name, (rows, _) in sizes.items())
        found["scales"] = numbers(N, name="scales")
    return found


@pytest.mark.parametrize("tokens", [1, 4, 17])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(
    "spec", [SPEC, PLAIN, SIGMOID, BY_BEST, BY_TWO], ids=["normalized", "plain", "sigmoid", "by best", "by two"]
)
def test_the_likeliest_experts_are_picked(tokens: int, spec: ExpertsSpec, corrected: bool) -> None:
    scores, scales = numbers(2, tokens, N, name="scores"), numbers(N, name="scales")
    scores[:, 0, 3] = scores[:, 0, 7] = 3.0  # the lower index of equals
    corrections = numbers(N, name="corrections") if corrected else None
    pairs = experts.route(scores, spec, scales, corrections, invariant=False)
    right = expert_weights(scores.sum(0), spec, corrections) * scales
    got, places = torch.zeros_like(right), torch.arange(pairs.count)
    of = pairs.tiles if pairs.order is None else torch.zeros(pairs.count, dtype=torch.int32)
    if pairs.order is not None and pairs.places is not None:
        for e, first, count in pairs.tiles.tolist():
            assert count <= pairs.rows
            of[pairs.order[first : first + count].long()] = e
        assert torch.equal(pairs.order[pairs.places].long(), places)
    got[places // spec.num_used, of.long()] = pairs.weights
    assert torch.allclose(got, right, atol=1e-6)
    assert all((of.view(tokens, -1).diff(dim=1) > 0).flatten()), "in the order of their numbers"


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # by the interpreter
def test_scores_that_are_no_numbers_pick_no_expert_that_is_not_there() -> None:
    scores = numbers(1, 3, N, name="scores")
    scores[0, 1] = float("nan")
    tiles = experts.route(scores, SPEC, None, invariant=False).tiles
    assert ((tiles[:, 0] >= 0) & (tiles[:, 0] < N)).all()


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize(
    ("type", "spec", "biased"),
    [("F32", SPEC, False), ("MXFP4", PLAIN, True), ("Q8_0", SPEC, True), ("F32", PLAIN, True)],
)
def test_mixtures(type: str, spec: ExpertsSpec, biased: bool, tokens: int) -> None:
    x, router = numbers(2, tokens, E, name="x"), numbers(1, tokens, N, name="scores")
    given = mixture(type, spec, biased=biased)
    got = FastOps(F32, max_context=64, max_seqs=4).stacked_experts(x, router, **given)
    right = EagerOps(F32).stacked_experts(x, router, **given)
    assert (got - right).norm() / right.norm() < 2e-6


def test_bits_do_not_depend_on_the_batch_when_asked_for() -> None:
    """A token alone, whose pairs are tiles of one, and among others, sorted."""
    ops, given = FastOps(F32, batch_invariant=True, max_context=64, max_seqs=4), mixture("Q8_0", SPEC, biased=True)
    x, router = numbers(1, 20, E, name="x"), numbers(1, 20, N, name="scores")
    together = ops.stacked_experts(x, router, **given)
    alone = ops.stacked_experts(x[:, 11:12].contiguous(), router[:, 11:12].contiguous(), **given)
    assert torch.equal(together[:, 11:12], alone)
