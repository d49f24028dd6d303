"""Grafana's dashboards in a few lines each; `python deploy/grafana/dashboards.py` writes their JSON beside it.

A panel is a title, a unit and expressions with their legends. The names of series are those of docs/metrics.md, or of
the recording rules in deploy/prometheus/rules.yml.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${source}"}
MODEL = 'model_name=~"$model"'
WIDTH, HEIGHT, COLUMNS = 8, 8, 3


@dataclass(frozen=True)
class Panel:
    """One graph. `lines` are pairs of an expression and its legend; `limit` is drawn as a threshold."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    limit: float | None = None
    about: str = ""


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    name: str  # of its file
    title: str
    panels: tuple[Panel, ...]


def quantiles(series: str) -> tuple[tuple[str, str], ...]:
    """The median, and what nine of ten and 99 of 100 stay below."""
    each = f"sum by (le) (rate(pagoda_{series}_bucket{{{MODEL}}}[5m]))"
    return tuple((f"histogram_quantile({q}, {each})", f"p{q * 100:.0f}") for q in (0.5, 0.9, 0.99))


def rate(series: str, legend: str, by: str = "", more: str = "") -> tuple[str, str]:
    """A counter's rise a second."""
    selected = ", ".join(filter(None, (MODEL, more)))
    total = f"sum by ({by})" if by else "sum"
    return f"{total} (rate(pagoda_{series}_total{{{selected}}}[2m]))", legend


