"""What speculation gains: the same prompts with and without it, in turn, on one engine.

Each pair has a cache salt of its own, so that no run finds what an earlier one left in the prefix cache or among the
answers that the drafters have seen. The prompts of a pair are computed first, then each side is timed from its start
until all of its answers are there: decoding, with a draft model's own share of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagoda.benchmark.stats import median
from pagoda.engine.engine import Engine
from pagoda.errors import EngineError
from pagoda.types import Request, SamplingParams, StepResult


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: its name in the report, its tokens, and what its answer will mostly be."""

    name: str
    token_ids: tuple[int, ...]
    prediction: tuple[int, ...] | None = None


@dataclass(slots=True)
class Run:
    """A group of prompts answered at once, one way."""

    seconds: float
    tokens: dict[str, list[int]] = field(default_factory=dict)  # by request id
    drafted: Counter[str] = field(default_factory=Counter)  # tokens by drafter
    kept: Counter[str] = field(default_factory=Counter)
    num_steps: int = 0
    draft_s: float = 0.0  # in drafters

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens.values()))

    @property
    def rate(self) -> float:
        return self.num_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Pair:
    """The same prompts without and with speculation."""

    names: tuple[str, ...]
    off: Run
    on: Run

    @property
    def gain(self) -> float:
        """How many times as many tokens a second."""
        return self.on.rate / self.off.rate

    @property
    def equal(self) -> bool:
        return list(self.on.tokens.values()) == list(self.off.tokens.values())


class SpeculationBench:
    """Runs pairs on an engine that nobody else uses."""

    def __init__(self, core: Engine, params: SamplingParams) -> None:
        self._core = core
        self._params = params
        self._num_requests = 0

    def pair(self, prompts: Sequence[Prompt], *, on_first: bool) -> Pair:
        """Measure a group of prompts at once both ways."""
        salt = f"pair {self._num_requests}"
        self._run(prompts, salt, SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True), most=0)
        runs = {on: self._run(prompts, salt, self._params, None if on else 0) for on in (on_first, not on_first)}
        return Pair(tuple(prompt.name for prompt in prompts), runs[False], runs[True])

    def _run(self, prompts: Sequence[Prompt], salt: str, params: SamplingParams, most: int | None) -> Run:
        run = Run(0.0)
        start = time.perf_counter()
        for prompt in prompts:
            self._num_requests += 1
            request = Request(
                f"bench-{self._num_requests}",
                prompt.token_ids,
                params,
                time.monotonic(),
                cache_salt=salt,
                prediction=prompt.prediction,
                max_draft_tokens=most,
            )
            run.tokens[request.id] = []
            self._core.add(request)
        while self._core.has_work:
            _take(run, self._core.step())
        run.seconds = time.perf_counter() - start
        return run


def _take(run: Run, result: StepResult) -> None:
    run.num_steps += 1
    run.draft_s += result.draft_s
    for delta in result.deltas:
        if delta.error is not None:
            raise EngineError(f"an answer ended with an error: {delta.error}")
        run.tokens[delta.request_id].extend(delta.token_ids)
    for name, counts in result.drafts.items():
        run.drafted[name] += counts.num_draft_tokens
        run.kept[name] += sum(counts.accepted_per_position)


def measure(
    bench: SpeculationBench,
    prompts: Sequence[Prompt],
    *,
    concurrency: int,
    rounds: int,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Pair]:
    """`rounds` pairs of each group of `concurrency` prompts, which side goes first changing each time."""
    groups = [prompts[i : i + concurrency] for i in range(0, len(prompts), concurrency)]
    pairs: list[Pair] = []
    for number in range(rounds):
        for group in groups:
            progress(f"pair {len(pairs) + 1} of {rounds * len(groups)}: {group[0].name}")
            pairs.append(bench.pair(group, on_first=(len(pairs) + number) % 2 == 1))
    return pairs


def report(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The figures, as JSON."""
    drafters = sorted(set().union(*(pair.on.drafted for pair in pairs)))
    return {
        "pairs": [_pair_report(pair) for pair in pairs],
        "gain": round(median(pair.gain for pair in pairs), 4),  # the median of the pairs
        "off_tok_s": round(sum(p.off.num_tokens for p in pairs) / sum(p.off.seconds for p in pairs), 3),
        "on_tok_s": round(sum(p.on.num_tokens for p in pairs) / sum(p.on.seconds for p in pairs), 3),
        "total_gain": round(sum(p.off.seconds for p in pairs) / sum(p.on.seconds for p in pairs), 4),
        "tokens_per_step": round(sum(p.on.num_tokens for p in pairs) / sum(p.on.num_steps for p in pairs), 3),
        "drafting_share": round(sum(p.on.draft_s for p in pairs) / sum(p.on.seconds for p in pairs), 4),
        "drafters": {
            name: {
                "drafted": sum(pair.on.drafted[name] for pair in pairs),
                "kept": sum(pair.on.kept[name] for pair in pairs),
            }
            for name in drafters
        },
        "different": [list(pair.names) for pair in pairs if not pair.equal],
    }


def _pair_report(pair: Pair) -> dict[str, Any]:
    return {
        "names": list(pair.names),
        "tokens": pair.on.num_tokens,
        "off_tok_s": round(pair.off.rate, 3),
        "on_tok_s": round(pair.on.rate, 3),
        "gain": round(pair.gain, 4),
    }
