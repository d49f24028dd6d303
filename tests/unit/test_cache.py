"""The cache without a server: lifetimes, evidence that outlives it, vectors that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cache_parts import WordEmbedder
from pagoda.cache.cache import SemanticCache
from pagoda.cache.entry import Answer
from pagoda.cache.evidence import EDGES, Evidence, Region
from pagoda.cache.policy import Policy, Question
from pagoda.cache.rules import Rules
from pagoda.cache.store import Selector
from pagoda.cache.stores.memory import MemoryStore
from pagoda.types import FloatArray

GOOD = tuple(Region(1000, 0 if edge > 0 else 1000) for edge in (-9.0, *EDGES))
ANSWER = Answer((("Iron oxide.", (1, 2)),), "stop", None, 5, 2)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Same:
    """A verifier for which all are the same."""

    regions = GOOD

    def log_odds(self, text: str, vector: FloatArray, others: Sequence[str], vectors: FloatArray) -> FloatArray:
        return np.full(len(others), 9.0, np.float32)


def question(text: str = "What is rust?", ttl: float = 100.0, max_tokens: int | None = None) -> Question:
    return Question(text, "p", "t", "m", max_tokens, ttl)


def make(policy: Policy | None = None, **settings: object) -> tuple[SemanticCache, Clock]:
    clock = Clock()
    made = SemanticCache(
        MemoryStore(),
        WordEmbedder(),
        Same(),
        policy or Policy(Rules()),
        clock=clock,
        **settings,  # type: ignore[arg-type]
    )
    made.evidence.num_hits = max(made.evidence.num_hits, 10_000)
    return made, clock


def test_fixed_lifetimes_end() -> None:
    cache, clock = make()
    cache.keep(question(), ANSWER, None)
    clock.now = 1099.0
    assert cache.find_same(question()).kind == "exact"
    clock.now = 1101.0
    assert (cache.find_same(question()).kind, cache.find_same(question()).why) == (None, "expired")
    assert cache.sweep() == 1


def test_sliding_lifetimes_begin_anew_with_a_hit() -> None:
    cache, clock = make(Policy(Rules(), sliding=True))
    cache.keep(question(), ANSWER, None)
    for now in (1080.0, 1160.0, 1240.0):
        clock.now = now
        assert cache.find_same(question()).kind == "exact"
    clock.now = 1341.0
    assert cache.find_same(question()).kind is None


def test_the_oldest_go_when_there_are_too_many() -> None:
    cache, clock = make(max_entries=2)
    for place in range(5):
        clock.now += 1
        cache.keep(question(f"Question {place}?"), ANSWER, None)
    assert cache.sweep() == 3
    assert cache.num_evicted == 3
    assert [entry.question for entry in cache.store.entries(Selector())] == ["Question 4?", "Question 3?"]


def test_answers_longer_than_asked_for_are_not_given() -> None:
    cache, _ = make()
    cache.keep(question(), ANSWER, cache.embed("What is rust?"))
    assert cache.find_same(question(max_tokens=1)).kind is None
    assert cache.find_same(question(max_tokens=2)).kind == "exact"
    vector = cache.embed("What is rust?")
    assert vector is not None
    assert cache.find_alike(question("What rust is?", max_tokens=1), vector).why == "nothing near"


@pytest.mark.parametrize("bad", [np.zeros(64), np.full(64, np.nan), np.full(64, 3.0)])
def test_vectors_that_are_zero_or_not_finite_are_refused(bad: FloatArray) -> None:
    cache, _ = make()
    cache.embedder.embed = lambda texts: np.stack([bad.astype(np.float32)] * len(texts))  # type: ignore[method-assign,union-attr]
    assert cache.embed("x") is None
    assert cache.keep(question(), ANSWER, bad.astype(np.float32)).vector is None


def test_entries_of_another_embedder_are_not_compared() -> None:
    cache, _ = make()
    vector = cache.embed("What is rust?")
    assert vector is not None
    cache.keep(question(), ANSWER, vector)
    assert cache.find_alike(question("What rust is?"), vector).kind == "meaning"
    cache.embedder.digest = "another"  # type: ignore[misc,union-attr]
    assert cache.find_alike(question("What rust is?"), vector).why == "nothing near"


def test_answers_tell_whether_questions_were_the_same() -> None:
    cache, _ = make()
    vector = cache.embed("What is rust?")
    assert vector is not None
    cache.keep(question(), ANSWER, vector)
    candidate = cache.find_alike(question("What rust is?"), vector).candidate
    assert candidate is not None
    assert cache.compare(candidate, "Iron oxide.", hit=True) is True
    assert cache.compare(candidate, "A river in Burgenland", hit=True) is False
    assert cache.compare(candidate, "Iron oxide mostly", hit=True) is None
    state = cache.evidence.state()
    assert (state.num_checked, state.num_checked_wrong) == (2, 1)


def test_evidence_outlives_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "answers" / "evidence.json"
    cache, _ = make(notebook=path)
    cache.evidence.learn(9.0, same=False, hit=True)
    cache.evidence.served(9.0)
    cache.checked.add("t", wrong=True)
    before = cache.evidence.to_json()
    cache.close()
    again = make(notebook=path)[0]
    assert again.evidence.to_json() == before
    assert dict(again.checked) == dict(cache.checked)
    path.write_text("{}")
    assert make(notebook=path)[0].evidence.state().num_checked == 0


def test_evidence_of_other_regions_is_refused() -> None:
    evidence = Evidence(GOOD, 0.02)
    for change in ({"edges": [1.0]}, {"seen": []}, {"hits": [-1] * len(GOOD)}, {"num_hits": None}):
        with pytest.raises(ValueError, match="it"):
            evidence.restore(evidence.to_json() | change)
