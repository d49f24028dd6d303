"""Words, features, training and the verifier's file; the shipped one on pairs whose truth is plain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cache_parts import WordEmbedder
from pagoda.cache.evaluation import curve
from pagoda.cache.features import NAMES, word_features
from pagoda.cache.pairs import Pair, read_pairs
from pagoda.cache.training import train, vectors_of
from pagoda.cache.verifier import Verifier, load_verifier
from pagoda.cache.words import stem, words_of
from pagoda.errors import ConfigError

SUBJECTS = ["rust", "gold", "iron", "tin", "zinc", "lead", "silver", "copper"]
ASKS = [("enable", "turn on"), ("disable", "switch off"), ("clean", "polish"), ("buy", "purchase"), ("melt", "liquefy")]


def synthetic(count: int, seed: int) -> list[Pair]:
    """Pairs that are the same when verb and subject are."""
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(count):
        subjects, asks = rng.integers(len(SUBJECTS), size=2), rng.integers(len(ASKS), size=2)
        if rng.random() < 0.5:
            subjects[1], asks[1] = subjects[0], asks[0]
        a = f"How do I {ASKS[asks[0]][0]} {SUBJECTS[subjects[0]]} {rng.integers(2)}?"
        b = f"How can I {ASKS[asks[1]][rng.integers(2)]} {SUBJECTS[subjects[1]]} {rng.integers(2)}?"
        pairs.append(Pair(a, b, bool(subjects[0] == subjects[1] and asks[0] == asks[1])))
    return pairs


def feature(name: str, a: str, b: str) -> float:
    return word_features(words_of(a), words_of(b))[NAMES.index(name) - 1]


@pytest.mark.parametrize(
    ("name", "a", "b", "expected"),
    [
        ("opposites", "How do I enable sound?", "How do I disable sound?", 1),
        ("opposites", "Is it legal?", "Is it illegal?", 1),
        ("opposites", "How do I enable sound?", "How do I enable video?", 0),
        ("negation_differs", "Who can vote?", "Who can't vote?", 1),
        ("negation_differs", "Was ist das nicht?", "Was ist kein Rost?", 0),
        ("numbers_differ", "Is 4.2 out?", "Is 4.0 out?", 1),
        ("numbers_differ", "Two apples", "2 apples", 0),
        ("numbers_one_sided", "IIT 2017", "IIT", 1),
        ("names_differ", "Where is Messi born?", "Where is Ronaldo born?", 1),
        ("asking_differs", "How is rust made?", "Why is rust made?", 1),
        ("asking_differs", "Wie rostet Eisen?", "Warum rostet Eisen?", 1),
        ("same_order", "current to voltage", "voltage to current", 0),
        ("equal_stems", "best headphones in India", "What is the best headphone in India?", 1),
        ("stem_jaccard", "red car", "blue car", 1 / 3),
    ],
)
def test_features_see_what_decides(name: str, a: str, b: str, expected: float) -> None:
    assert feature(name, a, b) == pytest.approx(expected)
    assert feature(name, b, a) == pytest.approx(expected)


def test_every_feature_is_finite_for_odd_texts() -> None:
    for text in ("", "?", "1", "a", "\n\n", "ß" * 300, "C++ C# C"):
        values = word_features(words_of(text), words_of("What is rust?"))
        assert len(values) == len(NAMES) - 1
        assert np.isfinite(values).all()


def test_stems_leave_short_words() -> None:
    assert [stem(word) for word in ("recruitments", "recruitment", "is", "does", "studies", "studied")] == [
        "recruitment", "recruitment", "is", "doe", "studi", "studi",
    ]  # fmt: skip


def test_training_learns_what_cosines_do_not_say(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    verifier = train(synthetic(1500, 1), embedder)
    held_out = synthetic(500, 2)
    same = [pair.same for pair in held_out]
    left, right = vectors_of(held_out, embedder)
    odds = verifier.of_pairs([(pair.a, pair.b) for pair in held_out], left, right)
    cosine = curve("cosine", np.einsum("nd,nd->n", left, right), same)
    assert curve("verifier", odds, same).found_at(0.05) > max(0.8, cosine.found_at(0.05) + 0.2)
    assert sum(region.num_pairs for region in verifier.regions) == 1500

    path = tmp_path / "verifier.json"
    path.write_text(json.dumps(verifier.to_json()))
    again = load_verifier(path)
    assert again.fits(embedder)
    assert not load_verifier().fits(embedder)
    read = again.of_pairs([(pair.a, pair.b) for pair in held_out], left, right)
    assert np.abs(read - odds).max() < 0.5  # weights of 8 bits
    assert np.corrcoef(read, odds)[0, 1] > 0.999


def test_training_is_repeatable() -> None:
    one, two = (train(synthetic(900, 1), WordEmbedder(), seed=3) for _ in range(2))
    assert one.to_json() == two.to_json()


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs 200 each"):
        train(synthetic(300, 1), WordEmbedder())


def test_the_shipped_verifier_is_whole_and_small() -> None:
    verifier = load_verifier()
    assert len(json.dumps(verifier.to_json())) < 100_000
    assert sum(region.num_pairs for region in verifier.regions) == 20_000
    rates = [region.num_wrong / region.num_pairs for region in verifier.regions]
    assert rates[0] > 0.9
    assert rates[-1] < 0.1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pagoda_verifier": 99}, "another version"),
        ({"features": ["cosine"]}, "another version"),
        ({"networks": []}, "no verifier"),
        ({"mean": [0.0]}, "do not fit"),
        ({"regions": 5}, "no verifier"),
    ],
)
def test_damaged_verifiers_are_refused(tmp_path: Path, change: dict[str, object], why: str) -> None:
    path = tmp_path / "verifier.json"
    path.write_text(json.dumps(load_verifier().to_json() | change))
    with pytest.raises(ConfigError, match=why):
        load_verifier(path)
    with pytest.raises(ValueError, match="no verifier"):
        Verifier.from_json([])


def test_curves_count_ties_together() -> None:
    """Two pairs of one score are hits together: half of them wrong, whatever their order."""
    for same in ([True, False, True], [False, True, True]):
        line = curve("c", [0.5, 0.5, 0.1], same)
        assert line.wrong.tolist() == pytest.approx([0.5, 1 / 3])
        assert line.found.tolist() == [0.5, 1.0]
        assert (line.found_at(0.4), line.found_at(0.1), line.score_at(0.4), line.score_at(0.1)) == (1.0, 0.0, 0.1, None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no pair"),
        ('{"a": "x", "b": "y"}', "line 1"),
        ('{"a": "x", "b": "y", "same": 1}\n{"a": 1, "b": "y", "same": 0}', "line 2"),
        ('{"a": "x", "b": "y", "same": 2}', "same is 0 or 1"),
        ("[]", "line 1"),
    ],
)
def test_pairs_that_are_none_are_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_pairs(path)
