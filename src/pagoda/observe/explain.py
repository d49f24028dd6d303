"""Why it is as fast as it is: one sentence, made of figures alone.

`explain` looks at the situations of `SITUATIONS` in turn, what stands in the way of everything else first; the first
that holds speaks. A situation is a function of `Facts` that gives a sentence with the figures it rests on and what
helps, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BUSY_BANDWIDTH = 0.6  # of the measured bandwidth: from there on decode is bound by memory
BUSY_ARITHMETIC = 0.4  # of the measured peak
STOLEN_SHARE = 0.85  # of the CPU time that threads wanted: below it, somebody else has the rest
STOLEN_CPUS = 0.2
GRAMMAR_SHARE = 0.25  # of the steps' time
FULL_KV = 0.9
PREFILL_SHARE = 0.7  # of the tokens computed
LOSING_RATE = 0.25  # of draft tokens kept: below it, checking costs more than it saves (a decoded token counts as four)
FEW_DRAFTS = 20


@dataclass(frozen=True, slots=True)
class Facts:
    """What happened in the last `seconds`, or what stands now. Shares are from 0 to 1; None: not known."""

    seconds: float = 10.0
    num_steps: int = 0
    step_s: float = 0.0  # mean of a step
    busy_share: float = 0.0  # of the time, spent in steps
    forward_share: float = 1.0  # of the steps' time, spent in the forward pass
    mask_share: float = 0.0  # of the steps' time, spent waiting for token masks
    batch: float = 0.0  # sequences of a step
    prompt_tokens: int = 0  # computed
    decode_tokens: int = 0  # computed, drafts among them
    output_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    max_num_seqs: int = 64
    queue_s: float = 0.0  # mean wait of requests that were scheduled
    ttft_s: float | None = None
    tpot_s: float | None = None
    kv_share: float = 0.0  # of the blocks, held
    num_preempted: int = 0
    bandwidth_share: float | None = None  # of the measured ceiling, in the forward passes
    arithmetic_share: float | None = None
    weight_bytes: float = 0.0  # that every step reads
    kv_bytes: float = 0.0  # that every step reads of one sequence
    token_operations: float = 0.0
    bandwidth: float | None = None
    peak: float | None = None
    draft_tokens: int = 0
    accepted_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    num_threads: int = 1
    cpu_share: float | None = None  # of the CPU time that the forward passes' threads wanted
    other_cpus: float | None = None  # CPUs that other programs kept busy
    num_streams: int = 0
    slow_streams: int = 0  # whose clients read slower than tokens come
    cache_error: str = ""  # why the semantic cache does not answer

    @property
    def decode_bound(self) -> bool:
        return self.decode_tokens > 0 and self.prompt_tokens < PREFILL_SHARE * (self.prompt_tokens + self.decode_tokens)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A sentence, and the name of the situation that it tells of."""

    situation: str
    sentence: str


def explain(facts: Facts) -> Explanation:
    """The sentence for these figures."""
    for name, situation in SITUATIONS.items():
        sentence = situation(facts)
        if sentence is not None:
            return Explanation(name, sentence)
    raise AssertionError("the last situation always holds")


def _cache_away(facts: Facts) -> str | None:
    if not facts.cache_error:
        return None
    return (
        f"the semantic cache is away ({facts.cache_error}): every request is computed, {facts.output_tokens} tokens in "
        f"{facts.seconds:.0f} s; bring its store back, or serve without it"
    )


def _idle(facts: Facts) -> str | None:
    if facts.num_steps or facts.num_running or facts.num_waiting:
        return None
    return f"nothing was asked for in the last {facts.seconds:.0f} s"


def _thread_stolen(facts: Facts) -> str | None:
    if facts.cpu_share is None or facts.other_cpus is None or not facts.num_steps:
        return None
    if facts.cpu_share >= STOLEN_SHARE or facts.other_cpus < STOLEN_CPUS:
        return None
    fewer = max(1, facts.num_threads - round(max(1.0, facts.other_cpus)))
    if facts.num_threads == 1:
        return (
            f"other programs keep {facts.other_cpus:.1f} CPUs busy: Pagoda's one thread got {facts.cpu_share:.0%} of "
            "the time it wanted; stop those programs"
        )
    return (
        f"other programs keep {facts.other_cpus:.1f} CPUs busy: Pagoda's {facts.num_threads} threads got "
        f"{facts.cpu_share:.0%} of the time they wanted, and every step waits for the slowest of them; stop those "
        f"programs, or start with --threads {fewer}"
    )


def _grammar_bound(facts: Facts) -> str | None:
    if facts.mask_share < GRAMMAR_SHARE:
        return None
    return (
        f"grammars hold the engine up: {facts.mask_share:.0%} of a step of {_ms(facts.step_s)} is spent waiting for "
        f"token masks; simplify the schema or grammar, above all patterns and large repetition counts"
    )


def _kv_exhausted(facts: Facts) -> str | None:
    full = facts.kv_share >= FULL_KV and facts.num_waiting > 0
    if not facts.num_preempted and not full:
        return None
    lost = f"{facts.num_preempted} sequences were preempted and are computed again, " if facts.num_preempted else ""
    return (
        f"waiting for KV blocks: {facts.kv_share:.0%} of them are held by {facts.num_running} sequences, {lost}"
        f"{facts.num_waiting} requests wait; lower max_tokens or --max-num-seqs, or raise --kv-memory"
    )


