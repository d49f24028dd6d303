"""The chart, by helm itself and by Kubernetes' schemas: every set of values of `ci/` renders, planted faults do not."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pagoda.config import EngineSettings, ServerSettings, load_settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "pagoda"
ENVIRONMENT = ROOT / ".venv-clients"
HELM = ENVIRONMENT / "helm" / "helm"
VALUES = {"default": None, **{path.name.removesuffix("-values.yaml"): path for path in (CHART / "ci").iterdir()}}

pytestmark = pytest.mark.skipif(not HELM.exists(), reason="helm is not installed: make .venv-clients/helm")


def helm(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *args], capture_output=True, text=True, timeout=120, check=False)


def render(*args: str) -> dict[str, dict[str, Any]]:
    """The objects by their kind, each checked."""
    made = helm("template", "pagoda", str(CHART), "--namespace", "models", *args)
    assert made.returncode == 0, made.stderr
    checked = subprocess.run(
        [ENVIRONMENT / "bin" / "python", Path(__file__).with_name("validate.py")],
        input=made.stdout,
        env=os.environ | {"PYTHONPATH": str(ENVIRONMENT / "kubernetes")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    return {found["kind"]: found for found in json.loads(checked.stdout)}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_linted_and_make_valid_objects(name: str) -> None:
    path = VALUES[name]
    flags = [] if path is None else ["--values", str(path)]
    linted = helm("lint", str(CHART), "--strict", *flags)
    assert linted.returncode == 0, linted.stdout
    assert {"Deployment", "Service", "ConfigMap"} <= render(*flags).keys()


@pytest.mark.parametrize("name", VALUES)
def test_settings_are_settings_of_the_server(name: str, tmp_path: Path) -> None:
    path = VALUES[name]
    found = render(*([] if path is None else ["--values", str(path)]))
    config = tmp_path / "pagoda.toml"
    config.write_text(found["ConfigMap"]["data"]["pagoda.toml"])
    server = load_settings(ServerSettings, config=config, environ={})
    assert (server.host, server.port, server.metrics_open) == ("0.0.0.0", 8000, True)
    assert load_settings(EngineSettings, config=config, environ={}).model
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > server.shutdown_timeout + 5  # preStop, drain, and then some


def test_a_service_named_pagoda_is_no_setting() -> None:
    """Kubernetes would set PAGODA_PORT=tcp://10.0.0.1:80 for it."""
    found = render()
    assert found["Service"]["metadata"]["name"] == "pagoda"
    assert found["Deployment"]["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_probes_give_a_long_load_its_time() -> None:
    (container,) = render("--set", "probes.startupSeconds=601")["Deployment"]["spec"]["template"]["spec"]["containers"]
    probe = container["startupProbe"]
    assert probe["httpGet"]["path"] == "/ready"
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 601
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"


def test_secured_values_ask_for_keys_and_check_the_model() -> None:
    found = render("--values", str(VALUES["secured"]))
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert [(one["name"], one["valueFrom"]["secretKeyRef"]["key"]) for one in pod["containers"][0]["env"][:2]] == [
        ("PAGODA_API_KEY", "api-keys"),
        ("PAGODA_ADMIN_KEY", "admin-key"),
    ]
    assert "--sha256" in pod["initContainers"][0]["args"]
    assert {"NetworkPolicy", "ServiceMonitor", "PrometheusRule"} <= found.keys()
    assert found["PrometheusRule"]["spec"]["groups"]


def test_autoscaled_values_scale_by_what_the_server_says() -> None:
    found = render("--values", str(VALUES["autoscaled"]))
    assert "replicas" not in found["Deployment"]["spec"]  # or each upgrade would undo the scaling
    names = [metric["pods"]["metric"]["name"] for metric in found["HorizontalPodAutoscaler"]["spec"]["metrics"]]
    assert names == ["pagoda_num_requests_waiting", "pagoda_kv_cache_usage_perc"]
    assert all(name in render_keda() for name in names)


def render_keda() -> str:
    return json.dumps(render("--values", str(VALUES["keda"]))["ScaledObject"]["spec"]["triggers"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("replicaCount=2", "replicaCount"),  # misspelt: it is replicas
        ("replicas=many", "replicas"),
        ("model.sha256=abc", "sha256"),
        ("autoscaling.kind=vertical", "kind"),
        ("settings.port=9000", "invalid propertyName 'port'"),  # the chart sets it
        ("resources.limits.memory=much", "memory"),
    ],
)
def test_planted_faults_are_refused(flag: str, message: str) -> None:
    made = helm("template", "pagoda", str(CHART), "--set", flag)
    assert made.returncode != 0
    assert message in made.stderr
