"""Properties of the native sampler that need no other implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pagoda._native import sampler_isas
from pagoda.errors import ConfigError
from pagoda.sampling.base import Sampled, SamplerState, SamplingBatch, StateSpec, TokenMasks
from pagoda.sampling.params import validate
from pagoda.sampling.reference import NOTHING_ALLOWED
from pagoda.sampling.sampler import Sampler
from pagoda.types import FloatArray, SamplingParams

VOCAB = 300  # several blocks of 64 and a rest

Open = Callable[..., SamplerState]


@pytest.fixture(params=sampler_isas())
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return Sampler(VOCAB, isa=request.param)


def open_state(sampler: Sampler, params: SamplingParams, *, choice: int = 0, seed: int = 0, **kwargs) -> SamplerState:
    return sampler.open(StateSpec(validate(params, sampler.vocab_size, 10_000), (), choice, seed, **kwargs))


def sample(sampler: Sampler, logits: FloatArray, states: Sequence[SamplerState], **rest) -> Sampled:
    return sampler.sample(SamplingBatch(logits, states, **rest))


def normal_logits(num_rows: int, vocab_size: int = VOCAB, *, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(scale=3.0, size=(num_rows, vocab_size)).astype(np.float32)


def support(sampler: Sampler, logits: FloatArray, **params) -> list[int]:
    return sampler.distribution(logits, open_state(sampler, SamplingParams(**params)))[0].tolist()


def row(values: dict[int, float], other: float = -np.inf) -> FloatArray:
    logits = np.full(VOCAB, other, dtype=np.float32)
    for token_id, value in values.items():
        logits[token_id] = value
    return logits


# Drawing


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(top_k=12),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.05, temperature=1.5),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampler: Sampler, params: SamplingParams) -> None:
    num_draws = 20_000
    logits = normal_logits(1)
    ids, probs = sampler.distribution(logits[0], open_state(sampler, params))
    states = [open_state(sampler, params, seed=seed) for seed in range(num_draws)]
    drawn = sample(sampler, logits, states, rows=np.zeros(num_draws, dtype=np.int32)).token_ids
    observed = np.bincount(drawn, minlength=VOCAB)
    assert observed.sum() == observed[ids].sum()
    assert chi_square_excess(observed[ids], probs * num_draws) < 4.0


def chi_square_excess(observed: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> float:
    """Standard deviations by which chi² exceeds its mean; cells that expect fewer than 5 are pooled."""
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    freedom = len(expected) - 1
    chi_square = ((observed - expected) ** 2 / expected).sum()
    return float((chi_square - freedom) / np.sqrt(2 * freedom))


def test_a_row_depends_on_nothing_else_in_the_batch(sampler: Sampler) -> None:
    logits = normal_logits(40)
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(top_p=0.9, logprobs=3),
        SamplingParams(top_k=7, repetition_penalty=1.3),
    ]
    states = [open_state(sampler, kinds[n % 4], seed=n) for n in range(40)]
    alone = [int(sample(sampler, logits[n : n + 1], [states[n]]).token_ids[0]) for n in range(40)]
    order = np.random.default_rng(1).permutation(40).astype(np.int32)
    together = sample(sampler, logits, [states[n] for n in order], rows=order).token_ids
    assert together.tolist() == [alone[n] for n in order]


def test_sampling_changes_neither_logits_nor_states(sampler: Sampler) -> None:
    logits = normal_logits(1)
    logits.flags.writeable = False
    state = open_state(sampler, SamplingParams(logit_bias={3: 5.0}, top_p=0.9))
    first, second = (int(sample(sampler, logits, [state]).token_ids[0]) for _ in range(2))
    assert first == second
    assert state.num_outputs == 0


def test_seed_choice_and_position_give_different_numbers(sampler: Sampler) -> None:
    flat = np.zeros((1, VOCAB), dtype=np.float32)

    def pick(seed: int, choice: int, position: int) -> int:
        state = open_state(sampler, SamplingParams(), seed=seed, choice=choice)
        for _ in range(position):
            state.accept(0)
        return int(sample(sampler, flat, [state]).token_ids[0])

    for axis in ([(s, 0, 0) for s in range(30)], [(0, c, 0) for c in range(30)], [(0, 0, p) for p in range(30)]):
        assert len({pick(*place) for place in axis}) > 20


def test_negative_seeds_are_seeds(sampler: Sampler) -> None:
    flat = np.zeros((1, VOCAB), dtype=np.float32)
    states = [open_state(sampler, SamplingParams(), seed=seed) for seed in (-1, -(2**63), 1)]
    assert len(set(sample(sampler, flat, states, rows=np.zeros(3, dtype=np.int32)).token_ids.tolist())) == 3


LOGITS = hnp.arrays(np.float32, VOCAB, elements=st.floats(-30, 30, width=16))  # width 16: ties are frequent


@given(logits=LOGITS, top_p=st.sampled_from([1.0, 0.5, 1e-6]), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=150, deadline=None)
def test_top_k_1_is_greedy(logits: FloatArray, top_p: float, seed: int) -> None:
    sampler = Sampler(VOCAB)
    greedy = open_state(sampler, SamplingParams(temperature=0))
    top_1 = open_state(sampler, SamplingParams(top_k=1, top_p=top_p, temperature=1.7), seed=seed)
    tiny_p = open_state(sampler, SamplingParams(top_p=1e-9), seed=seed)
    picked = sample(sampler, logits[None], [greedy, top_1, tiny_p], rows=np.zeros(3, dtype=np.int32)).token_ids
    assert picked.tolist() == [int(np.argmax(logits))] * 3


@given(
    logits=LOGITS, params=st.sampled_from([{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.1}]), seed=st.integers(0, 99)
)
@settings(max_examples=100, deadline=None)
def test_instruction_sets_agree_bit_for_bit(logits: FloatArray, params: dict[str, float], seed: int) -> None:
    found = []
    for isa in sampler_isas():
        sampler = Sampler(VOCAB, isa=isa)
        state = open_state(sampler, SamplingParams(**params, logprobs=20), seed=seed)  # type: ignore[arg-type]
        ids, probs = sampler.distribution(logits, state)
        sampled = sample(sampler, logits[None], [state])
        found.append((ids.tolist(), probs.tolist(), sampled.token_ids.tolist(), sampled.logprobs))
    assert all(other == found[0] for other in found)


# Which tokens can be drawn


def test_ties_go_to_the_lower_id(sampler: Sampler) -> None:
    ties = row({250: 2.0, 9: 2.0, 100: 2.0, 64: 2.0, 5: 1.0}, other=0.0)
    assert sample(sampler, ties[None], [open_state(sampler, SamplingParams(temperature=0))]).token_ids[0] == 9
    assert support(sampler, ties, top_k=2) == [9, 64]
    assert support(sampler, ties, top_k=5) == [5, 9, 64, 100, 250]
    assert support(sampler, ties, top_k=6) == [0, 5, 9, 64, 100, 250]


def test_top_p_keeps_until_the_mass_is_reached(sampler: Sampler) -> None:
    four = row(dict.fromkeys((3, 70, 140, 299), 1.5))  # a quarter each
    assert support(sampler, four, top_p=0.25) == [3]
    assert support(sampler, four, top_p=0.26) == [3, 70]
    assert support(sampler, four, top_p=0.5) == [3, 70]
    assert support(sampler, four, top_p=0.75 + 1e-6) == [3, 70, 140, 299]
    assert support(sampler, four, top_p=1e-12) == [3]


def test_top_p_counts_what_top_k_left(sampler: Sampler) -> None:
    halves = row({1: np.log(4), 2: np.log(2), 3: np.log(1), 4: np.log(1)})  # 1/2, 1/4, 1/8, 1/8
    assert support(sampler, halves, top_p=0.6) == [1, 2]
    assert support(sampler, halves, top_k=2, top_p=0.6) == [1]  # 2/3 of what is left


def test_min_p_is_relative_to_the_likeliest(sampler: Sampler) -> None:
    logits = row({1: np.log(4), 2: np.log(2.01), 3: np.log(1.99), 4: np.log(1)})
    assert support(sampler, logits, min_p=0.5) == [1, 2]
    assert support(sampler, logits, min_p=0.2) == [1, 2, 3, 4]
    assert support(sampler, logits, min_p=1.0) == [1]
    assert support(sampler, row({7: 1.0, 90: 1.0}), min_p=1.0) == [7, 90]


@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"temperature": 0}], ids=str)
def test_one_possible_token_is_taken(sampler: Sampler, params: dict[str, float]) -> None:
    for token_id in (0, 63, 64, 255, VOCAB - 1):
        assert support(sampler, row({token_id: -1e30}), **params) == [token_id]


@pytest.mark.parametrize("params", [{}, {"top_k": 299}, {"top_p": 0.999}, {"min_p": 1e-12}], ids=str)
def test_a_cold_temperature_leaves_the_likeliest(sampler: Sampler, params: dict[str, float]) -> None:
    assert support(sampler, row({10: 1e4, 11: 9.9e3}, other=-1e4), temperature=1e-4, **params) == [10]


def test_a_flat_row_under_top_p(sampler: Sampler) -> None:
    """More candidates than are ever sorted, all equal, and all but equal."""
    flat = np.zeros(VOCAB, dtype=np.float32)
    assert support(sampler, flat, top_p=0.5) == list(range(VOCAB // 2))
    sloped = -np.arange(VOCAB, dtype=np.float32) * np.float32(1e-3)
    kept = support(sampler, sloped, top_p=0.5)
    mass = np.cumsum(np.exp(sloped.astype(np.float64)))
    assert kept == list(range(1 + int(np.searchsorted(mass, 0.5 * mass[-1]))))


# Adjustments


def test_penalties_are_exact(sampler: Sampler) -> None:
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    state = sampler.open(StateSpec(params, (1, 1, 2), 0, 0))
    for token_id in (2, 3, 3):
        state.accept(token_id)
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[:5] = [4.0, 4.0, 4.0, -1.0, 4.0]
    ids, probs = sampler.distribution(logits, state)
    expected = np.exp([4.0, 2.0, 4 / 2 - 0.25 - 0.5, -1 * 2 - 2 * 0.25 - 0.5, 4.0])
    assert ids.tolist() == list(range(VOCAB))
    np.testing.assert_allclose(probs[:5] / probs[0], expected / expected[0], rtol=2e-6)
    np.testing.assert_allclose(probs[5:] / probs[0], np.exp(-4.0), rtol=2e-6)


def test_rewind_forgets(sampler: Sampler) -> None:
    params = SamplingParams(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25)
    straight, detour = sampler.open(StateSpec(params, (4,), 0, 0)), sampler.open(StateSpec(params, (4,), 0, 0))
    logits = normal_logits(1)[0]
    for token_id in (7, 8):
        straight.accept(token_id)
    for token_id in (7, 8, 8, 9, 4):
        detour.accept(token_id)
    detour.rewind(2)
    assert detour.num_outputs == 2
    for ours, theirs in zip(sampler.distribution(logits, detour), sampler.distribution(logits, straight), strict=True):
        assert ours.tolist() == theirs.tolist()
    with pytest.raises(ValueError, match="cannot rewind 2 outputs to 3"):
        detour.rewind(3)


def test_bias_reaches_any_token(sampler: Sampler) -> None:
    logits = normal_logits(1)
    lowest, highest = int(logits[0].argmin()), int(logits[0].argmax())
    forced = open_state(sampler, SamplingParams(temperature=0, logit_bias={lowest: 100.0}))
    banned = open_state(sampler, SamplingParams(temperature=0, logit_bias={highest: -100.0}))
    picked = sample(sampler, logits, [forced, banned], rows=np.zeros(2, dtype=np.int32)).token_ids
    assert picked.tolist() == [lowest, int(np.argsort(logits[0])[-2])]


def test_allowed_token_ids(sampler: Sampler) -> None:
    assert support(sampler, normal_logits(1)[0], allowed_token_ids=(280, 5, 5, 70)) == [5, 70, 280]


def test_min_tokens_holds_stop_ids_back(sampler: Sampler) -> None:
    logits = row({6: 9.0, 8: 5.0, 11: 7.0}, other=0.0)[None]
    state = open_state(sampler, SamplingParams(temperature=0, min_tokens=2), stop_token_ids=(6, 11))
    picked = []
    for _ in range(3):
        picked.append(int(sample(sampler, logits, [state]).token_ids[0]))
        state.accept(picked[-1])
    assert picked == [8, 8, 6]


def test_bad_words_are_never_completed(sampler: Sampler) -> None:
    logits = row({1: 4.0, 2: 3.0, 3: 2.0}, other=0.0)[None]
    state = open_state(sampler, SamplingParams(temperature=0), bad_words=((1, 1), (2, 1, 2), (0, 0, 0, 0, 0, 0, 3)))
    picked = []
    for _ in range(6):
        picked.append(int(sample(sampler, logits, [state]).token_ids[0]))
        state.accept(picked[-1])
    assert picked == [1, 2, 1, 3, 1, 2]


def test_a_bad_word_of_one_token_is_never_drawn(sampler: Sampler) -> None:
    state = open_state(sampler, SamplingParams(), bad_words=((5,),))
    assert sampler.distribution(np.zeros(VOCAB, dtype=np.float32), state)[0].tolist() == [
        token_id for token_id in range(VOCAB) if token_id != 5
    ]


def test_ids_beyond_the_vocabulary_can_neither_stop_nor_be_banned(sampler: Sampler) -> None:
    state = open_state(sampler, SamplingParams(min_tokens=3), stop_token_ids=(VOCAB,), bad_words=((1, VOCAB),))
    assert sampler.distribution(np.zeros(VOCAB, dtype=np.float32), state)[0].size == VOCAB


def packed(allowed: set[int]) -> npt.NDArray[np.uint32]:
    words = np.zeros((VOCAB + 31) // 32, dtype=np.uint32)
    for token_id in allowed:
        words[token_id // 32] |= np.uint32(1 << token_id % 32)
    return words


def test_masks_bind_the_rows_that_they_name(sampler: Sampler) -> None:
    logits = normal_logits(4)
    states = [open_state(sampler, SamplingParams(temperature=0)) for _ in range(4)]
    masks = TokenMasks(np.array([3, 1], dtype=np.int32), np.stack([packed({31}), packed({299})]))
    free = logits.argmax(axis=1)
    assert sample(sampler, logits, states, masks=masks).token_ids.tolist() == [free[0], 299, free[2], 31]
    allowed = {0, 31, 32, 200}
    assert sampler.distribution(logits[0], states[0], mask=packed(allowed))[0].tolist() == [
        int(max(allowed, key=lambda token_id: logits[0, token_id]))
    ]


# Errors


def test_an_impossible_row_fails_alone(sampler: Sampler) -> None:
    logits = normal_logits(4)
    logits[1, 77] = np.nan
    logits[2, 299] = np.inf
    states = [open_state(sampler, SamplingParams(temperature=n % 2)) for n in range(3)]
    states.append(open_state(sampler, SamplingParams(allowed_token_ids=(5,), min_tokens=1), stop_token_ids=(5,)))
    sampled = sample(sampler, logits, states)
    assert sorted(sampled.errors) == [1, 2, 3]
    assert "NaN" in sampled.errors[1]
    assert "NaN" in sampled.errors[2]
    assert sampled.errors[3] == NOTHING_ALLOWED
    assert sampled.token_ids[0] == logits[0].argmax()


@pytest.mark.parametrize("place", [0, 15, 16, 63, 64, 130, 299])
def test_nan_is_seen_anywhere(sampler: Sampler, place: int) -> None:
    logits = normal_logits(1)
    logits[0, place] = np.nan
    assert sample(sampler, logits, [open_state(sampler, SamplingParams())]).errors


def test_shapes_and_ids_are_checked(sampler: Sampler) -> None:
    state = open_state(sampler, SamplingParams())
    with pytest.raises(ValueError, match="vocab_size"):
        sample(sampler, normal_logits(1, VOCAB + 1), [state])
    with pytest.raises(ValueError, match="no row of logits"):
        sample(sampler, normal_logits(1), [state, state])
    with pytest.raises(ValueError, match="no row of logits"):
        sample(sampler, normal_logits(1), [state], rows=np.array([-1], dtype=np.int32))
    with pytest.raises(ValueError, match="another vocabulary"):
        sample(Sampler(VOCAB + 1), normal_logits(1, VOCAB + 1), [state])
    masks = TokenMasks(np.zeros(1, dtype=np.int32), np.zeros((1, VOCAB // 32), dtype=np.uint32))
    with pytest.raises(ValueError, match="masks are too short"):
        sample(sampler, normal_logits(1), [state], masks=masks)
    for token_id in (-1, VOCAB):
        with pytest.raises(ValueError, match="is not in"):
            state.accept(token_id)
    with pytest.raises(ConfigError, match="available: generic"):
        Sampler(VOCAB, isa="mmx")


def test_an_empty_batch(sampler: Sampler) -> None:
    assert sample(sampler, normal_logits(1), []).token_ids.tolist() == []


# Logprobs


def test_logprobs_are_of_the_raw_distribution(sampler: Sampler) -> None:
    logits = row({4: np.log(8), 200: np.log(4), 60: np.log(4)})[None]
    params = SamplingParams(logprobs=2, temperature=0, logit_bias={200: 50.0}, top_k=1)
    found = sample(sampler, logits, [open_state(sampler, params)]).logprobs[0]
    assert found is not None
    assert (found.chosen.token_id, found.chosen.rank) == (200, 2)
    assert found.chosen.logprob == pytest.approx(np.log(0.25), abs=1e-6)
    assert [(top.token_id, top.rank) for top in found.top] == [(4, 1), (60, 2)]
    assert found.top[0].logprob == pytest.approx(np.log(0.5), abs=1e-6)


def test_logprobs_0_is_the_chosen_one_alone(sampler: Sampler) -> None:
    states = [open_state(sampler, SamplingParams(logprobs=n)) for n in (None, 0)]
    none, only_chosen = sample(sampler, normal_logits(2), states).logprobs
    assert none is None
    assert only_chosen is not None
    assert only_chosen.top == ()


def test_logprobs_of_listed_tokens_follow_the_likeliest(sampler: Sampler) -> None:
    logits = row({4: np.log(8), 200: np.log(4), 60: np.log(4)})[None]
    params = SamplingParams(logprobs=1, logprob_token_ids=(60, 4, 7), temperature=0)
    plain = open_state(sampler, SamplingParams(logprobs=1, temperature=0))
    rows = np.zeros(2, np.int32)
    without, found = sample(sampler, logits, [plain, open_state(sampler, params)], rows=rows).logprobs
    assert without is not None
    assert found is not None
    assert found.chosen == without.chosen
    assert [(top.token_id, top.rank) for top in found.top] == [(4, 1), (60, 2), (7, 4)]
    assert found.top[1].logprob == pytest.approx(np.log(0.25), abs=1e-6)
    assert found.top[2].logprob == -np.inf


def test_prompt_logprobs(sampler: Sampler) -> None:
    logits = normal_logits(3)
    targets = np.array([5, int(logits[1].argmax()), 299], dtype=np.int32)
    found = sampler.prompt_logprobs(logits, targets, 4)
    assert [entry.chosen.token_id for entry in found] == targets.tolist()
    assert found[1].chosen == found[1].top[0]
    assert all(len(entry.top) == 4 for entry in found)
    assert sum(np.exp(entry.logprob) for entry in sampler.prompt_logprobs(logits[:1], targets[:1], VOCAB)[0].top) == (
        pytest.approx(1.0, abs=1e-6)
    )
    with pytest.raises(ValueError, match="not in the vocabulary"):
        sampler.prompt_logprobs(logits[:1], np.array([VOCAB], dtype=np.int32), 0)
