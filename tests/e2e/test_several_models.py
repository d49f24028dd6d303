"""`pagoda serve A B C`: three models, two in memory, under load, with one of them killed."""

from __future__ import annotations

import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Process, wait_for

NAMES = ("a", "b", "c")
ADMIN = {"Authorization": "Bearer admin"}


@pytest.fixture
def models(default_model: Path, tmp_path: Path) -> list[Path]:
    """Three of them, which are the same."""
    paths = [tmp_path / f"{name}.gguf" for name in NAMES]
    for path in paths:
        path.symlink_to(default_model)
    return paths


def wait_ready(server: Process) -> None:
    """It listens first, and answers when it has looked at its models."""
    server.wait_ready()
    wait_for(lambda: server.client.get("/ready").is_success)


def states(server: Process) -> dict[str, str]:
    return {one["id"]: one["status"]["value"] for one in server.client.get("/v1/models").json()["data"]}


def is_running(pid: int) -> bool:
    """Also false of a process that has ended, and that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(server: Process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.popen.pid}/task/{server.popen.pid}/children").read_text().split()]


def ask(server: Process, name: str) -> httpx.Response:
    body = {"model": name, "prompt": "Once upon a time", "max_tokens": 3, "temperature": 0}
    return server.client.post("/v1/completions", json=body)


def live_state(server: Process, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = server.client.get("/live/state", params={"model": name}, headers=ADMIN).json()
    return shown


def test_three_models_in_room_for_two(models: list[Path], tmp_path: Path) -> None:
    flags = (*map(str, models[1:]), "--models-max", "2", "--admin-key", "admin", "--kv-memory", "64MiB")
    server = Process(models[0], tmp_path / "log", *flags)
    try:
        wait_ready(server)
        assert states(server) == dict.fromkeys(NAMES, "unloaded")
        first = ask(server, "a").json()["choices"][0]["text"]
        order = random.Random(1).choices(NAMES, k=40)
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda name: ask(server, name), order))
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["choices"][0]["text"] for answer in answers} == {first}
        assert sorted(states(server).values()) == ["loaded", "loaded", "unloaded"]

        loaded = [name for name, state in states(server).items() if state == "loaded"]
        for pid in children(server):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: "is started again" in server.log.read_text())
        assert {ask(server, name).status_code for name in loaded} == {200}

        assert ask(server, "nobody").status_code == 404
        assert server.client.post("/v1/models/unload", json={"model": loaded[0]}).status_code == 403
        server.client.post("/v1/models/unload", json={"model": loaded[0]}, headers=ADMIN).raise_for_status()
        assert states(server)[loaded[0]] == "unloaded"
        # the server waits for a model's own figures for two seconds, and goes on without them
        series = f'pagoda_kv_blocks_total{{model_name="{loaded[1]}"}}'
        wait_for(lambda: series in server.client.get("/metrics").text)
        shown = wait_for(lambda: state if "sentence" in (state := live_state(server, loaded[1])) else {})
        assert shown["model"] == loaded[1]
        assert [one["chosen"] for one in shown["models"]] == [name == loaded[1] for name in NAMES]
        assert "facts" not in live_state(server, loaded[0])
        assert server.client.get("/live/state").status_code == 403
        pids = children(server)
        server.popen.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0
        assert not any(map(is_running, pids))
    finally:
        server.client.close()
        server.popen.kill()
        server.popen.wait()


def test_no_model_outlives_its_server(models: list[Path], tmp_path: Path) -> None:
    server = Process(models[0], tmp_path / "log", str(models[1]), "--kv-memory", "64MiB")
    try:
        wait_ready(server)
        answer = ask(server, "a")
        assert answer.status_code == 200, answer.text
        pids = children(server)
        assert len(pids) == 1
    finally:
        server.client.close()
        server.popen.kill()
        server.popen.wait()
    wait_for(lambda: not any(map(is_running, pids)))


def test_a_model_that_is_not_there_is_said_to_be(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    server = Process(models[0], tmp_path / "log", str(tmp_path / "broken.gguf"), "--kv-memory", "64MiB")
    try:
        wait_ready(server)
        answer = ask(server, "broken")
        assert answer.status_code == 503
        assert "cannot be loaded" in answer.text
        assert "broken.gguf" in answer.text
        assert ask(server, "a").status_code == 200
    finally:
        server.client.close()
        server.popen.kill()
        server.popen.wait()
