"""An engine without a model: it says the prompt back, byte by byte, so that servers can be tested in milliseconds.

Token ids are bytes; 256 begins and 257 ends a text. Output token t of choice c is prompt token (t + c) mod its length.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from pagoda.engine.adapters import AdapterStore
from pagoda.engine.validation import validate_request
from pagoda.errors import EngineError, FormatError, RequestError
from pagoda.text.framing import VectorTraits
from pagoda.types import (
    Delta,
    FinishedRequest,
    FinishReason,
    FloatArray,
    Logprob,
    PromptProgress,
    Request,
    SequenceWork,
    StepResult,
    TokenLogprobs,
    Usage,
)

BOS, EOS = 256, 257


class FakeTokenizer:
    """Bytes."""

    vocab_size = 258
    longest_token = 5
    bos_id, eos_id, eos_ids = BOS, EOS, frozenset({EOS})

    def encode(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        pieces = [list(piece) for piece in (data.split(b"<eos>") if parse_special else [data])]
        ids = [i for number, piece in enumerate(pieces) for i in ([EOS] if number else []) + piece]
        return [*([BOS] if add_special else []), *ids]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        return b"".join(self.token_bytes(i) for i in ids if i < 256 or not skip_special).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else {BOS: b"<bos>", EOS: b"<eos>"}[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id >= 256


class FakeTemplate:
    """role: content, a line each."""

    def __init__(self, source: str = "{{ messages }}") -> None:
        self.source = source

    def render_ids(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        encode: Callable[[str], list[int]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        if kwargs.get("fail"):
            raise RequestError("the template says no", param="messages")
        text = "\n".join(f"{message['role']}: {self._content(message['content'])}" for message in messages)
        text = text if continue_final_message else text + "\n" + "> " * add_generation_prompt
        return list(text.encode()) if encode is None else encode(text)

    def _content(self, content: Any) -> str:
        return "+".join(part["text"] for part in content) if isinstance(content, list) else content or ""


@dataclass
class Running:
    request: Request
    sink: Callable[[Delta], None]
    tokens: dict[int, list[int]] = field(default_factory=dict)  # of choices that go on
    held: dict[int, bytes] = field(default_factory=dict)  # bytes that are no whole character yet


class FakeEngine:
    """What the server needs of an EngineThread. `gate` stops it between steps; `step_s` is how long a step takes."""

    def __init__(self, step_s: float = 0.0, max_running: int = 64) -> None:
        self.before_sinks: list[Callable[[StepResult], None]] = []
        self.on_step: list[Callable[[StepResult], None]] = []
        self.error: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.step_s = step_s
        self.max_running = max_running
        self.max_context = 512
        self.submitted: list[Request] = []
        self.aborted: list[str] = []
        self.abort_steps: list[int] = []  # steps taken when each abort came
        self.num_steps = 0
        self.running: dict[str, Running] = {}
        self._waiting: list[Running] = []
        self._inbox: SimpleQueue[Running | str | None] = SimpleQueue()
        self._refusing = False
        self._thread = threading.Thread(target=self._main, daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.error is None

    def start(self) -> None:
        self._thread.start()

    def validate(self, request: Request) -> Request:
        return validate_request(request, FakeTokenizer.vocab_size, self.max_context)

    def submit(self, request: Request, sink: Callable[[Delta], None]) -> None:
        if self._refusing or not self.alive:
            raise EngineError("the engine is shutting down")
        tokens: dict[int, list[int]] = {index: [] for index in range(request.params.n)}
        self.submitted.append(request)
        self._inbox.put(Running(request, sink, tokens))

    def abort(self, request_id: str) -> None:
        self.abort_steps.append(self.num_steps)
        self._inbox.put(request_id)

    def ask(self, question: Callable[[Any], Any]) -> Future[Any]:
        """There is no engine to ask."""
        answer: Future[Any] = Future()
        answer.set_exception(EngineError("a fake has nothing to show"))
        return answer

    def drain(self) -> None:
        self._refusing = True

    def stop(self, timeout: float = 0.0) -> None:
        self._refusing = True
        self.gate.set()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(5)

    def die(self, error: BaseException) -> None:
        """As if a step had raised."""
        self.error = error

    def _main(self) -> None:
        while True:
            while not self._inbox.empty() or not (self.running or self._waiting):
                try:
                    message = self._inbox.get(timeout=1)
                except Empty:
                    continue
                if message is None:
                    return
                self._take(message)
            self.gate.wait()
            while not self._inbox.empty():
                message = self._inbox.get()
                if message is None:
                    return
                self._take(message)
            self._step()

    def _take(self, message: Running | str) -> None:
        if isinstance(message, Running):
            self._waiting.append(message)
            return
        self.aborted.append(message)
        gone = self.running.pop(message, None)
        self._waiting = [w for w in self._waiting if w.request.id != message]
        if gone is not None:
            now, prompt = time.monotonic(), len(gone.request.prompt_token_ids)
            times = (gone.request.arrival, gone.request.arrival, now, now)
            ended = FinishedRequest(message, "", "abort", prompt, len(gone.tokens.get(0, ())), 0, *times)
            for observe in (*self.before_sinks, *self.on_step):
                observe(StepResult(finished=(ended,), ended=now))
        for index in list(gone.tokens) if gone else []:
            gone.sink(Delta(message, index, "", (), finish_reason="abort"))

    def _step(self) -> None:
        time.sleep(self.step_s)  # without the GIL, as a native step is
        self.num_steps += 1
        while self._waiting and len(self.running) < self.max_running:
            running = self._waiting.pop(0)
            self.running[running.request.id] = running
        sinks = {id: running.sink for id, running in self.running.items()}
        work = tuple(self._work(running) for running in self.running.values())
        deltas = [
            delta
            for running in list(self.running.values())
            for index in list(running.tokens)
            for delta in [self._advance(running, index)]
        ]
        now = time.monotonic()
        finished = tuple(
            FinishedRequest(d.request_id, "", d.finish_reason, d.usage.prompt_tokens, d.usage.completion_tokens, 0,
                            now - 1, now - 0.9, now - 0.8, now)
            for d in deltas if d.finish_reason and d.usage
        )  # fmt: skip
        result = StepResult(
            deltas=tuple(deltas), finished=finished, num_running=len(self.running), num_waiting=len(self._waiting),
            num_generation_tokens=len(deltas), kv_blocks_total=100, kv_blocks_used=len(self.running),
            ttft_s=(0.01,), inter_token_s=(0.02,), work=work, step_s=self.step_s, ended=now,
        )  # fmt: skip
        for observe in self.before_sinks:
            observe(result)
        for delta in deltas:
            sinks[delta.request_id](delta)
        for observe in self.on_step:
            observe(result)

    def _advance(self, running: Running, index: int) -> Delta:
        request, tokens = running.request, running.tokens[index]
        params, prompt = request.params, request.prompt_token_ids
        first = not tokens
        token = prompt[(len(tokens) + index) % len(prompt)]
        tokens.append(token)
        limit = params.max_tokens or 64
        reason: FinishReason | None = "length" if len(tokens) >= limit else None
        text = self._text(running, index, token, last=reason is not None)
        stop = next((s for s in params.stop if s in text), None)
        stop_id = token if token in params.stop_token_ids else None
        if stop is not None or stop_id is not None:
            reason, text = "stop", "" if stop is not None else text
        if first and index == 0 and request.report_progress:
            running.sink(Delta(request.id, index, "", (), prompt_progress=PromptProgress(len(prompt), 1, 2, 0.25)))
        delta = Delta(
            request.id,
            index,
            text,
            (token,),
            logprobs=None if params.logprobs is None else (logprobs_of(token, params.logprobs, index),),
            finish_reason=reason,
            stop_reason=stop if stop is not None else stop_id,
            prompt_logprobs=self._prompt_logprobs(request) if first and params.prompt_logprobs is not None else None,
            usage=_usage(request, tokens) if reason else None,
        )
        if request.pooled:
            usage = Usage(len(prompt), 0, 0)
            delta = Delta(request.id, 0, "", (), finish_reason="stop", usage=usage, embedding=fake_vector(prompt))
        if reason:
            del running.tokens[index]
            if not running.tokens:
                del self.running[request.id]
        return delta

    def _work(self, running: Running) -> SequenceWork:
        """All prompt tokens in the first step, one token in each further one."""
        request, num_tokens = running.request, len(running.tokens.get(0, ()))
        num_prompt = 0 if num_tokens else len(request.prompt_token_ids)
        num_kv = len(request.prompt_token_ids) + num_tokens
        return SequenceWork(request.id, request.tenant, None, num_prompt, int(num_tokens > 0), 0, 0, num_kv)

    def _text(self, running: Running, index: int, token: int, *, last: bool) -> str:
        """Whole characters only."""
        data = running.held.pop(index, b"") + (bytes([token]) if token < 256 else b"")
        for keep in range(min(3, len(data)) + 1 if not last else 1):
            try:
                text = data[: len(data) - keep].decode()
            except UnicodeDecodeError:
                continue
            if keep:
                running.held[index] = data[-keep:]
            return text
        return data.decode("utf-8", "replace")

    def _prompt_logprobs(self, request: Request) -> tuple[TokenLogprobs | None, ...]:
        k = request.params.prompt_logprobs or 0
        return (None, *(logprobs_of(token, k) for token in request.prompt_token_ids[1:]))


def fake_vector(prompt: Sequence[int]) -> FloatArray:
    """Eight numbers of the prompt's tokens."""
    vector = np.zeros(8, np.float32)
    np.add.at(vector, np.array(prompt) % 8, 1.0)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def logprobs_of(token: int, k: int, choice: int = 0) -> TokenLogprobs:
    """The token is the likeliest; the next ids follow. Later choices are likelier."""
    top = [Logprob((token + i) % 258, -0.5 * (i + 1), i + 1) for i in range(k)]
    return TokenLogprobs(Logprob(token, -0.5 / (1 + choice), 1), tuple(top))


