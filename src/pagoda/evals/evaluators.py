"""The table of evaluators: each turns a case into a score between 0 and 1, or says why it cannot.

    @evaluator("mentions_price")
    def mentions_price(case: Case) -> float:
        return float("$" in (case.answer or ""))

A function of one's own becomes a row in the same way; `pagoda eval run --evaluators my_checks.py` imports it.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pagoda.errors import ConfigError
from pagoda.evals.cases import Case


class Unjudged(Exception):
    """A case that has no score: it lacks something, or the judge gave no verdict. The message says which."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score between 0 and 1 with what it rests on: claims, verdicts, passages."""

    value: float
    reasons: tuple[dict[str, Any], ...] = ()


class Asking(Protocol):
    """What an evaluator may ask; see `judge.Judge`."""

    async def supports(self, passages: Sequence[str], question: str, claim: str) -> float:
        """The probability that the passages state the claim."""

    async def answers(self, question: str, answer: str) -> float:
        """The probability that the answer addresses the question."""

    async def useful(self, passage: str, question: str, reference: str) -> float:
        """The probability that the passage helps to arrive at the reference answer."""

    async def claims(self, question: str, answer: str) -> list[str]:
        """The statements that an answer makes; none for an empty one or a refusal."""

    async def prefers(self, question: str, first: str, second: str) -> float:
        """The probability that the first answer is the better one, asked in both orders."""

    async def similarity(self, first: str, second: str) -> float | None:
        """Cosine of the texts' embeddings; None: there is no embedder."""


Evaluate = Callable[[Case, Asking | None], Awaitable[Score]]


@dataclass(frozen=True, slots=True)
class Evaluator:
    """A row of the table."""

    name: str
    evaluate: Evaluate
    needs: frozenset[str] = field(default_factory=frozenset)  # fields of a case
    judged: bool = False  # asks a judge
    lower_is_better: bool = False


EVALUATORS: dict[str, Evaluator] = {}
ALIASES = {"answer_relevance": "answer_relevancy", "noise_sensitivity_relevant": "noise_sensitivity"}


def evaluator(
    name: str, *, needs: tuple[str, ...] = ("answer",), judged: bool = False, lower_is_better: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function of a case, and of a judge if `judged`, in the table. It may be `async`, and give a float."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        async def evaluate(case: Case, judge: Asking | None) -> Score:
            found = function(case, judge) if judged else function(case)
            if inspect.isawaitable(found):
                found = await found
            score = found if isinstance(found, Score) else Score(float(found))
            if not 0 <= score.value <= 1:
                raise Unjudged(f"{name} gave {score.value}, which is not between 0 and 1")
            return score

        EVALUATORS[name] = Evaluator(name, evaluate, frozenset(needs), judged, lower_is_better)
        return function

    return enter


def find(names: tuple[str, ...]) -> list[Evaluator]:
    """The rows of these names or aliases. Raises ConfigError for an unknown one."""
    rows = []
    for name in names:
        row = EVALUATORS.get(ALIASES.get(name, name))
        if row is None:
            raise ConfigError(f"--metrics: {name!r} is not one of {', '.join(sorted(EVALUATORS))}")
        rows.append(row)
    return rows


async def score_case(row: Evaluator, case: Case, judge: Asking | None) -> Score:
    """The case's score. Raises Unjudged."""
    missing = sorted(name for name in row.needs if getattr(case, name) is None)
    if missing:
        raise Unjudged(f"the case has no {' and no '.join(missing)}")
    return await row.evaluate(case, judge)


def import_evaluators(path: Path) -> None:
    """Run a Python file of the user's, whose `@evaluator` functions enter the table. Raises ConfigError."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise ConfigError(f"--evaluators: {path} is not a Python file")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
