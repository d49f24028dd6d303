"""A real Prometheus scrapes a real server under load; every rule and every expression of a dashboard gives data."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from pagoda.observe.cost import CostSettings
from prometheus_files import RULES, dashboards
from serving import HANG_S, serving, wait_for

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus: apt-get install prometheus")

PROMPT = "Once upon a time there was a lighthouse. " * 8


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Asks a Prometheus that has watched the default model answer for some seconds."""
    folder = tmp_path_factory.mktemp("prometheus")
    loaded = load_engine(EngineSettings(max_context=512, max_num_seqs=4, kv_memory_bytes=64 << 20))
    with serving(loaded, cost=CostSettings(price=0.5)) as served:
        target = served.url.removeprefix("http://")
        rules = RULES.read_text().replace("interval: 15s", "interval: 1s").replace("interval: 30s", "interval: 1s")
        (folder / "rules.yml").write_text(rules)
        scrape = {"job_name": "pagoda", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
        config = {"rule_files": [str(folder / "rules.yml")], "scrape_configs": [scrape]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        port = free_port()
        flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        command = ["prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        popen = subprocess.Popen(command)
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG_S)
        try:
            yield _watched(served, client)
        finally:
            client.close()
            popen.terminate()
            popen.wait(HANG_S)
    loaded.close()


def _watched(served: Any, client: httpx.Client) -> Any:
    """Load on the server until Prometheus has rates."""

    def query(expr: str) -> list[Any]:
        answer = client.get("/api/v1/query", params={"query": expr})
        assert answer.status_code == 200, answer.text
        found: list[Any] = answer.json()["data"]["result"]
        return found

    def is_up() -> bool:
        try:
            return bool(query("up == 1"))
        except (httpx.TransportError, AssertionError):  # not listening, or not ready yet
            time.sleep(0.1)
            return False

    wait_for(is_up)
    deadline = time.monotonic() + HANG_S
    number = 0
    while not query("tokens_per_second > 0 and cost_per_request_usd > 0 and cache_hit_rate > 0"):
        assert time.monotonic() < deadline, "no rates"
        body = {"prompt": f"{PROMPT}{number}", "max_tokens": 16, "prediction": {"type": "content", "content": PROMPT}}
        served.ok("/v1/completions", **body)
        served.refused("/v1/completions", prompt="")
        number += 1
    return query


def test_every_expression_of_the_dashboards_gives_data(query: Any) -> None:
    module = dashboards()
    for dashboard in module.DASHBOARDS:
        for expr in module.expressions(dashboard):
            wait_for(lambda expr=expr: query(expr), f"{dashboard.name}: {expr}")


def test_every_recording_rule_gives_data_and_no_rule_fails(query: Any) -> None:
    for name in set(re.findall(r"- record: (\S+)", RULES.read_text())):
        wait_for(lambda name=name: query(name), name)
    firing = {one["metric"]["alertname"] for one in query('ALERTS{alertstate="firing"}')}
    assert firing & {"PagodaScrapeGone", "PagodaEngineStalled", "PagodaRestartLoop", "PagodaErrors"} == set()
    quantile = query('time_to_first_token_ms{quantile="0.95"}')[0]
    assert float(quantile["value"][1]) > 0
