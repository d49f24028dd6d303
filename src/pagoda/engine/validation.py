"""Whether a request can be served at all: checked once, before it takes a place in any queue."""

from __future__ import annotations

from dataclasses import replace

from pagoda.errors import ContextLengthError, RequestError
from pagoda.sampling.params import MAX_LOGPROBS, validate
from pagoda.types import Request, SamplingParams

POOLED = SamplingParams(max_tokens=1, temperature=0.0)  # of requests whose prompt is all that is computed


def validate_request(
    request: Request, vocab_size: int, max_context: int, *, max_logprobs: int = MAX_LOGPROBS
) -> Request:
    """The request with normalised params. RequestError names the field; ContextLengthError: it does not fit."""
    prompt = request.prompt_token_ids
    if not prompt:
        raise RequestError("the prompt is empty", param="prompt")
    for token_id in (min(prompt), max(prompt)):
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"the prompt holds token {token_id}, but token ids run from 0 to {vocab_size - 1}", param="prompt"
            )
    if request.pooled:
        request = replace(request, params=POOLED, constraint=None, prediction=None)
    params = validate(request.params, vocab_size, max_context, max_logprobs=max_logprobs)
    if len(prompt) + (params.max_tokens or 1) > max_context:
        raise ContextLengthError.of(max_context, len(prompt), params.max_tokens)
    return replace(request, params=params)
