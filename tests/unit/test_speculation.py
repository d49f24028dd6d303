"""What drafters propose, and how many of it are checked."""

from __future__ import annotations

import random
from array import array
from typing import Any

import pytest

from fake_backend import fake_engine
from pagoda.engine.drafters import DraftQuery, Proposal
from pagoda.engine.engine import Engine
from pagoda.engine.speculation.choose import choose_drafters
from pagoda.engine.speculation.matching import MOST_PLACES, NgramIndex, best_match
from pagoda.engine.speculation.ngram import NgramDrafter
from pagoda.engine.speculation.pacing import Pacer, StepTimes
from pagoda.engine.speculation.prediction import PredictionDrafter
from pagoda.engine.speculation.shared_suffix import SharedSuffixDrafter
from pagoda.sampling.base import StateSpec
from pagoda.sampling.reference import ReferenceSampler
from pagoda.types import LoadedAdapter, Request, SamplingParams


def query(tokens: list[int], prompt_len: int = 1, most: int = 4, id: str = "r", **request: Any) -> DraftQuery:
    made = Request(id, tuple(tokens[:prompt_len]), SamplingParams(), 0.0, **request)
    state = ReferenceSampler().open(StateSpec(SamplingParams(), tokens[:prompt_len], 0, 0))
    return DraftQuery((id, 0), array("i", tokens), prompt_len, made, state, most)


def match_in(tokens: list[int]) -> tuple[int, int] | None:
    text = array("i", tokens)
    index = NgramIndex()
    index.extend(text, len(text) - 1)
    found = best_match(index, text, text)
    return None if found is None else (found.end, found.length)


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        ([1, 2], None),
        ([1, 2, 3, 4, 5, 6], None),
        ([1, 2, 3, 9, 1, 2, 3], (3, 3)),
        ([7, 1, 2, 3, 9, 1, 2, 3, 8, 7, 1, 2, 3], (4, 4)),  # the longer match, not the later
        ([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3, 8, 5, 1, 2, 3], (11, 3)),  # 8 came twice, 9 once
        ([4, 4, 4, 4, 4], (4, 4)),
    ],
)
def test_the_longest_match_with_the_commonest_continuation(tokens: list[int], match: tuple[int, int] | None) -> None:
    assert match_in(tokens) == match


def test_matches_are_right_on_random_texts() -> None:
    rng = random.Random(0)
    for _ in range(300):
        tokens = [rng.randrange(4) for _ in range(rng.randrange(3, 60))]
        found = match_in(tokens)
        ends = [end for end in range(3, len(tokens)) if tokens[end - 3 : end] == tokens[-3:]]
        assert (found is None) == (not ends)
        if found is not None:
            end, length = found
            assert tokens[end - length : end] == tokens[-length:]


def test_an_index_that_has_grown_has_the_places_of_the_whole_text() -> None:
    rng = random.Random(1)
    for base in (0, 2**21 - 3):
        for _ in range(100):
            text = array("i", [base + rng.randrange(3) for _ in range(rng.randrange(3, 80))])
            index = NgramIndex()
            for stop in sorted(rng.randrange(len(text) + 1) for _ in range(4)):
                index.extend(text, stop)
                ends = [end for end in range(stop, 2, -1) if text[end - 3 : end] == text[-3:]]
                assert index.places(text) == ends[:MOST_PLACES]


def test_ngram_follows_what_came_after() -> None:
    drafter = NgramDrafter()
    text = [*range(10, 30), 5, *range(10, 27)]
    assert drafter.propose([query(text)]) == [Proposal([27, 28, 29, 5], 3)]  # 17 tokens match
    assert drafter.propose([query([*text, 27, 28], most=2)]) == [Proposal([29, 5], 3)]  # the index has grown
    assert drafter.propose([query([1, 2, 3], id="other")]) == [Proposal()]
    drafter.forget(("r", 0))
    assert drafter.propose([query(text)])[0].tokens == [27, 28, 29, 5]


