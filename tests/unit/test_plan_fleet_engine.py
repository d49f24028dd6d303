"""A simulated replica beside the engine itself, whose steps take the same made-up time: same requests, same moments."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from fake_backend import VOCAB_SIZE, fake_engine
from pagoda.plan.cost.work import Chunk, StepShape
from pagoda.plan.fleet.replica import Limits, Overheads
from pagoda.plan.fleet.simulate import Fleet, simulated_jobs
from pagoda.plan.fleet.traffic import PIECE_TOKENS, Arrival
from pagoda.types import BLOCK_SIZE, Request, SamplingParams

CONTEXT = 288
Times = list[float]  # of each request's first token, then of each one's last


def step_seconds(step: StepShape) -> float:
    """10 ms a step, 0.25 ms a token and 1 ms a row: sums of powers of two hundredths, whatever their order."""
    return 0.01 + 0.00025 * step.tokens + 0.001 * step.rows


def engine_times(arrivals: Sequence[Arrival], prompts: Sequence[tuple[int, ...]], limits: Limits) -> Times:
    """What the engine makes of the requests, on a clock that moves by each step's time."""
    engine = fake_engine(
        max_context=CONTEXT,
        max_batch_tokens=limits.batch_tokens,
        max_num_seqs=limits.num_seqs,
        num_blocks=[limits.kv_tokens // BLOCK_SIZE],
    )
    now, waiting = 0.0, list(range(len(arrivals)))
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    while waiting or engine.has_work:
        if not engine.has_work:
            now = max(now, arrivals[waiting[0]].at)
        while waiting and arrivals[waiting[0]].at <= now:
            i = waiting.pop(0)
            params = SamplingParams(max_tokens=arrivals[i].output, temperature=0.0, ignore_eos=True)
            engine.add(Request(str(i), prompts[i], params, now))
        result = engine.step()
        tokens = sum(work.num_prompt_tokens + work.num_decode_tokens for work in result.work)
        rows = sum(len(delta.token_ids) for delta in result.deltas)
        now += step_seconds(StepShape((Chunk(1, tokens, tokens),), rows))
        for delta in result.deltas:
            if delta.token_ids:
                first.setdefault(int(delta.request_id), now)
                last[int(delta.request_id)] = now
    return [of[i] for of in (first, last) for i in range(len(arrivals))]


def simulated_times(arrivals: Sequence[Arrival], limits: Limits) -> Times:
    jobs = simulated_jobs(arrivals, Fleet(1, limits, overheads=Overheads(request_s=0.0)), step_seconds)
    return [*(job.first or 0.0 for job in jobs), *(job.ended or 0.0 for job in jobs)]


def traffic(seed: int, count: int, gap: float, *, shared: int) -> tuple[list[Arrival], list[tuple[int, ...]]]:
    """Requests at random moments; prompts of which every third begins with the same `shared` tokens."""
    draw = random.Random(seed)
    common = tuple(draw.randrange(2, VOCAB_SIZE) for _ in range(shared))
    arrivals, prompts, at = [], [], 0.0
    known: dict[tuple[int, ...], int] = {}
    for i in range(count):
        own = tuple(draw.randrange(2, VOCAB_SIZE) for _ in range(draw.randint(4, 120)))
        prompt = (common if i % 3 == 0 else ()) + own
        starts = [prompt[:end] for end in range(PIECE_TOKENS, len(prompt) + 1, PIECE_TOKENS)]
        prefix = tuple(known.setdefault(start, len(known)) for start in starts)
        arrivals.append(Arrival(at, len(prompt), draw.randint(1, 24), prefix))
        prompts.append(prompt)
        at += draw.expovariate(1 / gap)
    return arrivals, prompts


@pytest.mark.parametrize("gap", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("limits", [Limits(64, 8, 32_768), Limits(32, 4, 32_768), Limits(512, 64, 65_536)])
def test_a_replica_queues_as_the_engine_does(gap: float, limits: Limits) -> None:
    arrivals, prompts = traffic(7, 40, gap, shared=0)
    assert simulated_times(arrivals, limits) == pytest.approx(engine_times(arrivals, prompts, limits), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_replica_shares_prefixes_as_the_engine_does(seed: int) -> None:
    arrivals, prompts = traffic(seed, 40, 0.1, shared=128)
    limits = Limits(64, 8, 65_536)
    simulated, real = simulated_times(arrivals, limits), engine_times(arrivals, prompts, limits)
    assert simulated == pytest.approx(real, abs=1e-6)
