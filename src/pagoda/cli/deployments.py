"""Versions of an adapter on a running server: the name, the one before it, and the one that is being tried.

    NAME             what requests get
    NAME@previous    what they got before, for a rollback
    NAME@candidate   there while a deployment checks it

Names move between two requests; what is being answered goes on with the version it began with. What was done stands in
a history file, a line of JSON each.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import shlex
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pagoda.client import HttpClient, HttpError
from pagoda.errors import ConfigError, OutputError, PagodaError, QualityError
from pagoda.settings import Setting, Settings

MAX_OUTPUT = 1 << 20  # of a check, that is looked through for figures


@dataclass(frozen=True, slots=True)
class DeploymentSettings(Settings):
    """Where adapters are deployed to."""

    table = "adapter"

    url: Annotated[str, Setting("The server's address.")] = "http://127.0.0.1:8000"
    admin_key: Annotated[str | None, Setting("The server's --admin-key.", secret=True)] = None
    history: Annotated[Path, Setting("File that each deployment is written down in.")] = Path("adapters.jsonl")


class AdapterServer:
    """What deployments ask of a server. Raises ConfigError where it does not answer, PagodaError where it refuses."""

    def __init__(self, settings: DeploymentSettings) -> None:
        self._settings = settings

    def find(self, name: str) -> Mapping[str, Any] | None:
        """The adapter as /v1/models shows it; None: there is none of that name."""
        try:
            found: Mapping[str, Any] = json.loads(self._ask(f"/v1/models/{quote(name)}"))
        except HttpError as error:
            if error.status == 404:
                return None
            raise self._said(error) from error
        return found

    def load(self, name: str, path: str) -> None:
        self._change("load", lora_name=name, lora_path=path, load_inplace=True)

    def unload(self, name: str) -> None:
        self._change("unload", lora_name=name)

    def alias(self, name: str, target: str) -> None:
        """From now on `name` means what `target` means."""
        self._change("alias", lora_name=name, target=target)

    def _change(self, what: str, **body: Any) -> None:
        try:
            self._ask(f"/v1/{what}_lora_adapter", json.dumps(body).encode())
        except HttpError as error:
            raise self._said(error) from error

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        async def ask() -> bytes:
            client = HttpClient(self._settings.url, self._settings.admin_key)
            try:
                return await (client.get(path) if body is None else client.post(path, body))
            finally:
                client.close()

        try:
            return asyncio.run(ask())
        except OSError as error:
            raise ConfigError(f"{self._settings.url} does not answer: {error}") from error

    def _said(self, error: HttpError) -> PagodaError:
        try:
            message = str(json.loads(error.body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = str(error)
        return PagodaError(f"{self._settings.url} says: {message}")


@dataclass(frozen=True, slots=True)
class Check:
    """A command that was run against a candidate."""

    command: str
    seconds: float
    figures: Mapping[str, Any]  # a JSON object that its last line is


def deploy(
    server: AdapterServer, settings: DeploymentSettings, name: str, path: str, check: str | None
) -> dict[str, Any]:
    """Load the version at `path` of the server's machine, check it, and move the name to it. → the line of the history

    QualityError where the check fails; then the name has not moved, and the candidate is gone.
    """
    candidate, previous = f"{name}@candidate", f"{name}@previous"
    server.load(candidate, path)
    try:
        result = None if check is None else run_check(check, settings, candidate)
    except BaseException:
        server.unload(candidate)
        raise
    before = server.find(name)
    if before is not None:
        server.alias(previous, name)
    server.alias(name, candidate)
    server.unload(candidate)
    return record(settings, server, "deploy", name, before, result)


def rollback(server: AdapterServer, settings: DeploymentSettings, name: str) -> dict[str, Any]:
    """Move the name back to the version before, and keep the one that it leaves. → the line of the history"""
    between, previous = f"{name}@candidate", f"{name}@previous"
    before = server.find(name)
    if server.find(previous) is None or before is None:
        raise ConfigError(f"the server has no {previous}: deploy a path of the history, pagoda adapter history {name}")
    server.alias(between, name)
    server.alias(name, previous)
    server.alias(previous, between)
    server.unload(between)
    return record(settings, server, "rollback", name, before, None)


def run_check(command: str, settings: DeploymentSettings, model: str) -> Check:
    """Run a shell command that finds the candidate in PAGODA_URL and PAGODA_MODEL. QualityError: it fails."""
    start = time.monotonic()
    told = f"export PAGODA_URL={shlex.quote(settings.url)} PAGODA_MODEL={shlex.quote(model)}"
    done = subprocess.run(f"{told}\n{command}", shell=True, stdout=subprocess.PIPE, text=True, errors="replace")
    seconds = round(time.monotonic() - start, 3)
    if done.returncode:
        raise QualityError(f"the check failed with status {done.returncode}; {model.partition('@')[0]} has not moved")
    figures: Any = None
    lines = done.stdout[-MAX_OUTPUT:].strip().splitlines()
    try:
        figures = json.loads(lines[-1]) if lines else None
    except ValueError:
        figures = None
    return Check(command, seconds, figures if isinstance(figures, dict) else {})


def record(
    settings: DeploymentSettings,
    server: AdapterServer,
    action: str,
    name: str,
    before: Mapping[str, Any] | None,
    check: Check | None,
) -> dict[str, Any]:
    """Append what was done to the history. → the line"""
    now = server.find(name) or {}
    line = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "who": f"{getpass.getuser()}@{socket.gethostname()}",
        "action": action,
        "name": name,
        "url": settings.url,
        "path": now.get("root"),
        "digest": now.get("digest"),
        "previous_path": None if before is None else before.get("root"),
        "previous_digest": None if before is None else before.get("digest"),
        "check": None if check is None else check.command,
        "check_seconds": None if check is None else check.seconds,
        "figures": {} if check is None else dict(check.figures),
    }
    try:
        with settings.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise OutputError(f"done, but {settings.history} cannot be written: {error.strerror or error}") from error
    return line


def read_history(path: Path, name: str | None = None) -> list[dict[str, Any]]:
    """The lines of the history, of one adapter or of all. ConfigError names a line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    found = []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(line, dict):
            raise ConfigError(f"{path}, line {number}: a JSON object is needed")
        if name in (None, line.get("name")):
            found.append(line)
    return found
