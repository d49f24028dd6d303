"""The CUDA backend's program, in plain torch: any graph computes what its ops say, and nothing is kept for long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from cuda_cases import need_torch

need_torch()

import torch

from op_graphs import ALL_STEPS, TRICKY, Graph, Step, assert_encodes, assert_runs_as_stated, step
from pagoda.backends.cuda.backend import CudaBackend
from pagoda.backends.cuda.options import CudaOptions

BACKEND = CudaBackend(CudaOptions("cpu", "eager"))


@pytest.fixture(scope="module", autouse=True)
def float32() -> Iterator[None]:
    """Random graphs make values that 16-bit floats do not hold, and rounding is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pagoda.backends.cuda.backend.compute_type", lambda matrices: torch.float32)
        yield


@settings(max_examples=40, deadline=None)
@given(ALL_STEPS)
def test_any_graph_computes_what_its_ops_say(steps: list[Step]) -> None:
    assert_runs_as_stated(Graph(steps), BACKEND)


@pytest.mark.parametrize("what", TRICKY)
@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_tricky_graphs(what: str, last: int) -> None:
    assert_runs_as_stated(Graph([*TRICKY[what], step("norm", last)]), BACKEND)


def test_a_model_may_end_in_hidden_states_alone() -> None:
    assert_encodes(BACKEND)
