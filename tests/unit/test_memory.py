"""The KV cache gets what memory allows, and no more than it could use; what the machine allows is read right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.config import EngineSettings
from pagoda.engine.memory import Footprint, available_memory, plan_kv
from pagoda.errors import CapacityError, ConfigError
from pagoda.kv.table import peak_blocks

MIB = 2**20
ONE_GROUP = Footprint(100 * MIB, 20 * MIB, (None,), (MIB // 4,))
SETTINGS = EngineSettings(max_num_seqs=4)


def test_no_more_than_all_sequences_can_use() -> None:
    plan = plan_kv(ONE_GROUP, SETTINGS, 1024, available=2**40)
    assert plan.num_blocks == (4 * 64,)
    assert (plan.max_context, plan.num_seqs) == (1024, 4.0)


def test_a_long_context_is_not_reserved_for_every_sequence() -> None:
    plan = plan_kv(ONE_GROUP, SETTINGS, 8192, available=2**40)
    assert plan.num_blocks == (4 * 128,)
    assert (plan.max_context, plan.num_seqs) == (8192, 1.0)
    plan = plan_kv(ONE_GROUP, SETTINGS, 100_000, available=2**40)
    assert (plan.num_blocks, plan.num_seqs) == ((6250,), 1.0)


def test_who_names_the_context_gets_it_for_every_sequence() -> None:
    plan = plan_kv(ONE_GROUP, replace(SETTINGS, max_context=8192), 8192, available=2**40)
    assert (plan.num_blocks, plan.num_seqs) == ((4 * 512,), 4.0)


def test_a_share_of_the_available_memory_less_weights_and_buffers() -> None:
    plan = plan_kv(ONE_GROUP, replace(SETTINGS, memory_utilization=0.5), 1024, available=300 * MIB)
    assert plan.num_blocks == (30 * 4,)
    assert plan.kv_bytes == 30 * MIB
    assert plan.num_seqs == pytest.approx(30 / 16)


def test_an_explicit_size_is_taken_as_it_is() -> None:
    plan = plan_kv(ONE_GROUP, replace(SETTINGS, kv_memory_bytes=40 * MIB), 1024, available=1)
    assert plan.num_blocks == (160,)


def test_the_log_line_says_the_sum() -> None:
    text = str(plan_kv(ONE_GROUP, replace(SETTINGS, kv_memory_bytes=40 * MIB), 1024, available=1))
    assert text == (
        "memory: weights 100 MiB + buffers 20 MiB + KV blocks 40 MiB (160 of 16 tokens) = 2.5 sequences of 1024 tokens"
    )


def test_the_log_line_tells_graphs_from_activations() -> None:
    gpu = replace(ONE_GROUP, graph_bytes=5 * MIB)
    text = str(plan_kv(gpu, SETTINGS, 1024, available=200 * MIB, fill=True))
    assert text.startswith("memory: weights 100 MiB + activations 15 MiB + graphs 5 MiB + KV blocks 60 MiB (240 of 16")


def test_limits_go_by_the_device_where_nobody_says_them() -> None:
    said = EngineSettings(max_num_seqs=3)
    cpu, gpu = said.for_device(gpu=False, kv_type="f16"), said.for_device(gpu=True, kv_type="f16")
    assert (cpu.max_batch_tokens, cpu.max_num_seqs) == (512, 3) == (said.batch_tokens, said.num_seqs)
    assert (gpu.max_batch_tokens, gpu.max_num_seqs) == (4096, 3)
    assert EngineSettings().for_device(gpu=True, kv_type="f16").max_num_seqs == 256


def test_the_kv_type_is_the_devices_where_nobody_says_one() -> None:
    assert EngineSettings().for_device(gpu=False, kv_type="int16").kv_type == "int16"
    assert EngineSettings(kv_type="f32").for_device(gpu=False, kv_type="int16").kv_type == "f32"


def test_the_context_shrinks_to_what_fits() -> None:
    plan = plan_kv(ONE_GROUP, replace(SETTINGS, kv_memory_bytes=10 * MIB), 100_000, available=1)
    assert (plan.num_blocks, plan.max_context, plan.num_seqs) == ((40,), 640, 1.0)


def test_a_context_that_was_asked_for_does_not_shrink() -> None:
    asked = replace(SETTINGS, kv_memory_bytes=10 * MIB, max_context=1024)
    with pytest.raises(CapacityError, match=r"1024 tokens needs 16 MiB .* 10 MiB, enough for 640 tokens"):
        plan_kv(ONE_GROUP, asked, 100_000, available=1)


def test_a_context_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="4096: the model's context is 1024"):
        plan_kv(ONE_GROUP, replace(SETTINGS, max_context=4096), 1024, available=2**40)


def test_a_model_that_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(CapacityError, match=r"needs 120 MiB, but 90% of the available memory is 90 MiB"):
        plan_kv(ONE_GROUP, SETTINGS, 1024, available=100 * MIB)
    with pytest.raises(CapacityError, match="take a smaller model"):
        plan_kv(ONE_GROUP, SETTINGS, 1024, available=100 * MIB)
    with pytest.raises(CapacityError, match=r"lower --max-batch-tokens 512 .* buffers take 20 MiB"):
        plan_kv(ONE_GROUP, SETTINGS, 1024, available=130 * MIB)
    with pytest.raises(CapacityError, match="enough for 0 tokens"):
        plan_kv(ONE_GROUP, replace(SETTINGS, kv_memory_bytes=1), 1024, available=1)


@given(
    st.lists(st.sampled_from([None, 16, 100, 1000]), min_size=1, max_size=3),
    st.integers(1, 5000),
    st.integers(1, 64),
    st.integers(1, 600),
    st.integers(1, 2**26),
)
def test_one_sequence_always_fits_and_the_budget_holds(
    windows: list[int | None], model_context: int, max_num_seqs: int, max_batch_tokens: int, budget: int
) -> None:
    footprint = Footprint(0, 0, tuple(windows), tuple(1000 * (g + 1) for g in range(len(windows))))
    settings = EngineSettings(max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens, kv_memory_bytes=budget)
    try:
        plan = plan_kv(footprint, settings, model_context, available=0)
    except CapacityError:
        assert budget < sum(footprint.block_bytes) * 2
        return
    assert plan.kv_bytes <= budget
    assert plan.max_context <= model_context
    for num_blocks, window in zip(plan.num_blocks, windows, strict=True):
        assert num_blocks >= peak_blocks(plan.max_context, window, max_batch_tokens)
        assert num_blocks <= max_num_seqs * peak_blocks(plan.max_context, window, max_batch_tokens)


# The machine


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """A /proc with 1000 MiB available, and an empty /sys/fs/cgroup."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", f"MemTotal: 9999999 kB\nMemAvailable:  {1000 * 1024} kB\n")
    write(proc / "self/cgroup", "")
    return proc, cgroups


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_cgroups_it_is_what_the_system_has(machine: tuple[Path, Path]) -> None:
    assert available_memory(*machine) == 1000 * MIB


