"""The table of series against docs/metrics.md and a live /metrics, and how large that may get."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from fake_engine import FakeLoaded
from pagoda.observe import table
from pagoda.observe.metrics import Metrics
from pagoda.observe.readings import Gpus
from pagoda.types import SequenceWork, StepResult
from serving import serving

ROOT = Path(__file__).parents[2]

# llama.cpp's tools/server/server-task.cpp, server_task_result_metrics::to_metrics
LLAMACPP_NAMES = {
    "prompt_tokens_total", "prompt_tokens_cached_total", "prompt_seconds_total", "tokens_predicted_total",
    "tokens_predicted_seconds_total", "n_decode_total", "n_tokens_max", "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total", "spec_decode_num_drafts_total", "prompt_tokens_seconds",
    "predicted_tokens_seconds", "requests_processing", "requests_deferred", "n_busy_slots_per_decode",
}  # fmt: skip


def test_the_page_is_the_table() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == table.markdown(), "run python -m pagoda.observe.table"


def test_a_live_server_shows_the_table_and_nothing_else() -> None:
    """Labelled series without values yet are in it, too, by their HELP lines."""
    with serving(FakeLoaded()) as served:
        served.ok("/v1/completions", prompt="abc", max_tokens=3)
        text = served.client.get("/metrics").text
    shown = {}
    for line in text.splitlines():
        words = line.split(" ", 3)
        if words[:2] == ["#", "TYPE"] and words[2].startswith("pagoda_"):
            shown[words[2]] = words[3]
    assert {row.name: row.kind for row in table.rows()} == shown


def test_every_row_says_what_it_means() -> None:
    rows = list(table.rows())
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.help.endswith("."), row.name
        assert row.unit or row.name in ("pagoda_cache_config_info", "pagoda_request_params_n"), row.name


def test_ten_thousand_tenants_and_adapters_stay_below_a_megabyte() -> None:
    metrics = Metrics("m", 131072, compat="vllm")
    for i in range(10_000):
        row = SequenceWork(f"r{i}", f"tenant-{i}", f"adapter-{i}", 1, 0, 0, 0, 1)
        metrics.ledger.record(StepResult(work=(row,), step_s=0.1, ended=metrics.last_step + i))
        metrics.server.tenant_tokens.add((f"tenant-{i}", "prompt"), 1)
        metrics.server.header_requests.add(("x-team", f"team-{i}"))
        metrics.cache.count("miss", "no entry", f"tenant-{i}", f"adapter-{i}")
        metrics.cache.save(f"tenant-{i}", f"adapter-{i}", 1, 1)
    text = metrics.exposition()[0].decode()
    assert len(text) < 1_000_000
    others = [line for line in text.splitlines() if line.startswith('pagoda_tenant_tokens_total{model_name="m",ten')]
    total = sum(s.value for f in parse(text) if f.name == "pagoda_tenant_tokens" for s in f.samples)
    assert len(others) == 101
    assert total == 10_000  # nothing is lost: it counts as other


def test_llama_servers_names() -> None:
    metrics = Metrics("m", 4096, compat="llamacpp")
    work = (SequenceWork("a", "", None, 0, 1, 0, 0, 30), SequenceWork("b", "", None, 7, 0, 0, 0, 7))
    metrics.record(StepResult(num_prompt_tokens=7, num_generation_tokens=2, num_running=2, num_waiting=3, work=work))
    text = metrics.exposition()[0].decode()
    shown = {s.name: s.value for f in parse(text) for s in f.samples if s.name.startswith("llamacpp:")}
    assert {f"llamacpp:{name}" for name in LLAMACPP_NAMES} == {n for n in shown if not n.endswith("_created")}
    assert shown["llamacpp:prompt_tokens_total"] == 7
    assert shown["llamacpp:n_tokens_max"] == 30
    assert shown["llamacpp:n_busy_slots_per_decode"] == 2
    assert shown["llamacpp:requests_deferred"] == 3


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.9", "text/plain"),
        ("application/openmetrics-text;version=1.0.0;q=0.9,text/plain;version=0.0.4;q=0.5", "application/openmetrics"),
        ("*/*", "text/plain"),
        ("text/plain;q=x", "text/plain"),
    ],
)
def test_the_format_that_is_preferred_is_sent(accept: str, kind: str) -> None:
    """RFC 9110, section 12.4.2: a higher q is preferred."""
    assert Metrics("m", 64).exposition(accept)[1].startswith(kind)


def test_gpus_are_read_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvmlDeviceGetMemoryInfo in bytes, GetUtilizationRates in percent, GetPowerUsage in milliwatts (NVML's manual)."""

    class NVMLError(Exception):
        pass

    def no_power(handle: int) -> int:
        raise NVMLError("not supported")

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=10**9, total=8 * 10**9),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=45),
        nvmlDeviceGetPowerUsage=no_power,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    text = Metrics("m", 64).exposition()[0].decode()
    shown = {(s.name, s.labels.get("gpu")): s.value for f in parse(text) for s in f.samples}
    assert shown["pagoda_gpu_memory_used_bytes", "0"] == 10**9
    assert shown["pagoda_gpu_utilization_ratio", "0"] == 0.45
    assert ("pagoda_gpu_power_watts", "0") not in shown


def test_nvidias_package_without_a_driver_shows_no_gpu() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for name in ("Init", "DeviceGetCount", "DeviceGetHandleByIndex", "DeviceGetMemoryInfo", "DeviceGetUtilizationRates",
                 "DeviceGetPowerUsage"):  # fmt: skip
        assert callable(getattr(pynvml, f"nvml{name}"))
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert list(Gpus()) == []
    else:
        figures = dict(Gpus())
        assert all(0 < one["gpu_memory_used"] <= one["gpu_memory"] for one in figures.values())
