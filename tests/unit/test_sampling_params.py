"""What validate refuses, by field, and what it rewrites."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from pagoda.errors import ContextLengthError, RequestError
from pagoda.sampling.params import validate
from pagoda.types import SamplingParams

VOCAB = 100
CONTEXT = 64

REFUSED: list[tuple[str, Any]] = [
    ("n", 0),
    ("n", 129),
    ("n", True),
    ("n", 1.0),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "1"),
    ("top_k", -2),
    ("top_k", 1.5),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("min_p", -0.01),
    ("min_p", 1.01),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", math.inf),
    ("presence_penalty", 2.1),
    ("presence_penalty", -2.1),
    ("frequency_penalty", math.nan),
    ("logit_bias", {VOCAB: 1.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {"5": 1.0}),
    ("logit_bias", {5: 100.5}),
    ("logit_bias", {5: math.nan}),
    ("top_n_sigma", -2.0),
    ("typical_p", 0.0),
    ("xtc_probability", 1.5),
    ("xtc_threshold", -0.1),
    ("dynatemp_range", -1.0),
    ("dynatemp_exponent", math.nan),
    ("mirostat", 3),
    ("mirostat", True),
    ("mirostat_tau", -1.0),
    ("mirostat_eta", 1.1),
    ("dry_multiplier", -0.1),
    ("dry_base", 0.9),
    ("dry_allowed_length", 0),
    ("dry_penalty_last_n", -2),
    ("dry_sequence_breakers", ("",)),
    ("dry_sequence_breakers", tuple(str(n) for n in range(33))),
    ("seed", 2**63),
    ("seed", -(2**63) - 1),
    ("seed", 0.5),
    ("max_tokens", 0),
    ("min_tokens", -1),
    ("min_tokens", 17),  # more than max_tokens' default of 16
    ("stop", ("",)),
    ("stop", "text"),
    ("stop", (5,)),
    ("stop_token_ids", (VOCAB,)),
    ("allowed_token_ids", ()),
    ("allowed_token_ids", (-1,)),
    ("bad_words", ("",)),
    ("bad_words", (" ",)),
    ("logprobs", -1),
    ("logprobs", 21),
    ("prompt_logprobs", 21),
    ("prompt_logprobs", True),
]


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=str)
def test_refuses_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        validate(SamplingParams(**{field: value}), VOCAB, CONTEXT)
    assert caught.value.param == field


@pytest.mark.parametrize(
    "cut", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9}, {"xtc_probability": 1}]
)
def test_mirostat_stands_in_place_of_cuts(cut: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="mirostat stands in place of") as caught:
        validate(SamplingParams(mirostat=2, **cut), VOCAB, CONTEXT)
    assert caught.value.param == next(iter(cut))


def test_samplers_that_change_nothing_are_off() -> None:
    normal = validate(SamplingParams(), VOCAB, CONTEXT)
    assert validate(SamplingParams(top_n_sigma=-1.0), VOCAB, CONTEXT) == normal
    assert validate(SamplingParams(temperature_last=True), VOCAB, CONTEXT) == normal
    assert validate(SamplingParams(xtc_probability=0.5, xtc_threshold=0.6), VOCAB, CONTEXT).xtc_probability == 0
    greedy = validate(SamplingParams(temperature=0.0, mirostat=2, typical_p=1.0), VOCAB, CONTEXT)
    assert greedy == validate(SamplingParams(temperature=0.0), VOCAB, CONTEXT)


def test_max_tokens_beyond_the_context() -> None:
    with pytest.raises(ContextLengthError) as caught:
        validate(SamplingParams(max_tokens=CONTEXT + 1), VOCAB, CONTEXT)
    assert caught.value.param == "max_tokens"
    assert str(CONTEXT) in str(caught.value)


def test_min_tokens_without_max_tokens_is_held_to_the_context() -> None:
    validate(SamplingParams(max_tokens=None, min_tokens=CONTEXT), VOCAB, CONTEXT)
    with pytest.raises(RequestError, match="min_tokens"):
        validate(SamplingParams(max_tokens=None, min_tokens=CONTEXT + 1), VOCAB, CONTEXT)


def test_logprobs_limit_is_configurable() -> None:
    assert validate(SamplingParams(logprobs=50), VOCAB, CONTEXT, max_logprobs=50).logprobs == 50
    of_all = SamplingParams(logprobs=-1, prompt_logprobs=-1)
    with pytest.raises(RequestError, match="max-logprobs"):
        validate(of_all, VOCAB, CONTEXT)
    allowed = validate(of_all, VOCAB, CONTEXT, max_logprobs=-1)
    assert (allowed.logprobs, allowed.prompt_logprobs) == (VOCAB, VOCAB)


def test_listed_logprobs_need_logprobs() -> None:
    listed = SamplingParams(logprobs=0, logprob_token_ids=(5, 3, 5))
    assert validate(listed, VOCAB, CONTEXT).logprob_token_ids == (5, 3)
    for broken in ({"logprobs": None}, {"logprob_token_ids": (VOCAB,)}, {"logprob_token_ids": tuple(range(50)) * 3}):
        with pytest.raises(RequestError) as caught:
            validate(replace(listed, **broken), VOCAB, CONTEXT)
        assert caught.value.param == "logprob_token_ids"


def test_edges_of_the_ranges_pass() -> None:
    params = SamplingParams(
        n=128,
        temperature=1e-5,
        top_p=1e-9,
        min_p=1.0,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        repetition_penalty=1e-3,
        logit_bias={0: -100.0, VOCAB - 1: 100},
        seed=-(2**63),
        allowed_token_ids=(VOCAB - 1,),
        logprobs=20,
        stop=(" ",),
    )
    assert validate(params, VOCAB, CONTEXT) == params


@pytest.mark.parametrize("temperature", [0, 0.0, 9e-6])
def test_cold_is_greedy_without_truncation(temperature: float) -> None:
    params = validate(SamplingParams(temperature=temperature, top_k=5, top_p=0.5, min_p=0.1), VOCAB, CONTEXT)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.0, 0, 1.0, 0.0)


@pytest.mark.parametrize("top_k", [-1, 0, VOCAB, 10 * VOCAB])
def test_all_tokens_have_one_spelling(top_k: int) -> None:
    assert validate(SamplingParams(top_k=top_k), VOCAB, CONTEXT).top_k == 0
