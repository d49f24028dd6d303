"""Plans: what fits and what not, what would make it fit, which wishes are refused, what JSON and tables say."""

import io
import json
import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from measurements import FOUND
from pagoda.cli.plan_tables import print_plan
from pagoda.errors import ConfigError, UnsupportedError
from pagoda.plan import plan
from pagoda.plan.changes import smallest_changes


def one(model: str = "llama-3-8b", on: str = "a100-80gb", **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = plan(model, on=on, **options).to_json()["plans"][0]
    return found


def test_memory_is_a_sum_and_the_rest_is_room_for_requests() -> None:
    memory = one(format="fp16", prompt=1000, output=24)["memory"]
    fixed = memory["weights_bytes"] + memory["buffers_bytes"] + memory["runtime_bytes"]
    assert memory["usable_bytes"] == int(0.9 * 85_899_345_920)
    assert memory["kv_room_bytes"] == memory["usable_bytes"] - fixed
    assert memory["kv_bytes_per_request"] == 1024 * 128 * 1024
    assert memory["max_concurrent_requests"] == memory["kv_room_bytes"] // memory["kv_bytes_per_request"]


def test_every_derived_figure_has_a_reason() -> None:
    found = one(tpot=30)
    derived = ("weights_bytes", "max_concurrent_requests", "ridge_flops_per_byte", "decode_bound", "ttft_ms", "tpot_ms")
    assert all(len(found["reasons"][name]) > 20 for name in derived)
    assert "http" in found["speeds_from"]
    json.dumps(found, allow_nan=False)


def test_bounds_give_a_concurrency_flags_and_a_price() -> None:
    found = one(tpot=30, ttft=500, format="fp16", price=2.0)
    point = found["operating_point"]
    assert point["tpot_ms"] <= 30
    assert point["ttft_ms"] <= 500
    assert found["serve"]["flags"]["--max-num-seqs"] == str(point["concurrency"])
    assert f"--max-num-seqs {point['concurrency']}" in found["serve"]["command"]
    tokens = point["output_tokens_per_s"] + point["input_tokens_per_s"]
    assert found["cost"]["usd_per_million_tokens"] == pytest.approx(2.0 / 3600 / tokens * 1e6, rel=0.01)
    spent = (
        found["cost"]["usd_per_million_output_tokens"] * point["output_tokens_per_s"]
        + found["cost"]["usd_per_million_input_tokens"] * point["input_tokens_per_s"]
    )
    assert spent * 3600 / 1e6 == pytest.approx(2.0, rel=0.01)  # the two prices share the whole hour


@pytest.mark.parametrize(
    ("on", "kv_type"), [("aws-c7i-4xlarge", "int16"), ("aws-c7g-4xlarge", "f16"), ("a100-80gb", "f16")]
)
def test_kv_is_kept_as_serve_would(on: str, kv_type: str) -> None:
    found = one("qwen2.5-0.5b", on)
    assert found["memory"]["kv_type"] == found["serve"]["flags"]["--kv-type"] == kv_type
    assert one("qwen2.5-0.5b", on, kv_type="f32")["serve"]["flags"]["--kv-type"] == "f32"


@pytest.mark.parametrize(("prompt", "figure", "usual"), [(4096, "ttft", 10_000), (1024, "tpot", 250)])
def test_without_bounds_nobody_waits_longer_than_people_do(prompt: int, figure: str, usual: float) -> None:
    options = {"model": "qwen2.5-1.5b", "on": "aws-c7i-4xlarge", "prompt": prompt, "output": 4096}
    found = one(**options)
    users = found["operating_point"]["concurrency"]
    more = one(**options, concurrency=users + 1)["operating_point"]
    assert found["operating_point"][f"{figure}_ms"] <= usual < more[f"{figure}_ms"]
    assert found["reasons"]["concurrency"].endswith("(--ttft and --tpot set another)")
    assert one(**options, **{figure: 4 * usual})["operating_point"]["concurrency"] > users


def test_one_user_who_waits_long_alone_is_told() -> None:
    found = one("qwen2.5-7b", "aws-c7i-4xlarge", prompt=30_000)
    assert found["operating_point"]["concurrency"] == 1
    assert "one alone, with " in found["reasons"]["concurrency"]
    assert found["meets_bounds"]


def test_what_does_not_fit_says_by_how_much_and_what_would() -> None:
    found = one("llama-3-70b", format="fp16")
    refusal = found["does_not_fit"]
    lacking = refusal["missing_bytes"]
    memory = found["memory"]
    assert lacking == -memory["kv_room_bytes"] + memory["kv_bytes_per_request"]
    assert f"{lacking / 1e9:.2f} GB too much" in refusal["problem"]
    assert len(refusal["changes"]) == 3
    assert "--format fp8 instead of fp16" in refusal["changes"]
    assert "--gpus 2 instead of 1" in refusal["changes"]
    assert found["operating_point"] is None


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ("--format fp8", {"format": "fp8"}),
        ("--gpus 2", {"format": "fp16", "gpus": 2}),
        ("--on b200", {"format": "fp16", "on": "b200"}),
    ],
)
def test_the_changes_do_make_it_fit(change: str, options: dict[str, Any]) -> None:
    (target,) = plan("llama-3-70b", on="a100-80gb", format="fp16").targets
    assert any(found.text.startswith(change) for found in smallest_changes(target))
    (changed,) = plan("llama-3-70b", **{"on": "a100-80gb", **options}).targets
    assert changed.fits


