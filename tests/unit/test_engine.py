"""What a client sees of one request: deltas, finish reasons, logprobs, usage; and what a step reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fake_backend import EOS_ID, VOCAB_SIZE, FakeDevice, FakeModel, FakeTokenizer, fake_engine
from pagoda.engine.engine import Engine
from pagoda.errors import ContextLengthError, RequestError
from pagoda.types import Batch, Delta, FloatArray, Request, SamplingParams, StepResult

PROMPT = (5, 9, 20, 11, 30)


class Script(FakeModel):
    """A model that says a text whatever it is asked; position p of the sequence is its character p."""

    def __init__(self, text: str, prompt_len: int = len(PROMPT)) -> None:
        super().__init__((None,))
        self.ids = [EOS_ID if c == "$" else FakeTokenizer.alphabet.index(c) for c in text]
        self.prompt_len = prompt_len

    def answer(self, batch: Batch) -> FloatArray:
        super().answer(batch)
        logits = np.zeros((len(batch.logit_rows), VOCAB_SIZE), np.float32)
        for row, t in zip(logits, batch.logit_rows, strict=True):
            row[self.ids[max(0, batch.positions[t] + 1 - self.prompt_len)]] = 10
        return logits


def request(prompt: tuple[int, ...] = PROMPT, *, id: str = "r", **params: Any) -> Request:
    return Request(id, prompt, SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **params}), 0.0)


def run(engine: Engine) -> tuple[list[Delta], list[StepResult]]:
    results = []
    while engine.has_work:
        results.append(engine.step())
        engine.check()
    return [delta for result in results for delta in result.deltas], results


def say(text: str, **params: Any) -> list[Delta]:
    """The deltas of a model that says `text`; $ is its EOS, ~ half a character."""
    engine = fake_engine(model=Script(text))
    engine.add(request(**params))
    return run(engine)[0]


def ending(deltas: list[Delta]) -> tuple[str, object, object]:
    """→ (whole text, finish reason, stop reason)"""
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason, deltas[-1].stop_reason


# How it ends


def test_max_tokens() -> None:
    deltas = say("abcdefghij", max_tokens=3)
    assert ending(deltas) == ("abc", "length", None)
    assert [delta.text for delta in deltas] == ["a", "b", "c"]
    assert [len(delta.token_ids) for delta in deltas] == [1, 1, 1]


def test_until_the_context_is_full() -> None:
    engine = fake_engine(model=Script("a" * 100), max_context=20)
    engine.add(request(max_tokens=None))
    assert ending(run(engine)[0]) == ("a" * 15, "length", None)


def test_eos_ends_without_text_and_counts_as_a_token() -> None:
    deltas = say("ab$cd")
    assert ending(deltas) == ("ab", "stop", None)
    assert deltas[-1].token_ids == (EOS_ID,)
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 3


def test_ignored_eos_goes_on() -> None:
    assert ending(say("ab$cd", ignore_eos=True, max_tokens=5)) == ("abcd", "length", None)


def test_a_stop_token_is_not_shown_unless_asked_for() -> None:
    c = FakeTokenizer.alphabet.index("c")
    assert ending(say("abcd", stop_token_ids=(c,))) == ("ab", "stop", c)
    assert ending(say("abcd", stop_token_ids=(c,), include_stop_str_in_output=True)) == ("abc", "stop", c)


def test_a_stop_string_over_several_tokens() -> None:
    deltas = say("abcdefgh", stop=("cde",))
    assert ending(deltas) == ("ab", "stop", "cde")
    assert [delta.text for delta in deltas] == ["a", "b", "", "", ""]
    assert ending(say("abcdefgh", stop=("cde",), include_stop_str_in_output=True)) == ("abcde", "stop", "cde")


def test_what_was_held_for_a_stop_string_comes_out_at_the_end() -> None:
    assert ending(say("abcdefgh", stop=("cdx",), max_tokens=4)) == ("abcd", "length", None)
    assert ending(say("abc$", stop=("cdx",))) == ("abc", "stop", None)


def test_half_a_character_comes_out_at_the_end() -> None:
    deltas = say("ab~", max_tokens=3)
    assert [delta.text for delta in deltas] == ["a", "b", "~"]


def test_a_stop_string_within_the_last_flush_counts() -> None:
    assert ending(say("ab~", max_tokens=3, stop=("b~",))) == ("a", "stop", "b~")


def test_min_tokens_holds_eos_and_stop_strings_back() -> None:
    assert ending(say("$$$$$", min_tokens=3, max_tokens=9))[1] == "stop"
    deltas = say("$$$$$", min_tokens=3, max_tokens=9)
    assert [delta.token_ids[0] == EOS_ID for delta in deltas] == [False, False, False, True]
    assert ending(say("abab", stop=("ab",), min_tokens=2)) == ("ab", "stop", "ab")


def test_abort_ends_every_choice_at_once() -> None:
    engine = fake_engine()
    engine.add(request(n=2))
    engine.step()
    assert engine.abort("r")
    assert engine.kv.num_used_blocks == 0
    deltas = engine.step().deltas
    assert [(d.index, d.finish_reason) for d in deltas] == [(0, "abort"), (1, "abort")]
    assert not engine.has_work
    assert not engine.abort("r")


def test_abort_before_the_first_step() -> None:
    engine = fake_engine()
    engine.add(request(n=2))
    engine.abort("r")
    result = engine.step()
    assert [d.finish_reason for d in result.deltas] == ["abort", "abort"]
    assert [f.first_token for f in result.finished] == [None, None]


def test_impossible_sampling_ends_with_the_reason() -> None:
    engine = fake_engine(model=Script("aaaa"))
    engine.add(request(allowed_token_ids=(3,), logit_bias={}, bad_words=("b",), n=2))
    deltas, _ = run(engine)
    assert [d.finish_reason for d in deltas] == ["error", "error"]
    assert "ruled out" in (deltas[0].error or "")
    assert deltas[0].fault == "request"
    assert engine.kv.num_used_blocks == 0


class Poisoned(FakeModel):
    """Computes nothing of use after token 7."""

    def answer(self, batch: Batch) -> FloatArray:
        logits = super().answer(batch)
        logits[batch.tokens[batch.logit_rows] == 7] = np.nan
        return logits


@pytest.mark.parametrize("max_batch_tokens", [3, 32])
@pytest.mark.parametrize(
    ("prompt", "params"), [((3, 9, 7), {}), ((3, 9, 7, 9, 2, 4, 6), {"prompt_logprobs": 0, "n": 2})]
)
def test_logits_that_are_not_finite_end_their_own_request_only(
    prompt: tuple[int, ...], params: dict[str, Any], max_batch_tokens: int
) -> None:
    engine = fake_engine(model=Poisoned((None,)), max_batch_tokens=max_batch_tokens, max_num_seqs=3)
    engine.add(request((8, 9), id="other", max_tokens=6, allowed_token_ids=(9, 10)))
    engine.add(request(prompt, **params))
    deltas, _ = run(engine)
    last = {delta.request_id: delta for delta in deltas if delta.index == 0}
    assert (last["other"].finish_reason, last["r"].finish_reason, last["r"].fault) == ("length", "error", "model")
    assert "NaN" in (last["r"].error or "")
    assert engine.kv.num_used_blocks == 0


# What comes with it


def test_logprobs_come_with_each_token() -> None:
    deltas = say("abc", logprobs=2, max_tokens=3)
    for delta in deltas:
        assert delta.logprobs is not None
        assert delta.logprobs[0].chosen.token_id == delta.token_ids[0]
        assert delta.logprobs[0].chosen.rank == 1
        assert len(delta.logprobs[0].top) == 2


@pytest.mark.parametrize("max_batch_tokens", [2, 7, 32])
def test_prompt_logprobs_come_once_for_every_prompt_token(max_batch_tokens: int) -> None:
    prompt = tuple(range(2, 39))
    engine = fake_engine(max_batch_tokens=max_batch_tokens, max_num_seqs=5)
    for i in range(2):
        engine.add(request(prompt, id=str(i), prompt_logprobs=1, n=2))
    deltas, _ = run(engine)
    first = [delta for delta in deltas if delta.prompt_logprobs is not None]
    assert [(delta.request_id, delta.index) for delta in first] == [("0", 0), ("1", 0)]
    for delta in first:
        assert delta.prompt_logprobs is not None
        assert delta.prompt_logprobs[0] is None
        assert [entry.chosen.token_id for entry in delta.prompt_logprobs[1:] if entry] == list(prompt[1:])
    assert first[0].prompt_logprobs == first[1].prompt_logprobs


def test_prompt_logprobs_are_those_of_the_model() -> None:
    script = Script("abcd", prompt_len=0)  # after position p it says character p + 1
    engine = fake_engine(model=script)
    engine.add(request((3, *script.ids[1:3], 9), prompt_logprobs=0, max_tokens=1))
    script.ids += [EOS_ID]
    scored = run(engine)[0][0].prompt_logprobs
    assert scored is not None
    assert [entry and entry.chosen.rank for entry in scored] == [None, 1, 1, 2]


def test_usage_counts_prompt_output_and_cached_tokens() -> None:
    prompt = tuple(range(2, 39))
    engine = fake_engine()
    usages = []
    for i in range(2):
        engine.add(request(prompt, id=str(i), max_tokens=4, ignore_eos=True))
        usages.append(run(engine)[0][-1].usage)
    assert [(u.prompt_tokens, u.completion_tokens, u.cached_tokens) for u in usages if u] == [(37, 4, 0), (37, 4, 32)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_progress_of_the_prompt_where_asked(asynchronous: bool) -> None:
    """16 tokens a step: what is computed after each that is not the last, and what was cached before."""
    model = FakeDevice((None,)) if asynchronous else None
    engine = fake_engine(model=model, max_batch_tokens=16, max_num_seqs=2)
    prompt = (*range(2, 39), *range(2, 15))
    for id, ids in (("first", prompt[:32]), ("asked", prompt), ("silent", prompt[::-1])):
        engine.add(replace(request(ids, id=id, max_tokens=2), report_progress=id == "asked"))
        deltas, _ = run(engine)
        found = [(p.total, p.cached, p.computed) for d in deltas if (p := d.prompt_progress)]
        assert found == ([(50, 32, 48)] if id == "asked" else [])
        assert all(d.prompt_progress is None for d in deltas[len(found) :])
        assert all(d.text == "" and d.token_ids == () for d in deltas[: len(found)])


def test_choices_share_the_prompt_and_draw_their_own() -> None:
    prompt = tuple(range(2, 39))
    engine = fake_engine()
    engine.add(request(prompt, n=3, temperature=1.0, seed=1, max_tokens=12, ignore_eos=True))
    deltas, results = run(engine)
    assert sum(result.num_prompt_tokens for result in results) == len(prompt)
    assert max(result.kv_blocks_used for result in results) <= 2 + 3 * 2
    outputs = [tuple(t for d in deltas if d.index == i for t in d.token_ids) for i in range(3)]
    assert len(set(outputs)) == 3


def test_more_choices_than_slots_take_turns() -> None:
    engine = fake_engine(max_num_seqs=2)
    engine.add(request(n=5, max_tokens=4, ignore_eos=True))
    deltas, results = run(engine)
    assert max(result.num_running for result in results) == 2
    assert sorted(d.index for d in deltas if d.finish_reason == "length") == [0, 1, 2, 3, 4]


def test_a_seed_makes_it_repeatable_and_its_lack_does_not() -> None:
    def tokens(id: str, **params: Any) -> list[int]:
        engine = fake_engine()
        engine.add(request(id=id, temperature=1.0, max_tokens=16, ignore_eos=True, **params))
        return [token_id for delta in run(engine)[0] for token_id in delta.token_ids]

    assert tokens("a", seed=1) == tokens("b", seed=1) != tokens("b", seed=2)
    assert tokens("a") == tokens("a") != tokens("b")


# What is refused


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ((), {}, "prompt"),
        ((VOCAB_SIZE,), {}, "prompt"),
        ((-1,), {}, "prompt"),
        (PROMPT, {"temperature": -1.0}, "temperature"),
        (PROMPT, {"max_tokens": 92}, "max_tokens"),
        ((1,) * 96, {"max_tokens": None}, "prompt"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(prompt: tuple[int, ...], params: dict[str, Any], param: str) -> None:
    engine = fake_engine(max_context=96)
    with pytest.raises(RequestError) as caught:
        engine.add(request(prompt, **params))
    assert caught.value.param == param
    assert not engine.has_work


def test_a_prompt_that_fills_the_context_but_one_is_served() -> None:
    engine = fake_engine(max_context=96)
    engine.add(request((1,) * 95, max_tokens=None, ignore_eos=True))
    assert len(run(engine)[0]) == 1


def test_too_long_says_how_long() -> None:
    with pytest.raises(ContextLengthError, match=r"length is 96 tokens.*requested 100 tokens .90 in the prompt, 10 in"):
        fake_engine(max_context=96).add(request((1,) * 90, max_tokens=10))


def test_an_id_in_use_is_refused_until_it_is_free() -> None:
    engine = fake_engine()
    engine.add(request())
    with pytest.raises(RequestError, match="'r' is running"):
        engine.add(request())
    run(engine)
    engine.add(request())


# What a step reports


def test_facts_of_a_life() -> None:
    engine = fake_engine(max_batch_tokens=4)
    engine.add(request(max_tokens=3, ignore_eos=True))
    _, results = run(engine)
    assert [r.num_prompt_tokens for r in results] == [4, 1, 0, 0]
    assert [r.num_generation_tokens for r in results] == [0, 1, 1, 1]
    assert [len(r.ttft_s) for r in results] == [0, 1, 0, 0]
    assert [len(r.inter_token_s) for r in results] == [0, 0, 1, 1]
    assert [len(r.queue_s) for r in results] == [1, 0, 0, 0]
    assert [r.num_running for r in results] == [1, 1, 1, 0]
    assert [r.kv_blocks_used for r in results] == [1, 1, 1, 0]
    assert [r.kv_slots_wasted for r in results] == [12, 11, 10, 0]
    (finished,) = results[-1].finished
    assert finished.finish_reason == "length"
    assert (finished.prompt_tokens, finished.completion_tokens) == (5, 3)
    assert finished.first_scheduled is not None
    assert finished.first_token is not None
    assert finished.first_scheduled <= finished.first_token <= finished.finished


def test_a_step_without_work_computes_nothing() -> None:
    model = FakeModel((None,))
    engine = fake_engine(model=model)
    result = engine.step()
    assert (result.deltas, result.num_running, model.batches) == ((), 0, [])


def test_preemptions_are_reported() -> None:
    engine = fake_engine(num_blocks=[6], max_num_seqs=4)
    for i in range(4):
        engine.add(request((2 + i,) * 20, id=str(i), max_tokens=40, ignore_eos=True))
    _, results = run(engine)
    assert sum(result.num_preempted for result in results) > 0
    assert all(result.kv_blocks_used <= result.kv_blocks_total == 6 for result in results)
