"""Scores that need no judge: how far an answer's words are the reference's, and how well passages were retrieved."""

from __future__ import annotations

import math
import re

from pagoda.evals.cases import Case
from pagoda.evals.evaluators import Score, Unjudged, evaluator
from pagoda.evals.sentences import word_counts

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """SQuAD's comparison: lower case, no articles, no punctuation, single spaces (Rajpurkar et al., 2016)."""
    return " ".join(re.sub(r"[^\w\s]", "", ARTICLES.sub(" ", text.lower())).split())


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 of words; 1 where both are empty."""
    said, wanted = word_counts(normalized(answer)), word_counts(normalized(reference))
    if not said or not wanted:
        return float(said == wanted)
    shared = (said & wanted).total()
    return 2 * shared / (said.total() + wanted.total())


@evaluator("exact_match", needs=("answer", "reference"))
def exact_match(case: Case) -> float:
    return float(normalized(case.answer or "") == normalized(case.reference or ""))


@evaluator("contains", needs=("answer", "reference"))
def contains(case: Case) -> float:
    """Whether the reference stands in the answer, whole words."""
    return float(f" {normalized(case.reference or '')} " in f" {normalized(case.answer or '')} ")


@evaluator("token_f1", needs=("answer", "reference"))
def token_f1_of(case: Case) -> float:
    return token_f1(case.answer or "", case.reference or "")


@evaluator("hit_rate", needs=("contexts", "reference_contexts"))
def hit_rate(case: Case) -> float:
    return float(any(_relevance(case)))


@evaluator("mrr", needs=("contexts", "reference_contexts"))
def mrr(case: Case) -> float:
    """One over the rank of the first relevant passage; 0 without one."""
    return next((1 / rank for rank, hit in enumerate(_relevance(case), 1) if hit), 0.0)


@evaluator("ndcg", needs=("contexts", "reference_contexts"))
def ndcg(case: Case) -> Score:
    """The sum of 1 / log2(1 + rank) over relevant passages, over the best order's (Järvelin and Kekäläinen, 2002)."""
    hits = _relevance(case)
    gain = sum(hit / math.log2(1 + rank) for rank, hit in enumerate(hits, 1))
    best = sum(1 / math.log2(1 + rank) for rank in range(1, min(len(hits), len(case.reference_contexts or ())) + 1))
    return Score(gain / best if best else 0.0)


def _relevance(case: Case) -> list[bool]:
    """For each passage, whether it is one of the known relevant ones; each of these counts once."""
    left = [normalized(passage) for passage in case.reference_contexts or ()]
    if not left:
        raise Unjudged("the case has no relevant passages")
    hits = []
    for passage in map(normalized, case.contexts or ()):
        hits.append(passage in left)
        if hits[-1]:
            left.remove(passage)
    return hits