def _slow_client(facts: Facts) -> str | None:
    if not facts.slow_streams:
        return None
    return (
        f"{facts.slow_streams} of {facts.num_streams} streams have clients that read slower than tokens come"
        f"{_every(facts)}: the engine is not what they wait for; look at the network and the client"
    )


def _queue_bound(facts: Facts) -> str | None:
    if not facts.num_waiting or facts.num_running < facts.max_num_seqs:
        return None
    return (
        f"the queue is the limit: all {facts.max_num_seqs} places are taken and {facts.num_waiting} requests wait, "
        f"{facts.queue_s:.1f} s each; raise --max-num-seqs while memory allows it, or add a replica"
    )


def _prefill_burst(facts: Facts) -> str | None:
    total = facts.prompt_tokens + facts.decode_tokens
    if not facts.prompt_tokens or facts.prompt_tokens < PREFILL_SHARE * total:
        return None
    share = facts.prompt_tokens / total
    peak = "" if facts.arithmetic_share is None else f" at {facts.arithmetic_share:.0%} of the measured arithmetic"
    others = f"; streams that decode get a token{_every(facts)}" if facts.decode_tokens else ""
    return (
        f"a burst of prompts: {share:.0%} of the {total:,} tokens computed were prompts'{peak}{others}; shorter or "
        f"shared prompts, or a lower --max-batch-tokens, help those who wait"
    )


def _draft_losing(facts: Facts) -> str | None:
    if facts.draft_tokens < FEW_DRAFTS or facts.accepted_tokens >= LOSING_RATE * facts.draft_tokens:
        return None
    rate = facts.accepted_tokens / facts.draft_tokens
    return (
        f"drafts lose: {rate:.0%} of {facts.draft_tokens:,} draft tokens were kept, and below {LOSING_RATE:.0%} "
        f"checking them costs more than it saves; use --speculation off, or speculation.enabled false in such requests"
    )


def _memory_bound(facts: Facts) -> str | None:
    if not facts.decode_bound or facts.bandwidth_share is None or facts.bandwidth_share < BUSY_BANDWIDTH:
        return None
    return (
        f"decode is memory-bound: {facts.bandwidth_share:.0%} of measured bandwidth at batch {facts.batch:.0f}"
        f"{_more_streams(facts)}; faster arithmetic would change nothing, smaller weights or drafts would"
    )


def _arithmetic_bound(facts: Facts) -> str | None:
    if facts.arithmetic_share is None or facts.arithmetic_share < BUSY_ARITHMETIC:
        return None
    return (
        f"steps are bound by arithmetic: {facts.arithmetic_share:.0%} of the measured peak at batch {facts.batch:.0f}; "
        f"more streams would wait for each other, {_each(facts)}"
    )


def _small_batch(facts: Facts) -> str | None:
    if not facts.num_steps or facts.bandwidth_share is None or facts.batch > max(2.0, facts.max_num_seqs / 8):
        return None
    idle = f", and for {1 - facts.busy_share:.0%} of the time there is nothing to do" if facts.busy_share < 0.9 else ""
    return (
        f"the batch is small: {facts.batch:.1f} sequences a step use {facts.bandwidth_share:.0%} of the bandwidth and "
        f"{facts.arithmetic_share or 0:.0%} of the arithmetic{idle}{_more_streams(facts)}; send more requests at once"
    )


def _at_work(facts: Facts) -> str | None:
    bound = "" if facts.bandwidth_share is not None else "; run pagoda doctor once, and it is compared with the machine"
    return (
        f"at work: {facts.output_tokens / facts.seconds:.0f} tokens/s of {facts.num_running} sequences, "
        f"{_each(facts)}, and {facts.num_waiting} requests wait{bound}"
    )


def more_streams_cost(facts: Facts, more: int) -> float | None:
    """By how much TPOT would grow with so many more streams, by the roofline; None where it is not known.

    A step takes as long as the longer of its bytes over the bandwidth and its operations over the peak, both at the
    shares of the ceilings that are reached at most now.
    """
    if not facts.bandwidth or not facts.peak or not facts.bandwidth_share or facts.batch <= 0:
        return None
    share = max(facts.bandwidth_share, facts.arithmetic_share or 0.0)

    def seconds(batch: float) -> float:
        memory = (facts.weight_bytes + batch * facts.kv_bytes) / (facts.bandwidth or 1.0)
        return max(memory, batch * facts.token_operations / (facts.peak or 1.0)) / share

    return seconds(facts.batch + more) / seconds(facts.batch) - 1


def _more_streams(facts: Facts) -> str:
    more = min(7, facts.max_num_seqs - round(facts.batch))
    cost = more_streams_cost(facts, more) if more > 0 else None
    if cost is None:
        return ""
    return f"; {more} more streams would cost {cost:.0%} in TPOT"


def _every(facts: Facts) -> str:
    return "" if facts.tpot_s is None else f" every {_ms(facts.tpot_s)}"


def _each(facts: Facts) -> str:
    return f"a step of {_ms(facts.step_s)} each" if facts.tpot_s is None else f"a token every {_ms(facts.tpot_s)} each"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


SITUATIONS: dict[str, Callable[[Facts], str | None]] = {
    "cache away": _cache_away,
    "idle": _idle,
    "thread stolen": _thread_stolen,
    "grammar-bound": _grammar_bound,
    "KV exhausted": _kv_exhausted,
    "queue bound": _queue_bound,
    "slow client": _slow_client,
    "prefill burst": _prefill_burst,
    "draft losing": _draft_losing,
    "memory-bound decode": _memory_bound,
    "bound by arithmetic": _arithmetic_bound,
    "small batch": _small_batch,
    "at work": _at_work,
}
