"""Metrics: RAGAS's formulas on sampled verdicts, expected values on probabilities, and every edge case."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from pagoda.errors import ConfigError
from pagoda.evals import builtin  # noqa: F401
from pagoda.evals.cases import Case
from pagoda.evals.evaluators import EVALUATORS, Score, Unjudged, evaluator, find, score_case
from pagoda.evals.rag import average_precision
from pagoda.evals.sentences import entities, is_refusal, split_sentences

CONTEXTS = ("Paris is the capital of France.", "Berlin is in Germany.")


class FakeJudge:
    """Says what it was told about each claim or passage; splits at full stops."""

    def __init__(self, verdicts: Mapping[str, float]) -> None:
        self.verdicts = verdicts
        self.asked: list[tuple[str, ...]] = []

    async def supports(self, passages: Sequence[str], question: str, claim: str) -> float:
        self.asked.append(tuple(passages))
        return self.verdicts[claim]

    async def useful(self, passage: str, question: str, reference: str) -> float:
        return self.verdicts[passage]

    async def answers(self, question: str, answer: str) -> float:
        return self.verdicts[answer]

    async def prefers(self, question: str, first: str, second: str) -> float:
        return self.verdicts[first]

    async def claims(self, question: str, answer: str) -> list[str]:
        return [] if is_refusal(answer) else split_sentences(answer)

    async def similarity(self, first: str, second: str) -> float | None:
        return None


def score(metric: str, case: Case, verdicts: Mapping[str, float] = {}) -> Score:
    return asyncio.run(score_case(find((metric,))[0], case, FakeJudge(verdicts)))


def test_faithfulness_is_the_share_of_supported_claims() -> None:
    """RAGAS: supported claims over all claims; with probabilities the expected share."""
    case = Case("1", "q", "One. Two. Three. Four.", CONTEXTS)
    assert score("faithfulness", case, {"One.": 1, "Two.": 0, "Three.": 1, "Four.": 1}).value == 0.75
    assert score("faithfulness", case, {"One.": 0.9, "Two.": 0.5, "Three.": 0.1, "Four.": 0.5}).value == pytest.approx(
        0.5
    )


def test_every_claim_counts_not_only_those_that_came_back() -> None:
    case = Case("1", "q", "One. Two.", CONTEXTS)
    found = score("faithfulness", case, {"One.": 1, "Two.": 0})
    assert found.reasons == ({"claim": "One.", "probability": 1}, {"claim": "Two.", "probability": 0})


def test_without_passages_nothing_is_supported() -> None:
    assert score("faithfulness", Case("1", "q", "One.", ())).value == 0
    assert score("context_recall", Case("1", "q", None, (), "One.")).value == 0
    assert score("context_precision", Case("1", "q", None, (), "One.")).value == 0


@pytest.mark.parametrize("answer", ["", "  ", "I don't know.", "The passages do not provide enough information."])
def test_an_answer_without_claims_is_not_judged_and_never_nan(answer: str) -> None:
    with pytest.raises(Unjudged, match="makes no claim"):
        score("faithfulness", Case("1", "q", answer, CONTEXTS))
    assert score("answer_relevancy", Case("1", "q", answer)).value == 0


def test_context_precision_is_average_precision() -> None:
    """RAGAS: sum of precision@k * v_k over the useful: (1/1 + 2/3) / 2."""
    assert average_precision([1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([0, 0, 1]) == pytest.approx(1 / 3)
    assert average_precision([1, 1]) == 1  # not 0.9999999999
    assert average_precision([0, 0]) == average_precision([]) == 0


def test_context_precision_falls_when_useful_passages_come_late() -> None:
    early = score(
        "context_precision", Case("1", "q", None, CONTEXTS, "r"), dict(zip(CONTEXTS, (0.9, 0.2), strict=True))
    )
    late = score("context_precision", Case("1", "q", None, CONTEXTS, "r"), dict(zip(CONTEXTS, (0.2, 0.9), strict=True)))
    assert early.value > late.value


def test_context_recall_is_of_the_reference() -> None:
    case = Case("1", "q", "unused", CONTEXTS, "One. Two.")
    assert score("context_recall", case, {"One.": 1, "Two.": 0}).value == 0.5


def test_factual_correctness_is_f1_of_claims() -> None:
    """RAGAS: tp 1, fp 1, fn 2 → 1 / (1 + 0.5 * 3)."""
    case = Case("1", "q", "Aye. Bee.", None, "Sea. Dee. Eve.")
    verdicts = {"Aye.": 1, "Bee.": 0, "Sea.": 1, "Dee.": 0, "Eve.": 0}
    assert score("factual_correctness", case, verdicts).value == pytest.approx(1 / 2.5)
    assert score("answer_correctness", case, verdicts).value == pytest.approx(0.75 / 2.5)  # no word in common
    assert score("factual_correctness", Case("1", "q", "I don't know", None, "C.")).value == 0


def test_noise_sensitivity_counts_wrong_claims_that_passages_brought() -> None:
    case = Case("1", "q", "One. Two.", CONTEXTS, "Right.")

    class TwoFaced(FakeJudge):
        async def supports(self, passages: str, question: str, claim: str) -> float:
            return float(claim == "One." if "Right." in passages else True)

    found = asyncio.run(score_case(find(("noise_sensitivity",))[0], case, TwoFaced({})))
    assert found.value == 0.5
    assert EVALUATORS["noise_sensitivity"].lower_is_better


def test_context_entity_recall_needs_no_judge() -> None:
    case = Case("1", "q", None, CONTEXTS, "The capital of France since 987 is Paris.")
    assert score("context_entity_recall", case).value == pytest.approx(2 / 3)
    with pytest.raises(Unjudged, match="names nothing"):
        score("context_entity_recall", Case("1", "q", None, CONTEXTS, "none at all"))


@pytest.mark.parametrize(
    ("metric", "value"),
    [("hit_rate", 1.0), ("mrr", 0.5), ("ndcg", 1 / 1.5849625007211562)],  # 1 / log2(3)
)
def test_retrieval_against_known_passages(metric: str, value: float) -> None:
    case = Case("1", "q", None, ("other", *CONTEXTS), None, (CONTEXTS[0].upper(),))
    assert score(metric, case).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("metric", "answer", "value"),
    [
        ("exact_match", "the Paris!", 1),  # SQuAD's normalization
        ("exact_match", "Paris, France", 0),
        ("contains", "It is Paris.", 1),
        ("contains", "Parisians", 0),
        ("token_f1", "Paris in spring", 0.5),  # 2 * 1 / (3 + 1)
    ],
)
def test_overlap_with_the_reference(metric: str, answer: str, value: float) -> None:
    assert score(metric, Case("1", "q", answer, None, "Paris")).value == value


def test_what_a_case_lacks_is_named() -> None:
    with pytest.raises(Unjudged, match="no contexts and no reference"):
        score("context_recall", Case("1", "q", "a"))


def test_a_row_of_ones_own() -> None:
    @evaluator("is_short")
    def is_short(case: Case) -> float:
        return 2.0 if case.answer == "bad" else float(len(case.answer or "") < 10)

    try:
        assert score("is_short", Case("1", "q", "yes")).value == 1
        with pytest.raises(Unjudged, match="not between 0 and 1"):
            score("is_short", Case("1", "q", "bad"))
    finally:
        del EVALUATORS["is_short"]


def test_aliases_and_unknown_names() -> None:
    assert find(("answer_relevance",))[0].name == "answer_relevancy"
    with pytest.raises(ConfigError, match=r"'fathfulness' is not one of .*faithfulness"):
        find(("fathfulness",))


def test_sentences_end_at_stops_but_not_after_abbreviations() -> None:
    assert split_sentences("Dr. Smith came. He left at 3.5 p.m. in May.\n- done") == [
        "Dr. Smith came.",
        "He left at 3.5 p.m. in May.",
        "- done",
    ]
    assert split_sentences("") == []


def test_entities_are_names_numbers_and_dates() -> None:
    assert entities("The tower was built in 1889 by Gustave Eiffel.") == {"1889", "gustave eiffel"}
