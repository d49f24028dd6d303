"""`pagoda deploy ray` where Ray is not installed. With it, bench/ray_serve.py runs the whole."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from pagoda.cli import deploy_ray
from pagoda.cli.main import app


def test_without_ray_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy_ray, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["deploy", "ray", "smollm2-135m", "--replicas", "2"])
    assert result.exit_code != 0
    assert "pip install 'pagoda-llm[ray]'" in str(result.exception)


def test_settings_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["deploy", "ray", "--replicas", "0"])
    assert "--replicas: 0 is out of range" in str(result.exception)
    result = CliRunner().invoke(app, ["deploy", "ray", "--replicas", "3", "--max-replicas", "2"])
    assert "--max-replicas 2 is less than --replicas 3" in str(result.exception)
