"""What a request gets from an engine of its own, to compare with what it gets among others."""

from __future__ import annotations

from dataclasses import replace

from fake_backend import fake_engine
from fake_constraint import FakeGrammar
from pagoda.sampling.base import SamplerProtocol
from pagoda.types import Delta, Request, TokenLogprobs

MAX_CONTEXT = 96

Choice = tuple[str, tuple[int, ...], tuple[TokenLogprobs, ...], object, object, object]


def gather(deltas: list[Delta]) -> Choice:
    """All that a client can see of one choice."""
    return (
        "".join(delta.text for delta in deltas),
        tuple(token_id for delta in deltas for token_id in delta.token_ids),
        tuple(logprob for delta in deltas for logprob in delta.logprobs or ()),
        deltas[0].prompt_logprobs,
        deltas[-1].finish_reason,
        deltas[-1].stop_reason,
    )


def alone(request: Request, windows: tuple[int | None, ...], sampler: SamplerProtocol) -> dict[int, Choice]:
    """What the request gets in an engine of its own with room for everything, one token a step."""
    if isinstance(request.constraint, FakeGrammar):
        request = replace(request, constraint=replace(request.constraint, forces=False))
    engine = fake_engine(windows, max_context=MAX_CONTEXT, max_batch_tokens=128, prefix_caching=False, sampler=sampler)
    engine.add(request)
    deltas: dict[int, list[Delta]] = {}
    while engine.has_work:
        for delta in engine.step().deltas:
            deltas.setdefault(delta.index, []).append(delta)
    engine.close()
    return {index: gather(own) for index, own in deltas.items()}