def test_too_long_a_context_is_made_shorter_or_its_numbers_smaller() -> None:
    (target,) = plan("llama-3.1-8b", on="rtx4090", format="fp16", prompt=100_000, output=1000).targets
    assert not target.fits
    texts = [change.text for change in smallest_changes(target)]
    context = next(text for text in texts if "context" in text)
    fitting = int(context.split()[3].replace(",", ""))
    assert plan("llama-3.1-8b", on="rtx4090", format="fp16", prompt=fitting - 500, output=500).targets[0].fits
    assert "--format awq instead of fp16" in texts  # fp8 would not be enough


def test_bounds_that_no_batch_meets() -> None:
    refusal = one(tpot=1.0, format="fp16")["does_not_fit"]
    assert "one user alone misses the bounds" in refusal["problem"]
    assert "TPOT is" in refusal["problem"]


def test_several_devices_share_weights_and_heads() -> None:
    (alone,) = plan("llama-3-70b", on="h100", format="fp8").targets
    (shared,) = plan("llama-3-70b", on="h100", format="fp8", gpus=4).targets
    assert (shared.tp, shared.pp) == (4, 1)
    assert shared.memory.weight_bytes == pytest.approx(alone.memory.weight_bytes / 4, abs=1)
    assert shared.memory.kv_token_bytes == alone.memory.kv_token_bytes / 4
    assert shared.tpot_s < alone.tpot_s
    assert shared.price_usd_h == pytest.approx(4 * (alone.price_usd_h or 0))
    (staged,) = plan("llama-3-70b", on="h100", format="fp8", tp=2, pp=2).targets
    assert staged.num_devices == 4
    assert plan("smollm2-360m", on="h100", format="fp16", gpus=5).targets[0].tp == 5  # 15 heads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": -1}, "--prompt -1: must be a whole number from 1 on"),
        ({"output": 0}, "--output 0"),
        ({"prompt": 1.5}, r"--prompt 1\.5"),
        ({"ttft": math.nan}, "--ttft nan: must be a number above 0"),
        ({"tpot": -5.0}, "--tpot -5"),
        ({"price": 0.0}, "--price 0: must be a number above 0"),
        ({"price": math.inf}, "--price inf"),
        ({"prompt": 9000}, "context of llama-3-8b, 8192"),
        ({"context": 100}, "--context 100 does not hold"),
        ({"context": 10**6}, "--context 1000000: the context of llama-3-8b is 8192"),
        ({"concurrency": 4, "tpot": 50.0}, "give one"),
        ({"tp": 3}, "32 query heads cannot be shared out evenly among 3"),
        ({"pp": 33}, "only 32 layers"),
        ({"gpus": 4, "tp": 8}, "--tp 8 × --pp 1 are 8 devices, but --gpus is 4"),
        ({"format": "q4km"}, "did you mean .*q4_k_m"),
        ({"on": "a100"}, "did you mean .*a100-80gb"),
        ({"on": "raspberry-pi-5", "format": "q4_k_m", "gpus": 2}, "nothing is known about its links"),
        ({"colour": "red"}, "unknown option 'colour'"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan("llama-3-8b", **{"on": "a100-80gb", **options}).to_json()


def test_own_lengths(tmp_path: Path) -> None:
    file = tmp_path / "lengths"
    file.write_text("# prompt output\n100 100\n\n300, 20\n")
    waste = one(lengths=file, context=2048)["kv_waste"]
    assert waste["lengths_from"] == str(file)
    assert 0.85 < waste["static_reservation_share"] < 0.95
    assert 0.01 < waste["paged_share"] < 0.1
    file.write_text("100 100\nabc\n")
    with pytest.raises(ConfigError, match="line 2: 'abc' is not PROMPT OUTPUT"):
        one(lengths=file)


@pytest.mark.parametrize(
    ("model", "on"), [("deepseek-v3", "a100-80gb"), ("llama-3-8b", "a100-80gb,rtx4090,h100,l4,raspberry-pi-5")]
)
def test_the_table_fits_100_columns(on: str, model: str) -> None:
    out = io.StringIO()
    print_plan(plan(model, on=on), Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    commands = ("pagoda serve", "pagoda quantize")  # to be copied, so never broken
    assert all(len(line) <= 100 for line in lines if not any(command in line for command in commands))
    assert any("requests at once" in line for line in lines)


def test_a_busy_measurement_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = replace(FOUND, date=date.today().isoformat(), doubts=("other programs took 70% of the CPU time",))
    monkeypatch.setattr("pagoda.hardware.devices.measurement", lambda: busy)

    def unmeasured(*_: object, **__: object) -> None:
        raise UnsupportedError("not here")

    monkeypatch.setattr("pagoda.plan.measured.measured_costs.measured_costs", unmeasured)
    found = plan("smollm2-135m", on="this")
    (one,) = found.to_json()["plans"]
    assert one["doubts"] == ["other programs took 70% of the CPU time"]
    assert "today, and not to be trusted: other programs took 70% of the CPU time" in one["speeds_from"]
    out = io.StringIO()
    print_plan(found, Console(file=out, width=200))
    assert "not to be trusted: other programs took 70% of the CPU time" in " ".join(out.getvalue().split())
