"""Two questions with their embeddings → the numbers that a verifier looks at."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from pagoda.cache.words import OPPOSITES, Words, stem

_OPPOSITE_STEMS = {(stem(a), stem(b)) for a, b in OPPOSITES.items()}
NEGATIVE_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non", "de", "anti", "mis")
NUM_BUCKETS = 1024

NAMES = (
    "cosine", "stem_jaccard", "stem_contained_min", "stem_contained_max", "all_jaccard", "bigram_jaccard",
    "trigram_jaccard", "common_subsequence", "same_order", "unmatched_min", "unmatched_max", "unmatched_common",
    "numbers_differ", "numbers_one_sided", "names_differ", "names_one_sided", "names_shared", "negation_differs",
    "opposites", "asking_same", "asking_differs", "length_min", "length_ratio", "first_same", "last_same",
    "sentences_differ", "equal_stems", "near_spelling",
)  # fmt: skip


def word_features(a: Words, b: Words) -> list[float]:
    """What the words say, in the order of NAMES less the cosine."""
    stems_a, stems_b = set(a.stems), set(b.stems)
    only_a, only_b = stems_a - stems_b, stems_b - stems_a
    shared = len(stems_a & stems_b)
    near = sum(any(_similar(x, y) for y in only_b) for x in only_a)
    common = _common_subsequence(a.all, b.all)
    kept_a = [w for w in a.stems if w in stems_b]
    kept_b = [w for w in b.stems if w in stems_a]
    num_a, num_b = len(a.all), len(b.all)
    return [
        _jaccard(stems_a, stems_b),
        shared / max(len(stems_a), len(stems_b), 1),
        shared / max(min(len(stems_a), len(stems_b)), 1),
        _jaccard(set(a.all), set(b.all)),
        _jaccard(set(zip(a.all, a.all[1:], strict=False)), set(zip(b.all, b.all[1:], strict=False))),
        _jaccard(a.trigrams, b.trigrams),
        common / max(num_a, num_b, 1),
        float(kept_a == kept_b),
        min(len(only_a), len(only_b), 6) / 3,
        min(max(len(only_a), len(only_b)), 9) / 3,
        min(shared, 9) / 3,
        float(bool(a.numbers - b.numbers) and bool(b.numbers - a.numbers)),
        float(bool(a.numbers - b.numbers) != bool(b.numbers - a.numbers)),
        float(bool(a.names - stems_b) and bool(b.names - stems_a)),
        float(bool(a.names - stems_b) != bool(b.names - stems_a)),
        min(len(a.names & b.names), 4) / 2,
        float(a.negations % 2 != b.negations % 2),
        float(_has_opposites(only_a, only_b)),
        float(a.asking == b.asking),
        float(bool(a.asking) and bool(b.asking) and a.asking != b.asking),
        min(num_a, num_b, 30) / 10,
        min(num_a, num_b) / max(num_a, num_b, 1),
        float(a.stems[:1] == b.stems[:1]),
        float(a.stems[-1:] == b.stems[-1:]),
        float(a.num_sentences != b.num_sentences),
        float(stems_a == stems_b),
        near / max(len(only_a), 1),
    ]


def unmatched_buckets(a: Words, b: Words) -> list[int]:
    """Hashes of the stems that only one of both has: which words may be missing is learned."""
    return sorted({zlib.crc32(word.encode()) % NUM_BUCKETS for word in set(a.stems) ^ set(b.stems)})


def _jaccard(a: set | frozenset, b: set | frozenset) -> float:  # type: ignore[type-arg]
    return len(a & b) / len(a | b) if a or b else 1.0


def _similar(x: str, y: str) -> bool:
    """Spelt almost alike: one mistake, or a common beginning of most letters."""
    if x[:1] != y[:1] or min(len(x), len(y)) < 4:
        return False
    common = 0
    for left, right in zip(x, y, strict=False):
        if left != right:
            break
        common += 1
    return common >= 0.7 * max(len(x), len(y)) or sorted(x) == sorted(y)


def _has_opposites(only_a: set[str], only_b: set[str]) -> bool:
    if any((x, y) in _OPPOSITE_STEMS for x in only_a for y in only_b):
        return True
    return any(
        long == prefix + short
        for one, other in ((only_a, only_b), (only_b, only_a))
        for short in one
        for long in other
        if len(long) > len(short) >= 3
        for prefix in NEGATIVE_PREFIXES
    )


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence of words. O(len(a) len(b)); longer questions are cut at 64 words."""
    row = [0] * (min(len(b), 64) + 1)
    for x in a[:64]:
        before = 0
        for j, y in enumerate(b[:64], 1):
            here = row[j]
            row[j] = before + 1 if x == y else max(row[j], row[j - 1])
            before = here
    return row[-1]
