"""`pagoda plan --fleet`: on a device of the table, so that nothing is measured."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pagoda.cli.main import app
from pagoda.observe.request_log import RequestLine

LINE = RequestLine(
    arrival=0.0, id="x", model="m", tenant="", adapter="", stream=True, n=1, max_tokens=None, prompt_tokens=1000,
    cached_tokens=0, completion_tokens=20, finish="stop", ttft=0.2, seconds=1.0, machine_seconds=0.0, cost_usd=None,
)  # fmt: skip
ASKED = ["plan", "llama-3-8b", "--on", "a100-80gb", "--format", "fp16"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    made = [replace(LINE, arrival=0.02 * i, prefix=tuple(range(15 * (i % 4), 15 * (i % 4) + 15))) for i in range(40)]
    path.write_text("\n".join(json.dumps(asdict(line)) for line in made))
    return path


def test_answers_as_json(log: Path) -> None:
    result = CliRunner().invoke(app, [*ASKED, "--fleet", str(log), "--ttft", "400", "--fleet-replicas", "2", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["needed"] >= 1
    assert report["sizes"][-1][1]["ttft"][1] <= 0.4
    assert set(report["routings"]) == {"random", "load", "affinity"}
    assert [one["figure"] for one in report["comparisons"]] == ["TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95"]


def test_answers_in_words(log: Path) -> None:
    result = CliRunner().invoke(app, [*ASKED, "--fleet", str(log), "--ttft", "400", "--tpot", "100"])
    assert result.exit_code == 0, result.output
    for words in ("1 replica holds TTFT 400 ms and TPOT 100 ms", "at random", "One replica dies", "4 × this traffic"):
        assert words in result.stdout


def test_a_calibration_is_told_and_used(log: Path) -> None:
    flags = ["--fleet", str(log), "--ttft", "400", "--fleet-replicas", "1", "--fleet-calibration", f"{log},{log}"]
    result = CliRunner().invoke(app, [*ASKED, *flags])
    assert result.exit_code == 0, result.output
    assert "steps take" in result.stdout
    report = json.loads(CliRunner().invoke(app, [*ASKED, *flags, "--json"]).stdout)
    assert report["calibration"]["overheads"]["pace"] > 1


def test_objectives_are_asked_for(log: Path) -> None:
    result = CliRunner().invoke(app, [*ASKED, "--fleet", str(log)])
    assert result.exit_code != 0
    assert "give --ttft or --tpot" in str(result.exception)


def test_what_no_fleet_holds_is_told_and_why(log: Path) -> None:
    result = CliRunner().invoke(app, [*ASKED, "--fleet", str(log), "--ttft", "1"])
    assert result.exit_code == 0, result.output
    assert "Not even 32 replicas, the most that are simulated, hold TTFT 1 ms" in result.stdout
    assert "which no replica more helps" in " ".join(result.stdout.split())
    sizes = re.findall(r"^(\d+) +[\d.,]+ ", result.stdout, re.MULTILINE)
    assert sizes == ["1", "2", "4", "8", "16", "32"]
    assert max(map(len, result.stdout.splitlines())) <= 80
