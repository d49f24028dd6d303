"""What [ray] of a cluster.toml may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.config import load_settings
from pagoda.deploy.scaling import Targets
from pagoda.deploy.settings import RaySettings, Scaling
from pagoda.errors import ConfigError


def told(folder: Path, text: str) -> RaySettings:
    file = folder / "cluster.toml"
    file.write_text(f"[ray]\n{text}\n")
    return load_settings(RaySettings, config=file, environ={})


def test_without_a_maximum_there_are_always_as_many(tmp_path: Path) -> None:
    assert told(tmp_path, "replicas = 3").scaling(64) is None


def test_what_is_not_said_follows_from_the_engine(tmp_path: Path) -> None:
    found = told(tmp_path, "replicas = 2\nmax-replicas = 8").scaling(64)
    assert found == Scaling(2, 8, Targets(48, 0.8), 5.0, 300.0)
    text = "max-replicas = 4\ntarget-requests = 6\ntarget-kv-usage = 0.5\nupscale-delay = 0\ndownscale-delay = 60"
    assert told(tmp_path, text).scaling(64) == Scaling(1, 4, Targets(6, 0.5), 0.0, 60.0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("replicas = 4\nmax-replicas = 2", "--max-replicas 2 is less than --replicas 4"),
        ("target-requests = 8", "--target-requests 8 is of no use without --max-replicas"),
        ("downscale-delay = 0", "--downscale-delay 0 is of no use without --max-replicas"),
    ],
)
def test_what_contradicts_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        told(tmp_path, text).scaling(64)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max-replicas = 0", "max-replicas: 0 is out of range"),
        ("target-kv-usage = 80", "target-kv-usage: 80 is out of range, must be between 0.01 and 1"),
        ("target-requests = 'many'", "target-requests: 'many' is not a number"),
        ("max_replica = 2", r"unknown key in \[ray\] 'max-replica'; did you mean 'max-replicas'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        told(tmp_path, text)
