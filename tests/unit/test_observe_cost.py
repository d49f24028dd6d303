"""Requests pay for the work that they caused, and all payments and idle time add up to the bill."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_backend import fake_engine
from pagoda.observe.cost import CostLedger, WorkUnits
from pagoda.types import DraftCounts, Request, SamplingParams, SequenceWork, StepResult

PRICE = 3.6  # USD an hour: 0.001 a second


def row(request_id: str, prompt: int = 0, decode: int = 0, draft: int = 0, again: int = 0, kv: int = 0) -> SequenceWork:
    return SequenceWork(request_id, f"tenant-{request_id}", None, prompt, decode, draft, again, kv)


def step(ended: float, *work: SequenceWork, step_s: float = 1.0, running: int = 0, **facts: object) -> StepResult:
    return StepResult(work=work, step_s=step_s, ended=ended, num_running=running, **facts)  # type: ignore[arg-type]


def ledger(**units: float) -> CostLedger:
    return CostLedger(PRICE, WorkUnits(**units), clock=lambda: 0.0)


counts = st.integers(0, 600)
works = st.builds(row, st.sampled_from("abcdef"), counts, st.integers(0, 9), st.integers(0, 9), counts, counts)
steps = st.tuples(
    st.floats(0, 100),
    st.floats(0.0001, 5),
    st.lists(works, max_size=6, unique_by=lambda w: w.request_id),
    st.booleans(),
)


@given(st.lists(steps, max_size=30))
def test_requests_and_idle_time_add_up_to_the_bill(taken: list[tuple[float, float, list[SequenceWork], bool]]) -> None:
    """Σ requests + recomputed + idle = hours · price, to a millionth of a cent."""
    account, now = ledger(), 0.0
    for pause, step_s, work, goes_on in taken:
        now += pause + step_s
        account.record(step(now, *work, step_s=step_s, running=int(goes_on)))
    requests = sum(account.usd(name) for name in "abcdef")
    assert requests * 3600 / PRICE == pytest.approx(account.charged_s)
    assert sum(account.series.charged.values.values()) == pytest.approx(requests)
    assert requests + (account.recomputed_s + account.idle_s) * PRICE / 3600 == pytest.approx(now / 3600 * PRICE)
    assert min(account.recomputed_s, account.idle_s) >= 0


def test_a_step_is_shared_by_the_work_that_requests_caused() -> None:
    """100 prompt tokens against 25 decoded ones, which count 4 each: halves."""
    account = ledger(kv=0)
    account.record(step(2.0, row("a", prompt=100), row("b", decode=25), step_s=1.0))
    assert account.usd("a") == pytest.approx(0.0005)
    assert account.usd("b") == pytest.approx(0.0005)
    assert account.idle_s == pytest.approx(1.0)


def test_who_holds_more_of_the_cache_pays_more() -> None:
    account = ledger(kv=1 / 1024)
    account.record(step(1.0, row("a", decode=1, kv=4096), row("b", decode=1)))
    assert account.seconds("a") == pytest.approx(8 / 12)


def test_a_preempted_request_pays_once() -> None:
    """What is computed again is nobody's, even where the request is alone."""
    account = ledger()
    account.record(step(1.0, row("a", prompt=64, kv=64), running=1))
    paid = account.usd("a")
    account.record(step(2.0, row("a", again=64, kv=64), running=1))
    assert account.usd("a") == paid == pytest.approx(0.001)
    assert account.recomputed_s == pytest.approx(1.0)
    account.record(step(3.0, row("a", again=4, decode=1, kv=69), running=0))
    assert paid < account.usd("a") < 0.002


def test_time_between_two_steps_belongs_to_the_second_while_there_is_work() -> None:
    account = ledger()
    account.record(step(1.0, row("a", prompt=1), running=1))
    account.record(step(3.0, row("a", decode=1), step_s=1.0, running=0))  # a second went by between them
    account.record(step(9.0, row("b", decode=1), step_s=1.0))
    assert account.seconds("a") == pytest.approx(3.0)
    assert account.idle_s == pytest.approx(5.0)


