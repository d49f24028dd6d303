"""`pagoda serve` as a child process: started, heard until it listens, told to end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from pagoda.config import child_environment
from pagoda.errors import EngineError
from pagoda.server.logs import request_id

logger = logging.getLogger("pagoda.models")

LINE_BYTES = 1 << 20
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_PR_SET_PDEATHSIG = 1


class ServeProcess:
    """One model's server on a free port of this machine. Its log lines become ours, with `model` in them."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.last_words = ""  # of an error
        self._process = process
        self._url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen())
        self.ended = asyncio.create_task(self._wait())

    @classmethod
    async def start(cls, name: str, flags: Sequence[str], secrets: Mapping[str, str]) -> ServeProcess:
        """`flags` follow `pagoda serve`; `secrets` are set in its environment. Raises OSError."""
        given = ["--port", "0", "--host", "127.0.0.1", "--log-format", "json", "--served-model-name", name]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pagoda", "serve", *flags, *given, "--config", os.devnull,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(secrets),
            limit=LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for us: we tell our models
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        return cls(name, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def url(self) -> str:
        """Where it listens, once its model is loaded. EngineError, with its last words: it has ended before."""
        either: list[asyncio.Future[Any]] = [self._url, self.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._url.done():
            await self._listening
            raise EngineError(self.last_words or f"its process ended with status {self._process.returncode}")
        return self._url.result()

    async def stop(self, seconds: float) -> None:
        """Ask it to end, and make it after so long. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        done, _ = await asyncio.wait([self.ended], timeout=seconds)
        if not done:
            self.kill()
            await self.ended

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _wait(self) -> int:
        return await self._process.wait()

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        request_id.set(None)  # it outlives the request that it was started for
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # longer than LINE_BYTES: it is dropped, so that the process can write on
                continue
            if not line:
                return
            self._hear(line.decode(errors="replace").rstrip())

    def _hear(self, line: str) -> None:
        try:
            told = orjson.loads(line)
            message, level = str(told.pop("message")), LEVELS.get(told.pop("level"), logging.INFO)
        except (orjson.JSONDecodeError, KeyError, AttributeError, TypeError):
            if line:
                self.last_words = line.removeprefix("error: ")
                logger.warning(line, extra={"facts": {"model": self.name}})
            return
        if message == "listening" and not self._url.done():
            self._url.set_result(str(told["url"]))
        if message == "request" and level == logging.INFO:  # of which there is a line of ours
            return
        facts = {key: value for key, value in told.items() if key not in ("time", "logger", "request_id")}
        logger.log(level, message, extra={"facts": facts | {"model": self.name}})


def _end_with_parent() -> None:
    """In the child: SIGTERM when the parent is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
