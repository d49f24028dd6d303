"""Who is computed in a step: budget, order, fairness, preemption. Sequences here owe tokens and mean nothing."""

from __future__ import annotations

import pytest

from pagoda.engine.output import OutputText
from pagoda.engine.queue import FairShare
from pagoda.engine.scheduler import Scheduler, StepPlan
from pagoda.engine.sequence import SampledRun, Sequence, Status
from pagoda.kv.cache import KVCache
from pagoda.sampling.base import StateSpec
from pagoda.sampling.reference import ReferenceSampler
from pagoda.types import Request, SamplingParams


class Bench:
    """A scheduler, and sequences that always sample token 1."""

    def __init__(
        self, *, num_blocks: int = 64, max_batch_tokens: int = 64, max_num_seqs: int = 8, prefix_caching: bool = False
    ) -> None:
        kv = KVCache(
            [None],
            [num_blocks],
            max_seqs=max_num_seqs,
            max_context=256,
            copy=lambda group, pairs: None,
            prefix_caching=prefix_caching,
        )
        self.scheduler = Scheduler(kv, max_batch_tokens=max_batch_tokens, max_rows=max_num_seqs)
        self.names: dict[Sequence, str] = {}

    def add(self, name: str, prompt_len: int, *, priority: int = 0, tenant: str = "", **params: int) -> Sequence:
        request = Request(name, tuple([2] * prompt_len), SamplingParams(**params), 0.0, priority, tenant)
        sampler = ReferenceSampler().open(StateSpec(request.params, request.prompt_token_ids, 0, 0))
        output = OutputText(NoText(), request.params)
        seq = Sequence(
            request, 0, order=len(self.names), max_len=256, stop_ids=frozenset(), sampler=sampler, output=output
        )
        self.names[seq] = name
        self.scheduler.add(seq)
        return seq

    def step(self) -> dict[str, int]:
        """→ tokens computed, by name"""
        plan = self.plan()
        return {self.names[seq]: count for seq, count in plan.counts.items()}

    def plan(self) -> StepPlan:
        plan = self.scheduler.plan(1.0)
        self.scheduler.commit(plan, {})
        for seq in plan.counts:
            if seq.prompt_logprobs is not None:
                seq.prompt_logprobs.extend(
                    [None] * (min(seq.num_computed, seq.prompt_len - 1) + 1 - len(seq.prompt_logprobs))
                )
            if seq.num_computed == len(seq.tokens):
                seq.append(SampledRun([1], [None]))
        self.scheduler.check()
        return plan


class NoText:
    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def test_a_long_prompt_is_paid_in_chunks_between_the_decodes() -> None:
    bench = Bench(max_batch_tokens=10)
    bench.add("short", 3)
    bench.add("long", 20)
    assert bench.step() == {"short": 3, "long": 7}
    assert bench.step() == {"short": 1, "long": 9}
    assert bench.step() == {"short": 1, "long": 4}
    assert bench.step() == {"short": 1, "long": 1}


def test_decodes_are_paid_before_an_older_prompt() -> None:
    bench = Bench(max_batch_tokens=4)
    bench.add("long", 9, priority=0)
    assert bench.step() == {"long": 4}
    late = bench.add("late", 1, priority=1)
    assert bench.step() == {"long": 4}
    assert bench.step() == {"long": 1, "late": 1}
    assert late.num_outputs == 1


def test_no_more_sequences_run_than_allowed() -> None:
    bench = Bench(max_num_seqs=2)
    for name in "abc":
        bench.add(name, 2)
    assert bench.step() == {"a": 2, "b": 2}
    bench.scheduler.finish(bench.scheduler.running[0])
    assert bench.step() == {"b": 1, "c": 2}


def test_lower_priority_numbers_come_first_then_arrival() -> None:
    bench = Bench(max_num_seqs=1)
    for name, priority in (("a", 1), ("b", 0), ("c", 0), ("d", -3)):
        bench.add(name, 1, priority=priority)
    assert order_of(bench, 4) == ["d", "b", "c", "a"]


def test_tenants_take_turns_by_tokens_served() -> None:
    bench = Bench(max_num_seqs=1)
    for i in range(4):
        bench.add(f"greedy{i}", 10, tenant="greedy")
    for i in range(4):
        bench.add(f"modest{i}", 5, tenant="modest")
    order = order_of(bench, 8)
    assert order[:4] == ["greedy0", "modest0", "modest1", "greedy1"]
    assert order.index("modest3") < order.index("greedy3")


def test_a_tenant_that_pauses_saves_up_nothing() -> None:
    share = FairShare()
    share.enter("busy")
    share.charge("busy", 1000)
    share.enter("new")
    assert share.served["new"] == 1000
    share.charge("new", 1)
    share.leave("new")
    share.charge("busy", 500)
    share.enter("new")
    assert share.served["new"] == 1500


def test_a_tenant_that_was_served_more_does_not_come_back_as_new() -> None:
    share = FairShare()
    share.enter("modest")
    share.enter("greedy")
    share.charge("greedy", 1000)
    share.leave("greedy")
    share.enter("greedy")
    assert share.served == {"modest": 0, "greedy": 1000}