OVERVIEW = Dashboard(
    "overview",
    "Pagoda: overview",
    (
        Panel("Tokens a second", "short", ((f"sum(tokens_per_second{{{MODEL}}})", "generated"),
                                           rate("prompt_tokens", "prompts"))),
        Panel("Time to first token", "s", quantiles("time_to_first_token_seconds"), limit=1.0),
        Panel("Time between tokens", "s", quantiles("inter_token_latency_seconds"), limit=0.1),
        Panel("Requests", "short", ((f"sum(pagoda_num_requests_running{{{MODEL}}})", "running"),
                                    (f"sum(request_queue_depth{{{MODEL}}})", "waiting"))),
        Panel("Answers by stop reason", "percentunit", ((f"error_rate_by_stop_reason{{{MODEL}}}", "{{stop_reason}}"),)),
        Panel("HTTP responses", "reqps", (rate("http_requests", "{{status}}", by="status"),)),
        Panel("Refused", "reqps", (rate("http_requests_rejected", "{{reason}}", by="reason"),)),
        Panel("Whole answers", "s", quantiles("e2e_request_latency_seconds")),
        Panel("Waiting in the queue", "s", quantiles("request_queue_time_seconds")),
    ),
)  # fmt: skip
CAPACITY = Dashboard(
    "capacity",
    "Pagoda: capacity",
    (
        Panel("KV blocks held", "percentunit", ((f"kv_cache_utilization{{{MODEL}}}", "{{instance}}"),), limit=0.9),
        Panel("Memory", "percentunit", ((f"pagoda:memory_share{{{MODEL}}}", "{{instance}}"),), limit=0.85),
        Panel("Computing", "percent", ((f"gpu_utilization_percent{{{MODEL}}}", "{{instance}}"),),
              about="Share of the time in a forward pass; on GPUs, in which a kernel ran."),
        Panel("Memory bandwidth", "Bps", (rate("memory_moved_bytes", "moved"),
                                          (f"max(pagoda_memory_bandwidth_bytes_per_second{{{MODEL}}})", "ceiling"))),
        Panel("Sequences in a step", "short", (
            (f"sum(rate(pagoda_sequences_in_steps_total{{{MODEL}}}[2m])) "
             f"/ sum(rate(pagoda_step_seconds_count{{{MODEL}}}[2m]))", "mean"),)),
        Panel("Seconds of a step", "s", quantiles("step_seconds")),
        Panel("Preempted", "short", (rate("num_preemptions", "sequences/s"), rate("recomputed_tokens", "tokens/s"))),
        Panel("Cut off by their length", "percentunit", ((f"token_budget_exceeded_rate{{{MODEL}}}", "{{instance}}"),)),
        Panel("Streams with slow clients", "short", ((f"sum(pagoda_slow_streams{{{MODEL}}})", "streams"),)),
    ),
)  # fmt: skip
COST = Dashboard(
    "cost",
    "Pagoda: cost",
    (
        Panel("Dollars an hour", "currencyUSD", (
            (f"3600 * sum(rate(pagoda_cost_usd_total{{{MODEL}}}[5m]))", "requests"),
            (f"3600 * sum by (reason) (rate(pagoda_cost_unbilled_usd_total{{{MODEL}}}[5m]))", "{{reason}}"),
            (f"sum(pagoda_cost_usd_per_hour{{{MODEL}}})", "price"))),
        Panel("A request", "currencyUSD", ((f"cost_per_request_usd{{{MODEL}}}", "{{instance}}"),)),
        Panel("A million generated tokens", "currencyUSD", (
            (f"1e6 * sum(rate(pagoda_cost_usd_total{{{MODEL}}}[5m])) "
             f"/ sum(rate(pagoda_generation_tokens_total{{{MODEL}}}[5m]))", "USD"),)),
        Panel("By tenant, a day", "currencyUSD", (
            (f"sum by (tenant) (increase(pagoda_cost_usd_total{{{MODEL}}}[1d]))", "{{tenant}}"),)),
        Panel("Saved", "currencyUSD", ((f"sum by (by) (pagoda_cost_saved_usd{{{MODEL}}})", "{{by}}"),)),
        Panel("Tokens by tenant", "short", (rate("tenant_tokens", "{{tenant}} {{type}}", by="tenant, type"),)),
    ),
)  # fmt: skip
CACHE = Dashboard(
    "cache",
    "Pagoda: caches",
    (
        Panel("Prompt tokens found", "percentunit", ((f"cache_hit_rate{{{MODEL}}}", "{{instance}}"),)),
        Panel("Prompt tokens", "short", (rate("prompt_tokens_cached", "found"), rate("prompt_tokens", "computed"))),
        Panel("Slots that hold no token", "percentunit", (
            (f"max(pagoda_kv_cache_waste_ratio{{{MODEL}}})", "of used blocks"),), limit=0.04),
        Panel("Semantic cache: wrong hits", "percentunit", (
            (f"max(pagoda_cache_wrong_hit_ratio{{{MODEL}}})", "of those checked"),
            (f"max(pagoda_cache_wrong_hit_ratio_high{{{MODEL}}})", "at most, 95 %"),
            (f"max(pagoda_cache_wrong_hit_ratio_max{{{MODEL}}})", "allowed"))),
        Panel("Semantic cache: tokens saved", "short", (rate("cache_saved_generation_tokens", "generated"),
                                                        rate("cache_saved_prompt_tokens", "prompts"))),
        Panel("Semantic cache: lookups", "reqps", (
            (f"sum(rate(pagoda_cache_lookup_seconds_count{{{MODEL}}}[2m]))", "lookups"),)),
    ),
)  # fmt: skip
SPECULATION = Dashboard(
    "speculation",
    "Pagoda: speculation",
    (
        Panel("Draft tokens kept", "percentunit", (
            (f"sum(rate(pagoda_spec_decode_num_accepted_tokens_total{{{MODEL}}}[5m])) "
             f"/ sum(rate(pagoda_spec_decode_num_draft_tokens_total{{{MODEL}}}[5m]))", "kept"),), limit=0.25),
        Panel("Draft tokens", "short", (rate("spec_decode_num_draft_tokens", "checked"),
                                        rate("spec_decode_num_accepted_tokens", "kept"))),
        Panel("Tokens of a draft", "short", (
            (f"sum(rate(pagoda_spec_decode_num_draft_tokens_total{{{MODEL}}}[5m])) "
             f"/ sum(rate(pagoda_spec_decode_num_drafts_total{{{MODEL}}}[5m]))", "mean"),)),
    ),
)  # fmt: skip
ADAPTERS = Dashboard(
    "adapters",
    "Pagoda: adapters",
    (
        Panel("Dollars an hour by adapter", "currencyUSD", (
            (f"3600 * sum by (adapter) (rate(pagoda_cost_usd_total{{{MODEL}}}[5m]))", "{{adapter}}"),)),
        Panel("Share of the machine's time by adapter", "percentunit", (
            (f"sum by (adapter) (rate(pagoda_cost_usd_total{{{MODEL}}}[5m])) "
             f"/ ignoring (adapter) group_left sum (rate(pagoda_cost_usd_total{{{MODEL}}}[5m]))", "{{adapter}}"),)),
    ),
)  # fmt: skip
DASHBOARDS = (OVERVIEW, CAPACITY, COST, CACHE, SPECULATION, ADAPTERS)


def expressions(dashboard: Dashboard, model: str = ".+") -> list[str]:
    """Every expression, with the page's variable filled in."""
    return [expr.replace("$model", model) for panel in dashboard.panels for expr, _ in panel.lines]


def to_json(dashboard: Dashboard) -> str:
    """The file that Grafana imports."""
    variables = [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "model", "label": "Model", "type": "query", "datasource": SOURCE, "multi": True, "includeAll": True,
            "allValue": ".+", "query": "label_values(pagoda_num_requests_running, model_name)", "refresh": 2,
        },
    ]  # fmt: skip
    page = {
        "uid": f"pagoda-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["pagoda"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": [_panel(place, panel) for place, panel in enumerate(dashboard.panels)],
    }
    return json.dumps(page, indent=1) + "\n"


def _panel(place: int, panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    thresholds = {"mode": "absolute", "steps": steps}
    custom = {"fillOpacity": 8, "thresholdsStyle": {"mode": "off" if panel.limit is None else "line"}}
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": WIDTH * (place % COLUMNS), "y": HEIGHT * (place // COLUMNS), "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": custom, "thresholds": thresholds},
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expr, "legendFormat": legend, "datasource": SOURCE}
            for i, (expr, legend) in enumerate(panel.lines)
        ],
    }  # fmt: skip


def main() -> None:
    """Write all files."""
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(to_json(dashboard))


if __name__ == "__main__":
    main()