PREDICTION = tuple(range(100, 130))


def predicted(answer: list[int], drafter: PredictionDrafter | None = None) -> Proposal:
    drafter = drafter or PredictionDrafter()
    (found,) = drafter.propose([query([1, *answer], prediction=PREDICTION)])
    return found


def test_a_prediction_is_followed_from_its_start() -> None:
    assert predicted([]) == Proposal([100, 101, 102, 103], 3)
    assert predicted([100, 101]).tokens == [102, 103, 104, 105]
    assert predicted([*PREDICTION]) == Proposal([], 3)
    assert PredictionDrafter().propose([query([1])]) == [Proposal()]


def test_after_a_divergence_the_place_is_found_again() -> None:
    assert predicted([100, 101, 7]) == Proposal()
    assert predicted([100, 101, 7, 8, 110, 111]) == Proposal()  # two tokens could be chance
    assert predicted([100, 101, 7, 8, 110, 111, 112]) == Proposal([113, 114, 115, 116], 1)


def test_of_several_places_the_nearest_behind_is_taken() -> None:
    prediction = (1, 2, 3, 50, 9, 9, 9, 1, 2, 3, 60, 8, 8, 8, 1, 2, 3, 70)
    (found,) = PredictionDrafter().propose([query([0, 1, 2, 3, 50, 9, 5, 1, 2, 3], prediction=prediction, most=1)])
    assert found.tokens == [60]


def test_a_prediction_is_walked_as_tokens_come() -> None:
    drafter = PredictionDrafter()
    answer: list[int] = []
    for token in (100, 101, 7, 103, 104, 105):
        predicted(answer, drafter)
        answer.append(token)
    assert predicted(answer, drafter).tokens == [106, 107, 108, 109]


def end(drafter: SharedSuffixDrafter, tokens: list[int], id: str, **request: Any) -> None:
    drafter.propose([query(tokens, id=id, **request)])
    drafter.forget((id, 0))


def test_answers_of_others_are_followed_within_their_scope() -> None:
    drafter = SharedSuffixDrafter()
    end(drafter, [1, *range(40, 60)], "first")
    assert drafter.propose([query([1, 5, 45, 46, 47])]) == [Proposal([48, 49, 50, 51], 0)]
    adapter = LoadedAdapter("x", "digest", None)
    for other in ({"tenant": "x"}, {"cache_salt": "x"}, {"adapter": adapter}):
        assert drafter.propose([query([1, 5, 45, 46, 47], id=str(other), **other)]) == [Proposal()]
    assert drafter.propose([query([2, 5, 45, 46, 47], id="other prompt")]) == [Proposal()]


def test_memory_of_answers_is_bounded() -> None:
    drafter = SharedSuffixDrafter(most_tokens=100)
    for i in range(20):
        end(drafter, [i % 3, *range(40, 70)], str(i))
        assert drafter.num_tokens <= 100
    end(drafter, [1, 2, 3], "short")
    assert not drafter._running


def test_times_between_those_measured_lie_on_a_line() -> None:
    times = StepTimes()
    assert times.seconds(3) is None
    times.observe(1, 0.010)
    assert times.seconds(2) == pytest.approx(0.012)  # a fifth of a step, before anything else is known
    times.observe(5, 0.014)
    assert times.seconds(3) == pytest.approx(0.012)
    assert times.seconds(9) == pytest.approx(0.018)  # the slope so far
    times.observe(4, 0.020)  # slower than the step of five: more tokens never take less
    assert times.seconds(5) == pytest.approx(0.020)


def paced(times: dict[int, float]) -> Pacer:
    pacer = Pacer()
    for n, seconds in times.items():
        pacer.observe(n, seconds)
    return pacer


CHEAP = {1: 0.010, 8: 0.0114}  # a token more takes 2 % of a step
DEAR = {1: 0.010, 8: 0.080}  # it takes a whole one


