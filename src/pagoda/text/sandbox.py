"""Chat templates are programs that come with model files. They run in processes of their own, which can be ended.

Whatever a template does, it gets a budget: steps, computing time, memory and output. `sandbox_process.py` is the other
end. A process is started once and kept; one that overdraws its budget is ended, and another takes its place.
"""

from __future__ import annotations

import atexit
import json
import marshal
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from typing import Any

from pagoda.errors import EngineError

MAX_CHARS = 16 * 1024 * 1024  # of one rendered prompt, whatever the context: twice the largest request body
CHARS_PER_TOKEN = 16  # of a context: a few times as many as tokens have
GROWTH = 4  # characters of output for each byte of the input, which also buys a step
HEADER = 9  # bytes before each message: what it is, and how long
READY, TEXT, ERROR, OVERDRAWN = b"R", b"T", b"E", b"B"
NUM_PROCESSES = 2  # of this program; more renderings at once wait
START_S = 60.0
PATIENCE_S = 0.1  # then a rendering is slow, and gives way to others
NICENESS = 10

# The process gets its end of a socket as a file descriptor, and looks for modules where this one does.
BOOT = "import sys; sys.path[:] = sys.argv[2:]; from pagoda.text.sandbox_process import main; main(int(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Budget:
    """What one rendering may take."""

    steps: int = 100_000  # rounds of loops and calls of macros, besides what grows with the input
    cpu_s: float = 1.0  # of computing
    wall_s: float = 10.0  # of waiting for it, on a machine that has other things to do
    memory: int = 256 * 1024 * 1024  # bytes beyond what the process has when it starts
    chars: int = CHARS_PER_TOKEN * 32_768  # of output, besides what grows with the input

    @classmethod
    def of_context(cls, num_tokens: int | None) -> Budget:
        """The budget for a model with so many tokens of context; None: it is not known."""
        return cls() if num_tokens is None else cls(chars=CHARS_PER_TOKEN * num_tokens)


class TemplateError(Exception):
    """The template raised something, or does not parse: `line` is where, then."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class OverdrawnError(TemplateError):
    """The template overdrew its budget."""


def start() -> None:
    """Have a process ready for the first rendering, without waiting for it."""
    _SHARED.start()


def check(source: str, budget: Budget) -> None:
    """Raises TemplateError for a template that does not parse, OverdrawnError for one that takes too long to."""
    _SHARED.ask(source, None, budget)


def render(source: str, variables: Mapping[str, Any], budget: Budget) -> str:
    """The text that a template makes of the variables, which are data as JSON knows them.

    Waits for the process; safe to call from several threads at once. Raises TemplateError.
    """
    data = _dumps(variables)
    chars = min(budget.chars + GROWTH * len(data), MAX_CHARS)
    return _SHARED.ask(source, data, replace(budget, chars=chars, steps=budget.steps + len(data)))


class Sandbox:
    """The processes that render, started when they are needed."""

    def __init__(self, size: int = NUM_PROCESSES) -> None:
        self._free = threading.Semaphore(size)
        self._idle: list[TemplateProcess] = []

    def start(self) -> None:
        """Have a process ready, without waiting for it."""
        if not self._idle:
            self._idle.append(TemplateProcess())

    def ask(self, source: str, variables: bytes | None, budget: Budget) -> str:
        """What a process makes of a template. Raises TemplateError."""
        request = marshal.dumps((source, variables, astuple(budget)))
        with self._free:
            process = self._take()
            try:
                kind, answer = process.ask(request, budget)
                process.is_spent |= kind == OVERDRAWN
            except BaseException:
                process.is_spent = True
                raise
            finally:
                if process.is_spent:
                    process.end()
                    process = TemplateProcess()
                self._idle.append(process)
        text = answer.decode("utf-8", "surrogatepass")
        if kind == TEXT:
            return text
        error = json.loads(text)
        raise (OverdrawnError if kind == OVERDRAWN else TemplateError)(error["message"], error["line"])

    def close(self) -> None:
        """End the processes that have nothing to do."""
        while self._idle:
            self._idle.pop().end()

    def _take(self) -> TemplateProcess:
        while self._idle:
            with suppress(IndexError):  # another thread was quicker
                process = self._idle.pop()
                if process.is_ours:
                    return process
        return TemplateProcess()


class TemplateProcess:
    """A process that renders one template after the other."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-c", BOOT, str(fd), *sys.path]
            try:
                self._process = subprocess.Popen(
                    command, pass_fds=[fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
                )
            except OSError as error:
                self._socket.close()
                raise EngineError(f"the process that renders chat templates does not start: {error}") from error
        self._parent = os.getpid()
        self._is_ready = False
        self.is_spent = False  # it is not to be asked again

    @property
    def is_ours(self) -> bool:
        """Whether this program started it, and not one that this is a fork of."""
        return self._parent == os.getpid()

    def ask(self, request: bytes, budget: Budget) -> tuple[bytes, bytes]:
        """→ (what the answer is, the answer). Raises OverdrawnError when there is none."""
        try:
            if not self._is_ready:
                self._receive(1, time.monotonic() + START_S)
                self._is_ready = True
            deadline = time.monotonic() + budget.wall_s
            self._send(TEXT + len(request).to_bytes(HEADER - 1, "little") + request, deadline)
            header = self._first_answer(deadline)
            size = int.from_bytes(header[1:], "little")
            if size > max(4 * budget.chars, 1 << 16):
                raise OverdrawnError(f"it makes {size} bytes")
            return header[:1], self._receive(size, deadline)
        except TimeoutError:
            raise OverdrawnError(f"it takes longer than {budget.wall_s:g} s") from None
        except OSError:
            raise OverdrawnError(self._why_ended(budget)) from None

    def end(self) -> None:
        """End the process, whatever it does."""
        self._socket.close()
        if self.is_ours:
            self._process.kill()
            self._process.wait()

    def _first_answer(self, deadline: float) -> bytes:
        """The header of the answer. A process that takes long for it runs at a lower priority from then on."""
        with suppress(TimeoutError):
            return self._receive(HEADER, min(time.monotonic() + PATIENCE_S, deadline))
        self.is_spent = True
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
        return self._receive(HEADER, deadline)

    def _why_ended(self, budget: Budget) -> str:
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the process that renders it no longer answers"
        if code == -signal.SIGPROF:
            return f"it takes more than {budget.cpu_s:g} s of computing"
        return f"the process that renders it ended with code {code}"

    def _send(self, data: bytes, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        self._socket.sendall(data)

    def _receive(self, size: int, deadline: float) -> bytes:
        """The next `size` bytes. Raises TimeoutError, ConnectionError at their end."""
        data = bytearray(size)
        view, num_received = memoryview(data), 0
        while num_received < size:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            received = self._socket.recv_into(view[num_received:])
            if not received:
                raise ConnectionError("the other end is closed")
            num_received += received
        return bytes(data)


def _dumps(value: Any) -> bytes:
    try:
        return marshal.dumps(value)
    except ValueError:  # values of other than Python's own types
        pass
    try:
        return marshal.dumps(_plain(value))
    except ValueError as error:
        raise TemplateError(f"what it is given is no data: {error}") from error


def _plain(value: Any) -> Any:
    """The value out of Python's own types: marshal knows no others, and the process has no modules for them."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    for kind, base in ((bool, bool), (str, str), (int, int), (float, float)):
        if isinstance(value, kind):
            return base(value)
    return value


_SHARED = Sandbox()
atexit.register(_SHARED.close)
