"""Which format, and why a device idles: the textbook's choices, with figures that agree with the planner's."""

import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from pagoda.cli.main import app
from pagoda.errors import ConfigError
from pagoda.hardware.devices import device
from pagoda.plan.advice.formats import CANDIDATES, advise_format
from pagoda.plan.advice.quality import MEASURED, QUALITY
from pagoda.plan.advice.utilization import StepWork, explain_utilization
from pagoda.plan.model.models import builtin_shape

SMALL, LARGE = builtin_shape("llama-3-8b"), builtin_shape("llama-3-70b")


@pytest.mark.parametrize(
    ("shape", "on", "goal", "pick"),
    [
        (SMALL, "a100-80gb", "serve", "fp16"),
        (SMALL, "l4", "serve", "awq"),
        (LARGE, "a100-80gb", "serve", "awq"),
        (LARGE, "mi300x", "serve", "awq"),
        (SMALL, "rtx4090", "serve", "awq"),
        (SMALL, "aws-c7g-4xlarge", "serve", "q4_k_m"),
        (SMALL, "apple-m3-max", "serve", "q4_k_m"),
        (LARGE, "aws-c7g-4xlarge", "serve", "q2_k"),
        (SMALL, "raspberry-pi-5", "serve", "q2_k"),
        (SMALL, "aws-c7g-4xlarge", "edge", "q2_k"),
        (SMALL, "a100-80gb", "lora", "bf16"),
        (LARGE, "a100-80gb", "lora", "nf4-dq"),
        (LARGE, "rtx4090", "serve", None),
    ],
)
def test_the_pick(shape: Any, on: str, goal: Any, pick: str | None) -> None:
    found = advise_format(shape, device(on), goal)
    assert found.pick == pick
    assert found.reasons
    assert all(option.fits for option in found.options if option.format == pick)


def test_alternatives_have_figures() -> None:
    found = advise_format(SMALL, device("rtx4090"))
    by_name = {option.format: option for option in found.options}
    assert by_name["fp16"].num_bytes == 2 * SMALL.parameters
    assert by_name["fp16"].share == pytest.approx(0.62, abs=0.01)
    # Published for this card and model: 54.3 tok/s at a context of half of 1,024 tokens
    assert 1 / by_name["fp16"].step_s == pytest.approx(54.3, rel=0.02)
    assert by_name["awq"].num_bytes < by_name["fp16"].num_bytes / 2
    assert "fp8" in {option.format for option in advise_format(SMALL, device("h100")).options}
    assert "fp8" not in {option.format for option in advise_format(SMALL, device("a100-80gb")).options}


def test_edge_says_when_four_bits_fit() -> None:
    assert any("Q4_K_M fits too" in reason for reason in advise_format(SMALL, device("raspberry-pi-5")).reasons)
    tight = replace(device("raspberry-pi-5"), memory_bytes=4 << 30)
    assert not any("Q4_K_M fits too" in reason for reason in advise_format(SMALL, tight).reasons)


def test_every_candidate_has_a_quality() -> None:
    assert {name for names in CANDIDATES.values() for name in names} <= set(QUALITY)
    order = [QUALITY[name].change for name in ("bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")]
    assert order == sorted(order)  # type: ignore[type-var]
    measured = [MEASURED[name].change for name in ("q8_0", "q4_k_m", "q4_0", "q2_k")]
    assert measured == sorted(measured)  # type: ignore[type-var]


def work(batch: int) -> StepWork:
    """8B in FP16 without KV: 16 GB, 16 GFLOP a sequence."""
    return StepWork(16e9 * batch, 16e9)


def test_memory_bound() -> None:
    """At batch 1 an A100 does 1 FLOP a byte of its 156."""
    found = explain_utilization(work, 1, peak_flops=312e12, bandwidth_bytes_s=2e12)
    assert (found.intensity, found.ridge, found.bound) == (1, 156, "memory")
    assert found.step_s == pytest.approx(8e-3)
    assert found.compute_share == pytest.approx(1 / 156)
    assert found.bandwidth_share == pytest.approx(1)
    text = " ".join(found.reasons)
    assert "Twice the FLOP/s would make a step 1.00 times as fast, twice the bandwidth 2.00 times" in text
    assert "128 sequences give 128.0 times the tokens a second, each 0% slower" in text


def test_compute_bound() -> None:
    found = explain_utilization(work, 512, peak_flops=312e12, bandwidth_bytes_s=2e12)
    assert (found.bound, found.compute_share) == ("compute", pytest.approx(1))
    assert "add devices" in found.reasons[1]


def test_no_batch_beyond_memory() -> None:
    found = explain_utilization(work, 1, peak_flops=312e12, bandwidth_bytes_s=2e12, limit=5)
    assert "4 sequences give" in found.reasons[2]


def run(*args: str) -> str:
    result = CliRunner().invoke(app, ["advise", *args])
    assert result.exit_code == 0, result.output
    return result.output


def test_format_command() -> None:
    report = json.loads(run("format", "llama-3-8b", "--on", "rtx4090", "--json"))
    assert (report["pick"], report["place"]) == ("awq", "consumer GPU")
    assert report["utilization"]["bound"] == "memory"
    assert [option["format"] for option in report["options"]] == ["awq", "gptq", "fp16", "q4_k_m"]
    assert "consumer GPU: awq" in run("format", "llama-3-8b", "--on", "rtx4090")
    assert "nothing fits" in run("format", "llama-3-70b", "--on", "rtx4090")


def test_speculation_command() -> None:
    args = ("speculation", "--acceptance", "0.7", "--cost", "0.05")
    report = json.loads(run(*args, "--model", "llama-3-70b", "--format", "awq", "--on", "a100-80gb", "--json"))
    speedups = [gain["speedup"] for gain in report["batches"]]
    assert speedups == sorted(speedups, reverse=True)
    assert speedups[0] > 2
    assert report["batches"][-1]["draft"] == 0
    assert "times as fast with drafts of" in run(*args)
    assert "leave it off" in run("speculation", "--acceptance", "0.1", "--cost", "0.5")


def test_finetune_command() -> None:
    report = json.loads(run("finetune", "llama-3-8b", "--on", "rtx4090", "--targets", "q,k,v", "--json"))
    assert report["lora_parameters"] == 9_437_184
    assert report["fits"] == {"full": False, "lora": True, "qlora": True}
    assert "9,437,184" in run("finetune", "llama-3-8b", "--targets", "q,k,v")


@pytest.mark.parametrize(
    "args",
    [
        ("format", "llama-3-8b", "--goal", "win"),
        ("format", "llama-3-8b", "--on", "rtx9"),
        ("format", "llama-3-8b", "--batch", "0"),
    ],
)
def test_nonsense_is_refused(args: tuple[str, ...]) -> None:
    assert isinstance(CliRunner().invoke(app, ["advise", *args]).exception, ConfigError)
