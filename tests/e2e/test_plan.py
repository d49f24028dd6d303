"""The planner and the engine say the same of the default model: bytes, blocks, and times of the same order."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from measurements import FOUND
from pagoda.backends.cpu import CpuBackend
from pagoda.benchmark.verify import measured_resident, predicted_resident
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.layers import Decoder
from pagoda.models.registry import load_model
from pagoda.plan.cost.memory import kv_token_bytes
from pagoda.plan.cost.resident import embedding_bytes, engine_bytes
from pagoda.plan.cost.work import Workload, decode_step, prefill_steps
from pagoda.plan.measured import probes
from pagoda.plan.measured.measured_costs import sliced
from pagoda.plan.measured.probes import Prober
from pagoda.plan.measured.rates import MeasuredCosts, Rates
from pagoda.plan.measured.remembered import remembered_rates
from pagoda.plan.measured.setup import setup_here
from pagoda.plan.measured.slices import random_model, signatures
from pagoda.plan.model.models import builtin_shape, shape_of_file
from pagoda.plan.model.weights import STORED, weights_in
from pagoda.types import BLOCK_SIZE
from serving import process

SMALL = {"TOKENS": (1, 2, 64), "ROWS": (1, 2), "BATCHES": (1, 2), "CONTEXTS": (16, 64), "CHUNKS": ((64, 64), (64, 128))}


@pytest.mark.parametrize("kv_type", ["f16", "int16", "int8", "f32"])
def test_bytes_are_the_engines_own(default_model: Path, kv_type: Any) -> None:
    shape = shape_of_file(default_model)
    weights = weights_in(shape, STORED)
    with open_checkpoint(default_model) as checkpoint:
        model = CpuBackend(threads=2).load(
            load_model(checkpoint), max_batch_tokens=256, max_batch_seqs=32, kv_type=kv_type
        )
        sizes = engine_bytes(shape, weights, kv_type, batch_tokens=256, rows=32, threads=2)
        assert sizes == (model.weight_bytes, model.buffer_bytes)
        blocks = sum(kv_token_bytes(kind, kv_type) for kind in shape.attention) * BLOCK_SIZE
        assert blocks == model.block_bytes(0)
        model.close()


@pytest.mark.slow
def test_resident_memory_is_within_5_percent(default_model: Path) -> None:
    shape = shape_of_file(default_model)
    predicted = predicted_resident(shape, weights_in(shape, STORED), setup_here("f16"), 4, 256)
    assert predicted == pytest.approx(measured_resident(default_model, "f16", 4, 256), rel=0.05)


@pytest.mark.parametrize("activation_type", ["int16", "int8"])
def test_rates_of_a_slice_add_up(default_model: Path, monkeypatch: pytest.MonkeyPatch, activation_type: str) -> None:
    """Not how fast it is, which a busy machine spoils, but that all parts of a step are there."""
    for name, sizes in SMALL.items():
        monkeypatch.setattr(probes, name, sizes)
    shape = shape_of_file(default_model)
    weights = weights_in(shape, STORED)
    with open_checkpoint(default_model) as checkpoint:
        model = load_model(checkpoint)
        assert isinstance(model, Decoder)
        counts = signatures(model)
        prober = Prober(replace(model, blocks=model.blocks[:2]), counts, setup_here("f16", activation_type))
        prober.sweep()
        rates = prober.rates()
        prober.close()
    assert f"{activation_type} activations" in rates.source
    assert sum(rates.counts.values()) == shape.num_layers == 30
    text = json.dumps(rates.to_json())
    assert json.dumps(Rates.from_json(json.loads(text)).to_json()) == text
    costs = MeasuredCosts(rates, Workload(shape, weights, "f16"), 2e10, 4e11)
    for step in (*prefill_steps(64, 64), decode_step(1, 16)):
        assert costs.step(step).seconds > 0


@pytest.mark.parametrize("format", ["q4_k_m", "q8_0", "f16", "iq4_nl", "q2_k"])
def test_a_slice_without_a_file_has_the_shape_of_the_format(format: str) -> None:
    shape = builtin_shape("smollm2-135m")
    weights = weights_in(shape, format)
    model, counts = random_model(shape, weights, 1 << 20)
    assert sum(counts.values()) == 30
    assert set(signatures(model)) == set(counts)
    assert {block.ffn.gate.weight.type for block in model.blocks} <= set((weights.types or {}).values())


def test_the_command_and_the_server_plan(default_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path / "cache"))
    words = [sys.executable, "-m", "pagoda", "plan", str(default_model), "--on", "l4", "--json", "--tpot", "50"]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert found["plans"][0]["operating_point"]["tpot_ms"] <= 50
    assert found["model"]["parameters"] == 134_515_008
    flags = ["--kv-memory", "64MiB", "--max-num-seqs", "4", "--activation-type", "int8"]
    with process(default_model, tmp_path / "log", *flags) as server:
        unmeasured = server.client.get("/plan")  # and it does not measure while it serves
        assert (unmeasured.status_code, unmeasured.json()["error"]["code"]) == (400, "not_measured")
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache/machine.json").write_text(json.dumps({FOUND.key: asdict(FOUND)}))
        answer = server.client.get("/plan", params={"prompt": 100, "output": 20}).json()
        assert answer["plans"][0]["device"]["id"] == "this"
        assert answer["plans"][0]["speeds_from"].startswith("measured on this machine")
        assert answer["plans"][0]["doubts"] == []
        assert answer["request"]["prompt_tokens"] == 100
        assert answer["request"]["activation_type"] == "int8"
        assert answer["engine"]["max_num_seqs"] == 4
        shape, weights = shape_of_file(default_model), answer["plans"][0]["memory"]["weights_bytes"]
        table = embedding_bytes(shape, weights_in(shape, STORED))
        assert weights == pytest.approx(answer["engine"]["weights_bytes"] + table, rel=0.005)
        refused = server.client.get("/plan", params={"promt": 100})
        assert refused.status_code == 400
        assert "promt" in refused.json()["error"]["message"]


def test_a_files_own_layers_are_measured(default_model: Path) -> None:
    shape = shape_of_file(default_model)
    with sliced(shape, weights_in(shape, STORED)) as (model, counts):
        assert model.num_layers == 30
        assert sum(counts.values()) == 30
    with sliced(shape, weights_in(shape, "q8_0")) as (model, counts):
        assert sum(counts.values()) == 30


def test_nothing_remembered_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path))
    assert remembered_rates("never measured", setup_here("f16")) is None