def fake_text() -> tuple[FakeTokenizer, FakeTemplate, None]:
    """As `pagoda.text.load.load_text` does for a model's files."""
    return FakeTokenizer(), FakeTemplate(), None


@dataclass(frozen=True)
class FakeAdapter:
    """What a model makes of an adapter: here, the content of its file."""

    content: bytes

    @property
    def bytes(self) -> int:
        return len(self.content)


def fake_adapter(path: Path) -> tuple[str, FakeAdapter]:
    """An adapter is any file that does not begin with "bad"."""
    content = path.read_bytes()
    if content.startswith(b"bad"):
        raise FormatError("it is bad", path=str(path))
    return hashlib.sha256(content).hexdigest(), FakeAdapter(content)


@dataclass
class FakeLoaded:
    """What `load_engine` would return."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    chat_template: FakeTemplate | None = field(default_factory=FakeTemplate)
    no_chat_reason: str | None = None
    load_text: Callable[[], Any] = fake_text
    model_name: str = "fake"
    max_context: int = 512
    traits: VectorTraits = field(default_factory=lambda: VectorTraits("embedding", 511, 8))
    cache_config: dict[str, str] = field(default_factory=lambda: {"block_size": "16", "num_gpu_blocks": "100"})

    adapters: AdapterStore = field(default_factory=lambda: AdapterStore(fake_adapter, max_in_memory=4))
    file_change: str | None = None
    kv_store: None = None

    def content_digest(self) -> str:
        return "fake"

    def changed(self) -> str | None:
        return self.file_change

    def close(self) -> None:
        self.engine.stop()


def expected_text(prompt: str, num_tokens: int, choice: int = 0, *, bos: bool = True) -> str:
    """What the fake says to a completions prompt."""
    ids = [*([BOS] if bos else []), *prompt.encode()]
    said = itertools.islice(itertools.cycle(ids), choice, choice + num_tokens)
    return bytes(i for i in said if i < 256).decode("utf-8", "replace")


def _usage(request: Request, tokens: list[int]) -> Usage:
    """As if each token of a prediction had been a draft."""
    pairs = list(zip(request.prediction or (), tokens, strict=False))
    right = sum(predicted == token for predicted, token in pairs)
    return Usage(len(request.prompt_token_ids), len(tokens), 0, right, len(pairs) - right, len(pairs), right)
