"""`pagoda generate`: answer a file of prompts into another, many at once; interrupted, it goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from zlib import crc32

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pagoda.cli.batch_file import Task, read_tasks, record_of, repair
from pagoda.cli.endpoint import open_endpoints, served_model
from pagoda.cli.options import with_settings
from pagoda.cli.stopped import GOES_ON, when_stopped
from pagoda.client import Endpoint, HttpError
from pagoda.config import EngineSettings
from pagoda.errors import ConfigError, EngineError, OutputError
from pagoda.settings import Setting, Settings

MAX_WAIT_S = 30.0  # between attempts at a server whose queue is full
SHOWN_FAILURES = 5  # of which the terminal says why; the output says it of all
WINDOW = 4  # with --ordered, finished answers that wait for an earlier one: this many times the concurrency


@dataclass(frozen=True, slots=True)
class GenerateSettings(Settings):
    """Flags of `pagoda generate`."""

    table = "generate"

    max_tokens: Annotated[int, Setting("Longest answer, for lines that do not say.", minimum=1)] = 256
    temperature: Annotated[float | None, Setting("For lines that do not say; 1 by default.", minimum=0)] = None
    concurrency: Annotated[
        int | None, Setting("Prompts in flight; one and a half times --max-num-seqs by default.", minimum=1)
    ] = None
    ordered: Annotated[bool, Setting("Write answers in the order of the prompts.")] = False
    url: Annotated[str | None, Setting("Ask this server instead of loading a model.")] = None
    api_key: Annotated[str | None, Setting("Key to send to the server.")] = None


@with_settings
def generate(
    source: Annotated[Path, typer.Argument(help="JSONL file of prompts; - for standard input.", metavar="INPUT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSONL file of answers.", metavar="FILE")],
    engine: EngineSettings,
    generate: GenerateSettings,
) -> None:
    """Answer a JSONL file of prompts into another.

    A line is {"id": ..., "prompt": ...} or {"id": ..., "messages": [...]} with any fields of the API besides, or a
    line of OpenAI's batch format. Answers come as they finish, each with the id of its prompt.

    Prompts whose id OUTPUT holds already are skipped: run the same command again after an interruption. Lines that
    fail get an error record, and the exit status is 1.
    """
    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigError(f"--output: {output} is the input")
    done = repair(output)
    defaults: dict[str, Any] = {"max_tokens": generate.max_tokens, "temperature": generate.temperature}
    defaults = {name: value for name, value in defaults.items() if value is not None}
    model = served_model(generate.url, generate.api_key, engine.model)
    concurrency = generate.concurrency or engine.num_seqs * 3 // 2
    with (
        _reading(source) as file,
        _writing(output) as out,
        open_endpoints(engine, generate.url, generate.api_key) as open_endpoint,
        _progress(_count_lines(source)) as tally,
    ):
        tasks = _without_done(read_tasks(file, defaults), done, tally)
        run = Run(open_endpoint, model, concurrency, generate.ordered, engine.seed)
        with when_stopped(GOES_ON):
            asyncio.run(_write_all(run, tasks, out, tally))
    if tally.failed:
        for reason in tally.reasons:
            typer.echo(reason, err=True)
        more = tally.failed - len(tally.reasons)
        rest = f"{more} more failed; " if more else ""
        typer.echo(f"{rest}{output} says why: take their lines out of it, and the same command asks again", err=True)
        raise typer.Exit(1)


@dataclass(slots=True)
class Tally:
    """What the progress bar shows and the last line says."""

    show: Callable[[Tally], None]
    skipped: int = 0
    answered: int = 0
    failed: int = 0
    tokens: int = 0
    reasons: list[str] = field(default_factory=list)  # why the first that failed did
    start: float = field(default_factory=time.perf_counter)

    def count(self, record: Mapping[str, Any]) -> None:
        body = record["response"]["body"] if "response" in record else record
        failed = bool(body.get("error"))
        self.failed += failed
        if failed and self.failed <= SHOWN_FAILURES:
            id = record.get("custom_id", record["id"])
            self.reasons.append(f"{id!r} failed: {body['error']['message']}")
        self.answered += not failed
        self.tokens += 0 if failed else body["usage"]["completion_tokens"]
        self.show(self)

    def skip(self) -> None:
        self.skipped += 1
        self.show(self)

    def __str__(self) -> str:
        speed = f"{self.tokens / (time.perf_counter() - self.start):.1f} tokens/s"
        parts = [f"{self.answered} answered", f"{self.tokens} tokens", speed]
        parts += [f"{self.skipped} were there already"] if self.skipped else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join(parts)


@dataclass(slots=True)
class Run:
    """Asks for tasks, at most `concurrency` at once. With `ordered`, records come in the order of the tasks."""

    open_endpoint: Callable[[], Endpoint]
    model: str | None
    concurrency: int
    ordered: bool
    seed: int = 0  # of lines that bring none: with the same, a line is answered the same
    _idle: deque[Endpoint] = field(init=False, default_factory=deque)

    async def records(self, tasks: Iterable[Task]) -> AsyncIterator[dict[str, Any]]:
        """A record for each task. Raises EngineError or OSError when there is nobody left to ask."""
        slots = asyncio.Semaphore(self.concurrency)
        window = self.concurrency * (WINDOW if self.ordered else 1)
        pending: deque[asyncio.Task[dict[str, Any]]] = deque()
        waiting = iter(tasks)
        try:
            while True:
                while len(pending) < window and (task := next(waiting, None)) is not None:
                    pending.append(asyncio.create_task(self._record(task, slots)))
                if not pending:
                    return
                for finished in await self._finished(pending):
                    yield finished.result()
        finally:
            for unfinished in pending:
                unfinished.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            for endpoint in self._idle:
                endpoint.close()

    async def _finished(self, pending: deque[asyncio.Task[dict[str, Any]]]) -> list[asyncio.Task[dict[str, Any]]]:
        """Wait for what may be written next, and take it off `pending`."""
        if self.ordered:
            await asyncio.wait([pending[0]])
            return [pending.popleft()]
        finished, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            pending.remove(task)
        return list(finished)

    async def _record(self, task: Task, slots: asyncio.Semaphore) -> dict[str, Any]:
        if task.error is not None:
            error = {"message": task.error, "type": "invalid_request_error", "param": None, "code": "invalid_line"}
            return record_of(task, 400, {"error": error})
        async with slots:
            endpoint = self._idle.pop() if self._idle else self.open_endpoint()
            try:
                return record_of(task, *await self._ask(endpoint, task))
            finally:
                self._idle.append(endpoint)

    async def _ask(self, endpoint: Endpoint, task: Task) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer. A full queue is waited for."""
        model = {"model": self.model} if self.model else {}
        body = orjson.dumps({"seed": crc32(f"{self.seed} {task.id}".encode()), **task.body, **model})
        while True:
            try:
                return 200, orjson.loads(await endpoint.post(task.path, body))
            except HttpError as error:
                if error.status == 429:
                    await asyncio.sleep(min(error.retry_after or 1.0, MAX_WAIT_S))
                elif error.status is None or error.status >= 500:
                    raise EngineError(f"stopped at {task.id!r}: {error}; the same command goes on from there") from None
                else:
                    return error.status, _error_body(error)


