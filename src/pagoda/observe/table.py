"""The one table of series: name, kind, unit, labels, meaning and who sets it, read off the series themselves.

`docs/metrics.md` is this table as Markdown, and tests compare it with a live /metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pagoda.observe.metrics import Metrics

COLUMNS = "| series | kind | unit | labels | what it says |"
HEAD = """# Metrics

What `GET /metrics` shows, in Prometheus' text or as OpenMetrics. Every series also has the label `model_name`. Counters
end in `_total`, histograms in `_bucket`, `_sum` and `_count`. A label has a bounded number of values; what comes after
them counts as `other`. `process_*` are those of `prometheus_client`.

`--metrics-compat vllm` repeats the series that vLLM has under its names (`vllm:`), and `--metrics-compat llamacpp`
shows llama-server's fifteen (`llamacpp:`). Alerts and recording rules are in `deploy/prometheus/rules.yml`.

This file is written by `python -m pagoda.observe.table > docs/metrics.md`.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One series."""

    name: str  # as /metrics shows it, without the endings of histograms
    kind: str
    unit: str
    labels: tuple[str, ...]
    help: str
    set_by: str


def rows() -> Iterator[Row]:
    """Every series that there is."""
    config = dict.fromkeys(
        ("block_size", "cache_dtype", "enable_prefix_caching", "gpu_memory_utilization", "num_gpu_blocks",
         "sliding_window"), "0",
    )  # fmt: skip
    for set_by, group in Metrics("m", 1, cache_config=config).groups().items():
        for one in group:
            name = f"pagoda_{one.name}" + ("_total" if one.kind == "counter" else "")
            yield Row(name, one.kind, one.unit, one.labels, one.help, set_by)


def markdown() -> str:
    """docs/metrics.md."""
    lines, group = [HEAD], ""
    for row in rows():
        if row.set_by != group:
            group = row.set_by
            lines += ["", f"## Set by {group}", "", COLUMNS, "|---|---|---|---|---|"]
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {row.unit} | {labels} | {row.help} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