def test_cheap_tokens_are_checked_and_dear_ones_not() -> None:
    draft = {"r": ("ngram", 3, 8)}
    assert paced(CHEAP).choose(draft, 1, 1) == {"r": 8}
    assert paced(DEAR).choose(draft, 1, 1) == {"r": 0}
    assert not paced(DEAR).may_pay(1, 1)


def test_the_likelier_of_two_drafts_gets_more() -> None:
    found = paced({2: 0.010, 10: 0.026}).choose({"sure": ("ngram", 3, 8), "weak": ("ngram", 0, 8)}, 2, 2)
    assert found["sure"] > found["weak"]


def test_a_sequence_that_loses_stops_and_tries_again_later() -> None:
    pacer = paced({1: 0.010, 9: 0.026})
    draft = {"r": ("ngram", 2, 8)}
    lengths = []
    for _ in range(12):
        length = pacer.choose(draft, 1, 1)["r"]
        lengths.append(length)
        if length:
            pacer.verified("r", "ngram", 2, length, 0)
    assert lengths[0] > 0
    assert lengths[-1] == 0
    waited = 0
    while not pacer.choose(draft, 1, 1)["r"]:
        waited += 1
        assert waited < 1000
    assert waited > 5


def test_good_guesses_make_drafts_longer() -> None:
    pacer = paced({1: 0.010, 9: 0.026})
    draft = {"r": ("ngram", 0, 8)}
    first = pacer.choose(draft, 1, 1)["r"]
    for _ in range(20):
        pacer.verified("r", "ngram", 0, 4, 4)
    assert pacer.choose(draft, 1, 1)["r"] > first


def test_which_drafters_there_are() -> None:
    names = [drafter.name for drafter in choose_drafters(("auto",), asynchronous=False)]
    assert names == ["prediction", "ngram", "shared_suffix"]
    assert choose_drafters(("auto",), asynchronous=True) == choose_drafters(("off",), asynchronous=False) == ()
    assert [drafter.name for drafter in choose_drafters(("ngram",), asynchronous=True)] == ["ngram"]


def answers(engine: Engine, requests: list[Request]) -> tuple[dict[tuple[str, int], list[int]], int]:
    """→ the tokens of each choice, and how many steps they took"""
    found: dict[tuple[str, int], list[int]] = {}
    steps = 0
    for request in requests:
        engine.add(request)
    while engine.has_work:
        steps += 1
        for delta in engine.step().deltas:
            found.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
        engine.check()
    assert engine.kv.num_used_blocks == 0
    return found, steps


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_drafters_together_change_no_answer(temperature: float) -> None:
    rng = random.Random(1)
    requests = []
    for i in range(12):
        prompt = tuple(rng.randrange(10, 14) for _ in range(rng.randrange(3, 40)))
        prediction = tuple(rng.randrange(40) for _ in range(20)) if i % 3 == 0 else None
        params = SamplingParams(max_tokens=rng.randrange(1, 30), temperature=temperature, seed=i, n=1 + i % 2)
        most = (None, 0, 3)[i % 3]
        requests.append(Request(str(i), prompt, params, 0.0, prediction=prediction, max_draft_tokens=most))
    plain, steps = answers(fake_engine(), requests)
    drafters = choose_drafters(("auto",), asynchronous=False)
    drafted, fewer = answers(fake_engine(drafters=drafters, pace=paced(CHEAP)), requests)
    assert drafted == plain
    assert fewer <= steps


def test_an_answer_that_was_predicted_comes_in_few_steps() -> None:
    request = Request("r", (5, 9, 20), SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True), 0.0)
    plain, steps = answers(fake_engine(), [request])
    known = Request("r", (5, 9, 20), request.params, 0.0, prediction=tuple(plain["r", 0]))
    drafted, fewer = answers(fake_engine(drafters=[PredictionDrafter()], pace=paced(CHEAP)), [known])
    assert drafted == plain
    assert fewer < steps / 3
