"""What a cache would have done with a stream of questions, one after the other, in memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pagoda.cache.cache import CANDIDATES, MIN_COSINE, OTHER_ANSWER, SAME_ANSWER, SemanticCache
from pagoda.cache.embedder import Embedder
from pagoda.cache.entry import Answer
from pagoda.cache.evaluation import Curve, curve
from pagoda.cache.index import Indexes
from pagoda.cache.normalize import normal_form
from pagoda.cache.policy import DEFAULT_OPTIONS, Policy, Question
from pagoda.cache.question_log import Logged
from pagoda.cache.store import Selector, Store
from pagoda.cache.stores.memory import MemoryStore
from pagoda.cache.verifier import Verifier
from pagoda.types import FloatArray

FOREVER = 1e9  # seconds that an answer is kept here: a stream is replayed at once

Truth = Callable[[int, int], bool | None]  # whether two questions of the stream want one answer; None: not known


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of a stream, with its vector."""

    text: str
    vector: FloatArray
    partition: str = ""

    @property
    def question(self) -> Question:
        return Question(self.text, self.partition, "", "", None, FOREVER)


@dataclass(slots=True)
class Outcome:
    """What came of one stream."""

    hits: int = 0
    wrong: int = 0
    by_meaning: int = 0
    wrong_by_meaning: int = 0
    unknown: int = 0  # hits by meaning of which it is not known whether they were wrong
    bypassed: int = 0  # never kept, by the rules
    checks: int = 0  # hits that were answered afresh


def replay(stream: Sequence[Asked], cache: SemanticCache, truth: Truth, *, shadow: float, seed: int = 0) -> Outcome:
    """Ask all questions as the server does. A miss with a candidate, and a share of the hits by meaning, tell the truth
    where it is known."""
    rng, outcome = random.Random(seed), Outcome()
    for place, asked in enumerate(stream):
        if not cache.policy.lifetime([asked.text], DEFAULT_OPTIONS)[0]:
            outcome.bypassed += 1
            continue
        question = asked.question
        found = cache.find_same(question)
        if found.kind is None and question.is_comparable:
            found = cache.find_alike(question, asked.vector)
        candidate = found.candidate
        right = None if candidate is None else truth(int(candidate.entry.answer.text), place)
        if found.kind is None:
            if candidate is not None and right is not None:
                cache.evidence.learn(candidate.log_odds, right)
            cache.keep(question, Answer(((str(place), ()),)), asked.vector)
            continue
        outcome.hits += 1
        outcome.wrong += right is False
        if found.kind == "meaning" and candidate is not None:
            outcome.by_meaning += 1
            outcome.wrong_by_meaning += right is False
            outcome.unknown += right is None
            checked = rng.random() < shadow
            outcome.checks += checked
            if right is not None and checked:
                cache.evidence.learn(candidate.log_odds, right, hit=True)
    return outcome


def replay_at(
    stream: Sequence[Asked], embedder: Embedder, verifier: Verifier, policy: Policy, truth: Truth, max_wrong: float,
    *, shadow: float, seed: int = 0, store: Store | None = None,
) -> Outcome:  # fmt: skip
    """The same at this setting, with a cache in `store`, which is emptied first; in memory without one."""
    store = store or MemoryStore()
    store.delete(Selector())
    cache = SemanticCache(store, embedder, verifier, policy, max_wrong=max_wrong)
    return replay(stream, cache, truth, shadow=shadow, seed=seed)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Questions of a stream beside the earlier ones that are nearest: what a threshold would make of them."""

    curves: tuple[Curve, Curve]  # by the cosine alone, and by the verifier
    num_same_words: int  # repeats of an earlier question's normal form, which no curve counts
    num_repeats: int  # of other words, with an earlier one among the nearest that wants the same answer
    num_known: int  # questions with a nearest one of which it is known whether it wants the same


def candidates(stream: Sequence[Asked], verifier: Verifier, truth: Truth) -> Candidates:
    """Each question that is no repeat of the same words, beside the CANDIDATES nearest before it."""
    indexes, seen = Indexes(), dict[str, int]()
    num_same_words = num_repeats = 0
    by_cosine, by_verifier = list[tuple[float, bool]](), list[tuple[float, bool]]()
    for place, asked in enumerate(stream):
        question = asked.question
        if question.key in seen:
            num_same_words += 1
            continue
        seen[question.key] = place
        near = indexes.nearest(asked.partition, "", asked.vector, CANDIDATES) if question.is_comparable else []
        near = [(score, key) for score, key in near if score >= MIN_COSINE]
        indexes.put(asked.partition, "", question.key, asked.vector)
        if not near:
            continue
        others = [stream[seen[key]] for _, key in near]
        truths = [truth(seen[key], place) for _, key in near]
        num_repeats += any(truths)
        odds = verifier.log_odds(
            asked.text, asked.vector, [o.text for o in others], np.stack([o.vector for o in others])
        )
        best = int(np.argmax(odds))
        for scores, one, score in ((by_cosine, 0, near[0][0]), (by_verifier, best, float(odds[best]))):
            if (known := truths[one]) is not None:
                scores.append((score, known))
    curves = [
        curve(name, [score for score, _ in scores], [same for _, same in scores], num_repeats)
        for name, scores in (("cosine", by_cosine), ("verifier", by_verifier))
    ]
    return Candidates((curves[0], curves[1]), num_same_words, num_repeats, len(by_verifier))


def truth_of(lines: Sequence[Logged], embedder: Embedder) -> Truth:
    """By their groups where they have any. Else questions of the same words want the same, and for others it is told by
    how alike the answers are."""
    texts = list(dict.fromkeys(line.answer for line in lines))
    vectors = embedder.embed(texts)
    places = {text: place for place, text in enumerate(texts)}

    def truth(one: int, other: int) -> bool | None:
        a, b = lines[one], lines[other]
        if a.group is not None and b.group is not None:
            return a.group == b.group
        if a.answer.strip() == b.answer.strip() or normal_form(a.question) == normal_form(b.question):
            return True
        similarity = float(vectors[places[a.answer]] @ vectors[places[b.answer]])
        return None if OTHER_ANSWER < similarity < SAME_ANSWER else similarity >= SAME_ANSWER

    return truth


def stream_of(lines: Sequence[Logged], embedder: Embedder) -> list[Asked]:
    """Each question embedded once."""
    texts = list(dict.fromkeys(line.question for line in lines))
    vectors = dict(zip(texts, embedder.embed(texts), strict=True))
    return [Asked(line.question, vectors[line.question], line.partition) for line in lines]