def test_the_youngest_of_the_lowest_priority_gives_its_blocks() -> None:
    bench = Bench(num_blocks=3)
    important = bench.add("important", 15, priority=0)
    old = bench.add("old", 15, priority=1)
    young = bench.add("young", 15, priority=1)
    assert len(bench.step()) == 3
    assert len(bench.step()) == 3  # position 15: the blocks are full now
    plan = bench.plan()
    assert plan.num_preempted == 1
    assert [seq.status for seq in (important, old, young)] == [Status.RUNNING, Status.RUNNING, Status.WAITING]
    assert list(plan.counts) == [important]  # the block went to it; the old one sits this step out
    assert young.num_computed == 0
    assert list(young.tokens) == [2] * 15 + [1, 1]


def test_the_preempted_come_back_before_new_ones_and_keep_their_tokens() -> None:
    bench = Bench(num_blocks=4, max_num_seqs=4)
    bench.add("old", 31)
    young = bench.add("young", 31)
    bench.step()
    while young.status is not Status.WAITING:
        bench.step()
    bench.add("new", 1)
    tokens = list(young.tokens)
    assert bench.step() == {"old": 1}  # nobody comes in while there is no room for the first in line
    bench.scheduler.finish(bench.scheduler.running[0])
    assert list(bench.step()) == ["young", "new"]
    assert list(young.tokens)[: len(tokens)] == tokens


def test_nobody_comes_in_on_blocks_that_running_prompts_will_need() -> None:
    bench = Bench(num_blocks=4, max_batch_tokens=16)
    bench.add("long", 60)
    bench.add("short", 1)
    for _ in range(3):
        assert list(bench.step()) == ["long"]


def test_who_cannot_grow_and_is_the_youngest_waits_where_it_is() -> None:
    bench = Bench(num_blocks=3, prefix_caching=False)
    bench.add("old", 16)
    young = bench.add("young", 16)
    bench.step()
    assert bench.step() == {"old": 1}  # took the last block
    assert young.status is Status.RUNNING
    bench.scheduler.finish(bench.scheduler.running[0])
    assert bench.step() == {"young": 1}


def test_a_token_planned_for_a_sequence_that_is_then_preempted_is_withdrawn() -> None:
    bench = Bench(num_blocks=5, max_batch_tokens=2, max_num_seqs=2)
    young = bench.add("young", 15, priority=1)
    while young.num_outputs == 0:
        bench.step()
    bench.add("important", 45, priority=0)
    plan = bench.plan()
    while not plan.num_preempted:  # the decode is planned first, then the prompt finds no block
        assert plan.counts[young] == 1
        plan = bench.plan()
    assert list(plan.counts.values()) == [plan.num_tokens]
    assert young not in plan.counts


def test_a_prefix_hit_is_not_paid_again() -> None:
    bench = Bench(prefix_caching=True)
    bench.add("first", 40)
    bench.step()
    second = bench.add("second", 40)
    plan = bench.plan()
    assert plan.counts[second] == 8
    assert (plan.prefix_queries, plan.prefix_hits, second.num_cached) == (40, 32, 32)


def test_prompt_logprobs_take_rows_and_no_prefix() -> None:
    bench = Bench(prefix_caching=True, max_num_seqs=4)
    bench.add("first", 20)
    bench.step()
    bench.add("scored", 20, prompt_logprobs=0)
    assert bench.step() == {"first": 1, "scored": 3}  # 4 rows, one of them for the first
    bench.add("late", 5)
    assert bench.step() == {"first": 1, "scored": 3}  # no row is left for a newcomer


@pytest.mark.parametrize("state", ["waiting", "running", "preempted"])
def test_finish_gives_everything_back(state: str) -> None:
    bench = Bench(num_blocks=4)
    other = bench.add("other", 31)
    seq = bench.add("seq", 31)
    if state != "waiting":
        bench.step()
    while state == "preempted" and seq.status is not Status.WAITING:
        bench.step()
    bench.scheduler.finish(seq)
    bench.scheduler.check()
    bench.scheduler.finish(other)
    assert bench.scheduler.kv.num_used_blocks == 0
    assert not bench.scheduler.running
    assert not bench.scheduler.waiting


def order_of(bench: Bench, count: int) -> list[str]:
    """Let one after the other run for one step."""
    names = []
    for _ in range(count):
        names += list(bench.step())
        bench.scheduler.finish(bench.scheduler.running[0])
    return names


def test_prompts_that_begin_alike_wait_for_the_first_to_share_it() -> None:
    bench = Bench(prefix_caching=True, max_batch_tokens=128)
    for name in "abc":
        bench.add(name, 40)
    assert bench.step() == {"a": 40}
    plan = bench.plan()
    assert {bench.names[seq]: count for seq, count in plan.counts.items()} == {"a": 1, "b": 8, "c": 8}
    assert plan.prefix_hits == 64
    bench = Bench(prefix_caching=True, max_batch_tokens=128)
    for name in "ab":
        bench.add(name, 16)  # a block, but its last token has to be computed by each
    assert bench.step() == {"a": 16, "b": 16}


def test_a_long_prompt_is_shared_chunk_by_chunk() -> None:
    bench = Bench(prefix_caching=True, max_batch_tokens=64)
    bench.add("a", 160)
    bench.add("b", 200)
    assert [bench.step() for _ in range(3)] == [{"a": 64}, {"a": 64}, {"a": 32}]
    assert bench.step() == {"a": 1, "b": 40}


def test_what_begins_otherwise_does_not_wait() -> None:
    bench = Bench(prefix_caching=True, max_batch_tokens=128)
    bench.add("a", 40)
    bench.add("scored", 40, prompt_logprobs=0)  # computes every token itself
    assert bench.step() == {"a": 40, "scored": 7}  # as many as there are rows of logits
