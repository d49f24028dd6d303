"""Deltas → OpenAI's JSON: one `Answer` a call, written as chunks while they come or as one object at the end.

`CompletionAnswer` and `chat_answer.ChatAnswer` differ only in the shape of a choice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson

from pagoda.errors import EngineError, GenerationError, PagodaError, RequestError
from pagoda.server.call import Call, DeltaStream
from pagoda.server.choice import AnswerOptions, Choice, mean_logprob
from pagoda.server.json_pieces import dumps
from pagoda.server.logprob_json import LogprobWriter
from pagoda.server.prompts import Prompt
from pagoda.server.timings import timings
from pagoda.types import Delta, PromptProgress, TokenLogprobs

if TYPE_CHECKING:
    from pagoda.observe.metrics import Metrics

DONE = b"data: [DONE]\n\n"
CACHED_USAGE = {
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
    "prompt_tokens_details": {"cached_tokens": 0},
    "cached": True,
}
MARK = "\ue000"  # stands for the text where a chunk is cut in two


class Answer:
    """The answer to one call. Subclasses shape choices."""

    object_name: str
    chunk_name: str
    nothing_new: Mapping[str, Any]  # what a chunk's choice says that brings no text
    stream_type = "text/event-stream"

    def __init__(
        self, call: Call, model: str, prompts: Sequence[Prompt], options: AnswerOptions, writer: LogprobWriter
    ) -> None:
        self.id = call.id
        self.options = options
        self.writer = writer
        self.choices = [Choice(i * options.n + j, prompt) for i, prompt in enumerate(prompts) for j in range(options.n)]
        self.prompt_logprobs: dict[int, Sequence[TokenLogprobs | None]] = {}  # by place of the prompt
        self.headers = call.headers  # of the response
        self._start = time.monotonic()
        self.first_token: float | None = None
        self.on_complete: Callable[[Answer], None] | None = None  # where the dialect keeps its answers
        self.cost_usd: Callable[[], float] | None = None  # what it has cost so far; None: nothing is priced
        self._places = {request.id: place for place, request in enumerate(call.requests)}
        self._common = {"id": call.id, "created": int(time.time()), "model": model}
        self._head = b"data: " + orjson.dumps(self._common | {"object": self.chunk_name})[:-1] + b',"choices":['

    async def whole(self, stream: DeltaStream) -> bytes:
        """Read the stream to its end. → the response's JSON. Raises what ended it early."""
        async for deltas in stream:
            for delta in deltas:
                self._keep(*self._take(delta))
        wanted = self.options
        if wanted.logprobs or wanted.prompt_logprobs or wanted.echo:
            return await asyncio.to_thread(self._whole)
        return self._whole()

    def _whole(self) -> bytes:
        choices = [self._whole_choice(choice) | {"index": i} for i, choice in enumerate(self._kept())]
        answer = self._common | {"object": self.object_name, "choices": choices}
        if self.options.timings:
            answer["timings"] = self.timings(self.choices[0])
        return dumps(answer | {"usage": self.usage()} | self._top_level())

    def _kept(self) -> list[Choice]:
        """All choices, or those of each prompt that best_of keeps, the best first."""
        n = self.options.n
        if self.options.kept is None:
            return self.choices
        groups = [self.choices[first : first + n] for first in range(0, len(self.choices), n)]
        return [
            choice for group in groups for choice in sorted(group, key=mean_logprob, reverse=True)[: self.options.kept]
        ]

    async def events(self, stream: DeltaStream) -> AsyncIterator[bytes]:
        """Server-sent events, all that arrived together in one piece. Raises what ended them early."""
        if opening := self._opening():
            yield opening
        async for deltas in stream:
            is_long = any(delta.prompt_logprobs is not None for delta in deltas)
            if chunks := await asyncio.to_thread(self._events, deltas) if is_long else self._events(deltas):
                yield chunks
        yield self._closing()

    def failure(self, status: int, body: dict[str, Any]) -> bytes:
        """The last event of a stream that an error has ended, which `body` describes."""
        return b"data: " + orjson.dumps(body) + b"\n\n" + DONE

    def _opening(self) -> bytes:
        """What is written before anything has come."""
        return b""

    def _closing(self) -> bytes:
        """What follows the last choice's end."""
        if not self.options.include_usage:
            return DONE
        return self._head + b'],"usage":' + orjson.dumps(self.usage()) + b"}\n\n" + DONE

    def record(self, metrics: Metrics) -> None:
        """Facts that only the whole answer tells."""
        n = self.options.n
        for first in range(0, len(self.choices), n):
            group = self.choices[first : first + n]
            if all(choice.finish_reason for choice in group):
                metrics.record_answer([choice.completion_tokens for choice in group])

    def facts(self, start: float) -> dict[str, Any]:
        """What the log says of it; `start` is when the HTTP request came, by time.monotonic()."""
        usage = self.usage()
        return {
            "id": self.id,
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "finish": ",".join(sorted({choice.finish_reason or "unfinished" for choice in self.choices})),
            "ttft": None if self.first_token is None else round(self.first_token - start, 4),
            "cost_usd": None if self.cost_usd is None else round(self.cost_usd(), 10),
            **self._draft_counts(),
        }

    def usage(self) -> dict[str, Any]:
        """Prompts are counted once, however many choices continue them; answers from the cache cost nothing."""
        shown = self.cost_usd if self.options.include_cost else None
        cost = {} if shown is None else {"cost_usd": round(shown(), 10)}
        if any(choice.usage and choice.usage.cached for choice in self.choices):
            return {**CACHED_USAGE, **cost}
        firsts = self.choices[:: self.options.n]
        prompt_tokens = sum(len(choice.prompt.ids) for choice in firsts)
        completion_tokens = sum(choice.completion_tokens for choice in self.choices)
        cached_tokens = sum(choice.usage.cached_tokens for choice in firsts if choice.usage)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
            **cost,
        }
        details = self._completion_details()
        return usage | {"completion_tokens_details": details} if details else usage

    def timings(self, choice: Choice) -> dict[str, Any]:
        """How long the prompt of `choice` and its answer have taken so far."""
        now = time.monotonic()
        first = now if self.first_token is None else self.first_token
        return timings(
            num_prompt=len(choice.prompt.ids),
            num_cached=choice.usage.cached_tokens if choice.usage else 0,
            prompt_s=first - self._start,
            num_answer=choice.completion_tokens,
            answer_s=now - first,
        )

    def _completion_details(self) -> dict[str, int]:
        """How much of a prediction came true, and what was guessed ahead; nothing where there was none."""
        usages = [choice.usage for choice in self.choices if choice.usage]
        counts = {
            "accepted_prediction_tokens": sum(usage.accepted_prediction_tokens for usage in usages),
            "rejected_prediction_tokens": sum(usage.rejected_prediction_tokens for usage in usages),
        }
        return (counts if any(counts.values()) else {}) | self._draft_counts()

    def _draft_counts(self) -> dict[str, int]:
        """Draft tokens that were checked, and those kept; nothing where none was."""
        usages = [choice.usage for choice in self.choices if choice.usage]
        drafted = sum(usage.draft_tokens for usage in usages)
        accepted = sum(usage.accepted_draft_tokens for usage in usages)
        return {"draft_tokens": drafted, "accepted_draft_tokens": accepted} if drafted else {}

    def _take(self, delta: Delta) -> tuple[Choice, Delta]:
        """Count the delta in its choice. → both, the delta as the client may see it."""
        place = self._places[delta.request_id]
        choice = self.choices[place * self.options.n + delta.index]
        if delta.finish_reason in ("error", "abort"):
            raise error_of(delta)
        if self.first_token is None and delta.token_ids:
            self.first_token = time.monotonic()
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs.setdefault(place, delta.prompt_logprobs)
        if self.options.drop_output:
            usage = delta.usage and replace(delta.usage, completion_tokens=0)
            delta = replace(delta, text="", token_ids=(), logprobs=(), usage=usage)
        choice.num_tokens += len(delta.token_ids)
        choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
        choice.usage = delta.usage or choice.usage
        return choice, delta

    def _events(self, deltas: Sequence[Delta]) -> bytes:
        return b"".join([self._event(delta) for delta in deltas])

    def _keep(self, choice: Choice, delta: Delta) -> None:
        """Keep what the delta says for an answer in one piece."""
        choice.texts.append(delta.text)
        choice.token_ids.extend(delta.token_ids)
        choice.logprobs.extend(delta.logprobs or ())

    def _event(self, delta: Delta) -> bytes:
        choice, delta = self._take(delta)
        if delta.prompt_progress is not None:
            return self._progress(choice, delta.prompt_progress)
        if choice.frame is not None and delta.finish_reason is None:
            return choice.frame[0] + orjson.dumps(delta.text) + choice.frame[1] if delta.text else b""
        wanted = delta.text or choice.parsed or delta.finish_reason or not choice.started
        if not (wanted or (delta.token_ids and (self.options.logprobs or self.options.token_ids))):
            return b""  # part of a character, or what may become a stop string
        tail = self._tail(choice)
        pieces = [dumps(shape) for shape in self._chunk_choices(choice, delta)]
        choice.started = True
        choice.frame = self._frame(choice)
        return b"".join([self._head + piece + tail for piece in pieces])

    def _progress(self, choice: Choice, progress: PromptProgress) -> bytes:
        """A chunk that says how much of the prompt is computed, in llama-server's form."""
        fields = {
            "total": progress.total,
            "cache": progress.cached,
            "processed": progress.computed,
            "time_ms": round(progress.seconds * 1000),
        }
        shape = {"index": choice.index, "finish_reason": None, **self.nothing_new}
        return self._head + orjson.dumps(shape) + b'],"prompt_progress":' + orjson.dumps(fields) + b"}\n\n"

    def _frame(self, choice: Choice) -> tuple[bytes, bytes] | None:
        """The middle chunks of a choice differ in their text alone, unless the request asks for more."""
        wanted = self.options
        if (
            wanted.logprobs
            or wanted.token_ids
            or wanted.continuous_usage
            or wanted.timings
            or wanted.drop_output
            or choice.parser
        ):
            return None
        (shape,) = self._chunk_choices(choice, Delta(self.id, choice.index, MARK, ()))
        before, after = orjson.dumps(shape).split(orjson.dumps(MARK))
        return self._head + before, after + self._tail(choice)

    def _tail(self, choice: Choice) -> bytes:
        """What follows the choice in a chunk: usage, and on a request's first chunk what concerns its prompt."""
        extra: dict[str, Any] = {}
        if self.options.continuous_usage:
            extra["usage"] = self.usage()
        elif self.options.include_usage:
            extra["usage"] = None
        if self.options.timings:
            extra["timings"] = self.timings(choice)
        if not choice.started and choice.index == 0:
            extra |= self._top_level()
        return b"]," + dumps(extra)[1:] + b"\n\n" if extra else b"]}\n\n"

    def _prompt_extras(self, choice: Choice) -> dict[str, Any]:
        """What was asked for about the prompt of `choice`."""
        extras: dict[str, Any] = {}
        if self.options.prompt_logprobs:
            entries = self.prompt_logprobs.get(choice.index // self.options.n, ())
            extras["prompt_logprobs"] = self.writer.prompt(entries)
        if self.options.token_ids:
            extras["prompt_token_ids"] = list(choice.prompt.ids)
        return extras

    def _top_level(self) -> dict[str, Any]:
        """Further fields of the response object."""
        return {}

    def _ending(self, choice: Choice) -> dict[str, Any]:
        ending = {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
        return {"index": choice.index} | ending

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _chunk_choices(self, choice: Choice, delta: Delta) -> list[dict[str, Any]]:
        """The choice in one or more chunks that carry `delta`."""
        raise NotImplementedError


class CompletionAnswer(Answer):
    """An answer of /v1/completions."""

    object_name = "text_completion"
    chunk_name = "text_completion"
    nothing_new = MappingProxyType({"text": "", "logprobs": None})

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        text, logprobs = self._with_echo(choice, "".join(choice.texts), choice.logprobs, choice.token_ids)
        shape = self._ending(choice) | {"text": text, "logprobs": logprobs} | self._prompt_extras(choice)
        if self.options.token_ids:
            shape["token_ids"] = choice.token_ids
        return shape

    def _chunk_choices(self, choice: Choice, delta: Delta) -> list[dict[str, Any]]:
        text, logprobs = self._with_echo(choice, delta.text, delta.logprobs or (), delta.token_ids)
        shape = self._ending(choice) | {"text": text, "logprobs": logprobs}
        if not choice.started:
            shape |= self._prompt_extras(choice)
        if self.options.token_ids:
            shape["token_ids"] = delta.token_ids
        return [shape]

    def _with_echo(
        self, choice: Choice, text: str, entries: Sequence[TokenLogprobs], ids: Sequence[int]
    ) -> tuple[str, dict[str, Any] | None]:
        """Text and logprobs, led by the prompt's where echo is wanted and they are the first of the choice."""
        offsets: list[int] = []
        places = choice.offsets = choice.offsets or self.writer.offsets(choice.prompt.ids)
        shown: Sequence[TokenLogprobs | None] = entries
        if self.options.echo and not choice.started:
            before = prompt_text(choice.prompt, self.writer)
            offsets = places.of_prompt(choice.prompt.ids, before)
            text = before + text
            shown = [*self.prompt_logprobs.get(choice.index // self.options.n, ()), *entries]
        if not self.options.logprobs:
            return text, None
        all_ids = [*choice.prompt.ids, *ids] if offsets else ids
        return text, self.writer.completion(shown, all_ids, [*offsets, *places.of_answer(ids)])


def error_of(delta: Delta) -> PagodaError:
    """What ended a choice before its time."""
    if delta.error is None:
        return EngineError("the request was aborted: the server is shutting down, or its operator has stopped it")
    match delta.fault:
        case "request":
            return RequestError(delta.error, code="nothing_allowed")
        case "model":
            return GenerationError(delta.error)
        case "engine":
            return EngineError(delta.error)


def prompt_text(prompt: Prompt, writer: LogprobWriter) -> str:
    """The prompt as it was sent, or what its ids say."""
    return prompt.text if prompt.text is not None else writer.decode(prompt.ids)
