"""Where bodies are read: the longer one is, the further from the event loop.

    up to INLINE_BYTES     at once, on the loop: a few milliseconds; but no conversation, which a template renders
    up to THREAD_BYTES     in a thread, sharing the interpreter with the loop and the engine
    up to PROCESS_BYTES    in a process of their own, one after the other
    beyond                 in a second such process, so that the longest keep nobody else waiting

A process starts with the first body that needs it and ends after IDLE_S without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import socket
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pagoda.server.failures import DescribedError, error_body
from pagoda.server.reader_process import LENGTH, length, pack
from pagoda.server.reading import Reader, ReaderLimits, TextLoader

logger = logging.getLogger("pagoda.server")

INLINE_BYTES = 2 * 1024
THREAD_BYTES = 32 * 1024
PROCESS_BYTES = 512 * 1024
NUM_THREADS = 2
TEXT_KINDS = ("completion", "detokenize", "llama_completion", "infill")  # of bodies that hold no conversation
IDLE_S = 60.0
STREAM_BYTES = 1024 * 1024
PIECE_BYTES = 128 * 1024
START_S = 60.0
READ_S = 60.0  # for one body; then the process is ended

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# A process for reading gets its end of a socket as a file descriptor, and looks for modules where this one does.
BOOT = "import sys; sys.path[:] = sys.argv[2:]; from pagoda.server.reader_process import main; main(int(sys.argv[1]))"


class Readers:
    """Reads bodies for one model, each in its place. Used on one event loop at a time."""

    def __init__(self, reader: Reader, load_text: TextLoader, limits: ReaderLimits) -> None:
        """`load_text` makes the tokenizer and template again, in another process: it is pickled."""
        self._reader = reader
        self._threads = ThreadPoolExecutor(NUM_THREADS, "pagoda-read")
        self._rendering = ThreadPoolExecutor(NUM_THREADS, "pagoda-render")  # they wait while templates run
        self._lanes = (Lane(load_text, limits), Lane(load_text, limits))

    async def read(self, kind: str, data: bytes) -> Any:
        """What `Reader.read` returns. Raises what it raises, or a DescribedError in its place."""
        renders = kind not in TEXT_KINDS
        if len(data) <= INLINE_BYTES and not renders:
            return self._reader.read(kind, data)
        if len(data) <= THREAD_BYTES:
            threads = self._rendering if renders else self._threads
            return await asyncio.get_running_loop().run_in_executor(threads, self._reader.read, kind, data)
        return await self._lanes[len(data) > PROCESS_BYTES].read(kind, data)

    def close(self) -> None:
        """End the processes. Whoever waits for them gets an error."""
        self._threads.shutdown(wait=False)
        self._rendering.shutdown(wait=False)
        for lane in self._lanes:
            lane.close()


@dataclass(slots=True)
class Job:
    """A body that waits to be read."""

    kind: str
    data: bytes
    result: asyncio.Future[Any]


class Lane:
    """One process that reads bodies, those that came first first. Started when needed, ended when idle."""

    def __init__(self, load_text: TextLoader, limits: ReaderLimits) -> None:
        self._setup = (load_text, limits)
        self._jobs: deque[Job] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()

    async def read(self, kind: str, data: bytes) -> Any:
        """Raises DescribedError. Whoever is cancelled while waiting gives up its place."""
        loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.done() or self._worker.get_loop() is not loop:
            self._arrived = asyncio.Event()
            self._jobs.clear()
            self._worker = loop.create_task(self._work())
        job = Job(kind, data, loop.create_future())
        self._jobs.append(job)
        self._arrived.set()
        return await job.result

    def close(self) -> None:
        if self._worker is not None and not self._worker.get_loop().is_closed():
            self._worker.cancel()

    async def _work(self) -> None:
        """Read what waits, until nothing has come for a while."""
        process: ReaderProcess | None = None
        try:
            while await self._wait():
                job = self._jobs.popleft()
                if job.result.done():  # its client has gone
                    continue
                try:
                    if process is None:
                        process = await asyncio.wait_for(ReaderProcess.start(self._setup), START_S)
                    outcome = await asyncio.wait_for(process.exchange(job.kind.encode(), job.data), READ_S)
                except Exception as error:
                    logger.warning("a process that reads bodies has ended", exc_info=error)
                    outcome = _broken(error)
                    if process is not None:
                        process.close()
                    process = None
                _settle(job, outcome)
        finally:
            if process is not None:
                process.close()
            while self._jobs:
                _settle(self._jobs.popleft(), _broken(None))

    async def _wait(self) -> bool:
        """Whether a job has come, or does within IDLE_S."""
        self._arrived.clear()
        if not self._jobs:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), IDLE_S)
        return bool(self._jobs)


class ReaderProcess:
    """This end of a process that reads."""

    def __init__(self, popen: subprocess.Popen[bytes], streams: Streams) -> None:
        self._popen = popen
        self._reader, self._writer = streams

    @classmethod
    async def start(cls, setup: tuple[TextLoader, ReaderLimits]) -> ReaderProcess:
        """A process that has taken in its setup."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", BOOT, str(theirs.fileno()), *sys.path]
            popen = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        ours.setblocking(False)
        try:
            process = cls(popen, await asyncio.open_connection(sock=ours, limit=STREAM_BYTES))
        except BaseException:
            popen.kill()
            popen.wait()
            ours.close()
            raise
        try:
            await process.exchange(pack(setup))
        except BaseException:
            process.close()
            raise
        return process

    async def exchange(self, *parts: bytes) -> Any:
        """The process's answer to what is sent. A long part goes bit by bit: no copy of the whole is made."""
        for part in parts:
            self._writer.write(length(part))
            for start in range(0, len(part), PIECE_BYTES):
                self._writer.write(memoryview(part)[start : start + PIECE_BYTES])
                await self._writer.drain()
        size = int.from_bytes(await self._reader.readexactly(LENGTH), "little")
        return pickle.loads(await self._reader.readexactly(size))

    def close(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._writer.close()


def _settle(job: Job, outcome: Any) -> None:
    if job.result.done():
        return
    if isinstance(outcome, DescribedError):
        job.result.set_exception(outcome)
    else:
        job.result.set_result(outcome)


def _broken(error: Exception | None) -> DescribedError:
    """The answer when the process did not give one."""
    late = isinstance(error, (TimeoutError, asyncio.TimeoutError))
    message = f"the request could not be read within {READ_S:g} s" if late else "the request could not be read"
    return DescribedError(503, error_body(message, 503, code="unreadable"), {"Retry-After": "1"})
