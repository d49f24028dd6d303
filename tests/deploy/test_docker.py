"""The image and what stands around it, as far as can be told without a daemon: its files, versions and settings."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from pagoda.config import ServerSettings, load_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
LINES = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yml").read_text())


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(name + " ")]


def test_what_is_copied_is_there() -> None:
    own = [words for line in instructions("COPY") if not (words := shlex.split(line))[0].startswith("--from")]
    assert own
    assert all((ROOT / source).exists() for *sources, _ in own for source in sources)


def test_the_build_has_all_that_the_package_is_made_of() -> None:
    copied = {word for line in instructions("COPY") for word in shlex.split(line)}
    assert {"pyproject.toml", "CMakeLists.txt", "csrc", "src", "README.md", "LICENSE"} <= copied


def test_the_lock_satisfies_the_package() -> None:
    locked = {
        requirement.name: next(iter(requirement.specifier)).version
        for line in (DOCKER / "requirements.lock").read_text().splitlines()
        if not line.startswith("#")
        for requirement in [Requirement(line)]
    }
    wanted = [
        Requirement(text) for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.12"}):
            assert requirement.specifier.contains(locked[requirement.name]), requirement


def test_it_runs_as_nobody_in_particular_and_says_whether_it_lives() -> None:
    assert instructions("USER") == ["10001:10001"]
    assert "/health" in LINES[next(i for i, line in enumerate(LINES) if line.startswith("HEALTHCHECK"))]


def test_variables_are_settings() -> None:
    variables = dict(pair.split("=", 1) for line in instructions("ENV") for pair in shlex.split(line))
    environ = {name: value for name, value in variables.items() if name.startswith("PAGODA_")}
    given = COMPOSE["services"]["pagoda"]["environment"]
    environ |= {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in given.items() if value}
    settings = load_settings(ServerSettings, environ=environ)
    assert (settings.host, settings.metrics_open, settings.log_format, settings.api_keys) == (
        "0.0.0.0",
        True,
        "json",
        (),
    )


def test_files_that_are_mounted_are_there() -> None:
    mounts = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", ())]
    paths = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert paths
    assert all((DOCKER / path).exists() for path in paths)
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(".")}
    assert named == set(COMPOSE["volumes"])
