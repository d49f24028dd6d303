"""What a request may ask of the sampler: ranges are vLLM's, and what is outside them is refused by name.

Not covered: limits that need the prompt (prompt + max_tokens within the context), which the engine checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pagoda.errors import ContextLengthError, RequestError
from pagoda.types import SamplingParams

MAX_CHOICES = 128
MAX_BREAKERS = 32
MAX_LOGPROBS = 20
MAX_LOGPROB_IDS = 128
XTC_OFF_ABOVE = 0.5
MAX_LOGIT_BIAS = 100.0  # as OpenAI documents it
GREEDY_BELOW = 1e-5  # temperatures under it are greedy, as in vLLM; scaling by them would overflow


def validate(
    params: SamplingParams, vocab_size: int, max_context: int, *, max_logprobs: int = MAX_LOGPROBS
) -> SamplingParams:
    """Check every field, and return the params with one spelling for each meaning.

    `max_logprobs`: how many likeliest tokens may be asked for; -1: all. In what is returned, greedy is temperature 0
    without top_k, top_p and min_p; 'all tokens' is top_k 0, and of logprobs the size of the vocabulary; collections
    are tuples and dicts.
    Raises RequestError naming the field, ContextLengthError when max_tokens alone exceeds the context.
    """
    _check_numbers(params)
    _check_lengths(params, max_context)
    limit = vocab_size if max_logprobs == -1 else max_logprobs
    for name in ("logprobs", "prompt_logprobs"):
        _check_logprobs(name, getattr(params, name), vocab_size, limit)
    _check_logprob_ids(params, vocab_size)
    _check_texts("stop", params.stop)
    _check_texts("bad_words", params.bad_words)
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    _check_bias(params, vocab_size)
    if params.allowed_token_ids is not None:
        _check_ids("allowed_token_ids", params.allowed_token_ids, vocab_size)
        if not params.allowed_token_ids:
            raise RequestError("allowed_token_ids is empty: nothing could be generated", param="allowed_token_ids")
    return _normalise(params, vocab_size)


def _check_numbers(params: SamplingParams) -> None:
    _check_int("n", params.n, 1, MAX_CHOICES)
    _check_float("temperature", params.temperature, 0.0)
    _check_int("top_k", params.top_k, -1)
    _check_float("top_p", params.top_p, 0.0, 1.0, open_low=True)
    _check_float("min_p", params.min_p, 0.0, 1.0)
    _check_float("repetition_penalty", params.repetition_penalty, 0.0, open_low=True)
    _check_float("presence_penalty", params.presence_penalty, -2.0, 2.0)
    _check_float("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    _check_reshaping(params)
    if params.seed is not None:
        _check_int("seed", params.seed, -(2**63), 2**63 - 1)


def _check_reshaping(params: SamplingParams) -> None:
    """llama.cpp's samplers."""
    _check_float("top_n_sigma", params.top_n_sigma, -1.0)
    _check_float("typical_p", params.typical_p, 0.0, 1.0, open_low=True)
    _check_float("xtc_probability", params.xtc_probability, 0.0, 1.0)
    _check_float("xtc_threshold", params.xtc_threshold, 0.0, 1.0)
    _check_float("dynatemp_range", params.dynatemp_range, 0.0, 100.0)
    _check_float("dynatemp_exponent", params.dynatemp_exponent, 0.0, 100.0)
    _check_int("mirostat", params.mirostat, 0, 2)
    _check_float("mirostat_tau", params.mirostat_tau, 0.0, 100.0)
    _check_float("mirostat_eta", params.mirostat_eta, 0.0, 1.0)
    _check_float("dry_multiplier", params.dry_multiplier, 0.0, 100.0)
    _check_float("dry_base", params.dry_base, 1.0, 100.0)
    _check_int("dry_allowed_length", params.dry_allowed_length, 1)
    _check_int("dry_penalty_last_n", params.dry_penalty_last_n, -1)
    _check_texts("dry_sequence_breakers", params.dry_sequence_breakers)
    if params.mirostat:
        _check_mirostat_alone(params)
    if len(params.dry_sequence_breakers) > MAX_BREAKERS:
        raise RequestError(
            f"dry_sequence_breakers holds {len(params.dry_sequence_breakers)} texts, but at most {MAX_BREAKERS} may be",
            param="dry_sequence_breakers",
        )


def _check_mirostat_alone(params: SamplingParams) -> None:
    cuts = {
        "top_k": params.top_k > 0,
        "top_p": params.top_p < 1,
        "min_p": params.min_p > 0,
        "top_n_sigma": params.top_n_sigma > 0,
        "typical_p": params.typical_p < 1,
        "xtc_probability": params.xtc_probability > 0,
        "dynatemp_range": params.dynatemp_range > 0,
    }
    for name, is_on in cuts.items():
        if is_on:
            raise RequestError(f"mirostat stands in place of {name}: leave one of them out", param=name)