def test_savings_are_worth_what_the_work_would_have_cost() -> None:
    """A unit costs 0.01 s here. 50 cached tokens save half a second; 3 of 8 draft tokens kept save 3 · 4 − 8 units."""
    account = ledger(kv=0)
    drafts = {"ngram": DraftCounts(1, 8, (1, 1, 1))}
    account.record(step(1.0, row("a", prompt=100), prefix_hits=50, drafts=drafts))
    account.update()
    assert account.series.saved.values["prefix_cache"] == pytest.approx(0.0005)
    assert account.series.saved.values["speculation"] == pytest.approx(0.00004)


def test_what_a_semantic_cache_saves_is_worth_as_much() -> None:
    """100 prompt tokens in a second: 0.01 s a unit; 10 prompt tokens and 5 decoded ones are 30 units."""
    account = ledger(kv=0)
    account.record(step(1.0, row("a", prompt=100)))
    account.set_saved("semantic_cache", 10, 5)
    account.set_saved("semantic_cache", 10, 5)  # totals, not further ones
    account.update()
    assert account.series.saved.values["semantic_cache"] == pytest.approx(0.0003)


def test_idle_time_that_is_shown_never_falls() -> None:
    now = 0.0
    account = CostLedger(PRICE, clock=lambda: now)
    now = 5.0
    account.update()
    shown = account.series.unbilled.values[("idle",)]
    assert shown == pytest.approx(0.005)
    account.record(step(5.5, row("a", prompt=1), step_s=1.0))  # it had begun when the figures were read
    account.update()
    assert account.series.unbilled.values[("idle",)] == shown


def test_memory_is_bounded() -> None:
    account = ledger()
    for i in range(10_000):
        account.record(step(float(i), row(f"r{i}", prompt=1)))
        account._forget_later(f"r{i}")
    assert len(account._requests) <= 4096
    assert len(account.series.charged.values) <= 201


def run(engine: object, requests: list[Request]) -> CostLedger:
    """Serve the requests on a clock that takes a second a step."""
    account, now = CostLedger(PRICE, clock=lambda: 0.0), 0.0
    for request in requests:
        engine.add(request)  # type: ignore[attr-defined]
    while engine.has_work:  # type: ignore[attr-defined]
        now += 1.0
        result = engine.step()  # type: ignore[attr-defined]
        account.record(StepResult(work=result.work, num_running=result.num_running, step_s=1.0, ended=now))
    return account


def request(id: str, prompt: tuple[int, ...], **params: object) -> Request:
    return Request(id, prompt, SamplingParams(ignore_eos=True, **params), 0.0)  # type: ignore[arg-type]


def test_the_engine_tells_what_each_request_caused() -> None:
    """Prompts of 40 and 3 tokens, 4 tokens each: the first step computes both prompts, three more decode."""
    engine = fake_engine(max_batch_tokens=64)
    engine.add(request("a", (6,) * 40, max_tokens=4))
    engine.add(request("b", (5, 6, 7), max_tokens=4))
    rows = [row for _ in range(4) for row in engine.step().work]
    for name, prompt in (("a", 40), ("b", 3)):
        mine = [one for one in rows if one.request_id == name]
        assert sum(one.num_prompt_tokens for one in mine) == prompt
        assert sum(one.num_decode_tokens for one in mine) == 3  # the fourth token is never fed back
        assert sum(one.num_recomputed_tokens for one in mine) == 0
        assert mine[-1].num_kv_tokens == prompt + 3


def test_preemption_and_cancelling_in_the_engine_keep_the_bill() -> None:
    """Seven blocks of 16 for two sequences that grow to 80 tokens: one is preempted and computed again."""
    engine = fake_engine(num_blocks=(7,), prefix_caching=False)
    account = run(engine, [request("a", tuple(range(5, 37)), max_tokens=48), request("b", (5,) * 32, max_tokens=48)])
    assert account.recomputed_s > 0
    total = account.seconds("a") + account.seconds("b") + account.recomputed_s + account.idle_s
    assert total == pytest.approx(account._last)
    assert account.seconds("a") == pytest.approx(account.seconds("b"), rel=0.35)