def test_the_tightest_cgroup_on_the_way_up_decides(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    write(proc / "self/cgroup", "0::/pod/container\n")
    limits = {"pod": (str(500 * MIB), 100 * MIB, 30 * MIB), "pod/container": ("max", 50 * MIB, 0)}
    for name, (limit, current, inactive) in limits.items():
        write(cgroups / name / "memory.max", limit + "\n")
        write(cgroups / name / "memory.current", f"{current}\n")
        write(cgroups / name / "memory.stat", f"anon 5\ninactive_file {inactive}\n")
    assert available_memory(proc, cgroups) == 430 * MIB


def test_cgroup_version_1(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    write(proc / "self/cgroup", "5:cpu:/a\n4:memory:/a\n0::/\n")
    write(cgroups / "memory/a/memory.limit_in_bytes", str(300 * MIB))
    write(cgroups / "memory/a/memory.usage_in_bytes", str(120 * MIB))
    write(cgroups / "memory/a/memory.stat", f"total_inactive_file {20 * MIB}\n")
    assert available_memory(proc, cgroups) == 200 * MIB


def test_in_a_container_the_limit_stands_at_the_root(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    write(proc / "self/cgroup", "0::/kubepods/of/the/host\n")
    write(cgroups / "memory.max", str(64 * MIB))
    write(cgroups / "memory.current", str(4 * MIB))
    write(cgroups / "memory.stat", "inactive_file 0\n")
    assert available_memory(proc, cgroups) == 60 * MIB


def test_this_machine_has_some() -> None:
    assert 0 < available_memory() < 2**50


def test_states_of_recurrent_layers_are_part_of_the_sum() -> None:
    """Two a sequence, which share with its blocks what there is."""
    footprint = Footprint(0, 0, (None,), (MIB,), state_bytes=8 * MIB)
    settings = EngineSettings(max_context=64, max_num_seqs=4, memory_utilization=1.0)
    plan = plan_kv(footprint, settings, 64, 1000 * MIB)
    assert (plan.num_blocks, plan.num_states, plan.kv_bytes) == ((16,), 8, 80 * MIB)
    assert "KV blocks 16 MiB (16 of 16 tokens) + 8 states 64 MiB" in str(plan)
    half = plan_kv(footprint, settings, 64, 40 * MIB)
    assert (half.num_blocks, half.num_states, half.num_seqs) == ((8,), 4, 2.0)
    with pytest.raises(CapacityError, match="one sequence of 64 tokens needs 20 MiB"):
        plan_kv(footprint, settings, 64, 19 * MIB)