def _check_lengths(params: SamplingParams, max_context: int) -> None:
    _check_int("min_tokens", params.min_tokens, 0)
    if params.max_tokens is not None:
        _check_int("max_tokens", params.max_tokens, 1)
        if params.max_tokens > max_context:
            raise ContextLengthError(
                f"This model's maximum context length is {max_context} tokens. However, you requested "
                f"{params.max_tokens} tokens in the completion alone. Please reduce max_tokens.",
                param="max_tokens",
            )
    limit = max_context if params.max_tokens is None else params.max_tokens
    if params.min_tokens > limit:
        raise RequestError(f"min_tokens is {params.min_tokens}, more than max_tokens {limit}", param="min_tokens")


def _check_logprobs(name: str, value: int | None, vocab_size: int, limit: int) -> None:
    if value is None:
        return
    _check_int(name, value, -1)
    if (vocab_size if value == -1 else value) > limit:
        what = "-1, all tokens of the vocabulary" if value == -1 else str(value)
        raise RequestError(f"{name} is {what}, but must be from 0 to {limit} (--max-logprobs)", param=name)


def _check_logprob_ids(params: SamplingParams, vocab_size: int) -> None:
    name = "logprob_token_ids"
    _check_ids(name, params.logprob_token_ids, vocab_size)
    if len(params.logprob_token_ids) > MAX_LOGPROB_IDS:
        raise RequestError(f"{name} holds more than {MAX_LOGPROB_IDS} token ids", param=name)
    if params.logprob_token_ids and params.logprobs is None:
        raise RequestError(f"{name} needs logprobs: 0 where no others are wanted", param=name)


def _check_bias(params: SamplingParams, vocab_size: int) -> None:
    _check_ids("logit_bias", params.logit_bias, vocab_size)
    for bias in params.logit_bias.values():
        _check_float("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if not _is_int(token_id):
            raise RequestError(f"{name} holds {token_id!r}, which is not a token id", param=name)
        if not 0 <= token_id < vocab_size:
            raise RequestError(f"{name} holds {token_id}, but token ids run from 0 to {vocab_size - 1}", param=name)


def _check_texts(name: str, texts: Iterable[object]) -> None:
    if isinstance(texts, str):
        raise RequestError(f"{name} is one string; give a list of strings", param=name)
    for text in texts:
        if not isinstance(text, str):
            raise RequestError(f"{name} holds {text!r}, which is not a string", param=name)
        if not text.strip() and (name == "bad_words" or not text):
            raise RequestError(f"{name} holds an empty string, which would match everywhere", param=name)


def _check_int(name: str, value: int, low: int, high: int | None = None) -> None:
    if not _is_int(value):
        raise RequestError(f"{name} is {value!r}, but must be an integer", param=name)
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{name} is {value}, but must be {bounds}", param=name)


def _check_float(name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    if not (_is_int(value) or isinstance(value, float)) or not math.isfinite(value):
        raise RequestError(f"{name} is {value!r}, but must be a finite number", param=name)
    if value < low or value > high or (open_low and value == low):
        lower = f"greater than {low:g}" if open_low else f"at least {low:g}"
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise RequestError(f"{name} is {value}, but must be {lower}{upper}", param=name)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# What draws nothing needs no say in how it is drawn.
_NO_RESHAPING: dict[str, Any] = {
    "top_n_sigma": 0.0,
    "typical_p": 1.0,
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "temperature_last": False,
}


def _normalised_reshaping(params: SamplingParams) -> dict[str, Any]:
    """One spelling for each meaning. XTC is off where no two tokens can be that likely, top_n_sigma below 0."""
    excludes = params.xtc_threshold <= XTC_OFF_ABOVE
    return {
        "top_n_sigma": max(0.0, params.top_n_sigma),
        "xtc_probability": params.xtc_probability if excludes else 0.0,
        "temperature_last": params.temperature_last and params.temperature != 1.0,
    }


def _all_as_number(value: int | None, vocab_size: int) -> int | None:
    return vocab_size if value == -1 else value


def _normalise(params: SamplingParams, vocab_size: int) -> SamplingParams:
    greedy = params.temperature < GREEDY_BELOW
    keeps_all = greedy or params.top_k == -1 or params.top_k >= vocab_size
    return replace(
        params,
        temperature=0.0 if greedy else params.temperature,
        top_k=0 if keeps_all else params.top_k,
        top_p=1.0 if greedy else params.top_p,
        min_p=0.0 if greedy else params.min_p,
        **(_NO_RESHAPING if greedy else _normalised_reshaping(params)),
        dry_sequence_breakers=tuple(params.dry_sequence_breakers),
        logprobs=_all_as_number(params.logprobs, vocab_size),
        prompt_logprobs=_all_as_number(params.prompt_logprobs, vocab_size),
        logprob_token_ids=tuple(dict.fromkeys(params.logprob_token_ids)),
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        logit_bias=dict(params.logit_bias),
        allowed_token_ids=None if params.allowed_token_ids is None else tuple(params.allowed_token_ids),
        bad_words=tuple(params.bad_words),
    )
