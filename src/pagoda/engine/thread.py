"""The engine on a thread of its own: requests go in through a queue, deltas come out through each one's sink."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from pagoda.errors import EngineError
from pagoda.types import Delta, Request, StepResult

log = logging.getLogger(__name__)

Sink = Callable[[Delta], None]
T = TypeVar("T")


class Stepped(Protocol):
    """An `Engine`, or what is stepped like one."""

    @property
    def has_work(self) -> bool: ...

    def validate(self, request: Request) -> Request: ...

    def enter(self, request: Request) -> None: ...

    def abort(self, request_id: str) -> bool: ...

    def step(self) -> StepResult: ...


@dataclass(frozen=True, slots=True)
class _Submission:
    request: Request
    sink: Sink


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class _Question(Generic[T]):
    """What another thread wants to know of the engine."""

    def __init__(self, question: Callable[[Any], T]) -> None:
        self._question = question
        self.answer: Future[T] = Future()

    def put_to(self, engine: Stepped) -> None:
        if self.answer.set_running_or_notify_cancel():
            try:
                self.answer.set_result(self._question(engine))
            except Exception as error:
                self.answer.set_exception(error)

    def refuse(self, why: str) -> None:
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(EngineError(why))


class EngineThread:
    """Steps the engine while there is work, and sleeps while there is none.

    Sinks and `on_step` observers are called on the engine thread, the sinks of a step before its observers: they
    must be quick and must not block. What an answer tells of its own step is noted by `before_sinks`.
    """

    def __init__(self, engine: Stepped) -> None:
        self.engine = engine
        self.before_sinks: list[Callable[[StepResult], None]] = []
        self.on_step: list[Callable[[StepResult], None]] = []
        self.error: BaseException | None = None
        self._inbox: SimpleQueue[_Submission | _Abort | _Question[Any] | None] = SimpleQueue()  # None: wake up
        self._sinks: dict[str, tuple[Sink, set[int]]] = {}  # by request: sink, choices that have not ended
        self._refused = False  # since the last step; observers have to hear of it
        self._draining = False
        self._stopping = False
        self._idle = threading.Condition()
        self._num_pending = 0  # requests submitted and not ended, guarded by _idle
        self._thread = threading.Thread(target=self._main, name="pagoda-engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it steps the engine: started, and neither stopped nor broken."""
        return self._thread.is_alive() and self.error is None and not self._stopping

    @property
    def num_pending(self) -> int:
        """Requests submitted and not ended."""
        return self._num_pending

    def start(self) -> None:
        self._thread.start()

    def validate(self, request: Request) -> Request:
        """The request as `submit` takes it. Raises RequestError where it cannot be served."""
        return self.engine.validate(request)

    def submit(self, request: Request, sink: Sink) -> None:
        """Continue the prompt of a request that `validate` returned.

        `sink` gets a Delta a step and choice, the last with a finish_reason. Raises EngineError where the engine has
        stopped.
        """
        with self._idle:
            if self.error is not None:
                raise EngineError(f"the engine has stopped: {self.error}")
            if self._draining or self._stopping:
                raise EngineError("the engine is shutting down and takes no more requests")
            if not self._thread.is_alive():
                raise EngineError("the engine is not running: it was not started")
            self._num_pending += 1
            self._inbox.put(_Submission(request, sink))

    def abort(self, request_id: str) -> None:
        """End the request, before the next step; its sink gets a last Delta. Unknown ids are ignored."""
        self._inbox.put(_Abort(request_id))

    def ask(self, question: Callable[[Any], T]) -> Future[T]:
        """Call `question` with the engine, on its thread between two steps, where all is whole. It must be quick."""
        asked = _Question(question)
        with self._idle:
            if self.alive:
                self._inbox.put(asked)
            else:
                asked.refuse("the engine does not run")
        return asked.answer

    def drain(self) -> None:
        """Refuse new work from now on; what runs goes on. `wait_idle` tells when it is done."""
        with self._idle:
            self._draining = True

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until no request is left. → False: there still are some after `timeout` seconds"""
        with self._idle:
            return self._idle.wait_for(lambda: self._num_pending == 0, timeout)

    def stop(self, timeout: float | None = 0.0) -> None:
        """Refuse new work, give what runs `timeout` seconds (None: all it needs), abort the rest, end the thread."""
        self.drain()
        if self._thread.is_alive():
            self.wait_idle(timeout)
        with self._idle:
            self._stopping = True
        self._inbox.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    # On the engine thread

    def _main(self) -> None:
        try:
            while not self._stopping:
                self._drain_inbox()
                if (self.engine.has_work or self._refused) and not self._stopping:
                    self._publish(self.engine.step())
            for request_id in list(self._sinks):
                self.engine.abort(request_id)
            self._publish(self.engine.step())
        except BaseException as error:
            log.exception("the engine has stopped")
            self.error = error
        finally:
            self._end_all()

    def _drain_inbox(self) -> None:
        """Apply what other threads asked for; without work, wait until they ask."""
        try:
            self._apply(self._inbox.get(block=not self.engine.has_work))
            while True:
                self._apply(self._inbox.get_nowait())
        except Empty:
            pass

    def _apply(self, message: _Submission | _Abort | _Question[Any] | None) -> None:
        if isinstance(message, _Abort):
            self.engine.abort(message.request_id)
        elif isinstance(message, _Question):
            message.put_to(self.engine)
        elif message is not None:
            try:
                self.engine.enter(message.request)
            except Exception as error:  # only of this request: the engine takes it whole or not at all
                self._refuse(message, str(error))
            else:
                self._sinks[message.request.id] = (message.sink, set(range(message.request.params.n)))

    def _refuse(self, submission: _Submission, why: str) -> None:
        for index in range(submission.request.params.n):
            self._call(submission.sink, Delta(submission.request.id, index, "", (), finish_reason="error", error=why))
        self._refused = True
        self._forget_one()

    def _publish(self, result: StepResult) -> None:
        self._refused = False
        self._observe(self.before_sinks, result)
        for delta in result.deltas:
            self._deliver(delta)
        self._observe(self.on_step, result)

    def _observe(self, observers: list[Callable[[StepResult], None]], result: StepResult) -> None:
        for observer in observers:
            try:
                observer(result)
            except Exception:
                log.exception("a step observer failed")

    def _deliver(self, delta: Delta) -> None:
        sink, choices = self._sinks[delta.request_id]
        if not self._call(sink, delta):
            self.engine.abort(delta.request_id)
        if delta.finish_reason is not None:
            choices.discard(delta.index)
            if not choices:
                del self._sinks[delta.request_id]
                self._forget_one()

    def _call(self, sink: Sink, delta: Delta) -> bool:
        try:
            sink(delta)
        except Exception:
            log.exception("the sink of request %s failed", delta.request_id)
            return False
        return True

    def _forget_one(self) -> None:
        with self._idle:
            self._num_pending -= 1
            if self._num_pending == 0:
                self._idle.notify_all()

    def _end_all(self) -> None:
        """The last act: whoever still waits for a Delta gets one that says why there are no more."""
        with self._idle:
            self._stopping = True  # from here on, nothing is submitted
        why = f"the engine has stopped: {self.error}" if self.error is not None else "the engine has stopped"
        for request_id, (sink, choices) in self._sinks.items():
            for index in sorted(choices):
                self._call(sink, Delta(request_id, index, "", (), finish_reason="error", error=why))
            self._forget_one()
        self._sinks.clear()
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, _Submission):
                self._refuse(message, why)
            elif isinstance(message, _Question):
                message.refuse(why)
        self._publish(StepResult())  # observers that gather deltas pass the last ones on
