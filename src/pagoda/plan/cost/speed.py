"""From step times to what users feel: TTFT, TPOT and throughput, alone and under load.

Continuous batching, N users at once, each sending a prompt of P tokens and reading O tokens of answer. In the time of
one answer every other user's prompt passes through the same steps once:

    TPOT(N) = t_decode(N) + (N − 1) · t_prompt(N) / O
    TTFT(N) = t_prompt(N) + S t_decode(N) + wait
    wait    = ρ t_prompt / (2 (1 − ρ)),    ρ = N t_prompt / (N t_prompt + O t_decode)

where t_prompt(N) is what the prompt's chunks add to the S steps that decode the others meanwhile, and the wait is that
of a queue with one server, even service and random arrivals (Pollaczek–Khinchine). Throughput is N O tokens in the time
of one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pagoda.plan.cost.roofline import Costs
from pagoda.plan.cost.work import Chunk, StepShape, decode_step, prefill_steps


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """What users send: `prompt` tokens, `output` tokens; `chunk` is the step's token budget."""

    prompt: int
    output: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed at one concurrency, in seconds, and in tokens per second of all users together."""

    concurrency: int
    ttft_s: float
    tpot_s: float
    output_tok_s: float
    input_tok_s: float
    decode_step_s: float
    bound: str


def prefill_s(costs: Costs, prompt: int, chunk: int) -> float:
    """TTFT of one prompt on an idle server."""
    return sum(costs.step(step).seconds for step in prefill_steps(prompt, chunk))


def speed(costs: Costs, load: RequestLoad, concurrency: int) -> Speed:
    """Speed with `concurrency` users who always have one request under way."""
    context = load.prompt + load.output / 2
    decode = costs.step(decode_step(concurrency, context))
    chunks = prefill_steps(load.prompt, max(1, load.chunk - (concurrency - 1)))
    prompt_s = _prompt_s(costs, load, chunks, concurrency - 1, decode.seconds)
    tpot = decode.seconds + (concurrency - 1) * prompt_s / load.output
    busy = concurrency * prompt_s / (concurrency * prompt_s + load.output * decode.seconds)
    wait = busy * prompt_s / (2 * (1 - busy)) + len(chunks) * decode.seconds if concurrency > 1 else 0.0
    ttft = prompt_s + wait
    answer_s = ttft + load.output * tpot
    return Speed(
        concurrency=concurrency,
        ttft_s=ttft,
        tpot_s=tpot,
        output_tok_s=concurrency * load.output / answer_s,
        input_tok_s=concurrency * load.prompt / answer_s,
        decode_step_s=decode.seconds,
        bound=decode.bound,
    )


def _prompt_s(costs: Costs, load: RequestLoad, chunks: Sequence[StepShape], others: int, decode_s: float) -> float:
    """Seconds that prefilling one prompt in `chunks` adds to the steps that decode the answers of `others`."""
    if not others:
        return prefill_s(costs, load.prompt, load.chunk)
    context = load.prompt + load.output / 2
    total = 0.0
    for step in chunks:
        mixed = StepShape((*step.chunks, Chunk(others, 1, context)), step.rows + others)
        total += max(0.0, costs.step(mixed).seconds - decode_s)
    return total


def batch_of_compute(costs: Costs, context: int, limit: int = 1 << 16) -> int | None:
    """The smallest batch whose decode is bound by arithmetic; None: no batch up to `limit` is, because every sequence
    brings KV to read as fast as it brings work."""

    def is_bound(batch: int) -> bool:
        return costs.step(decode_step(batch, context)).bound == "compute"

    return smallest(limit, is_bound)


def smallest(limit: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest n in 1 … limit for which `holds(n)`, by bisection: it must hold for all larger n too. None if none
    does."""
    if not holds(limit):
        return None
    low, high = 1, limit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def largest_concurrency(costs: Costs, load: RequestLoad, limit: int, ttft_s: float | None, tpot_s: float | None) -> int:
    """The most users at once, up to `limit`, with TTFT and TPOT within the bounds; 0: not even one."""

    def misses(concurrency: int) -> bool:
        found = speed(costs, load, concurrency)
        return (ttft_s is not None and found.ttft_s > ttft_s) or (tpot_s is not None and found.tpot_s > tpot_s)

    if limit < 1:
        return 0
    first = smallest(limit, misses)
    return limit if first is None else first - 1
