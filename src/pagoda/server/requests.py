"""A body → a `Call` of token requests, and the options of their answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pagoda.cache.policy import DEFAULT_OPTIONS, CacheOptions
from pagoda.errors import RequestError
from pagoda.server.call import Call
from pagoda.server.choice import AnswerOptions
from pagoda.server.output_plan import OutputPlan
from pagoda.server.prompts import Prompt
from pagoda.server.schema import ChatRequest, CompletionRequest, Generation
from pagoda.types import PromptPieces, Request, SamplingParams

MAX_TOTAL_CHOICES = 1024
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for completions; chat goes on until the context is full

# fields that are called and mean the same in SamplingParams; null there means its default
SAME = ("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "seed", "min_tokens", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens",
        "prompt_logprobs", "top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold", "dynatemp_range",
        "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta", "temperature_last", "dry_multiplier",
        "dry_base", "dry_allowed_length", "dry_penalty_last_n")  # fmt: skip
SAME_LISTS = ("stop_token_ids", "allowed_token_ids", "logprob_token_ids", "bad_words", "dry_sequence_breakers")


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What one HTTP request asks of the model besides its prompts. The engine validates the params."""

    params: SamplingParams
    options: AnswerOptions
    stream: bool = False
    priority: int = 0
    cache_salt: str = ""
    max_draft_tokens: int | None = None  # guessed ahead in one step; 0: none
    report_progress: bool = False  # while the prompt is computed
    request_id: str | None = None  # which the client chose
    deadline_ms: int | None = None  # from now on
    cache: CacheOptions = DEFAULT_OPTIONS


def chat_spec(body: ChatRequest) -> GenerationSpec:
    """Raises RequestError naming the field."""
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    _check_stream_options(body)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    params = replace(_params(body), max_tokens=limit, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    return _spec(body, params, _options(body, logprobs=bool(body.logprobs)))


def completion_spec(body: CompletionRequest) -> GenerationSpec:
    """Raises RequestError naming the field."""
    _check_stream_options(body)
    given = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    limit = None if given == -1 else given
    echo = bool(body.echo)
    if limit == 0 and not echo:
        raise RequestError("max_tokens is 0, which needs echo to be true", param="max_tokens")
    params = replace(_params(body), max_tokens=1 if limit == 0 else limit, logprobs=body.logprobs)
    if echo and body.logprobs is not None and params.prompt_logprobs is None:
        params = replace(params, prompt_logprobs=body.logprobs)
    options = replace(_options(body, logprobs=body.logprobs is not None), echo=echo, drop_output=limit == 0)
    return _spec(body, params, options)


def check_total(num_prompts: int, n: int) -> None:
    """Raise RequestError when one HTTP request asks for more choices than is decent."""
    if num_prompts * n > MAX_TOTAL_CHOICES:
        raise RequestError(
            f"{num_prompts} prompts with n = {n} are {num_prompts * n} choices, but at most {MAX_TOTAL_CHOICES} "
            "are answered at once",
            param="n",
        )


def make_call(
    spec: GenerationSpec,
    prompts: Sequence[Prompt],
    *,
    id: str,
    tenant: str,
    messages: Sequence[Mapping[str, Any]] | None = None,
    prediction: tuple[int, ...] | None = None,
    output: OutputPlan | None = None,
    adapter: str | None = None,
    pieces: PromptPieces | None = None,
) -> Call:
    """One token request a prompt. `id` names the answer, and with a number each request. `pieces`: of the first."""
    arrival = time.monotonic()
    output = output or OutputPlan()
    requests = tuple(
        Request(
            id=f"{id}-{place}",
            prompt_token_ids=prompt.ids,
            params=spec.params,
            arrival=arrival,
            priority=spec.priority,
            tenant=tenant,
            cache_salt=spec.cache_salt,
            prediction=prediction,
            max_draft_tokens=spec.max_draft_tokens,
            report_progress=spec.report_progress,
            shown_token_ids=output.shown_ids,
            pieces=None if place else pieces,
        )
        for place, prompt in enumerate(prompts)
    )
    deadline = None if spec.deadline_ms is None else arrival + spec.deadline_ms / 1000
    asked = None if messages is None else tuple(messages)
    return Call(id, requests, asked, tenant, output, adapter, deadline, cache=spec.cache)


def new_id(prefix: str) -> str:
    """An id that no other request has. A prefix may end in the underscore that divides it from the rest."""
    return f"{prefix}{'' if prefix.endswith('_') else '-'}{uuid.uuid4().hex}"


def answer_id(prefix: str, spec: GenerationSpec) -> str:
    """The id that the client chose, or a new one."""
    return new_id(prefix) if spec.request_id is None else f"{prefix}-{spec.request_id}"


def _spec(body: Generation, params: SamplingParams, options: AnswerOptions) -> GenerationSpec:
    return GenerationSpec(
        *_best_of(body, params, options),
        stream=bool(body.stream),
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        max_draft_tokens=None if body.speculation is None else body.speculation.most,
        report_progress=bool(body.stream and body.return_progress),
        request_id=body.request_id,
        deadline_ms=body.deadline_ms,
        cache=DEFAULT_OPTIONS if body.cache is None else body.cache.options,
    )


def _best_of(body: Generation, params: SamplingParams, options: AnswerOptions) -> tuple[SamplingParams, AnswerOptions]:
    """With as many choices as are made, where the best of them are the answer: they have logprobs to compare."""
    if body.best_of is None or body.best_of == options.n:
        return params, options
    if body.best_of < options.n:
        raise RequestError(f"best_of is {body.best_of}, less than n, which is {options.n}", param="best_of")
    if body.stream:
        raise RequestError("best_of above n cannot be streamed: the best is known at the end", param="best_of")
    logprobs = params.logprobs or 0
    return replace(params, n=body.best_of, logprobs=logprobs), replace(options, n=body.best_of, kept=options.n)


def _params(body: Generation) -> SamplingParams:
    given: dict[str, Any] = {name: value for name in SAME if (value := getattr(body, name)) is not None}
    given |= {name: tuple(value) for name in SAME_LISTS if (value := getattr(body, name)) is not None}
    stop = body.stop or ()
    given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    given["logit_bias"] = {int(token_id): bias for token_id, bias in (body.logit_bias or {}).items()}
    return SamplingParams(**given)


def _options(body: Generation, *, logprobs: bool) -> AnswerOptions:
    wanted = body.stream_options
    return AnswerOptions(
        n=body.n or 1,
        logprobs=logprobs,
        token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
        prompt_logprobs=body.prompt_logprobs is not None,
        include_usage=bool(wanted and (wanted.include_usage or wanted.continuous_usage_stats)),
        continuous_usage=bool(wanted and wanted.continuous_usage_stats),
        include_cost=bool(body.include_cost),
        timings=bool(body.timings_per_token),
    )


def _check_stream_options(body: Generation) -> None:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream to be true", param="stream_options")
