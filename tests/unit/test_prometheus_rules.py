"""Rules, their runbook and the dashboards against each other, the table of series and promtool's own test cases."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pagoda.observe import table
from prometheus_files import ROOT, RULES, dashboards

CASES = ROOT / "deploy/prometheus/rules_test.yml"
# the guide's names, which others build on
GUIDE = {
    "gpu_memory_used_gb", "gpu_utilization_percent", "kv_cache_utilization", "time_to_first_token_ms",
    "tokens_per_second", "request_queue_depth", "token_budget_exceeded_rate", "cost_per_request_usd",
    "cache_hit_rate", "error_rate_by_stop_reason",
}  # fmt: skip


def names(kind: str) -> list[str]:
    return re.findall(rf"^      - {kind}: (\S+)", RULES.read_text(), re.MULTILINE)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
@pytest.mark.parametrize("command", [("check", "rules", RULES), ("test", "rules", CASES)], ids=lambda c: c[0])
def test_promtool_agrees(command: tuple[str, str, Path]) -> None:
    done = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guides_names_are_recorded() -> None:
    assert set(names("record")) >= GUIDE


def test_every_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    text = CASES.read_text()
    for alert in names("alert"):
        cases = re.split(r"(?=eval_time: )", text)
        mine = [case for case in cases if re.match(rf"eval_time: \S+?,?\s+alertname: {alert}\b", case)]
        assert any("exp_alerts" in case for case in mine), f"{alert} never fires"
        assert any("exp_alerts" not in case for case in mine), f"{alert} is never silent"


def test_every_alert_has_its_section_of_the_runbook() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert sections == names("alert")
    links = re.findall(r"runbook: docs/runbook.md#(\w+)$", RULES.read_text(), re.MULTILINE)
    assert links == [name.lower() for name in names("alert")]
    parts = (ROOT / "docs/runbook.md").read_text().split("\n## ")[1:]
    for part in parts:
        assert all(word in part for word in ("**Means**", "ook at**", "o**")), part[:30]


@pytest.mark.parametrize("source", ["rules", "dashboards"])
def test_series_that_are_asked_for_exist(source: str) -> None:
    if source == "rules":
        text = RULES.read_text()
    else:
        module = dashboards()
        text = "\n".join(expr for one in module.DASHBOARDS for expr in module.expressions(one))
    known = {row.name for row in table.rows()}
    recorded = set(names("record"))
    for name in set(re.findall(r"\bpagoda[_:][a-z0-9_:]+", text)):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in known or base in known or name in recorded, name


def test_the_dashboards_json_is_what_is_described() -> None:
    module = dashboards()
    folder = ROOT / "deploy/grafana"
    assert {path.stem for path in folder.glob("*.json")} == {one.name for one in module.DASHBOARDS}
    for one in module.DASHBOARDS:
        assert (folder / f"{one.name}.json").read_text() == module.to_json(one), "run deploy/grafana/dashboards.py"