def _error_body(error: HttpError) -> dict[str, Any]:
    """OpenAI's error object, made up where a server answers otherwise."""
    with contextlib.suppress(orjson.JSONDecodeError):
        body = orjson.loads(error.body)
        if isinstance(body, dict) and isinstance(body.get("error"), dict):
            return body
    return {"error": {"message": str(error), "type": "server_error", "param": None, "code": None}}


async def _write_all(run: Run, tasks: Iterable[Task], out: BinaryIO, tally: Tally) -> None:
    async for record in run.records(tasks):
        _write(out, orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        tally.count(record)


def _write(out: BinaryIO, line: bytes) -> None:
    """All of the line, past no buffer: what is torn off is removed by the next run (`batch_file.repair`)."""
    try:
        while line:
            line = line[out.write(line) :]
    except OSError as error:
        message = f"cannot write {out.name}: {error.strerror}; make room, and the same command goes on from there"
        raise OutputError(message) from None


def _without_done(tasks: Iterable[Task], done: set[str | int], tally: Tally) -> Iterator[Task]:
    for task in tasks:
        if task.id in done:
            tally.skip()
        else:
            yield task


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[BinaryIO]:
    if str(source) == "-":
        yield sys.stdin.buffer
        return
    with _opened(source, "rb") as file:
        yield file


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[BinaryIO]:
    with _opened(output, "ab", buffering=0) as file:
        yield file


def _opened(path: Path, mode: str, buffering: int = -1) -> Any:
    try:
        return path.open(mode, buffering)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _count_lines(source: Path) -> int | None:
    """Lines that are not blank; None for standard input."""
    if str(source) == "-":
        return None
    with _opened(source, "rb") as file:
        return sum(1 for line in file if line.strip())


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Tally]:
    """A tally on a progress bar, on standard error."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[says]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        job = bar.add_task("", total=total, says="")

        def show(tally: Tally) -> None:
            bar.update(job, completed=tally.answered + tally.failed + tally.skipped, says=str(tally))

        tally = Tally(show)
        try:
            yield tally
        finally:
            bar.stop()
            console.print(str(tally), highlight=False)
