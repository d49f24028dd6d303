"""Metrics of retrieval-augmented answers, by RAGAS's names.

A judge's verdicts are probabilities, so scores are expected values; with verdicts of 0 and 1 they are RAGAS's formulas.
docs/evaluation.md has each with its edge cases.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pagoda.evals.cases import Case
from pagoda.evals.evaluators import Asking, Score, Unjudged, evaluator
from pagoda.evals.overlap import token_f1
from pagoda.evals.sentences import entities, is_refusal

FACTS_WEIGHT, SIMILARITY_WEIGHT = 0.75, 0.25  # of answer_correctness, RAGAS's


@evaluator("faithfulness", needs=("answer", "contexts"), judged=True)
async def faithfulness(case: Case, judge: Asking) -> Score:
    """The share of the answer's claims that the passages state."""
    claims = await _claims(case, judge, case.answer or "", "answer")
    return _mean(claims, await _support(judge, case, claims, case.contexts or ()))


@evaluator("context_recall", needs=("reference", "contexts"), judged=True)
async def context_recall(case: Case, judge: Asking) -> Score:
    """The share of the reference's claims that the passages state."""
    claims = await _claims(case, judge, case.reference or "", "reference")
    return _mean(claims, await _support(judge, case, claims, case.contexts or ()))


@evaluator("context_precision", needs=("reference", "contexts"), judged=True)
async def context_precision(case: Case, judge: Asking) -> Score:
    """Average precision of the passages' order: whether useful ones come first.

    sum over k of (precision at k * useful_k) / sum over k of useful_k, as RAGAS has it.
    """
    passages = case.contexts or ()
    useful = await asyncio.gather(*(judge.useful(p, case.question, case.reference or "") for p in passages))
    reasons = tuple({"passage": k, "useful": round(v, 4)} for k, v in enumerate(useful, 1))
    return Score(average_precision(list(useful)), reasons)


def average_precision(useful: list[float]) -> float:
    """The average precision of passages in their order; 0 where none is useful or there are none."""
    total = sum(useful)
    if total <= 0:
        return 0.0
    seen, found = 0.0, 0.0
    for k, value in enumerate(useful, 1):
        seen += value
        found += seen / k * value
    return min(1.0, found / total)


@evaluator("answer_relevancy", needs=("answer",), judged=True)
async def answer_relevancy(case: Case, judge: Asking) -> Score:
    """The probability that the answer addresses the question; 0 for a refusal."""
    if is_refusal(case.answer or ""):
        return Score(0.0, ({"refusal": case.answer},))
    return Score(await judge.answers(case.question, case.answer or ""))


@evaluator("factual_correctness", needs=("answer", "reference"), judged=True)
async def factual_correctness(case: Case, judge: Asking) -> Score:
    """F1 of claims: how many of the answer's the reference states, and of the reference's the answer states."""
    said, stated, reasons = await _both_ways(case, judge)
    return Score(_f1(said, stated), reasons)


@evaluator("answer_correctness", needs=("answer", "reference"), judged=True)
async def answer_correctness(case: Case, judge: Asking) -> Score:
    """Three parts F1 of claims, one part likeness of the texts: by embeddings, or where there are none by words."""
    said, stated, reasons = await _both_ways(case, judge)
    likeness = await judge.similarity(case.answer or "", case.reference or "")
    if likeness is None:
        likeness = token_f1(case.answer or "", case.reference or "")
    return Score(FACTS_WEIGHT * _f1(said, stated) + SIMILARITY_WEIGHT * max(0.0, min(1.0, likeness)), reasons)


@evaluator("noise_sensitivity", needs=("answer", "reference", "contexts"), judged=True, lower_is_better=True)
async def noise_sensitivity(case: Case, judge: Asking) -> Score:
    """The share of the answer's claims that are wrong by the reference, and come from the passages."""
    claims = await _claims(case, judge, case.answer or "", "answer")
    right = await _support(judge, case, claims, (case.reference or "",))
    from_passages = await _support(judge, case, claims, case.contexts or ())
    return _mean(claims, [(1 - r) * p for r, p in zip(right, from_passages, strict=True)])


@evaluator("context_entity_recall", needs=("reference", "contexts"))
def context_entity_recall(case: Case) -> Score:
    """The share of the reference's names, numbers and dates that occur in the passages."""
    wanted = entities(case.reference or "")
    if not wanted:
        raise Unjudged("the reference names nothing")
    passages = " ".join(case.contexts or ()).lower()
    missing = sorted(name for name in wanted if name not in passages)
    return Score(1 - len(missing) / len(wanted), ({"missing": missing},))


async def _claims(case: Case, judge: Asking, text: str, what: str) -> list[str]:
    claims = await judge.claims(case.question, text)
    if not claims:
        raise Unjudged(f"the {what} makes no claim")
    return claims


async def _support(judge: Asking, case: Case, claims: list[str], passages: tuple[str, ...]) -> list[float]:
    """The probability of each claim given the passages; without any, nothing is supported."""
    if not passages:
        return [0.0] * len(claims)
    return list(await asyncio.gather(*(judge.supports(passages, case.question, claim) for claim in claims)))


async def _both_ways(case: Case, judge: Asking) -> tuple[list[float], list[float], tuple[dict[str, Any], ...]]:
    answer, reference = case.answer or "", case.reference or ""
    if is_refusal(answer):
        return [], [], ({"refusal": answer},)
    of_answer = await _claims(case, judge, answer, "answer")
    of_reference = await _claims(case, judge, reference, "reference")
    said = await _support(judge, case, of_answer, (reference,))
    stated = await _support(judge, case, of_reference, (answer,))
    reasons = [{"claim": c, "in reference": round(v, 4)} for c, v in zip(of_answer, said, strict=True)]
    reasons += [{"claim": c, "in answer": round(v, 4)} for c, v in zip(of_reference, stated, strict=True)]
    return said, stated, tuple(reasons)


def _f1(said: list[float], stated: list[float]) -> float:
    """True positives are claims of the answer that the reference states; false negatives what the answer left out."""
    true, false = sum(said), len(said) - sum(said)
    missed = len(stated) - sum(stated)
    return true / (true + 0.5 * (false + missed)) if true else 0.0


def _mean(claims: list[str], verdicts: list[float]) -> Score:
    reasons = tuple({"claim": c, "probability": round(v, 4)} for c, v in zip(claims, verdicts, strict=True))
    return Score(sum(verdicts) / len(verdicts), reasons)
