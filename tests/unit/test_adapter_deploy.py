"""Versions of an adapter on a running server: deployed, checked, rolled back, and written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fake_engine import FakeLoaded
from pagoda.cli.deployments import AdapterServer, DeploymentSettings, deploy, read_history, rollback
from pagoda.cli.main import app
from pagoda.errors import ConfigError, PagodaError, QualityError
from serving import Served, serving


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(FakeLoaded(), admin_key="root") as served:
        yield served


def settings(api: Served, folder: Path) -> DeploymentSettings:
    return DeploymentSettings(api.url, "root", folder / "history.jsonl")


def version(folder: Path, content: str) -> str:
    path = folder / content
    path.write_text(content)
    return str(path)


def content(api: Served, name: str) -> bytes:
    """What a request by that name is answered with."""
    api.ok("/v1/completions", model=name, prompt="x", max_tokens=1)
    adapter = api.loaded.engine.submitted[-1].adapter
    return bytes(adapter.placed.content)


def test_the_name_moves_to_what_was_deployed_and_back(api: Served, tmp_path: Path) -> None:
    where = settings(api, tmp_path)
    server = AdapterServer(where)
    first = deploy(server, where, "sql", version(tmp_path, "v1"), None)
    assert (first["previous_path"], content(api, "sql")) == (None, b"v1")
    deploy(server, where, "sql", version(tmp_path, "v2"), None)
    deploy(server, where, "sql", version(tmp_path, "v3"), None)
    assert (content(api, "sql"), content(api, "sql@previous")) == (b"v3", b"v2")
    rollback(server, where, "sql")
    assert (content(api, "sql"), content(api, "sql@previous")) == (b"v2", b"v3")
    line = rollback(server, where, "sql")
    assert content(api, "sql") == b"v3"
    assert line["previous_digest"] != line["digest"]
    assert sorted(api.loaded.adapters.names) == ["sql", "sql@previous"]


def test_a_version_whose_check_fails_is_never_asked_for(api: Served, tmp_path: Path) -> None:
    where = settings(api, tmp_path)
    server = AdapterServer(where)
    deploy(server, where, "sql", version(tmp_path, "v1"), None)
    with pytest.raises(QualityError, match="sql has not moved"):
        deploy(server, where, "sql", version(tmp_path, "v2"), "exit 3")
    assert content(api, "sql") == b"v1"
    assert api.loaded.adapters.names == ("sql",)
    with pytest.raises(PagodaError, match="it is bad"):
        deploy(server, where, "sql", version(tmp_path, "bad"), None)
    assert content(api, "sql") == b"v1"


def test_a_check_sees_the_candidate_and_its_figures_are_written_down(api: Served, tmp_path: Path) -> None:
    where = settings(api, tmp_path)
    check = 'echo checking; echo "{\\"score\\": 0.9, \\"model\\": \\"$PAGODA_MODEL\\", \\"url\\": \\"$PAGODA_URL\\"}"'
    deploy(AdapterServer(where), where, "sql", version(tmp_path, "v1"), check)
    (line,) = read_history(where.history)
    assert line["figures"] == {"score": 0.9, "model": "sql@candidate", "url": api.url}
    assert (line["action"], line["name"], line["path"]) == ("deploy", "sql", str(tmp_path / "v1"))
    assert line["who"]
    assert len(line["digest"]) == 64


def test_what_is_not_there_is_said(api: Served, tmp_path: Path) -> None:
    where = settings(api, tmp_path)
    with pytest.raises(ConfigError, match="sql@previous"):
        rollback(AdapterServer(where), where, "sql")
    wrong = DeploymentSettings(api.url, "wrong", where.history)
    with pytest.raises(PagodaError, match="admin key"):
        deploy(AdapterServer(wrong), wrong, "sql", version(tmp_path, "v1"), None)
    nobody = DeploymentSettings("http://127.0.0.1:9", "root", where.history)
    with pytest.raises(ConfigError, match="does not answer"):
        rollback(AdapterServer(nobody), nobody, "sql")


def test_the_history_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(json.dumps({"name": "sql", "action": "deploy", "figures": {"score": 1}}) + "\n")
    shown = CliRunner().invoke(app, ["adapter", "history", "--history", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "score 1" in shown.output
    long = {
        "name": "sql",
        "time": "2026-11-30T11:06:13+00:00",
        "digest": "0123456789abcdef",
        "path": "/models/" + 60 * "x",
    }
    file.write_text(json.dumps(long) + "\n")
    shown = CliRunner().invoke(app, ["adapter", "history", "--history", str(file)])
    assert "…" not in shown.output
    assert shown.output.count("x") == 60
    file.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="line 1"):
        read_history(file)
