"""What `pagoda serve` shows of a download."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pagoda.cli import fetching
from pagoda.cli.fetching import DownloadLog, fetch
from pagoda.sources import LocalModel, Progress


def facts(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    return [tuple(record.facts.values()) for record in caplog.records]  # type: ignore[attr-defined]


def test_a_download_is_logged_as_it_begins_every_ten_seconds_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = DownloadLog(clock=lambda: now)
    with caplog.at_level(logging.INFO, "pagoda.server"):
        for done in range(0, 31):
            log("a.whl", done * 1_000_000, 30_000_000)
            now += 1
        log("b.whl (by pip)", 0, None)
    assert facts(caplog) == [("a.whl", float(mb), 30.0) for mb in (0, 10, 20, 30)] + [("b.whl (by pip)", 0.0, None)]


@pytest.mark.parametrize("terminal", [False, True])
def test_fetching_shows_progress(
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = LocalModel(Path("m.gguf"), "m")

    def resolve(name: str, *, progress: Progress) -> LocalModel:
        progress(name, 0, 7_000_000)
        progress(name, 7_000_000, 7_000_000)
        return model

    monkeypatch.setattr(fetching, "resolve", resolve)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    with caplog.at_level(logging.INFO, "pagoda.server"):
        assert fetch("m.whl", bars=True) is model
    assert facts(caplog) == ([] if terminal else [("m.whl", 0.0, 7.0), ("m.whl", 7.0, 7.0)])
    assert ("7.0/7.0 MB" in capsys.readouterr().err) == terminal


def test_a_log_for_machines_has_no_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def resolve(name: str, *, progress: Progress) -> LocalModel:
        progress(name, 0, None)
        return LocalModel(Path("m.gguf"), "m")

    monkeypatch.setattr(fetching, "resolve", resolve)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch("m.whl", bars=False)
    assert capsys.readouterr().err == ""
