"""The file that an evaluation leaves: a score or a reason of every case, and all that tells whether two runs compare.

Runs compare when they asked the same questions of the same judge in the same words; what differs is named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from pagoda.errors import FormatError
from pagoda.evals.evaluators import EVALUATORS
from pagoda.evals.statistics import mean_interval

FORMAT = "pagoda-eval/1"


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case's scores by metric, why others have none, and what each score rests on."""

    id: str
    question: str
    answer: str | None
    scores: Mapping[str, float]
    unjudged: Mapping[str, str]
    reasons: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setup:
    """What was measured with what. Equal in two runs that may be compared, but for `target` and `versions`."""

    testset: str  # SHA-256 of what was asked
    metrics: tuple[str, ...]
    judge: str  # model and calibration; "none"
    prompts: str  # digest of what the judge is asked; empty where there is none
    verdicts: str  # "expected" or "sampled"
    target: str = ""  # what answered
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run."""

    setup: Setup
    cases: tuple[CaseResult, ...]
    noise: Mapping[str, float] = field(default_factory=dict)  # of one score when judged again, standard deviation
    seconds: float = 0.0
    tokens: Mapping[str, int] = field(default_factory=dict)
    cost_usd: float | None = None

    def scores(self, metric: str) -> dict[str, float]:
        """By case id, those that could be judged."""
        return {case.id: case.scores[metric] for case in self.cases if metric in case.scores}

    def unjudged(self, metric: str) -> dict[str, str]:
        """By case id, why there is no score."""
        return {case.id: case.unjudged[metric] for case in self.cases if metric in case.unjudged}

    def summary(self) -> dict[str, dict[str, Any]]:
        """Mean with its interval of each metric, and how many cases it is of."""
        found = {}
        for metric in self.setup.metrics:
            scores = list(self.scores(metric).values())
            low, high = mean_interval(scores) if scores else (None, None)
            mean = sum(scores) / len(scores) if scores else None
            found[metric] = {
                "mean": mean,
                "low": low,
                "high": high,
                "judged": len(scores),
                "unjudged": len(self.unjudged(metric)),
            }
        return found


def differences(baseline: Results, current: Results) -> list[str]:
    """Why two runs cannot be compared; none if they can."""
    before, after = baseline.setup, current.setup
    pairs = [
        ("the test set", before.testset[:12], after.testset[:12]),
        ("the judge", before.judge, after.judge),
        ("the judge's prompts", before.prompts, after.prompts),
        ("the kind of verdicts", before.verdicts, after.verdicts),
    ]
    found = [f"{what}: {old} before, {new} now" for what, old, new in pairs if old != new]
    missing = [name for name in before.metrics if name not in after.metrics]
    if missing:
        found.append(f"the metrics: {', '.join(missing)} only before")
    return found


def lower_is_better(metric: str) -> bool:
    """Whether a rise of the metric is a change for the worse."""
    row = EVALUATORS.get(metric)
    return row is not None and row.lower_is_better


def write_results(results: Results, path: Path) -> None:
    """Write a file that is there whole or not at all."""
    setup = results.setup
    record = {
        "format": FORMAT,
        "summary": results.summary(),
        "setup": {name: getattr(setup, name) for name in Setup.__dataclass_fields__},
        "noise": dict(results.noise),
        "seconds": results.seconds,
        "tokens": dict(results.tokens),
        "cost_usd": results.cost_usd,
        "cases": [case_record(case) for case in results.cases],
    }
    part = path.with_name(path.name + ".part")
    part.write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")
    os.replace(part, path)


def case_record(case: CaseResult) -> dict[str, Any]:
    """A case as JSON."""
    return {name: getattr(case, name) for name in CaseResult.__dataclass_fields__}


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote. FormatError names what is wrong with it."""
    try:
        record = orjson.loads(path.read_bytes())
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", path=str(path)) from None
    except orjson.JSONDecodeError as error:
        raise FormatError(f"is not JSON: {error}", path=str(path)) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FormatError(f"is not a result of `pagoda eval run` ({FORMAT})", path=str(path))
    try:
        setup = {**record["setup"], "metrics": tuple(record["setup"]["metrics"])}
        cases = tuple(read_case(case) for case in record["cases"])
        return Results(
            Setup(**setup), cases, record["noise"], record["seconds"], record["tokens"], record.get("cost_usd")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"lacks or misspells {error}", path=str(path)) from None


def read_case(record: Mapping[str, Any]) -> CaseResult:
    """The inverse of `case_record`. Raises KeyError or TypeError."""
    case = CaseResult(**record)
    if any(not isinstance(v, (int, float)) or not 0 <= v <= 1 for v in case.scores.values()):
        raise ValueError(f"a score of case {case.id!r}")
    return case
