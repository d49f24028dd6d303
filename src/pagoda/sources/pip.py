"""Where the user's package index keeps a wheel: asked of pip itself, so that all of its configuration holds.

`pip install --dry-run --report` resolves names to URLs and digests through indexes, mirrors, `file:` folders,
proxies and credentials as the user has set them up, and needs only the metadata of a wheel for that.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pagoda.errors import SourceError
from pagoda.sources.download import Access

_FLAGS = ("--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:", "--quiet")
UNREACHABLE = (
    ". The package index cannot be reached, or does not have it: see to the network, and to the index-url and proxy of "
    "`pip config list`; or name a file that is here"
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of an index. `requirement` is what it answers."""

    requirement: str
    url: str
    sha256: str | None

    @property
    def file_name(self) -> str:
        return self.url.split("#")[0].rsplit("/", 1)[-1]


def find_wheels(requirements: tuple[str, ...]) -> list[Wheel]:
    """The wheels of NAME==VERSION requirements, in their order. SourceError if the index has not got them."""
    flags = ("--dry-run", "--ignore-installed", "--ignore-requires-python", "--report", "-")
    report = json.loads(_run("install", *_FLAGS, *flags, *requirements))
    found = {_normal(item["metadata"]["name"]): item["download_info"] for item in report["install"]}
    return [_wheel(requirement, found) for requirement in requirements]


def download_wheel(wheel: Wheel, folder: Path) -> Path:
    """Let pip download a wheel into the empty `folder`: for servers that only pip has the credentials for."""
    _run("download", *_FLAGS, "--ignore-requires-python", "--dest", str(folder), wheel.requirement)
    (file,) = folder.iterdir()
    return file


@cache
def access() -> Access:
    """The certificates and proxy that pip is configured with."""
    options: dict[str, str] = {}
    lines = [line.partition("=") for line in _run("config", "--disable-pip-version-check", "list").splitlines()]
    for section in ("global", "install", ":env:"):  # the later wins, as with pip; which prints them in any order
        options |= {
            key.rpartition(".")[2]: _unquoted(value) for key, _, value in lines if key.startswith(f"{section}.")
        }
    return Access(options.get("cert"), options.get("proxy"))


def _wheel(requirement: str, found: dict[str, Any]) -> Wheel:
    info = found[_normal(requirement.split("==")[0])]
    archive = info.get("archive_info") or {}
    return Wheel(requirement, info["url"], (archive.get("hashes") or {}).get("sha256"))


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _unquoted(value: str) -> str:
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value


def _run(*arguments: str) -> str:
    """Run pip and return what it prints."""
    for command in _commands():
        result = subprocess.run([*command, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if result.returncode == 0:
            return result.stdout
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr.strip()]
        # pip says that of an index that it cannot reach, too.
        hint = UNREACHABLE if "(from versions: none)" in result.stderr else ""
        raise SourceError(f"pip cannot {arguments[0]} {arguments[-1]}: {' '.join(errors)[-1000:]}{hint}")
    raise SourceError("models from a package index need pip; install it with `python -m ensurepip`")


def _commands() -> Iterator[list[str]]:
    """Ways to run pip, best first. Environments made by uv have none, but Python brings a copy in ensurepip."""
    if importlib.util.find_spec("pip") is not None:
        yield [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("ensurepip") is not None:
        bundled = Path(importlib.util.find_spec("ensurepip").origin or "").parent / "_bundled"  # type: ignore[union-attr]
        for wheel in bundled.glob("pip-*.whl"):
            yield [sys.executable, str(wheel / "pip")]
    if command := shutil.which("pip3") or shutil.which("pip"):
        yield [command]
